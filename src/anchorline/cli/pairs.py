"""`anchorline pairs`: answers become pairs, in a run or from a file alone (no torch needed).

>>> from anchorline.cli.pairs import pairs
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anchorline.cli.options import Json, Set, is_recipe, refuse_overrides, run_stage, settings
from anchorline.cli.show import exit_code

if TYPE_CHECKING:
    from anchorline.types import Answer, Failure


def pairs(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A recipe, or a file of answers (rows with prompt and text; then --style is needed)."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Run folder; for a file of answers the pairs' file (.jsonl, .parquet).",
            show_default=False,
        ),
    ] = None,
    style: Annotated[str | None, typer.Option(help="The style's YAML file.", show_default=False)] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Let the style run the Python functions that it names.")
    ] = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Make pairs (CLAIR): rejected is the answer, chosen the style's minimal repair of it.

    What does not become a pair goes to failures.jsonl with its reason.

    [bold]Examples[/bold]

      anchorline pairs recipes/harbour.yaml

      anchorline pairs answers.jsonl --style styles/harbour.yaml --out pairs.jsonl
    """
    if is_recipe(source):
        given = settings(overrides, style=style, trust_code=trust_code or None)
        run_stage(source, given, out, upto="pairs", as_json=as_json, command="pairs")
    if overrides:
        raise typer.Exit(exit_code(refuse_overrides))
    raise typer.Exit(exit_code(lambda: _from_file(source, out, style, trust_code=trust_code, as_json=as_json)))


def _from_file(source: str, out: Path | None, style: str | None, *, trust_code: bool, as_json: bool) -> None:
    from anchorline.data import failure_to_row, pair_to_row, write_jsonl, write_rows
    from anchorline.errors import DataError, RecipeError
    from anchorline.pairs import clair_pairs, no_pair
    from anchorline.style import load_style

    if style is None or out is None:
        raise RecipeError("a file of answers needs --style (a YAML file) and --out (where the pairs go)")
    loaded = load_style(style, trust_code=trust_code)
    answers, failures = _read_answers(source)
    if not answers:
        first = f" ({len(failures)} bad); the first: {failures[0].reason}" if failures else ": it is empty"
        raise DataError(f"no row can be used{first}", file=source)
    made = clair_pairs(answers, loaded, policy="")
    if not made.pairs:
        raise DataError(no_pair(made.failures), file=source)
    failures += made.failures
    beside = out.with_name("failures.jsonl")
    write_rows(out, [pair_to_row(pair) for pair in made.pairs])
    write_jsonl(beside, [failure_to_row(failure) for failure in failures])
    counts = {"pairs": len(made.pairs), "failures": len(failures)}
    if as_json:
        print(json.dumps(counts))
    else:
        print(f"{len(made.pairs)} pairs in {out}; {len(failures)} rows left out, see {beside}")


def _read_answers(source: str) -> tuple[list[Answer], list[Failure]]:
    from anchorline.data import answer_from_row, scan_rows
    from anchorline.errors import DataError
    from anchorline.types import Failure

    answers, failures = [], []
    for line, row in scan_rows(source):
        try:
            if isinstance(row, DataError):
                raise row
            answers.append(answer_from_row({"id": f"row-{line}", "finish": "stop"} | row))
        except DataError as error:
            reason = str(error) if error.file else f"{source}:{line}: {error}"
            details = {"file": source, "line": line, "field": error.field}
            failures.append(Failure(f"{source}:{line}", "pairs", "malformed", reason, details))
    return answers, failures
