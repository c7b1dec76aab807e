"""The best and the worst of several answers, by a judge of two or by a score of each.

With a judge, every answer meets every other: a win counts one, a tie half. With a scorer each answer is looked at once,
so it costs k scores where the round costs k(k - 1)/2 verdicts; for two answers a judge costs no more and sees more.

>>> import asyncio
>>> from anchorline.judge import Scored
>>> async def longer(prompt, answer, *, row=""):
...     return Scored(len(answer))
>>> asyncio.run(by_score(longer)((), ["no", "maybe", "yes"]))[:2]
(1, 0)
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from itertools import combinations
from typing import Any, NamedTuple, Protocol

from anchorline.judge import Judge, Scorer, verdict_to_row
from anchorline.judge.sampling import together
from anchorline.types import Messages


class Choice(NamedTuple):
    """Places of the best and the worst answer, None where no answer is better than another; and what was judged."""

    best: int | None
    worst: int | None
    notes: dict[str, Any]
    """JSON for the provenance: verdicts or scores, and each answer's points."""


class Chooser(Protocol):
    """Chooses among two or more answers to a prompt."""

    def __call__(self, prompt: Messages, answers: Sequence[str], *, row: str = "") -> Awaitable[Choice]: ...


def by_rounds(judge: Judge) -> Chooser:
    """Every answer against every other. The best must also beat the worst where the two meet."""

    async def choose(prompt: Messages, answers: Sequence[str], *, row: str = "") -> Choice:
        meetings = list(combinations(range(len(answers)), 2))
        verdicts = await together(judge(prompt, answers[i], answers[j], row=row) for i, j in meetings)
        points = [0.0] * len(answers)
        for (i, j), verdict in zip(meetings, verdicts, strict=True):
            points[i] += {"a": 1.0, "tie": 0.5, "b": 0.0}[verdict.winner]
            points[j] += {"a": 0.0, "tie": 0.5, "b": 1.0}[verdict.winner]
        played = zip(meetings, verdicts, strict=True)
        rows = [{"a": i, "b": j, "verdict": verdict_to_row(verdict)} for (i, j), verdict in played]
        notes = {"verdicts": rows, "points": points}
        best, worst = _extremes(points)
        if best is not None and worst is not None:
            meeting = verdicts[meetings.index((min(best, worst), max(best, worst)))]
            if meeting.winner != ("a" if best < worst else "b"):  # the judge goes in a circle
                return Choice(None, None, notes)
        return Choice(best, worst, notes)

    return choose


def by_score(scorer: Scorer) -> Chooser:
    """The highest score against the lowest."""

    async def choose(prompt: Messages, answers: Sequence[str], *, row: str = "") -> Choice:
        found = await together(scorer(prompt, answer, row=row) for answer in answers)
        points = [scored.points for scored in found]
        scores = [{"judge": scored.judge, **scored.details} for scored in found]
        return Choice(*_extremes(points), {"scores": scores, "points": points})

    return choose


def _extremes(points: Sequence[float]) -> tuple[int | None, int | None]:
    """The first of the highest and the first of the lowest; None for both where all are equal."""
    most, least = max(points), min(points)
    return (None, None) if most == least else (points.index(most), points.index(least))
