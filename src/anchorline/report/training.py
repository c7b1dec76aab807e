"""The training section of the report: curves, where the log-probs moved, and which pairs are won, live and stranded.

>>> [chart.title for chart in training_charts([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.9}])]
['Loss']
>>> life_of({"life": {"counts": {"won": 1, "live": 2, "stranded": 1}, "stranded": ["p7"]}}).rows
4
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from anchorline.report.charts import Band, Colour, Line, band_chart, is_number, line_chart
from anchorline.report.files import mapping

SHARES = frozenset({"Told apart, both fell", "Pull left"})
CURVES: Mapping[str, tuple[str, *tuple[tuple[str, str, Colour], ...]]] = {
    "Loss": ("Mean over the pairs of a step.", ("loss", "loss", "chosen")),
    "Rewards": (
        "β times the log-probability gained since the reference, summed over the answer; the means. 0 at the start.",
        ("r_w (chosen)", "chosen_reward", "chosen"),
        ("r_l (rejected)", "rejected_reward", "rejected"),
    ),
    "Margin": ("r_w − r_l: how far the two answers have been told apart.", ("margin", "margin", "chosen")),
    "Told apart, both fell": (
        "Share of pairs with r_w above r_l, and share where both answers became less likely.",
        ("r_w above r_l", "accuracy", "chosen"),
        ("both fell", "both_fell", "rejected"),
    ),
    "Pull left": (
        "How hard the objective still pulls on each answer, as a share of the most it ever can.",
        ("chosen", "chosen_weight", "chosen"),
        ("rejected", "rejected_weight", "rejected"),
    ),
    "Held in place": (
        "KL(reference‖policy) in nats a token, estimated along the retained answers of a step. 0 at the start.",
        ("retained", "retain_kl", "neutral"),
    ),
    "Gradient norm": ("Before clipping. Spikes mean unsteady steps.", ("norm", "grad_norm", "neutral")),
    "Learning rate": ("The schedule as it was run.", ("rate", "learning_rate", "neutral")),
}
BANDS: Mapping[str, tuple[str, str, Colour]] = {
    "Spread of r_w": ("chosen_reward", "of the chosen answers", "chosen"),
    "Spread of r_l": ("rejected_reward", "of the rejected answers", "rejected"),
}
REGIONS = {
    "prefix": ("Shared beginning", "what both answers begin with"),
    "edited": ("Edited", "what only this answer has"),
    "common": ("Common remainder", "what both have after the first difference"),
    "end": ("End of turn", "the token that ends the answer"),
}


class Chart(NamedTuple):
    """A chart with its words."""

    title: str
    meaning: str
    lines: Sequence[Line]
    svg: Markup


def training_charts(rows: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """The curves whose values `metrics.jsonl` has."""
    steps = [row.get("step", index + 1) for index, row in enumerate(rows)]
    for title, (meaning, *curves) in CURVES.items():
        lines = [Line(name, colour, [row.get(key) for row in rows]) for name, key, colour in curves]
        svg = line_chart(lines, steps=steps, label=f"{title} by training step", percent=title in SHARES)
        if svg:
            yield Chart(title, meaning, lines, svg)
        if title == "Rewards":
            yield from _spreads(rows, steps)


def _spreads(rows: Sequence[Mapping[str, Any]], steps: Sequence[Any]) -> Iterator[Chart]:
    for title, (name, whose, colour) in BANDS.items():
        at = {key: [row.get(f"{name}_{key}") for row in rows] for key in ("p10", "p25", "p50", "p75", "p90")}
        lines = [Line("median", colour, at["p50"])]
        bands = [Band(colour, at["p10"], at["p90"]), Band(colour, at["p25"], at["p75"])]
        svg = band_chart(lines, bands, steps=steps, label=f"{title} by training step")
        if svg:
            meaning = f"Median {whose} of a step; the darker shade holds half of them, the lighter one four fifths."
            yield Chart(title, meaning, lines, svg)


class Moved(NamedTuple):
    """How a region's log-prob changed, in both answers."""

    title: str
    meaning: str
    sides: Sequence[tuple[str, Mapping[str, Any], float | None]]
    """Colour class, figures, and the change a pair as a share of the largest in the table."""


def displacement_rows(diagnostics: Mapping[str, Any]) -> Iterator[Moved]:
    """One row a region, where the diagnostics have the displacement of pairs."""
    table = {side: mapping(mapping(diagnostics.get("displacement")).get(side)) for side in ("chosen", "rejected")}
    changes = [
        _number(mapping(side.get(region)).get("change_per_pair")) for side in table.values() for region in REGIONS
    ]
    known = [abs(change) for change in changes if change is not None]
    if not known:
        return
    for region, (title, meaning) in REGIONS.items():
        sides = []
        for side, regions in table.items():
            figures = mapping(regions.get(region))
            change = _number(figures.get("change_per_pair"))
            sides.append((side, figures, None if change is None else change / max(*known, 1e-9)))
        yield Moved(title, meaning, sides)


class Life(NamedTuple):
    """The states of the rows when they were last seen."""

    rows: int
    states: Sequence[tuple[str, str, Any]]
    """Name, meaning, count."""
    stranded: Sequence[Mapping[str, Any]]


MEANINGS = {
    "won": "both answers are where the objective wants them; it hardly pulls any more",
    "live": "the objective still pulls",
    "stranded": "an answer has gone so far the wrong way that the objective has let go of it",
}


def life_of(diagnostics: Mapping[str, Any]) -> Life:
    """How many rows are won, live and stranded, and what is known of the stranded ones."""
    life = mapping(diagnostics.get("life"))
    counts = mapping(life.get("counts"))
    states = [(state, meaning, counts.get(state)) for state, meaning in MEANINGS.items() if state in counts]
    rows = sum(int(_number(count) or 0) for _, _, count in states)
    details = [row for row in diagnostics.get("stranded") or () if isinstance(row, Mapping)]
    return Life(rows, states if rows else [], details)


def _number(value: Any) -> float | None:
    return value if is_number(value) else None
