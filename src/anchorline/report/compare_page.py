"""The grid of `compare` on one HTML page, and as text: text, a style sheet and SVG, nothing that runs or loads.

>>> empty = {"name": "x", "todo": 3, "before": {"share": 0.0, "n": 4}, "sets": [], "rows": [], "contrasts": [], "retain": [],
...          "cells": [], "failed": [], "budgets": []}
>>> "<script" in build_compare_page(empty), compare_text(empty).splitlines()[0]
(False, 'x: 0 cells, 3 to go; before training 0 % of 4 held-out answers keep every rule')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anchorline.report.charts import MARKS, Dot, Line, dot_chart, line_chart
from anchorline.report.figures import UNIT, number, percent
from anchorline.report.files import write_page
from anchorline.report.html import environment

COLOURS = 6


def write_compare_page(target: Path, table: Mapping[str, Any]) -> Path:
    """Write the page, whole or not at all, and return its path."""
    return write_page(target, build_compare_page(table))


def build_compare_page(table: Mapping[str, Any]) -> str:
    """The whole page."""
    objectives = list(dict.fromkeys(row["objective"] for row in table["rows"]))
    looks = {name: _look(n) for n, name in enumerate(objectives)}
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            table=table,
            colours={name: " ".join(look) for name, look in looks.items()},
            words=list(table["before"].get("beside", {})),
            planes=list(_planes(table, looks)),
            curves=list(_curves(table)),
            along=[row for row in table["rows"] if len(row["checkpoints"]) > 1],
        )
    )


def _look(n: int) -> tuple[str, str]:
    """Colour class and shape of the n-th objective; after one round of the colours, each comes again with another shape."""
    return f"s{n % COLOURS + 1}", f"m{(n + n // COLOURS) % len(MARKS) + 1}"


def _planes(table: Mapping[str, Any], looks: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, Markup]]:
    drifts = [cell["drift"] for cell in table["cells"]]
    for name in dict.fromkeys(row["maker"] for row in table["rows"]):
        cells = [cell for cell in table["cells"] if cell["maker"] == name]
        dots = [Dot(cell["drift"], cell["share"], *looks[cell["objective"]], _said(cell)) for cell in cells]
        yield name, dot_chart(dots, among=drifts, label=f"{name}: share that keeps every rule, over drift")


def _said(cell: Mapping[str, Any]) -> str:
    held = f", retain {cell['weight']:g}" if cell["weight"] else ""
    how = f"{cell['objective']}, rate {cell['learning_rate']:g}, seed {cell['seed']}{held}"
    return f"{how}: {percent(cell['share'])} at {number(cell['drift'], 3)}"


def _curves(table: Mapping[str, Any]) -> Iterator[tuple[str, Markup]]:
    for row in table["rows"]:
        steps = row["curves"]
        lines = [
            Line("r_w", "chosen", [step.get("chosen_reward") for step in steps]),
            Line("r_l", "rejected", [step.get("rejected_reward") for step in steps]),
        ]
        title = f"{row['maker']}, {row['objective']}"
        yield title, line_chart(lines, steps=[step["step"] for step in steps], label=f"{title}: rewards by step")


def compare_text(table: Mapping[str, Any]) -> str:
    """The table as plain text."""
    before = table["before"]
    wide = max([18, *(len(row["objective"]) for row in table["rows"])])
    lines = [
        f"{table['name']}: {len(table['cells'])} cell{'s' * (len(table['cells']) != 1)}, {table['todo']} to go; "
        f"before training {percent(before['share'])} of "
        f"{before['n']} held-out answers keep every rule".replace("\u00a0", " "),
        "",
        f"{'set':12}{'objective':{wide}}{'best':>7}{'95 %':>13}{'mean':>7}{'seeds':>7}"
        f"{'drift':>8}{'95 %':>15}{'n':>5}{'words':>7}{'cut':>6}  rate",
    ]
    for row in table["rows"]:
        span = f"{100 * row['low']:.0f}-{100 * row['high']:.0f}"
        lines.append(
            f"{row['maker']:12}{row['objective']:{wide}}{_hundred(row['share']):>7}{span:>13}"
            f"{_hundred(row['mean_over_rates']):>7}{_hundred(row['further_seeds']):>7}"
            f"{row['drift']:>z8.3f}{_span(row):>15}{row.get('drift_n') or '–':>5}{row['words']:>7.0f}{_hundred(row['cut']):>6}"
            f"  {row['learning_rate']:g} of {row['rates']}"
        )
    lines += ["", "paired differences on the same held-out prompts, in points"] if table["contrasts"] else []
    for one in table["contrasts"]:
        span = "no spread" if one["low"] is None else f"{100 * one['low']:+z.0f} to {100 * one['high']:+z.0f}"
        lines.append(
            f"{one['one']} minus {one['other']}: {100 * one['difference']:+z.0f} ({span}), McNemar p {one['p']:.3g}, "
            f"n {one['n']}, best of {one['rates']}, drift {one['drift_difference']:+z.3f}"
        )
    if table["failed"]:
        lines += ["", "failed, and in no figure (another learning rate, or train.dtype=float32)"]
    lines += [f"{one['name']}: {one['why']}" for one in table["failed"]]
    return "\n".join(lines) + "\n"


def _span(row: Mapping[str, Any]) -> str:
    return "–" if row.get("drift_low") is None else f"{row['drift_low']:z.3f}-{row['drift_high']:z.3f}"


def _hundred(value: float | None) -> str:
    return percent(value).removesuffix(UNIT)
