"""The options that several commands share, and how a command's words become a recipe.

>>> is_recipe("recipes/harbour.yaml"), is_recipe("pairs.jsonl")
(True, False)
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchorline.cli.show import exit_code, print_set, print_summary, progress

if TYPE_CHECKING:
    from anchorline.pairs.settings import Maker
    from anchorline.recipe import Recipe

Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Run folder; runs/NAME unless given.", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting of the recipe; may be repeated.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Objective = Annotated[
    str | None,
    typer.Option(
        help="apo_zero, apo_down, apo_up (experimental), apo_zero_unpaired, dpo, kto, sft, or a sum: "
        "apo_zero=1,sft=0.2; auto: the advisor chooses.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None, typer.Option(help="embedded:smollm2-135m-instruct, a hub id, or a folder.", show_default=False)
]


def is_recipe(source: str) -> bool:
    """A YAML file, or a folder (a run folder holds its recipe)."""
    return Path(source).suffix.lower() in {".yaml", ".yml"} or Path(source).is_dir()


def settings(overrides: Sequence[str] | None, **named: Any) -> list[str]:
    """`--set` values, and behind them the options that were given, as overrides."""
    given = [f"{key.replace('__', '.')}={as_yaml(value)}" for key, value in named.items() if value is not None]
    return [*(overrides or []), *given]


def as_yaml(value: str | bool) -> str:
    """The value as the right side of `--set`: as it is, unless YAML would read something else (`a #1.jsonl`, `1e5`)."""
    import yaml

    try:
        same = yaml.safe_load(str(value)) == value
    except (yaml.YAMLError, ValueError):
        same = False
    quoted = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf)
    return str(value) if same else quoted.rstrip("\n")


def refuse_overrides() -> None:
    """`--set` beside a data file: there is no recipe to change."""
    from anchorline.errors import RecipeError

    raise RecipeError("--set changes a recipe, and SOURCE is a data file; leave --set out, or name a recipe")


def check_out(out: Path | None, *inputs: str | Path | None, option: str = "--out") -> None:
    """Raise an error, before any work, where a result has no place: nothing can be written there, or an input lies there."""
    from anchorline.data import check_place
    from anchorline.errors import RecipeError

    if out is None:
        return
    if any(given is not None and Path(given).resolve() == out.resolve() for given in inputs):
        raise RecipeError(f"{option} {out} is what the command reads, and would be replaced; name another file")
    check_place(out)


def recipe_of_data(place: str, source: str, overrides: Sequence[str]) -> Recipe:
    """A recipe around one data file, which goes to the setting `place`."""
    from anchorline.recipe.config import override_setting, parse_recipe

    data: dict[str, Any] = {"name": re.sub(r"[^\w.-]+", "-", Path(source).stem).strip("-.")[:64] or "run"}
    override_setting(data, f"{place}={as_yaml(source)}")
    for override in overrides:
        override_setting(data, override)
    return parse_recipe(data, source="--set")


def recipe_and_folder(
    source: str, overrides: Sequence[str], out: Path | None, *, data_setting: str | None
) -> tuple[Recipe, Path]:
    """The recipe that a command's words mean, and its run folder."""
    from anchorline.recipe import load_recipe

    if data_setting and not is_recipe(source):
        recipe = recipe_of_data(data_setting, source, overrides)
    else:
        recipe = load_recipe(source, overrides)
    return recipe, out or (Path(source) if Path(source).is_dir() else Path("runs") / recipe.name)


def run_stage(
    source: str,
    overrides: Sequence[str],
    out: Path | None,
    *,
    upto: str,
    as_json: bool,
    command: str,
    data_setting: str | None = None,
    maker: Maker | None = None,
    retry_failed: bool = False,
    batch: bool = False,
) -> None:
    """Bring a run up to date through one stage, show how it went, and leave with the right exit code."""

    def call() -> None:
        from anchorline.recipe import Calls, run
        from anchorline.train.processes import joined, rank

        with joined():  # nothing, unless a launcher started several of us
            recipe, folder = recipe_and_folder(source, overrides, out, data_setting=data_setting)
            calls = Calls(retry_failed=retry_failed, batch=batch)
            with progress(wanted=rank() == 0) as shown:
                summary = run(recipe, folder, upto=upto, maker=maker, calls=calls, progress=shown)
            if rank() > 0:
                return
            if maker:
                print_set(summary, maker, str(folder), as_json=as_json)
            else:
                print_summary(summary, str(folder), as_json=as_json)

    words = ["anchorline", *command.split(), source]
    words += ["--retry-failed"] if retry_failed else []
    words += ["--batch"] if batch else []
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--out", str(out)] if out else []
    raise typer.Exit(exit_code(call, again=shlex.join(words)))
