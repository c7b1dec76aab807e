"""`anchorline compare`: data sets and objectives against each other, on one's own task.

>>> from anchorline.cli.compare import compare
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from anchorline.cli.options import Json, Set
from anchorline.cli.show import exit_code, progress


def compare(
    recipe: Annotated[str, typer.Argument(help="A recipe with a group `compare`.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the grid; runs/NAME unless given.", show_default=False)
    ] = None,
    overrides: Set = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Begin no cell that would not end in this time.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train every data set with every objective on the same prompts, and hold gain, drift and what else was learnt together.

    The most useful cells come first. A finished cell is not run again, and a killed one goes on.

    [bold]Examples[/bold]

      anchorline compare recipes/compare_harbour.yaml --max-minutes 60

      anchorline compare recipes/compare_harbour.yaml --set 'compare.sets=[clair]' --set 'compare.seeds=[0]'
    """

    def call() -> None:
        from anchorline.recipe import load_recipe
        from anchorline.recipe.compare import compare as run_grid
        from anchorline.report.compare_page import compare_text

        loaded = load_recipe(recipe, overrides or [])
        folder = out or Path("runs") / loaded.name
        with progress() as shown:
            table = run_grid(loaded, folder, max_minutes=max_minutes, progress=shown)
        print(json.dumps(table, ensure_ascii=False) if as_json else f"{compare_text(table)}\n{folder / 'compare.html'}")

    words = ["anchorline", "compare", recipe, *(w for o in overrides or [] for w in ("--set", o))]
    raise typer.Exit(exit_code(call, again=shlex.join([*words, *(["--out", str(out)] if out else [])])))
