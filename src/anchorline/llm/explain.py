"""Why a request was no hit: the stored requests that come nearest, and exactly which field differs.

>>> explain("requests.sqlite", Request(messages, max_tokens=512), model="gpt-4o-mini").text  # doctest: +SKIP
'no hit: the nearest of 812 stored requests differs in temperature (asked 0.2, stored 0.7)'
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from anchorline.errors import DataError
from anchorline.llm.keys import messages_json, request_key, settings_json
from anchorline.llm.store import Record, connect, readable
from anchorline.llm.types import Request

KEY = re.compile(r"[0-9a-f]{8,64}")
SHOWN = 40
NEAREST = 3


class Difference(NamedTuple):
    """One field, as it was asked and as it is stored. `place` tells where within a message."""

    field: str
    asked: Any
    stored: Any
    place: str = ""


class Near(NamedTuple):
    """A stored request and how it differs from the one that was asked."""

    key: str
    differences: tuple[Difference, ...]


class Explanation(NamedTuple):
    """Whether a request is a hit, the nearest stored ones, and the same as a text."""

    key: str
    hit: bool
    nearest: tuple[Near, ...]
    text: str


def explain(
    path: str | Path,
    asked: str | Request,
    *,
    model: str = "",
    extra_body: Mapping[str, Any] | None = None,
    retry_failed: bool = False,
) -> Explanation:
    """Explain a request to `model`, or what is stored under a key (its first 8 digits or more)."""
    with closing(connect(path, must_exist=True)) as db, readable(path):
        if isinstance(asked, str):
            return _explain_key(db.execute, path, asked)
        key = request_key(model, asked, extra_body)
        row = db.execute("SELECT * FROM requests WHERE key = ?", (key,)).fetchone()
        if row:
            return _explain_row(key, Record(*row), asked.max_tokens, retry_failed=retry_failed)
        wanted = _Fields(model, json.loads(messages_json(asked.messages)), json.loads(settings_json(asked, extra_body)))
        rows = db.execute("SELECT key, model, messages, settings FROM requests")
        count = 0
        best: list[tuple[tuple[float, ...], int, Near]] = []
        for count, (other, *fields) in enumerate(rows, 1):
            stored = _Fields(fields[0], json.loads(fields[1]), json.loads(fields[2]))
            entry = (_nearness(wanted, stored), -count, Near(other, ()))
            # the differences are spelled out for the few that stay, not for each of a million rows
            if len(best) < NEAREST:
                heapq.heappush(best, (entry[0], entry[1], Near(other, _differences(wanted, stored))))
            elif entry[:2] > best[0][:2]:
                heapq.heapreplace(best, (entry[0], entry[1], Near(other, _differences(wanted, stored))))
    nearest = tuple(near for _, _, near in sorted(best, key=lambda entry: entry[:2], reverse=True))
    if not nearest:
        return Explanation(key, False, (), "no hit: the cache holds no requests")
    told = "; ".join(_tell(difference) for difference in nearest[0].differences)
    text = f"no hit: the nearest of {count} stored requests ({nearest[0].key[:12]}) differs in {told}"
    return Explanation(key, False, nearest, text)


class _Fields(NamedTuple):
    model: str
    messages: list[list[str]]
    settings: dict[str, Any]


def _explain_key(execute: Any, path: str | Path, key: str) -> Explanation:
    if not KEY.fullmatch(key):
        raise DataError(
            f"{key!r} is no file that is there, and no key of a request: 8 to 64 hex digits were expected", file=path
        )
    rows = execute("SELECT * FROM requests WHERE key >= ? AND key < ? || 'g' LIMIT 2", (key, key)).fetchall()
    if len(rows) > 1:
        raise DataError(f"several keys begin with {key}; give more of its digits", file=path)
    if not rows:
        return Explanation(
            key, False, (), f"no request with the key {key} is stored; a key does not tell what was asked"
        )
    record = Record(*rows[0])
    return _explain_row(record.key, record, record.max_tokens, retry_failed=False)


def _explain_row(key: str, row: Record, max_tokens: int, *, retry_failed: bool) -> Explanation:
    if row.error is not None:
        text = f"the request is stored as failed ({row.error}: {row.text})"
        if retry_failed:
            return Explanation(key, False, (Near(key, ()),), f"no hit: {text}, and --retry-failed asks it again")
        return Explanation(key, True, (Near(key, ()),), f"hit: {text}; --retry-failed asks it again")
    if row.finish == "length" and row.max_tokens < max_tokens:
        cut = Difference("max_tokens", max_tokens, row.max_tokens)
        text = f"no hit: the stored reply was cut at {row.max_tokens} tokens, and {max_tokens} are allowed now"
        return Explanation(key, False, (Near(key, (cut,)),), text)
    return Explanation(key, True, (Near(key, ()),), f"hit: answered by {row.reply_model or row.model} ({row.finish})")


def _nearness(asked: _Fields, stored: _Fields) -> tuple[float, ...]:
    """Larger is nearer: fewer fields that differ, then messages that agree for longer."""
    same = (
        (asked.model == stored.model)
        + (asked.messages == stored.messages)
        + sum(value == stored.settings.get(name) for name, value in asked.settings.items())
    )
    if asked.messages == stored.messages:
        return same, float("inf")
    agree = 0
    for (role, text), (other_role, other) in zip(asked.messages, stored.messages, strict=False):
        if role != other_role:
            break
        agree += _common(text, other)
        if text != other:
            break
    return same, agree


def _differences(asked: _Fields, stored: _Fields) -> tuple[Difference, ...]:
    found = [] if asked.model == stored.model else [Difference("model", asked.model, stored.model)]
    if len(asked.messages) != len(stored.messages):
        found.append(Difference("messages", len(asked.messages), len(stored.messages), "their number"))
    for i, ((role, text), (other_role, other)) in enumerate(zip(asked.messages, stored.messages, strict=False)):
        if role != other_role:
            found.append(Difference("messages", role, other_role, f"message {i + 1}, its role"))
        if text != other:
            at = _common(text, other)
            place = f"message {i + 1} ({role}), character {at + 1}"
            found.append(Difference("messages", text[at : at + SHOWN], other[at : at + SHOWN], place))
            break
    for name, value in asked.settings.items():
        if value != stored.settings.get(name):
            found.append(Difference(name, value, stored.settings.get(name)))
    return tuple(found)


def _common(one: str, other: str) -> int:
    both = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(one), len(other)))


def _tell(difference: Difference) -> str:
    place = f" ({difference.place})" if difference.place else ""
    return f"{difference.field}{place}: asked {_short(difference.asked)}, stored {_short(difference.stored)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 2 * SHOWN else text[: 2 * SHOWN] + "…"
