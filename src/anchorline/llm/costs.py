"""What calls cost: the bill of the replies that are used, and an estimate for a whole run from a pilot of a few rows.

What was paid, by stage, stands in the cache's table of payments.

>>> estimate([0.01, 0.02, 0.03], 100).mean
2.0
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from anchorline.errors import UserError


@dataclass(slots=True)
class Bill:
    """The replies that are used, each once, with what it cost whenever it was paid for.

    So it says the same whether a reply was asked for, came from the cache, or was shared by equal requests.

    >>> bill = Bill()
    >>> for _ in range(2):
    ...     bill.add("a request's key", 30, 0.5)
    >>> len(bill.replies), bill.tokens, bill.usd
    (1, 30, 0.5)
    """

    replies: dict[str, tuple[int, float | None]] = field(default_factory=dict)
    """Tokens and dollars by the first digits of the request's key."""

    def add(self, key: str, tokens: int, usd: float | None) -> None:
        """The reply to this request is used."""
        self.replies[key[:16]] = tokens, usd

    @property
    def tokens(self) -> int:
        """Prompts and replies together."""
        return sum(tokens for tokens, _ in self.replies.values())

    @property
    def usd(self) -> float | None:
        """Dollars; None where one of the prices is unknown."""
        return known_sum([usd for _, usd in self.replies.values()])


def known_sum(amounts: Sequence[float | None]) -> float | None:
    """The sum, None where one is unknown: rounded once, so that it is the same in whatever order replies came."""
    known = [amount for amount in amounts if amount is not None]
    return math.fsum(known) if len(known) == len(amounts) else None


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
