"""`anchorline measure`: how contrastive a set of pairs is, in a run or of a file alone (no torch needed).

>>> from anchorline.cli.measure import measure
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from anchorline.cli.options import Json, Model, Out, Set, is_recipe, refuse_overrides, run_stage, settings
from anchorline.cli.show import exit_code, progress


def measure(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A recipe, or a file or hub id of pairs.")],
    model: Model = None,
    out: Out = None,
    overrides: Set = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first malformed row.")] = False,
    as_json: Json = False,
) -> None:
    """Measure pairs: overlap, edit distance, length ratio, shared opening, rules touched.

    With --model, also in that model's tokens.

    [bold]Examples[/bold]

      anchorline measure pairs.jsonl

      anchorline measure pairs.parquet --model embedded:smollm2-135m-instruct --json
    """
    if is_recipe(source):
        given = settings(overrides, model=model, strict=strict or None)
        run_stage(source, given, out, upto="measure", as_json=as_json, command="measure")
    if overrides:
        raise typer.Exit(exit_code(refuse_overrides))
    raise typer.Exit(exit_code(lambda: _file(source, model, out, strict=strict, as_json=as_json)))


def _file(source: str, model: str | None, out: Path | None, *, strict: bool, as_json: bool) -> None:
    from anchorline.data import read_pairs, write_json
    from anchorline.llm.tokens import tokenize_with
    from anchorline.measure import measure_pair, summarise

    loaded = read_pairs(source, strict=strict)
    tokenize = tokenize_with(model) if model else None
    rows = []
    with progress() as shown, shown.task("measure", total=len(loaded.rows), unit="pairs") as advance:
        for pair in loaded.rows:
            rows.append(measure_pair(pair.chosen, pair.rejected, tokenize=tokenize))
            advance(1)
    table = summarise(rows, touched=[pair.provenance.details.get("touched", []) for pair in loaded.rows])
    table["left_out"] = [str(problem) for problem in loaded.problems]
    if out:
        write_json(out, table)
    if as_json:
        print(json.dumps(table, ensure_ascii=False))
    else:
        _show(table)


def _show(table: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("mean", "p5", "p50", "p95")
    shown = Table("measure", *columns, title=f"{table['pairs']} pairs")
    for name, metric in table["metrics"].items():
        if metric is not None:
            shown.add_row(name, *(_number(metric[column]) for column in columns))
    console = Console()
    console.print(shown)
    for rule, count in table["rules"].items():
        console.print(f"  {rule}: touched in {count} pairs", markup=False)
    for problem in table["left_out"]:
        console.print(f"left out: {problem}", markup=False)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
