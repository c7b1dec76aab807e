"""Sets of pairs side by side on one HTML page: how contrastive each is, and how they differ on the same prompts.

The page is built like the report: text, a style sheet and SVG, nothing that runs or loads.

>>> from anchorline.measure import Measured, compare, measure_pair
>>> page = build_measure_page(compare([Measured("clair", ["p"], [measure_pair("a b", "a c")])]))
>>> "clair" in page, "<script" in page
(True, False)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from anchorline.report.charts import Outline, outlines
from anchorline.report.files import write_page
from anchorline.report.html import MEASURES, environment

MOST = 6
"""Sets on one page: as many as there are colours that can be told apart."""


def write_measure_page(target: Path, table: Mapping[str, Any]) -> Path:
    """Write the page, whole or not at all, and return its path."""
    return write_page(target, build_measure_page(table))


def build_measure_page(table: Mapping[str, Any]) -> str:
    """The whole page, from what `measure.compare` gives; a set may also have "left_out", its rows that were not read."""
    sets = table["sets"]
    colours = [f"s{n % MOST + 1}" for n in range(len(sets))]
    return (
        environment()
        .get_template("measure.html.j2")
        .render(
            sets=list(zip(sets, colours, strict=True)),
            figures=list(_figures(sets, colours)),
            matched=[(other, list(_differences(other["metrics"]))) for other in table["matched"]],
            touched=list(dict.fromkeys(rule for one in sets for rule in one["rules"])),
        )
    )


class _Figure(NamedTuple):
    title: str
    meaning: str
    spreads: list[tuple[Mapping[str, Any], str, Mapping[str, Any] | None]]
    """Set, its colour, and its spread; None where the set does not have this measure."""
    svg: Markup


def _figures(sets: Sequence[Mapping[str, Any]], colours: Sequence[str]) -> Iterator[_Figure]:
    for name, (title, meaning) in MEASURES.items():
        spreads = [(one, colour, one["metrics"].get(name)) for one, colour in zip(sets, colours, strict=True)]
        known = [(colour, spread) for _, colour, spread in spreads if spread]
        if known:
            edges = known[0][1]["histogram"]["edges"]
            drawn = [Outline(colour, spread["histogram"]["counts"], spread["p50"]) for colour, spread in known]
            yield _Figure(title, meaning, spreads, outlines(edges, drawn, label=f"{title}, share of pairs"))


def _differences(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((title, metrics[name]) for name, (title, _) in MEASURES.items() if name in metrics)
