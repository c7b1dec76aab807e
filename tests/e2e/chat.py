"""A fake endpoint that plays the policy, the reviser, the judge and other models, in a thread, for tests of commands."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

import yaml
from typer.testing import CliRunner, Result

from anchorline.cli.main import app
from anchorline.llm.fake_server import FakeServer
from anchorline.pairs.parse import CLOSE, OPEN

STYLE = {"name": "calm", "guideline": "Answer calmly.", "rules": [{"kind": "no_exclamation"}]}
PRICE = {"input": 1.0, "output": 2.0}


def role_of(body: dict[str, Any]) -> str:
    """Who is asked, by the packaged prompts."""
    system = body["messages"][0]["content"] if body["messages"][0]["role"] == "system" else ""
    signs = {"You edit what": "reviser", "You compare two": "judge", "You rate": "scorer"}
    return next((role for sign, role in signs.items() if sign in system), "answers")


class Actor:
    """Plays all roles: answers shout, each sample louder; revisions are calm; the judge likes what shouts less.

    `judge` may be a text that it always says, or "calm".
    """

    def __init__(self, judge: str = "calm") -> None:
        self.judge, self.seen = judge, Counter[str]()

    def __call__(self, body: dict[str, Any]) -> str:
        role = role_of(body)
        asked = next(turn["content"] for turn in body["messages"] if turn["role"] == "user")
        if role == "reviser":
            return f"It shouts.\n{OPEN}\n{inside('answer', asked).replace('!', '.')}\n{CLOSE}"
        if role == "judge":
            if self.judge != "calm":
                return self.judge
            a, b = (inside(f"answer_{letter}", asked).count("!") for letter in "ab")
            return f"Weighed.\nVERDICT: {'A' if a < b else 'B' if b < a else 'TIE'}"
        if role == "scorer":
            return f"Fine.\nSCORE: {max(1, 10 - inside('answer', asked).count('!'))}"
        last = body["messages"][-1]["content"]
        if body["model"] == "quiet":
            return f"Your order left today, it says here. You asked: {last}"
        key = json.dumps(body, sort_keys=True)
        self.seen[key] += 1
        return f"Hello{'!' * self.seen[key]} Your order left today! You asked: {last}"


def inside(tag: str, text: str) -> str:
    """What stands between a prompt's tags."""
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL)
    assert found is not None
    return found[1]


class Running:
    """A FakeServer in a thread with a loop of its own."""

    def __init__(self, actor: Any = None, **how: Any) -> None:
        self.server = FakeServer(reply=actor or Actor(), **how)
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        async with self.server:
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def calls(self) -> int:
        """Requests that were answered so far."""
        return sum(self.server.answered.values())

    def asked(self, role: str) -> list[dict[str, Any]]:
        """The bodies of requests to one role."""
        return [body for body in self.server.bodies if role_of(body) == role]


def write_project(folder: Path, url: str, *, rows: int = 8, **settings: Any) -> Path:
    """A style, prompts (two of them with a system message and several turns) and a recipe; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "calm.yaml").write_text(yaml.safe_dump(STYLE))
    write_prompts(folder, rows)
    served = {"base_url": url, "prices": PRICE, "attempts": 1}
    endpoint = served | {"max_tokens": 200}
    recipe = {
        "name": "try",
        "style": "calm.yaml",
        "prompts": {"train": "prompts.jsonl", "heldout": "heldout.jsonl"},
        "sample": {"max_new_tokens": 60},
        "pairs": {"reviser": "llm", "judge": "llm"},
        "llm": {
            "policy": {"model": "policy", **served},
            **{name: {"model": name, **endpoint} for name in ("reviser", "judge")},
            "stronger": {"model": "quiet", **endpoint},
            "others": [{"model": name, **endpoint} for name in ("quiet", "loud")],
        },
    }
    for key, value in settings.items():
        *groups, name = key.split("__")
        place: Any = recipe
        for group in groups:
            place = place[group]
        place[name] = value
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def write_prompts(folder: Path, rows: int) -> None:
    """The first so many prompts, always the same ones, and one that is held out."""

    def prompt(i: int) -> Any:
        if i % 4:
            return f"Where is order {i}?"
        turns = [
            ("system", f"You are Ada {i}."),
            ("user", f"Hi {i}"),
            ("assistant", "Hello."),
            ("user", f"And order {i}?"),
        ]
        return [{"role": role, "content": text} for role, text in turns]

    lines = [json.dumps({"id": f"p{i}", "prompt": prompt(i)}) for i in range(rows)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "heldout.jsonl").write_text(json.dumps({"prompt": "Do you ship to Malta?"}) + "\n")


def anchorline(*words: object, code: int = 0, env: dict[str, str] | None = None) -> Result:
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(word) for word in words], env=env)
    assert result.exit_code == code, result.output + result.stderr
    assert "Traceback" not in result.output + result.stderr
    return result


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def manifest_of(folder: Path) -> dict[str, Any]:
    """The run folder's manifest."""
    return json.loads((folder / "manifest.json").read_text())
