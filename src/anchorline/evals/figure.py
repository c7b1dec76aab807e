"""One figure of an evaluation: a value with n and its interval, beside it the other model's and the paired difference.

>>> make_figure("kept", 4, {"share": 0.5, "low": 0.15, "high": 0.85})["value"]
0.5
"""

from __future__ import annotations

from typing import Any

from anchorline.evals.paired import compare_results

Figures = dict[str, Any]


def make_figure(
    name: str,
    n: int | None,
    part: Figures,
    other: Figures | None = None,
    results: dict[str, list[float]] | None = None,
    seed: int = 0,
    *,
    unit: str = "share",
) -> Figures:
    def shown(one: Figures) -> Figures:
        return {"n": n, "value": one["share"], "low": one.get("low"), "high": one.get("high")}

    difference = None
    if other is not None and results is not None:
        difference = compare_results(results["model"], results["against"], seed=seed)._asdict()
    return {
        "name": name,
        "unit": unit,
        **shown(part),
        "against": shown(other) if other else None,
        "difference": difference,
    }
