"""A win rate with its interval, and how many judgements would settle on which side of a half it lies.

A tie counts half a win, also one that comes from a judge who changed its mind with the order. The interval is Wilson's
with the half wins in it. A tie varies less than a win and a loss do, so with ties the interval is wider than it need be:
it says "not settled" too often rather than too rarely.

>>> rate = win_rate([Verdict("a")] * 30 + [Verdict("tie")] * 4 + [Verdict("b")] * 6)
>>> rate.share, rate.side, rate.n
(0.8, 'above', 40)
>>> judgements_needed(0.6), judgements_needed(0.5)
(194, None)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist
from typing import Literal, NamedTuple

from anchorline.evals.stats import wilson
from anchorline.judge.verdict import count_verdicts
from anchorline.types import Verdict

POWER = 0.8
"""The chance with which the number of judgements that is told settles the matter, if the rate is what it looks like."""


class WinRate(NamedTuple):
    """The policy's share of wins against one side of the pairs. `share` and its interval are None where n is 0."""

    share: float | None
    low: float | None
    high: float | None
    n: int
    wins: int
    losses: int
    ties: int
    flips: int
    """Ties of a judge that preferred the other answer in the other order."""
    side: Literal["above", "below", "open"]
    """The interval lies over a half, under it, or holds it."""
    needed: int | None
    """Judgements in all that would settle an open one with a chance of 80 %; None: no number, or it is settled."""


def win_rate(verdicts: Iterable[Verdict], *, level: float = 0.95) -> WinRate:
    """Of verdicts in which a is the policy's answer."""
    counted = count_verdicts(verdicts)
    n, ties = counted["judged"], counted["ties"]
    share, low, high = wilson(counted["a"] + ties / 2, n, level=level)
    side = "open"
    if low is not None and high is not None:
        side = "above" if low > 0.5 else "below" if high < 0.5 else "open"
    needed = judgements_needed(share, level=level) if side == "open" and share is not None else None
    needed = None if needed is None else max(needed, n + 1)
    return WinRate(share, low, high, n, counted["a"], counted["b"], ties, counted["flips"], side, needed)


def judgements_needed(share: float, *, level: float = 0.95, power: float = POWER) -> int | None:
    """Judgements with which a two-sided test at 1 − level finds a rate of `share` to differ from a half.

    n = ((z_level / 2 + z_power · √(p (1 − p))) / (p − 1/2))², the normal approximation for one proportion, without
    continuity correction. None at exactly a half: no number settles what is a tie.
    """
    if share == 0.5:
        return None
    normal = NormalDist()
    wanted = normal.inv_cdf((1 + level) / 2) / 2 + normal.inv_cdf(power) * math.sqrt(share * (1 - share))
    return math.ceil((wanted / (share - 0.5)) ** 2)
