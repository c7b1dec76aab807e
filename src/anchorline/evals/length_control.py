"""What would the win rate be if both answers were equally long? A logistic regression with the length as a term.

logit P(win) = θ + φ · tanh((len_a − len_b) / s), lengths in characters, s their differences' standard deviation.
The length-controlled win rate is P(win) at a difference of 0, that is σ(θ). A tie counts as half a win.

As AlpacaEval 2 (Dubois et al. 2024) fits it: an L1 penalty whose strength five-fold cross-validation chooses by log-loss.
Left out are what needs AlpacaEval's own data: the term of each instruction's difficulty (estimated over many models of
its leaderboard) and the pull towards its two "gamed" baselines.

The interval is of the profile likelihood of θ with Firth's penalty (Heinze & Schemper 2002), not the L1 penalty, which pulls
towards 50 %: all θ at which the best φ makes the results at most exp(1.92) times less likely than the best θ and φ do. It is
finite where length parts wins from losses, and where all results are wins. How often it holds the truth:
benchmarks/length_control_coverage.py.

>>> round(length_controlled([1, 0] * 20, [5, 5] * 20, seed=0).rate, 2)
0.5
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from anchorline.errors import MissingExtra

FOLDS = 5
LEAST_WEIGHT = 1e-4
DROP = 1.9207
"""Half the 95 % quantile of χ² with one degree of freedom: as far as the log-likelihood may fall inside the interval."""
FURTHEST = 20.0
"""The largest |θ| that is tried; σ(20) is 1 to a reader. Where all differences are alike and long, nothing tells θ from φ."""


class Controlled(NamedTuple):
    """The rate with its profile-likelihood 95 % interval (None below 10 results), φ, and 1 / strength of the penalty."""

    n: int
    rate: float | None
    low: float | None
    high: float | None
    length_effect: float | None
    strength: float | None


def length_controlled(wins: Sequence[float], differences: Sequence[float], *, seed: int) -> Controlled:
    """`wins` in 0, 0.5, 1; `differences`: length of a − length of b. The seed draws the folds. Below 10 results: no fit."""
    import numpy as np

    won, delta = np.asarray(wins, dtype=float), np.asarray(differences, dtype=float)
    if len(won) < 2 * FOLDS:
        return Controlled(len(won), None, None, None, None, None)
    strength = _strength(won, delta, seed)
    theta, phi = _fit(won, delta, strength)
    rate = float(_sigmoid(theta))
    low, high = (float(_sigmoid(end)) for end in _interval(won, _columns(delta)))
    # a rate that the L1 penalty pulled out of the interval widens it
    return Controlled(len(won), rate, min(rate, low), max(rate, high), phi, strength)


def _interval(won: Any, columns: Any) -> tuple[float, float]:
    """The least and the largest θ whose profile likelihood lies within DROP of the top.

    The penalised log-likelihood is Σ y·η − log(1 + exp η) + ½ log det XᵀWX, with η = θ + φ·x and W = σ(η)·(1 − σ(η)) (Firth
    1993). A tie, y = ½, is half a win and half a loss. Without differences of length only θ is left, and for k wins of n
    this is (k + ½) log p + (n − k + ½) log(1 − p).
    """
    import numpy as np
    from scipy.optimize import minimize, minimize_scalar, root_scalar

    columns = columns if columns[:, 1].any() else columns[:, :1]
    # keeps the determinant above 0 where rounding leaves nothing of it
    ridge = 1e-12 * np.eye(columns.shape[1])

    def loss(weights: Any) -> float:
        value = columns @ weights
        p = _sigmoid(value)
        information = (columns.T * (p * (1 - p))) @ columns + ridge
        return float(np.logaddexp(0, value).sum() - won @ value - 0.5 * np.linalg.slogdet(information)[1])

    best = minimize(loss, np.zeros(columns.shape[1]))
    top, *slope = best.x

    def beyond(theta: float) -> float:
        """How much further than DROP the profile has fallen at θ."""
        if not slope:
            return loss([theta]) - best.fun - DROP
        # φ moves against θ, so that the answers' probabilities stay
        near = slope[0] - (theta - top) * columns[:, 1].mean()
        found: Any = minimize_scalar(lambda phi: loss([theta, phi]), bracket=(near, near + 0.5))
        return float(found.fun) - best.fun - DROP

    def end(furthest: float) -> float:
        return (
            furthest if beyond(furthest) <= 0 else float(root_scalar(beyond, bracket=(top, furthest), xtol=1e-4).root)
        )

    return end(-FURTHEST), end(FURTHEST)


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
