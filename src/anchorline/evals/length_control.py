"""What would the win rate be if both answers were equally long? A logistic regression with the length as a term.

logit P(win) = θ + φ · tanh((len_a − len_b) / s), lengths in characters, s their differences' standard deviation.
The length-controlled win rate is P(win) at a difference of 0, that is σ(θ). A tie counts as half a win.

As AlpacaEval 2 (Dubois et al. 2024) fits it: an L1 penalty whose strength five-fold cross-validation chooses by log-loss.
Left out are what needs AlpacaEval's own data: the term of each instruction's difficulty (estimated over many models of
its leaderboard) and the pull towards its two "gamed" baselines.

The interval is a bootstrap over prompts of the fit without the penalty. With it, draws are pulled towards 50 % too, and the
interval holds the truth far too rarely (benchmarks/length_control_coverage.py).

>>> round(length_controlled([1, 0] * 20, [5, 5] * 20, seed=0).rate, 2)
0.5
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from anchorline.errors import MissingExtra

FOLDS = 5
RESAMPLES = 500
LEAST_WEIGHT = 1e-4
UNPENALISED = 1e3
"""A strength at which the penalty moves nothing that a reader would see, and a draw that length parts wholly has a fit."""


class Controlled(NamedTuple):
    """The rate with its bootstrap 95 % interval (None where it cannot be estimated), φ, and 1 / strength of the penalty."""

    n: int
    rate: float | None
    low: float | None
    high: float | None
    length_effect: float | None
    strength: float | None


def length_controlled(wins: Sequence[float], differences: Sequence[float], *, seed: int) -> Controlled:
    """`wins` in 0, 0.5, 1; `differences`: length of a − length of b. Fewer than 10 results, or all the same: no fit."""
    import numpy as np

    won, delta = np.asarray(wins, dtype=float), np.asarray(differences, dtype=float)
    if len(won) < 2 * FOLDS or len(set(wins)) < 2:
        return Controlled(len(won), None, None, None, None, None)
    strength = _strength(won, delta, seed)
    theta, phi = _fit(won, delta, strength)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        rows = generator.integers(0, len(won), len(won))
        drawn.append(_fit(won[rows], delta[rows], UNPENALISED)[0])
    low, high = np.quantile(_sigmoid(np.asarray(drawn)), [0.025, 0.975])
    rate = float(_sigmoid(theta))
    # a rate that the penalty pulled out of its interval widens it
    return Controlled(len(won), rate, min(rate, float(low)), max(rate, float(high)), float(phi), float(strength))


def _fit(won: Any, delta: Any, strength: float, scale: float | None = None) -> tuple[float, float]:
    """θ and φ. A result p is one row of a win with weight p and one of a loss with weight 1 − p."""
    import numpy as np

    columns = _columns(delta, scale)
    model = _regression(strength)
    with warnings.catch_warnings():
        # where length parts wins from losses wholly, it stops on a flat slope: near enough
        warnings.simplefilter("ignore")
        model.fit(
            np.concatenate([columns, columns]),
            np.concatenate([np.ones(len(won)), np.zeros(len(won))]),
            # never 0: of wins alone the solver complains on the terminal
            sample_weight=np.concatenate([won, 1 - won]).clip(LEAST_WEIGHT),
        )
    theta, phi = model.coef_[0]
    return float(theta), float(phi)


def _columns(delta: Any, scale: float | None = None) -> Any:
    import numpy as np

    width = delta.std(ddof=1) if scale is None else scale
    return np.column_stack([np.ones(len(delta)), np.tanh(delta / width) if width > 0 else np.zeros(len(delta))])


def _strength(won: Any, delta: Any, seed: int) -> float:
    """The penalty whose fits tell the left-out fold's results best."""
    import numpy as np

    folds = np.random.default_rng(seed).permutation(len(won)) % FOLDS
    scale = float(delta.std(ddof=1))
    candidates = np.logspace(-4, 4, 10)

    def loss(strength: float) -> float:
        total = 0.0
        for fold in range(FOLDS):
            inside = folds != fold
            weights = np.asarray(_fit(won[inside], delta[inside], strength, scale))
            p = np.clip(_sigmoid(_columns(delta[~inside], scale) @ weights), 1e-15, 1 - 1e-15)
            total -= float((won[~inside] * np.log(p) + (1 - won[~inside]) * np.log(1 - p)).sum())
        return total

    return float(min(candidates, key=loss))


def _sigmoid(value: Any) -> Any:
    import numpy as np

    return np.exp(-np.logaddexp(0, -value))


def _regression(strength: float) -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtra("the length-controlled win rate", "eval") from error
    return LogisticRegression(C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=0)
