"""How sure a figure is: intervals for a share of answers and for a mean over prompts.

A share of 60 answers is an estimate, so no share or mean of an evaluation is shown without its interval.

>>> kept = wilson(57, 60)
>>> f"{kept.share:.3f} ({kept.low:.3f} to {kept.high:.3f})"
'0.950 (0.863 to 0.983)'
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A share with its interval. All three are None where nothing was counted."""

    share: float | None
    low: float | None
    high: float | None


class MeanInterval(NamedTuple):
    """A mean with its interval. All three are None where there was no value, the bounds where all values are the same."""

    mean: float | None
    low: float | None
    high: float | None


def wilson(kept: float, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of the share kept / n.

    `kept` may have halves in it, as of ties.

    It stays inside 0 to 1 and keeps a width at 0 of n and n of n, where the textbook interval has none.

    centre = (p + z²/2n) / (1 + z²/n);  half width = z / (1 + z²/n) · √(p(1 − p)/n + z²/4n²)
    """
    if not 0 <= kept <= n:
        raise ValueError(f"got {kept} kept of {n}; expected 0 <= kept <= n")
    if n == 0:
        return Interval(None, None, None)
    z2 = _z(level) ** 2
    share = kept / n
    centre = share + z2 / (2 * n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    scale = 1 + z2 / n
    # At 0 of n and n of n the exact bound is the share itself; rounding must not move it past.
    low = 0.0 if kept == 0 else (centre - half) / scale
    high = 1.0 if kept == n else (centre + half) / scale
    return Interval(share, low, high)


def bootstrap_mean(
    values: Sequence[float],
    *,
    seed: int,
    weights: Sequence[float] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
) -> MeanInterval:
    """Mean with the percentile interval of `resamples` means, each over as many draws with replacement.

    For quantities without a known distribution, such as the divergence of each prompt. `weights` (each prompt's tokens)
    make it the mean over all tokens, while whole prompts are still what is drawn: the tokens of one prompt are alike.
    Values that are all the same have no spread to draw from, and an interval of no width would look sure: there is none.
    """
    import numpy as np

    _z(level)  # the same bounds on the level as for a share
    if not len(values):
        return MeanInterval(None, None, None)
    sample = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(sample) if weights is None else np.asarray(weights, dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ValueError("got a value that is not a finite number; expected finite values only")
    if weight.shape != sample.shape or not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError("got weights that do not fit; expected one finite number above 0 for each value")
    value = float(np.average(sample, weights=weight))
    if len(set(values)) < 2:
        return MeanInterval(value, None, None)
    generator = np.random.default_rng(seed)
    # One resample at a time: all of them at once would hold resamples × values numbers.
    draws = (generator.integers(0, len(sample), len(sample)) for _ in range(resamples))
    means = [np.average(sample[draw], weights=weight[draw]) for draw in draws]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return MeanInterval(value, float(low), float(high))


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"got level {level}; expected a number between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + level) / 2)
