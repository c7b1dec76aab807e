"""What every judge is: two answers in, a verdict out; and how verdicts are counted and kept.

>>> count_verdicts([Verdict("a"), Verdict("tie", flip=True)])
{'judged': 2, 'a': 1, 'b': 0, 'ties': 1, 'flips': 1}
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from anchorline.errors import BadReply
from anchorline.judge.thinking import without_thinking
from anchorline.types import Messages, Verdict


class Judge(Protocol):
    """Says which of two answers to a prompt is better; `row` is for messages only."""

    def __call__(self, prompt: Messages, a: str, b: str, *, row: str = "") -> Awaitable[Verdict]: ...


class Scored(NamedTuple):
    """One answer's number, higher is better; who gave it, and what it is made of, as JSON."""

    points: float
    judge: str = ""
    details: Mapping[str, Any] = MappingProxyType({})


class Scorer(Protocol):
    """Gives one answer to a prompt a number."""

    def __call__(self, prompt: Messages, answer: str, *, row: str = "") -> Awaitable[Scored]: ...


class Unreadable(BadReply):
    """A judge's reply that says no verdict. It is no tie and no zero."""

    kind = "unreadable"


def count_verdicts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many were judged, won by a, won by b, tied, and how many of the ties were flips."""
    verdicts = list(verdicts)
    winners = [verdict.winner for verdict in verdicts]
    return {
        "judged": len(verdicts),
        "a": winners.count("a"),
        "b": winners.count("b"),
        "ties": winners.count("tie"),
        "flips": sum(verdict.flip for verdict in verdicts),
    }


def verdict_to_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON, for the provenance of a pair."""
    return {"winner": verdict.winner, "flip": verdict.flip, "judge": verdict.judge, **verdict.details}


def decision(text: str, finish: str, line: re.Pattern[str], *, expected: str) -> str:
    """The one decision of a judge's reply: the first group of `line`, wherever a line of it matches.

    Drafts in a `<think>` block do not count. Raises Unreadable where the reply was cut, says nothing, or says two
    different things.
    """
    found = {match[1].upper() for match in line.finditer(without_thinking(text).text)}
    if finish != "stop":
        mend = "; raise the judge's max_tokens" if finish == "length" else ""
        raise Unreadable(f"the judge's reply ended by {finish!r}, expected {expected}{mend}")
    if len(found) != 1:
        got = "no decision" if not found else f"{len(found)} decisions ({', '.join(sorted(found))})"
        raise Unreadable(f"the judge's reply has {got}, expected {expected}; it ends with {text[-80:]!r}")
    return found.pop()
