"""A revision that came as JSON although none was asked for: `{"reasoning": …, "revision": …}`, fenced or not.

>>> revision_in_json('Sure: {"reasoning": "Too long.", "Revised Answer": "It left."}')
InJson(revision='It left.', reasoning='Too long.')
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
_TRIES = 4
"""Objects looked at in one reply; each costs a pass over the text."""


class InJson(NamedTuple):
    """What the object holds; `revision` is None where it looks like one that cannot be read."""

    revision: str | None
    reasoning: str = ""


def revision_in_json(text: str) -> InJson | None:
    """The revision in the first JSON object that has one. None where the reply has no such object."""
    # line breaks within strings are not JSON, and models write them all the time
    decoder = json.JSONDecoder(strict=False)
    named = False
    for count, start in enumerate(_OBJECT.finditer(text)):
        if count == _TRIES:
            break
        try:
            found, _ = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            named = named or (count == 0 and _names_a_revision(text[start.start() :]))
            continue
        if isinstance(found, dict) and any(
            _key(key) in _REVISION_KEYS and not isinstance(found[key], str) for key in found
        ):
            return InJson(None)
        revision, reasoning = _value(found, _REVISION_KEYS), _value(found, _REASONING_KEYS)
        if revision is not None:
            return InJson(revision, (reasoning or "").strip())
    if _PYTHONS.match(text):
        return InJson(None) if _names_a_revision(text) else None
    return InJson(None) if named and _LOOKS_LIKE.match(text) else None


def _value(found: Any, keys: tuple[str, ...]) -> str | None:
    if not isinstance(found, dict):
        return None
    for key, value in found.items():
        if _key(key) in keys and isinstance(value, str):
            return value
    return None


def _names_a_revision(text: str) -> bool:
    keys = (match[1] for match in re.finditer(r"[\"']([^\"'\n]{1,40})[\"'][ \t]{0,4}:", text))
    return any(_key(key) in _REVISION_KEYS for key in keys)


def _key(key: str) -> str:
    return "_".join(_KEY.findall(key.casefold()))
