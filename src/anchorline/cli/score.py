"""`anchorline score`: rewards, gradients and displacement of pairs under a saved model, offline.

>>> from anchorline.cli.score import score
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchorline.cli.options import Json, Objective, Set, check_out, recipe_of_data, settings
from anchorline.cli.show import exit_code, print_json, progress

if TYPE_CHECKING:
    from anchorline.recipe import Recipe
    from anchorline.train.score import Scored


def score(
    model: Annotated[
        str,
        typer.Option(help="What is scored: an adapter or a model (folder, hub id, embedded:…), or a run folder."),
    ],
    pairs: Annotated[
        str | None,
        typer.Option(
            help="A file or hub id of pairs or labelled answers; of a run folder, its own.", show_default=False
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The reference; an adapter's is its base unless given.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Rows as .parquet or .jsonl, all as .json.", show_default=False),
    ] = None,
    objective: Objective = None,
    overrides: Set = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first malformed row.")] = False,
    as_json: Json = False,
) -> None:
    """Score pairs by a model against its reference: the columns of train/pairs.parquet, from the saved model.

    A run folder brings its pairs and its settings (beta, objective, number format) with it; --set train.beta=… changes one.

    [bold]Examples[/bold]

      anchorline score --model runs/harbour --out scored.parquet

      anchorline score --model runs/full/model --pairs pairs.jsonl --against embedded:smollm2-135m-instruct --json
    """

    def call() -> None:
        scored, problems = _score(
            model, pairs, against, settings(overrides, train__objective=objective), out, strict=strict
        )
        _tell(scored, problems, out, as_json=as_json)

    raise typer.Exit(exit_code(call))


def _score(
    model: str, pairs: str | None, against: str | None, overrides: list[str], out: Path | None, *, strict: bool
) -> tuple[Scored, list[str]]:
    from anchorline.data import read_pairs, read_unpaired, scan_rows
    from anchorline.errors import RecipeError
    from anchorline.recipe import decided, load_recipe

    if out and out.suffix.lower() not in (".json", ".jsonl", ".parquet"):
        raise RecipeError(f"--out {out}: expected a file .parquet, .jsonl or .json")
    recipe: Recipe
    folder = Path(model)
    if (folder / "recipe.yaml").is_file():
        recipe = load_recipe(model, overrides)
        recipe = recipe.model_copy(update={"train": decided(recipe, folder)})
        pairs, model = pairs or str(folder / "pairs.jsonl"), str(folder / "model")
        against = against or recipe.model
    elif pairs is None:
        raise RecipeError(f"--pairs is lacking; name a file of pairs ({model} is not a run folder that has its own)")
    else:
        recipe = recipe_of_data("pairs.file", pairs, overrides)
    check_out(out, pairs)
    first: dict[str, Any] = next((row for _, row in scan_rows(pairs) if isinstance(row, dict)), {})
    loaded = (read_unpaired if "completion" in first else read_pairs)(pairs, strict=strict)

    from anchorline.train.score import score as score_rows

    with progress() as shown:
        scored = score_rows(loaded.rows, model, recipe.train, against=against, progress=shown)
    return scored, [*map(str, loaded.problems), *(f"row {f.id}: {f.reason}" for f in scored.failures)]


def _tell(scored: Scored, problems: list[str], out: Path | None, *, as_json: bool) -> None:
    from anchorline.data import write_json
    from anchorline.data.files import write_rows

    table = {**scored.table, "left_out": problems}
    if out and out.suffix.lower() == ".json":
        write_json(out, {**table, "rows": scored.rows})
    elif out:
        write_rows(out, scored.rows)
    if as_json:
        print_json({**table, "rows": scored.rows} if out is None else table)
        return
    print(f"{table['n']} rows{f', written to {out}' if out else ''}")
    for name, label in (
        ("chosen_reward", "mean r_w"),
        ("rejected_reward", "mean r_l"),
        ("margin", "mean margin"),
        ("accuracy", "share with r_w above r_l"),
        ("both_fell", "share where both fell"),
        ("chosen_weight", "pull left on chosen, share of its peak"),
        ("rejected_weight", "pull left on rejected, share of its peak"),
    ):
        if table.get(name) is not None:
            print(f"{label}: {table[name]:.3f}")
    if "life" in table:
        print(", ".join(f"{count} {state}" for state, count in table["life"]["counts"].items()))
        ids = table["life"]["stranded"]
        if ids:
            print(f"stranded: {', '.join(ids[:10])}{f' and {len(ids) - 10} more' if len(ids) > 10 else ''}")
    for problem in problems:
        print(f"left out: {problem}")
