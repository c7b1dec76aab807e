"""Two models on the same prompts: is the difference more than luck? Tests on pairs of results, and its interval.

>>> mcnemar([True] * 9 + [False], [False] * 9 + [True])
0.021484375
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from anchorline.errors import MissingExtra

RESAMPLES = 2000
SHUFFLES = 9999


class Difference(NamedTuple):
    """Mean of a − b over `n` pairs of results, its 95 % interval, and the p-value of "there is none"."""

    n: int
    mean: float | None
    low: float | None
    """None where all differences are the same: there is no spread to estimate from."""
    high: float | None
    p: float | None
    test: str


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p-value: among the pairs that differ, each side wins half of them by luck (binomial test)."""
    differ = [one for one, other in zip(a, b, strict=True) if one != other]
    return sign_test(sum(differ), len(differ) - sum(differ))


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value: by luck half of the wins and losses are wins.

    >>> sign_test(9, 1)
    0.021484375
    """
    return float(scipy_stats().binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def compare_results(a: Sequence[float], b: Sequence[float], *, seed: int) -> Difference:
    """The paired difference: McNemar's exact test where all results are 0 or 1, else a permutation of the signs."""
    import numpy as np

    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    shares = {*a, *b} <= {0, 1}
    test = "McNemar, exact" if shares else "sign permutation"
    n = len(differences)
    if n == 0:
        return Difference(0, None, None, None, None, test)
    low, high = spread(differences.tolist(), seed=seed)
    p = mcnemar([value == 1 for value in a], [value == 1 for value in b]) if shares else _signs(differences, seed)
    return Difference(n, float(differences.mean()), low, high, p, test)


def spread(values: Sequence[float], *, seed: int, level: float = 0.95) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval of the mean; None, None where all values are the same."""
    import numpy as np

    if len(set(values)) < 2:
        return None, None
    found = scipy_stats().bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=100,  # never all resamples × values at once
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _signs(differences: Any, seed: int) -> float:
    import numpy as np

    if len(differences) < 2 or not differences.any():
        return 1.0
    found = scipy_stats().permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=SHUFFLES,
        batch=100,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def scipy_stats() -> ModuleType:
    """scipy.stats, or the error that says how to get it."""
    try:
        import scipy.stats
    except ImportError as error:
        raise MissingExtra("comparing two models", "train") from error
    return scipy.stats
