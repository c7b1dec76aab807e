r"""Prompt templates: text files with `{{name}}` slots, known by the hash of what they say.

Filling is one pass over the template: whatever stands in a value, braces and `{{name}}` included, stays as it is.

>>> template = parse_template("Judge: {{answer}}", name="t", slots={"answer"})
>>> render(template, answer="{{answer}} {0}")[0].content
'Judge: {{answer}} {0}'

A line `=== system ===` or `=== user ===` starts a turn; a file without them is one user turn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from anchorline.errors import UserError
from anchorline.textfile import read_text
from anchorline.types import Message, Messages

MAX_BYTES = 200_000

_SLOT = re.compile(r"\{\{[ \t]*(\w+)[ \t]*\}\}")
_TURN = re.compile(r"^=== (\w+) ===[ \t]*$", re.MULTILINE)


class Template(NamedTuple):
    """A checked template."""

    name: str
    turns: Messages
    """With slots instead of values."""
    hash: str
    """16 hex digits of the file's content; its line ends do not count."""

    @property
    def fixed(self) -> str:
        """The template's own words, without its slots."""
        return _SLOT.sub(" ", "\n".join(turn.content for turn in self.turns))


def parse_template(text: str, *, name: str, slots: Collection[str]) -> Template:
    """Check a template's text; `slots` are the names that it has to use, each at least once, and no other.

    Raises:
        UserError: one line that names the template, the slot, and what to do.

    """
    text = text.replace("\r\n", "\n")
    turns = _turns(text, name)
    used = {slot for turn in turns for slot in _SLOT.findall(turn.content)}
    known = ", ".join("{{" + slot + "}}" for slot in sorted(slots))
    if unknown := sorted(used - set(slots)):
        raise UserError(f"{name}: got the placeholder {{{{{unknown[0]}}}}}, expected {known}; rename or remove it")
    if missing := sorted(set(slots) - used):
        raise UserError(f"{name}: the placeholder {{{{{missing[0]}}}}} is missing, expected {known}; put it in")
    return Template(name, turns, hashlib.sha256(text.encode()).hexdigest()[:16])


def load_template(path: str | Path, *, slots: Collection[str]) -> Template:
    """A template of the user's own."""
    text = read_text(path, what="prompt template", kind="text file", most=MAX_BYTES, error=UserError)
    return parse_template(text, name=str(path), slots=slots)


@cache
def packaged_template(package: str, name: str, slots: frozenset[str]) -> Template:
    """A template that comes with the package: `prompts/NAME.txt` of one of its parts."""
    text = (files(package) / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    return parse_template(text, name=name, slots=slots)


def render(template: Template, **values: str) -> Messages:
    """The turns with the values in their slots. A turn of which nothing is left is left out."""
    turns = (
        Message(turn.role, _SLOT.sub(lambda slot: values[slot[1]], turn.content).strip()) for turn in template.turns
    )
    return tuple(turn for turn in turns if turn.content)


def conversation(messages: Messages) -> str:
    """A conversation as one text for a model that reads it from outside.

    >>> print(conversation((Message("system", "Be kind."), Message("user", "Hi"))))
    [system]
    Be kind.
    <BLANKLINE>
    [user]
    Hi
    """
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in messages)


def _turns(text: str, name: str) -> Messages:
    before, *parts = _TURN.split(text)
    if not parts:
        parts, before = ["user", before], ""
    if before.strip():
        raise UserError(f"{name}: got text before the first `=== … ===` line; put `=== user ===` above it")
    turns: list[Message] = []
    for role, content in zip(parts[::2], parts[1::2], strict=True):
        if role not in ("system", "user"):
            raise UserError(f"{name}: got the turn {role!r}, expected `=== system ===` or `=== user ===`")
        if content.strip():
            turns.append(Message("system" if role == "system" else "user", content.strip()))
    if [turn.role for turn in turns] not in (["user"], ["system", "user"]):
        raise UserError(f"{name}: expected one user turn, with a system turn before it or without; reorder the turns")
    return tuple(turns)
