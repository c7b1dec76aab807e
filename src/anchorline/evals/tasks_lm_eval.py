"""lm-evaluation-harness as an evaluation: its own metrics of each task, the models' samples, and a paired test over them.

>>> lm_eval_task(Evaluation(settings, folder))["figures"][0]["name"]  # doctest: +SKIP
'arc_easy: acc'
"""

from __future__ import annotations

from pathlib import Path

from anchorline.evals.figure import Figures, make_figure
from anchorline.evals.runner import Evaluation, Side


def lm_eval_task(work: Evaluation) -> Figures:
    """Tasks of lm-evaluation-harness, with its own metrics."""
    from anchorline.evals.lm_harness import harness

    names = work.settings.lm_tasks or (work.need(None, "--lm-task"),)
    include = Path(work.settings.lm_include) if work.settings.lm_include else None
    sides: list[Side] = ["model", "against"] if work.settings.against else ["model"]
    found = {
        side: harness(work.loaded(side), names, include=include, limit=work.settings.limit, seed=work.settings.seed)
        for side in sides
    }
    figures = []
    for task, metrics in found["model"].items():
        for name, value in metrics.items():
            if name == "n" or "_stderr" in name:
                continue
            parts = {side: _normal(found[side][task], name) for side in sides}
            figures.append(
                make_figure(f"{task}: {name}", metrics["n"], parts["model"], parts.get("against"), unit="metric")
            )
            assert figures[-1]["value"] == value
    return {"figures": figures, "tables": found}


def _normal(metrics: Figures, name: str) -> Figures:
    """The metric with the harness's own standard error as a normal interval."""
    metric, _, rest = name.partition(",")
    error = metrics.get(f"{metric}_stderr" + (f",{rest}" if rest else ""))
    value = metrics[name]
    span = {} if error is None else {"low": value - 1.96 * error, "high": value + 1.96 * error}
    return {"share": value, **span}
