"""`--help` of every command, as a user reads it on 100 columns.

After a wanted change, write the golden files again with ANCHORLINE_UPDATE_GOLDEN=1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anchorline.cli.main import app

HELP = Path(__file__).parents[1] / "golden" / "help"
COMMANDS = ["run", "sample", "pairs", "measure", "export", "train", "advise", "score", "eval", "report", "compare"]
CALL = "import sys; sys.argv[0] = 'anchorline'; from anchorline.cli.main import entry; entry()"
PLAIN = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "LANG": "C.UTF-8", "PATH": os.environ["PATH"]}


def shown(*words: str) -> str:
    """What the command prints."""
    done = subprocess.run([sys.executable, "-c", CALL, *words], capture_output=True, text=True, check=True, env=PLAIN)
    assert done.stderr == ""
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


@pytest.mark.parametrize("command", ["anchorline", *COMMANDS])
def test_help(command: str) -> None:
    text = shown(*([] if command == "anchorline" else [command]), "--help")
    file = HELP / f"{command}.txt"
    if os.environ.get("ANCHORLINE_UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
    assert "\x1b" not in text
    if command in COMMANDS:
        assert f"anchorline {command} " in text.split("Examples")[1], "an example of the command itself"


def test_no_command_is_left_out() -> None:
    named = [command.name or (command.callback and command.callback.__name__) for command in app.registered_commands]
    assert named == COMMANDS
    assert {file.stem for file in HELP.iterdir()} == {"anchorline", *COMMANDS}


def test_version() -> None:
    from anchorline import __version__

    assert shown("--version") == f"anchorline {__version__}\n"
