"""`anchorline export`: pairs as a data set with a card, in a folder or on the Hub (no torch needed).

>>> from anchorline.cli.export import export
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from anchorline.cli.options import Json
from anchorline.cli.show import exit_code, print_json, progress


class Format(StrEnum):
    """The files that data sets are published in."""

    parquet = "parquet"
    jsonl = "jsonl"


def export(
    source: Annotated[str, typer.Argument(metavar="PAIRS", help="A run folder, or a file or hub id of pairs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the data set; new, or an earlier export.")],
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence",
            "--license",
            metavar="ID",
            show_default=False,
            help="An SPDX or Hub identifier, such as cc-by-4.0. Asked for, never assumed.",
        ),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Format of the data file.")] = Format.parquet,
    layout: Annotated[
        str | None, typer.Option(help="trl or distilabel, where the columns of pairs fit both.", show_default=False)
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload it to this data set.", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the data set on the Hub a private one.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first malformed row.")] = False,
    as_json: Json = False,
) -> None:
    """Export pairs for TRL: prompt, chosen and rejected as messages, with a data card.

    Nothing leaves the machine without --push-to-hub.

    [bold]Examples[/bold]

      anchorline export runs/harbour --out release --licence cc-by-4.0

      anchorline export pairs.jsonl --out release --licence mit --push-to-hub me/pairs --private
    """

    def call() -> None:
        from anchorline.errors import RecipeError
        from anchorline.report.export import export as write_export

        if private and push_to_hub is None:
            raise RecipeError("--private is for a data set on the Hub; name it with --push-to-hub OWNER/NAME")
        with progress() as shown:
            done = write_export(
                source,
                out,
                licence=licence,
                form=form.value,
                layout=layout,  # pyright: ignore[reportArgumentType]  (its reader says which there are)
                push_to_hub=push_to_hub,
                private=private,
                strict=strict,
                progress=shown,
            )
        if as_json:
            print_json({**done._asdict(), "file": str(done.file), "card": str(done.card)})
            return
        print(f"{done.pairs} pairs in {done.file}, card in {done.card}")
        for problem in done.problems:
            print(f"left out: {problem}")
        if done.address:
            print(f"pushed to {done.address}")

    raise typer.Exit(exit_code(call))
