"""Whose answers are better? Each prompt's two answers judged in both orders; ties count half, a flip is a tie.

>>> from anchorline.types import Verdict
>>> verdicts = [Verdict("a"), Verdict("tie", flip=True)]
>>> winrate_table(verdicts, [("long", "short")] * 2, seed=0)["win_rate"]
0.75
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from anchorline.errors import EndpointError
from anchorline.evals.length_control import length_controlled
from anchorline.evals.paired import sign_test, spread
from anchorline.evals.stats import wilson
from anchorline.judge import Judge, count_verdicts
from anchorline.progress import SILENT, Progress
from anchorline.types import Answer, Failure, Verdict

POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}


class Judged(NamedTuple):
    """The verdicts, in the order of the answers that could be judged, and those that could not."""

    verdicts: list[Verdict]
    answers: list[tuple[Answer, Answer]]
    failures: list[Failure]


async def judge_answers(
    judge: Judge, ours: Sequence[Answer], theirs: Sequence[Answer], *, progress: Progress = SILENT
) -> Judged:
    """Judge answer against answer to the same prompt. A reply without a verdict is a failure, no tie."""
    pairs = list(zip(ours, theirs, strict=True))
    with progress.task("judge", total=len(pairs), unit="pairs") as advance:

        async def one(a: Answer, b: Answer) -> Verdict | Failure:
            try:
                return await judge(a.prompt, a.text, b.text, row=a.id)
            except EndpointError as error:
                return Failure(a.id, "winrate", error.kind, str(error))
            finally:
                advance(1)

        found = await asyncio.gather(*(one(a, b) for a, b in pairs))
    judged = [(verdict, pair) for verdict, pair in zip(found, pairs, strict=True) if isinstance(verdict, Verdict)]
    failures = [failure for failure in found if isinstance(failure, Failure)]
    return Judged([verdict for verdict, _ in judged], [pair for _, pair in judged], failures)


def winrate_table(verdicts: Sequence[Verdict], texts: Sequence[tuple[str, str]], *, seed: int) -> dict[str, Any]:
    """Win rate of a with its bootstrap 95 % interval over prompts, the counts, and the length-controlled rate.

    Where all results are the same there is nothing to draw from, and the interval is Wilson's. `p` is of "neither is
    better": the exact sign test of wins against losses, in which ties say nothing.
    """
    points = [POINTS[verdict.winner] for verdict in verdicts]
    counts, n = count_verdicts(verdicts), len(verdicts)
    rate = sum(points) / n if n else None
    low, high = spread(points, seed=seed)
    if n and low is None and rate is not None:
        _, low, high = wilson(rate * n, n)
    lengths = [len(a) - len(b) for a, b in texts]
    controlled = length_controlled(points, lengths, seed=seed)
    return {
        "n": n,
        "wins": counts["a"],
        "losses": counts["b"],
        "ties": counts["ties"],
        "flips": counts["flips"],
        "flip_rate": counts["flips"] / n if n else None,
        "win_rate": rate,
        "low": low,
        "high": high,
        "p": sign_test(counts["a"], counts["b"]) if n else None,
        "length_controlled": controlled._asdict(),
        "characters_longer": sum(lengths) / n if n else None,
    }
