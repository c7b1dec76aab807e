"""lm-evaluation-harness as an evaluation: its own metrics of each task, the models' samples, and a paired test over them.

>>> lm_eval_task(Evaluation(settings, folder))["figures"][0]["name"]  # doctest: +SKIP
'arc_easy: acc'
"""

from __future__ import annotations

from pathlib import Path

from anchorline.evals.figure import Figures, make_figure
from anchorline.evals.lm_harness import HarnessTask, harness, known_tasks
from anchorline.evals.runner import Evaluation, Side
from anchorline.evals.stats import wilson


def lm_eval_needs(work: Evaluation) -> tuple[str, ...]:
    """The names of tasks, which the harness knows."""
    names = work.settings.lm_tasks or (work.need(None, "--lm-task"),)
    known_tasks(names, include=_include(work))
    return names


def lm_eval_task(work: Evaluation, names: tuple[str, ...]) -> Figures:
    """Tasks of lm-evaluation-harness, with its own metrics; a metric that is a mean over documents is compared in pairs."""
    sides: list[Side] = ["model", "against"] if work.against else ["model"]
    found = {
        side: harness(
            work.loaded(side),
            names,
            include=_include(work),
            limit=work.settings.limit,
            seed=work.settings.seed,
            replies=work.folder / "lm_eval" / f"{side}-{work.key(side)}.jsonl",
            progress=work.progress,
        )
        for side in sides
    }
    for side in sides:
        rows = [{"task": name, **row} for name, task in found[side].items() for row in task.samples]
        work.keep(f"lm_eval-{side}", rows)
    figures = [
        _metric_figure(work, {side: found[side][task] for side in sides}, task, name)
        for task, outcome in found["model"].items()
        for name in outcome.metrics
        if name != "n" and "_stderr" not in name
    ]
    tables = {side: {name: task.metrics for name, task in found[side].items()} for side in sides}
    return {"figures": figures, "tables": tables}


def _include(work: Evaluation) -> Path | None:
    return Path(work.settings.lm_include) if work.settings.lm_include else None


def _metric_figure(work: Evaluation, tasks: dict[Side, HarnessTask], task: str, name: str) -> Figures:
    parts = {side: _interval(one, name) for side, one in tasks.items()}
    both = {side: one.results(name) for side, one in tasks.items()}
    ours, theirs = both["model"], both.get("against")
    results = None
    if ours is not None and theirs is not None:
        results = {"model": list(ours.values()), "against": [theirs[number] for number in ours]}
    label, n = f"{task}: {name}", tasks["model"].metrics["n"]
    return make_figure(label, n, parts["model"], parts.get("against"), results, seed=work.settings.seed, unit="metric")


def _interval(task: HarnessTask, name: str) -> Figures:
    """The metric with its interval: Wilson's for a share of documents; else the harness's own standard error, as normal.

    A standard error of 0 says that all documents came out alike, not that the metric is known: there is no interval then.
    """
    value, results = task.metrics[name], task.results(name)
    if results is not None and set(results.values()) <= {0.0, 1.0}:
        _, low, high = wilson(sum(results.values()), len(results))
        return {"share": value, "low": low, "high": high}
    metric, _, rest = name.partition(",")
    error = task.metrics.get(f"{metric}_stderr" + (f",{rest}" if rest else ""))
    return {"share": value, "low": value - 1.96 * error, "high": value + 1.96 * error} if error else {"share": value}
