"""`anchorline measure`: how contrastive sets of pairs are, in a run or of files alone (no torch needed).

>>> from anchorline.cli.measure import measure
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchorline.cli.options import Json, Model, Set, check_out, is_recipe, refuse_overrides, run_stage, settings
from anchorline.cli.show import console, exit_code, print_json, progress

if TYPE_CHECKING:
    from anchorline.measure import Measured
    from anchorline.progress import Progress

PAGES = (".html", ".json")


def measure(
    source: Annotated[str, typer.Argument(metavar="PAIRS", help="A recipe, or a file or hub id of pairs.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="PAIRS2", hidden=True)] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="PAIRS2 …",
            help="Other sets to lay beside it: files, hub ids, run folders.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            show_default=False,
            help="A page with plots (.html) or the figures (.json); of a recipe, the run folder.",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="trl or distilabel, where the columns of pairs fit both.", show_default=False),
    ] = None,
    overrides: Set = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first malformed row.")] = False,
    as_json: Json = False,
) -> None:
    """Measure pairs: overlap, edit distance, length ratio, shared opening, rules touched.

    With --against, several sets side by side, and their differences on the prompts that they share.

    With --model, also in that model's tokens.

    [bold]Examples[/bold]

      anchorline measure pairs.jsonl

      anchorline measure clair.jsonl --against stronger.jsonl on-policy.jsonl --out page.html

      anchorline measure pairs.parquet --model embedded:smollm2-135m-instruct --json
    """
    sources = [source, *(against or []), *(more or [])]
    page = out is not None and out.suffix.lower() in PAGES
    if not against and is_recipe(source) and not (page and Path(source).is_dir()):
        if more or layout or page:
            raise typer.Exit(exit_code(lambda: _of_a_run(sources, layout, out)))
        given = settings(overrides, model=model, strict=strict or None)
        run_stage(source, given, out, upto="measure", as_json=as_json, command="measure")
    if overrides:
        raise typer.Exit(exit_code(refuse_overrides))

    def call() -> None:
        _check(sources, out, compared=bool(against))
        with progress() as shown:
            measured, problems = _measure_all(sources, model, layout, strict=strict, shown=shown)
        _tell(measured, problems, out, compared=bool(against), as_json=as_json)

    raise typer.Exit(exit_code(call))


def _of_a_run(sources: Sequence[str], layout: str | None, out: Path | None) -> None:
    """Refuse what is for files of pairs."""
    from anchorline.errors import RecipeError

    if len(sources) > 1:
        _check(sources, None, compared=False)
    if layout:
        raise RecipeError("--layout is for a file of pairs, and those of a run are laid out alike; leave it out")
    raise RecipeError(
        f"--out {out}: of a recipe it is the run folder; for a page name the run folder in place of a recipe"
    )


def _check(sources: Sequence[str], out: Path | None, *, compared: bool) -> None:
    from anchorline.errors import RecipeError
    from anchorline.report.measure_page import MOST

    if len(sources) > 1 and not compared:
        raise RecipeError(f"{len(sources)} sets of pairs were given; put --against before the second one")
    if len(sources) > MOST:
        raise RecipeError(f"{len(sources)} sets of pairs were given, at most {MOST} can be told apart; leave some out")
    if out and out.suffix.lower() not in PAGES:
        raise RecipeError(f"--out {out}: expected a file .html (a page with plots) or .json (the figures)")
    check_out(out, *map(_file, sources))


def _measure_all(
    sources: Sequence[str], model: str | None, layout: str | None, *, strict: bool, shown: Progress
) -> tuple[list[Measured], list[list[str]]]:
    from anchorline.data import read_pairs
    from anchorline.llm.tokens import tokenize_many_with
    from anchorline.measure import Measured, measure_pairs
    from anchorline.types import prompt_id

    tokenize = tokenize_many_with(model) if model else None
    measured, problems = [], []
    for name, source in zip(_names(sources), sources, strict=True):
        loaded = read_pairs(_file(source), strict=strict, layout=layout)  # pyright: ignore[reportArgumentType]
        rows = []
        with shown.task(f"measure {name}" if len(sources) > 1 else "measure", total=len(loaded.rows), unit="pairs") as (
            advance
        ):
            for row in measure_pairs([(pair.chosen, pair.rejected) for pair in loaded.rows], tokenize=tokenize):
                rows.append(row)
                advance(1)
        prompts = [prompt_id(pair.prompt) for pair in loaded.rows]
        touched = [pair.provenance.details.get("touched", []) for pair in loaded.rows]
        measured.append(Measured(name, prompts, rows, touched))
        problems.append([str(problem) for problem in loaded.problems])
    return measured, problems


def _file(source: str) -> str:
    """A run folder stands for its pairs."""
    return str(Path(source) / "pairs.jsonl") if Path(source).is_dir() else source


def _names(sources: Sequence[str]) -> list[str]:
    """The files' names without ending where they differ, else what was given."""
    short = [Path(source).stem if Path(_file(source)).is_file() else source for source in sources]
    names = short if len(set(short)) == len(short) else list(sources)
    return names if len(set(names)) == len(names) else [f"{n}: {name}" for n, name in enumerate(names, start=1)]


def _tell(
    measured: Sequence[Measured], problems: Sequence[list[str]], out: Path | None, *, compared: bool, as_json: bool
) -> None:
    from anchorline.data import write_json
    from anchorline.measure import compare, summarise

    table = compare(measured)
    for one, left_out in zip(table["sets"], problems, strict=True):
        one["left_out"] = left_out
    figures = table
    if not compared:
        figures = {**summarise(measured[0].rows, touched=measured[0].touched), "left_out": problems[0]}
    if out and out.suffix.lower() == ".html":
        from anchorline.report.measure_page import write_measure_page

        write_measure_page(out, table)
    elif out:
        write_json(out, figures)
    if as_json:
        print_json(figures)
    elif compared:
        _show_sets(table)
    else:
        _show(figures)


def _show(table: Mapping[str, Any]) -> None:
    from rich.table import Table

    columns = ("mean", "p5", "p50", "p95")
    shown = Table("measure", *columns, title=f"{table['pairs']} pairs")
    for name, metric in table["metrics"].items():
        shown.add_row(name, *(_number(metric[column]) for column in columns))
    terminal = console()
    terminal.print(shown)
    for rule, count in table["rules"].items():
        terminal.print(f"  {rule}: touched in {count} pairs")
    for problem in table["left_out"]:
        terminal.print(f"left out: {problem}")


def _show_sets(table: Mapping[str, Any]) -> None:
    from rich.table import Column, Table

    sets = table["sets"]
    shown = Table(Column("mean (median)", min_width=21), *(one["name"] for one in sets))
    shown.add_row("pairs", *(f"{one['pairs']}" for one in sets))
    for name in dict.fromkeys(name for one in sets for name in one["metrics"]):
        metrics = [one["metrics"].get(name) for one in sets]
        shown.add_row(name, *("–" if m is None else f"{_number(m['mean'])} ({_number(m['p50'])})" for m in metrics))
    terminal = console()
    terminal.print(shown)
    for other in table["matched"]:
        if not other["metrics"]:
            terminal.print(f"{other['name']} and {other['against']} share no prompt")
            continue
        title = f"{other['name']} minus {other['against']} on {other['prompts']} shared prompts"
        matched = Table(
            Column("measure", min_width=21), "mean difference", "95 % interval", "higher", "lower", title=title
        )
        for name, figures in other["metrics"].items():
            span = "–" if figures["low"] is None else f"{_number(figures['low'])} to {_number(figures['high'])}"
            matched.add_row(name, _number(figures["mean"]), span, str(figures["higher"]), str(figures["lower"]))
        terminal.print(matched)
    for one in sets:
        for problem in one["left_out"]:
            terminal.print(f"left out: {problem}")


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
