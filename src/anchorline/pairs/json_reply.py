"""A revision that came as JSON although none was asked for: `{"reasoning": …, "revision": …}`, fenced or not.

>>> revision_in_json('Sure: {"reasoning": "Too long.", "Revised Answer": "It left."}')
InJson(revision='It left.', start=6, end=62, reasoning='Too long.')
>>> revision_in_json("It left.") is None
True
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_REVISION_KEYS = (
    "revision", "revised", "revised_answer", "revised_response", "revised_text", "revised_version", "revised_solution",
    "corrected_student_solution", "corrected_solution", "corrected_answer", "improved_answer", "edited_answer",
)  # fmt: skip
_REASONING_KEYS = ("reasoning", "rationale", "rational", "teacher_reasoning", "thoughts", "explanation", "analysis")
_KEY = re.compile(r"[^\W_]+")
_OBJECT = re.compile(r"\{[ \t\r\n]{0,40}\"")
_LOOKS_LIKE = re.compile(r"\A\s*(?:```\w*\s*)?\{\s*\"")
_PYTHONS = re.compile(r"\A\s*(?:```\w*\s*)?\{\s*'")
"""A dictionary as Python prints it; it may look like a marker with text behind, and is not read by guessing."""
_HALF = re.compile("[\ud800-\udfff]")
_TRIES = 4
"""Objects looked at in one reply; each costs a pass over the text."""


class InJson(NamedTuple):
    """What the object holds; `revision` is None where it looks like one that cannot be read, or where several differ."""

    revision: str | None
    start: int
    end: int
    """Where the object stands in the reply."""
    reasoning: str = ""


def revision_in_json(text: str) -> InJson | None:
    """The revision in the one JSON object that has one. None where the reply has no such object."""
    # line breaks within strings are not JSON, and models write them all the time
    decoder = json.JSONDecoder(strict=False)
    unread: int | None = None
    held: list[InJson] = []
    for count, start in enumerate(_OBJECT.finditer(text)):
        if count == _TRIES:
            break
        if held and start.start() < held[-1].end:
            continue
        try:
            found, end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            if count == 0 and _names_a_revision(text[start.start() :]):
                unread = start.start()
            continue
        revisions, reasoning = _values(found, _REVISION_KEYS), _values(found, _REASONING_KEYS)
        if revisions:
            held.append(InJson(_only(revisions), start.start(), end, (_only(reasoning[:1]) or "").strip()))
    if held:
        return held[0]._replace(revision=_only([each.revision for each in held]), end=held[-1].end)
    if _PYTHONS.match(text) and _names_a_revision(text):
        return InJson(None, 0, len(text))
    return InJson(None, unread, len(text)) if unread is not None and _LOOKS_LIKE.match(text) else None


def _values(found: dict[str, Any], keys: tuple[str, ...]) -> list[Any]:
    return [value for key, value in found.items() if _key(key) in keys]


def _only(values: list[Any]) -> str | None:
    """The one string that all values are; none with half a surrogate pair, which an escape may hold and no file can."""
    if not values or not isinstance(values[0], str) or any(value != values[0] for value in values):
        return None
    return None if _HALF.search(values[0]) else values[0]


def _names_a_revision(text: str) -> bool:
    keys = (match[1] for match in re.finditer(r"[\"']([^\"'\n]{1,40})[\"'][ \t]{0,4}:", text))
    return any(_key(key) in _REVISION_KEYS for key in keys)


def _key(key: str) -> str:
    return "_".join(_KEY.findall(key.casefold()))
