"""How often does the length-controlled win rate's 95 % interval hold the truth? Simulated, beside an unpenalised logit.

Answers' lengths differ by normal draws around half a standard deviation, so the longer answer is mostly ours; who wins is
drawn from σ(θ + φ · tanh(difference / its standard deviation)). The truth is σ(θ). The reference is statsmodels' binomial
regression without a penalty, with Wald's interval of θ.

    python benchmarks/length_control_coverage.py --trials 200
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import numpy as np
import statsmodels.api as sm

from anchorline.evals.length_control import length_controlled

LENGTH_EFFECT = 1.0


def sigmoid(value: float | np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-np.asarray(value)))


def one_trial(theta: float, n: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """Rate, low and high of both ways, on the same draws."""
    generator = np.random.default_rng([seed, n, round(theta * 100)])
    delta = generator.normal(50, 100, n)
    wins = (generator.random(n) < sigmoid(theta + LENGTH_EFFECT * np.tanh(delta / 100))).astype(float)
    found = length_controlled(wins.tolist(), delta.tolist(), seed=seed)
    assert found.rate is not None and found.low is not None and found.high is not None
    columns = np.column_stack([np.ones(n), np.tanh(delta / delta.std(ddof=1))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = sm.GLM(wins, columns, family=sm.families.Binomial()).fit()
    low, high = fit.conf_int()[0]
    return {
        "ours": (found.rate, found.low, found.high),
        "logit": tuple(float(sigmoid(value)) for value in (fit.params[0], low, high)),  # type: ignore[dict-item]
    }


def main() -> None:
    """Print one line of JSON a case and way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 160])
    arguments = parser.parse_args()
    for n in arguments.sizes:
        for theta in (0.0, 0.4, 1.0):
            began = time.monotonic()
            trials = [one_trial(theta, n, seed) for seed in range(arguments.trials)]
            truth = float(sigmoid(theta))
            for way in ("ours", "logit"):
                rates, lows, highs = np.array([trial[way] for trial in trials]).T
                row = {
                    "way": way,
                    "n": n,
                    "truth": truth,
                    "trials": len(trials),
                    "inside": float(((lows <= truth) & (truth <= highs)).mean()),
                    "mean_rate": float(rates.mean()),
                    "mean_width": float((highs - lows).mean()),
                    "seconds": time.monotonic() - began,
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
