"""ARCHITECTURE.md gives every module of the package one phrase, in the order of its folders, and names no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "anchorline"
LINE = re.compile(r"^(?P<indent>[ │├└─|`+-]*)(?P<name>[\w.-]+\.py|[\w.-]+/)(?P<phrase>.*)$")


def described() -> dict[str, str]:
    """Path below the package and phrase of each module in the document's first fenced block."""
    block = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[1]
    found: dict[str, str] = {}
    folders: list[tuple[int, str]] = []
    for line in block.splitlines()[1:]:
        match = LINE.match(line)
        if match is None:
            continue
        depth, name = len(match["indent"]), match["name"]
        folders = [(d, folder) for d, folder in folders if d < depth]
        path = "".join(folder for _, folder in folders) + name
        if name.endswith("/"):
            folders.append((depth, name))
        else:
            assert path not in found, f"{path} stands there twice"
            found[path] = match["phrase"].strip(" #—-")
    start = "src/anchorline/"
    return {path.removeprefix(start): phrase for path, phrase in found.items() if path.startswith(start)}


def test_the_tree_is_the_package() -> None:
    there = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py")}
    named = set(described())
    assert there - named == set(), "modules that ARCHITECTURE.md leaves out"
    assert named - there == set(), "modules that ARCHITECTURE.md names and the package lacks"


def test_every_module_has_a_phrase() -> None:
    without = [path for path, phrase in described().items() if len(phrase.split()) < 2]
    assert without == []


def test_every_module_says_what_it_is_for() -> None:
    without = [
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if not file.read_text(encoding="utf-8").startswith(('"""', 'r"""'))
    ]
    assert without == []
