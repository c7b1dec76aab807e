"""How often does the length-controlled win rate's 95 % interval hold the truth, and on which side does it miss? Simulated.

Answers' lengths differ by normal draws around half a standard deviation, so the longer answer is mostly ours; who wins is
drawn from σ(θ + φ · tanh(difference / its standard deviation)). The truth is σ(θ). What is counted is the interval before
the penalised rate may widen it, which spares the slow choice of the penalty. With --beside, on the same draws: the widened
interval with its rate, Wald's of statsmodels' binomial regression, and a percentile bootstrap of the unpenalised regression.

    python benchmarks/length_control_coverage.py --trials 300
    python benchmarks/length_control_coverage.py --trials 100 --sizes 40 --rates 0.6 0.9 --effects 0.5 --beside
    python benchmarks/length_control_coverage.py --trials 300 --sizes 40 --rates 0.5 0.9 --effects 0.5 --ties 0.5
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import numpy as np
import statsmodels.api as sm

from anchorline.evals.length_control import _columns, _fit, _interval, length_controlled

RESAMPLES = 500
UNPENALISED = 1e3
"""A strength at which the penalty moves nothing that a reader would see, and a draw that length parts wholly has a fit."""

Ends = tuple[float, float]


def sigmoid(value: float | np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-np.asarray(value)))


def draw(rate: float, effect: float, ties: float, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Results and differences of length. Of the rarer result a share becomes ties, and as many of the other."""
    generator = np.random.default_rng([seed, n, round(rate * 1000), round(effect * 100)])
    delta = generator.normal(50, 100, n)
    p = sigmoid(np.log(rate / (1 - rate)) + effect * np.tanh(delta / 100))
    tied, place = ties * np.minimum(p, 1 - p), generator.random(n)
    return np.where(place < p - tied, 1.0, np.where(place < p + tied, 0.5, 0.0)), delta


def logit(wins: np.ndarray, delta: np.ndarray) -> Ends:
    """Wald's, by statsmodels."""
    columns = np.column_stack([np.ones(len(wins)), np.tanh(delta / delta.std(ddof=1))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = sm.GLM(wins, columns, family=sm.families.Binomial()).fit()
        low, high = fit.conf_int()[0]
        return float(sigmoid(low)), float(sigmoid(high))


def bootstrap(wins: np.ndarray, delta: np.ndarray, rate: float, seed: int) -> Ends:
    """Percentiles of the regression without its penalty over draws of prompts, widened to hold the rate."""
    generator = np.random.default_rng(seed)
    rows = [generator.integers(0, len(wins), len(wins)) for _ in range(RESAMPLES)]
    drawn = sigmoid(np.array([_fit(wins[row], delta[row], UNPENALISED)[0] for row in rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return min(rate, float(low)), max(rate, float(high))


def one_trial(wins: np.ndarray, delta: np.ndarray, seed: int, beside: bool) -> dict[str, tuple[float, ...]]:
    """Low and high of each way, and ours widened with its rate."""
    low, high = _interval(wins, _columns(delta))
    ways: dict[str, tuple[float, ...]] = {"interval": (float(sigmoid(low)), float(sigmoid(high)))}
    if not beside:
        return ways
    found = length_controlled(wins.tolist(), delta.tolist(), seed=seed)
    assert found.rate is not None and found.low is not None and found.high is not None
    widened = (found.low, found.high, found.rate)
    return ways | {
        "widened": widened,
        "logit": logit(wins, delta),
        "bootstrap": bootstrap(wins, delta, found.rate, seed),
    }


def main() -> None:
    """Print one line of JSON a case and way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 100, 400])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 0.6, 0.8, 0.9, 0.95])
    parser.add_argument("--effects", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--ties", type=float, default=0.0)
    parser.add_argument("--beside", action="store_true")
    arguments = parser.parse_args()
    cases = [(n, effect, rate) for n in arguments.sizes for effect in arguments.effects for rate in arguments.rates]
    for n, effect, truth in cases:
        began = time.monotonic()
        trials = [
            one_trial(*draw(truth, effect, arguments.ties, n, seed), seed, arguments.beside)
            for seed in range(arguments.trials)
        ]
        for way in trials[0]:
            lows, highs, *rates = np.array([trial[way] for trial in trials]).T
            row = {
                "way": way,
                "n": n,
                "truth": truth,
                "length_effect": effect,
                "ties": arguments.ties,
                "trials": len(trials),
                "inside": float(((lows <= truth) & (truth <= highs)).mean()),
                "wholly_above": int((lows > truth).sum()),
                "wholly_below": int((highs < truth).sum()),
                "mean_rate": float(rates[0].mean()) if rates else None,
                "mean_width": float((highs - lows).mean()),
                "seconds": time.monotonic() - began,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
