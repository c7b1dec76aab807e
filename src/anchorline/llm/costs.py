"""What calls cost: tokens and dollars by stage, and an estimate for a whole run from a pilot of a few rows.

>>> ledger = Ledger()
>>> ledger.paid("revise", 100, 50, usd=0.002)
>>> ledger.stages["revise"].usd, ledger.total().completion_tokens
(0.002, 50)
>>> estimate([0.01, 0.02, 0.03], 100).mean
2.0
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from anchorline.errors import UserError


@dataclass(frozen=True, slots=True)
class Cost:
    """What the calls of one stage came to. `usd` is None where a price is unknown: that is not 0."""

    calls: int = 0
    hits: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    guessed: int = 0
    """Calls whose endpoint told no token counts, so that they had to be guessed."""
    hit_tokens: int = 0
    hit_usd: float | None = 0.0
    """What the replies of the hits had cost when they were paid for."""

    @property
    def tokens(self) -> int:
        """Prompt and reply together."""
        return self.prompt_tokens + self.completion_tokens


class Ledger:
    """Adds up what this process's calls cost, by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, Cost] = {}

    def paid(
        self, stage: str, prompt_tokens: int, completion_tokens: int, *, usd: float | None, guessed: bool = False
    ) -> None:
        """A call was answered and cost this much."""
        cost = self.stages.get(stage, Cost())
        self.stages[stage] = replace(
            cost,
            calls=cost.calls + 1,
            prompt_tokens=cost.prompt_tokens + prompt_tokens,
            completion_tokens=cost.completion_tokens + completion_tokens,
            usd=None if usd is None or cost.usd is None else cost.usd + usd,
            guessed=cost.guessed + guessed,
        )

    def hit(self, stage: str, tokens: int = 0, usd: float | None = 0.0) -> None:
        """A request was answered from the cache, for nothing; once it had cost this much."""
        cost = self.stages.get(stage, Cost())
        self.stages[stage] = replace(
            cost,
            hits=cost.hits + 1,
            hit_tokens=cost.hit_tokens + tokens,
            hit_usd=None if usd is None or cost.hit_usd is None else cost.hit_usd + usd,
        )

    def failed(self, stage: str) -> None:
        """A request ended in an error."""
        cost = self.stages.get(stage, Cost())
        self.stages[stage] = replace(cost, failed=cost.failed + 1)

    def total(self) -> Cost:
        """All stages together."""
        return together(self.stages.values())


def together(costs: Iterable[Cost]) -> Cost:
    """The sum. Dollars are unknown where one of them is."""
    costs = list(costs)
    return Cost(
        calls=sum(cost.calls for cost in costs),
        hits=sum(cost.hits for cost in costs),
        failed=sum(cost.failed for cost in costs),
        prompt_tokens=sum(cost.prompt_tokens for cost in costs),
        completion_tokens=sum(cost.completion_tokens for cost in costs),
        usd=known_sum([cost.usd for cost in costs]),
        guessed=sum(cost.guessed for cost in costs),
        hit_tokens=sum(cost.hit_tokens for cost in costs),
        hit_usd=known_sum([cost.hit_usd for cost in costs]),
    )


def known_sum(amounts: Sequence[float | None]) -> float | None:
    """The sum; None where one is unknown."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


class Estimate(NamedTuple):
    """The expected total of `n` rows, with a 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def estimate(pilot: Sequence[float], n: int) -> Estimate:
    """What `n` rows will come to (dollars or tokens), when `pilot` of them came to these amounts.

    The pilot's rows are a random part of the n and are paid for already; the interval is Student's t prediction interval
    for the remaining n - m rows: t · s · √(n (n - m) / m), with m rows in the pilot and s their standard deviation.

    Raises:
        UserError: the pilot has fewer than two rows, or more than n.

    """
    m = len(pilot)
    if m < 2 or m > n:
        raise UserError(f"a pilot of {m} rows cannot tell what {n} rows cost; take at least 2 and at most all of them")
    mean, spent = statistics.fmean(pilot), sum(pilot)
    half = _t95(m - 1) * statistics.stdev(pilot) * (n * (n - m) / m) ** 0.5
    return Estimate(mean * n, max(spent, mean * n - half), mean * n + half, n)


def _t95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion around the normal quantile, which is good from 5 on."""
    if freedom < 5:
        return (12.7062, 4.3027, 3.1824, 2.7764)[freedom - 1]
    z, v = statistics.NormalDist().inv_cdf(0.975), float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
