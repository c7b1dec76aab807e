"""`anchorline train --plan`: what a training would take, before anything starts.

>>> from anchorline.cli.plan import show_plan
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from anchorline.cli.options import recipe_and_folder
from anchorline.cli.show import exit_code, print_json, progress

if TYPE_CHECKING:
    from anchorline.recipe import Recipe


def show_plan(source: str, overrides: Sequence[str], out: Path | None, *, as_json: bool) -> None:
    """Print the plan and leave; nothing is written."""

    def call() -> None:
        from anchorline.errors import RecipeError

        recipe, folder = recipe_and_folder(source, overrides, out, data_setting="pairs.file")
        if recipe.model is None:
            raise RecipeError("the setting `model` is lacking; put it into the recipe, or add --model")
        rows = _rows(recipe, folder, source)

        from anchorline.train.plan import plan

        with progress() as shown:
            found = plan(
                rows, recipe.model, recipe.train, retain=_retained(recipe, folder), seed=recipe.seed, progress=shown
            )
        if as_json:
            print_json(found)
        else:
            print("\n".join(lines(found)))

    raise typer.Exit(exit_code(call))


def _rows(recipe: Recipe, folder: Path, source: str) -> Any:
    from anchorline.data import read_pairs
    from anchorline.errors import DataError
    from anchorline.recipe.sources import read_given

    if recipe.pairs.file is not None:
        return read_given(recipe).train
    file = folder / "pairs.jsonl"
    if not file.is_file():
        raise DataError(
            f"the pairs are not made yet; make them first: anchorline pairs {source} --out {folder}", file=file
        )
    return read_pairs(file).rows


def _retained(recipe: Recipe, folder: Path) -> Any:
    """The answers that are to stay; where the run has not drawn them yet, their prompts with answers that have no text."""
    if recipe.retain is None or not recipe.retain.weight:
        return None
    from anchorline.data import read_prompts
    from anchorline.data.formats import answer_from_row
    from anchorline.data.jsonl import read_jsonl
    from anchorline.recipe.stages import RETAINED
    from anchorline.train.retain import Retained
    from anchorline.types import Answer

    drawn = folder / RETAINED
    if drawn.is_file():
        answers = (answer_from_row(row) for _, row in read_jsonl(drawn))
        return Retained([answer for answer in answers if answer.text], recipe.retain)
    prompts = read_prompts(recipe.retain.prompts, strict=recipe.strict).rows
    return Retained([Answer(prompt.id, prompt.messages, "", "stop") for prompt in prompts], recipe.retain)


def lines(found: Mapping[str, Any]) -> list[str]:
    """The plan as text."""
    packed, over, rest = found["packing"], found["overlong"], found["unfit"]
    heads = "".join(f"{name:>8}" for name in ("p5", "p50", "p95", "max"))
    said = [f"{found['rows']:,} rows to train on", f"{'tokens':10}{'total':>12}{'mean':>9}{heads}"]
    for name, spread in found["tokens"].items():
        figures = "".join(f"{spread[key]:>8,.0f}" for key in ("p5", "p50", "p95", "max"))
        said.append(f"{name:10}{spread['total']:>12,}{spread['mean']:>9,.1f}{figures}")
    if over["rows"]:
        fate = f"{over['dropped']} dropped, {over['truncated']} truncated"
        fate = "the run would stop (train.overlong: error)" if over["stops"] else fate
        ids = ", ".join(over["ids"][:5])
        said.append(f"over {over['limit']:,} tokens (train.max_tokens): {over['rows']} rows: {fate}; {ids}")
    if rest:
        said.append(f"left out: {len(rest)} rows; the first: {rest[0]['id']}: {rest[0]['reason']}")
    kept = found.get("retain")
    if kept:
        most = f" (of {kept['not_drawn']:,} not drawn yet the longest they may be)" if kept["not_drawn"] else ""
        said.append(
            f"retain: {kept['answers']:,} answers, {kept['per_step']:,} a step: {kept['rows']:,} rows more an epoch, "
            f"{kept['tokens']:,} tokens{most}"
        )
    said += [
        f"an epoch: {packed['rows']:,} rows of about {packed['pairs_per_row']:g} pairs, {packed['tokens']:,} tokens; with each "
        f"answer apart {packed['tokens_apart']:,} ({packed['saved']:.0%} saved), padded {packed['tokens_padded']:,}",
        f"steps: {found['steps']:,}; longest row: {packed['longest_row']:,} tokens",
        f"parameters that train: {found['parameters']['trained']:,} of {found['parameters']['all']:,}",
        _memory_line(found["memory"]),
        _time_line(found["time"]),
    ]
    return said


def _memory_line(memory: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name.replace('_', ' ')} {size:.2f}" for name, size in memory["parts_gib"].items())
    return f"memory: about {memory['gib']:.1f} GiB of {memory['available_gib']:.1f} free ({parts}); {memory['how']}"


def _time_line(time: Mapping[str, Any]) -> str:
    span = f"{_clock(time['low'])} to {_clock(time['high'])}"
    parts = f"reference {_clock(time['reference'])}, training {_clock(time['training'])}"
    rate = f"{time['tokens_per_second']:,.0f} tokens/s, {time['dtype']}"
    return f"time: about {_clock(time['seconds'])} ({span}): {parts} at {rate}; {time['how']}"


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
