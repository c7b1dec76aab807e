"""What the cells say together: each set with each objective, the two headline contrasts, and gain at equal drift. Pure.

>>> tabled(grid, sets, done)["contrasts"][0]["difference"]  # doctest: +SKIP
0.25
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from anchorline.evals.paired import compare_results
from anchorline.evals.stats import wilson
from anchorline.measure import measure_pair, summarise
from anchorline.recipe.grid import CompareSettings, Results, best, mean, planned, swept
from anchorline.types import Messages, Pair

BUDGETS = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Drifts, in nats a token, up to which the best gain is asked for."""
MEASURES = ("word_jaccard", "normalised_distance", "length_ratio")


def tabled(
    grid: CompareSettings, sets: Mapping[str, Sequence[Pair]], done: Results, *, keeps: Callable[[Messages, str], bool]
) -> dict[str, Any]:
    """The whole comparison, JSON-ready. `keeps`: whether an answer to a prompt keeps every rule."""
    ended = {cell: done[cell] for cell in planned(grid, done) if cell in done}  # whoever has finished them when
    done = {cell: result for cell, result in ended.items() if "failed" not in result}
    return {
        "sets": [{"set": name, "pairs": len(pairs), **_contrastive(pairs, keeps)} for name, pairs in sets.items()],
        "rows": [row for s in grid.sets for o in grid.objectives if (row := _row(grid, done, s, o))],
        "contrasts": list(_contrasts(grid, done)),
        "retain": [
            _point(result) for cell, result in done.items() if len(grid.retain_weights) > 1 and _held(grid, done, cell)
        ],
        "cells": [dict(result) for result in done.values()],
        "failed": [{"name": c.name, "why": r["failed"]} for c, r in ended.items() if "failed" in r],
        "budgets": BUDGETS,
    }


def _contrastive(pairs: Sequence[Pair], keeps: Callable[[Messages, str], bool]) -> dict[str, Any]:
    metrics = summarise([measure_pair(pair.chosen, pair.rejected) for pair in pairs])["metrics"]
    return {
        **{name: metrics[name]["mean"] for name in MEASURES if name in metrics},
        # what a set can teach of the aim at all: without it, contrast and compliance are confounded
        "chosen_kept": mean([keeps(pair.prompt, pair.chosen) for pair in pairs]),
        "rejected_kept": mean([keeps(pair.prompt, pair.rejected) for pair in pairs]),
    }


def _row(grid: CompareSettings, done: Results, maker: str, objective: str) -> dict[str, Any] | None:
    found = swept(grid, done, maker, objective)
    top = best(found)
    if top is None:
        return None
    result = found[top]
    again = [r for c, r in done.items() if c._replace(seed=top.seed) == top and c.seed != top.seed]
    points = result.get("checkpoints", [])
    own = list(found.values())  # the first seed's: the best of more trainings would be better by luck alone
    return {
        **_point(result),
        "mean_over_rates": mean([r["share"] for r in found.values()]),
        "rates": len(found),
        "checkpoints": points,
        "mean_over_checkpoints": mean([point["share"] for point in points]),
        "best_checkpoint": max((point["share"] for point in points), default=None),
        "further_seeds": mean([r["share"] for r in again]),
        "seeds": len(again),
        "words": result["words"],
        "cut": result["cut"],
        "beside": result["beside"],
        "within": [sum(r["drift"] <= most for r in own) for most in BUDGETS],
        "at_drift": [max((r["share"] for r in own if r["drift"] <= most), default=None) for most in BUDGETS],
        "curves": result["curves"],
    }


def _point(result: Mapping[str, Any]) -> dict[str, Any]:
    """A training's figures with their intervals and n; a cell of an earlier version has not all of them."""
    names = ("maker", "objective", "weight", "seed", "learning_rate", "share", "n", "drift", "drift_low", "drift_high")
    span = wilson(sum(result["kept"]), result["n"])
    later = {name: result.get(name) for name in ("rules_kept", "rules_low", "rules_high", "drift_n")}
    return {name: result[name] for name in names} | {"low": span.low, "high": span.high} | later


def _held(grid: CompareSettings, done: Results, cell: Any) -> bool:
    top = best(swept(grid, done, cell.maker, cell.objective))
    return top is not None and cell._replace(weight=top.weight) == top and cell.maker == grid.sets[0]


def _contrasts(grid: CompareSettings, done: Results) -> Iterator[dict[str, Any]]:
    """The first set against each other one by the first objective; each apo objective against the others, first set."""
    first_set, first = grid.sets[0], grid.objectives[0]
    for other in grid.sets[1:]:
        yield from _contrast(grid, done, (first_set, first), (other, first))
    anchored = [o for o in grid.objectives if o.startswith("apo")]
    for one in anchored:
        for other in grid.objectives:
            if other not in anchored:
                yield from _contrast(grid, done, (first_set, one), (first_set, other))


def _contrast(grid: CompareSettings, done: Results, one: Any, other: Any) -> Iterator[dict[str, Any]]:
    found = [swept(grid, done, *key) for key in (one, other)]
    # the best of more trainings is better by luck alone: only learning rates that both have been given
    rates = set.intersection(*({cell.learning_rate for cell in cells} for cells in found))
    tops = [best({c: r for c, r in cells.items() if c.learning_rate in rates}) for cells in found]
    if tops[0] is None or tops[1] is None:
        return
    ours, theirs = done[tops[0]], done[tops[1]]
    difference = compare_results(ours["kept"], theirs["kept"], seed=0)
    yield {
        "one": "-".join(one),
        "other": "-".join(other),
        "rates": len(rates),
        "n": difference.n,
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "drift_difference": ours["drift"] - theirs["drift"],
    }
