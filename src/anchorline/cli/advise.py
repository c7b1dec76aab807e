"""`anchorline advise`: which objective fits a model and a file of pairs, and what to look at before training.

>>> from anchorline.cli.advise import advise
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from anchorline.cli.options import Json, Set, check_out, recipe_of_data, settings
from anchorline.cli.show import console, exit_code, print_json, progress, recommended


def advise(
    policy: Annotated[str, typer.Option(help="The model: embedded:smollm2-135m-instruct, a hub id, or a folder.")],
    pairs: Annotated[str, typer.Option(help="A file or hub id of pairs.")],
    style: Annotated[str | None, typer.Option(help="The style's YAML file.", show_default=False)] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="style|MODEL", help="The style's checks, or a model in both orders.", show_default=False),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Where the judge is: an OpenAI-compatible endpoint.", show_default=False)
    ] = None,
    policy_url: Annotated[
        str | None, typer.Option(help="Where a server answers for the policy.", show_default=False)
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs, drawn at random, that are judged; 100 unless given.", show_default=False),
    ] = None,
    per_pair: Annotated[
        Path | None,
        typer.Option(help="Write the pairs with an objective each (.jsonl, .parquet).", show_default=False),
    ] = None,
    experimental: Annotated[
        bool, typer.Option("--experimental", help="Let apo_up be chosen: ours, not the paper's.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder; runs/NAME-advice unless given.", show_default=False)
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Say which objective fits a model and its pairs, with the evidence, and warn of what is wrong with the pairs.

    The policy answers a sample of the prompts anew; the judge compares each answer with chosen and with rejected.
    Between the two: apo_zero. Above both: apo_down. Below both the paper has no objective; apo_up is experimental.
    What is answered and judged is kept in the run folder and not asked for again; `anchorline run` on it then trains.

    [bold]Examples[/bold]

      anchorline advise --policy embedded:smollm2-135m-instruct --pairs pairs.jsonl --style styles/harbour.yaml

      anchorline advise --policy embedded:smollm2-135m-instruct --pairs pairs.jsonl --judge gpt-4o-mini --per-pair own.jsonl
    """
    by_model = judge is not None and judge != "style"
    named: dict[str, Any] = {
        "train__objective": "auto",
        "style": style,
        "advise__judge": None if judge is None else "llm" if by_model else "style",
        "advise__prompts": prompts,
        "advise__experimental": experimental or None,
        "llm__judge__model": judge if by_model else None,
        "llm__judge__base_url": base_url if by_model else None,
        "model": None if policy_url else policy,
        "llm__policy__model": policy if policy_url else None,
        "llm__policy__base_url": policy_url,
    }

    def call() -> None:
        from anchorline.data import check_writable, pair_to_row, read_json, write_rows
        from anchorline.recipe import ADVICE, own_pairs, run

        if per_pair:
            check_writable(per_pair)
            check_out(per_pair, pairs, style, option="--per-pair")
        recipe = recipe_of_data("pairs.file", pairs, settings(overrides, **named))
        folder = out or Path("runs") / f"{recipe.name}-advice"
        with progress() as shown:
            run(recipe, folder, upto="advise", progress=shown)
        found = read_json(folder / ADVICE)
        if per_pair:
            rows, kept = own_pairs(recipe, folder)
            write_rows(per_pair, [pair_to_row(pair) for pair in rows])
            counts = dict(Counter(str(pair.objective) for pair in rows))
            found["per_pair"] = {"file": str(per_pair), "n": len(rows), "kept": kept, "counts": counts}
        if as_json:
            print_json(found)
        else:
            _tell(found, folder)

    if base_url and not by_model:
        raise typer.BadParameter("it says where the judge is, and --judge names no model", param_hint="--base-url")
    raise typer.Exit(exit_code(call, again=shlex.join(["anchorline", *sys.argv[1:]])))


def _tell(found: dict[str, Any], folder: Path) -> None:
    from rich.table import Table

    shown = console()
    table = Table("the policy's fresh answers", "win rate", f"{found['level']:.0%} interval", "n", "ties", "flips")
    for side in ("chosen", "rejected"):
        rate = found[side]
        share = "–" if rate["share"] is None else f"{rate['share']:.1%}"
        interval = "–" if rate["low"] is None else f"{rate['low']:.1%} to {rate['high']:.1%}"
        table.add_row(f"against {side}", share, interval, *(str(rate[name]) for name in ("n", "ties", "flips")))
    shown.print(table)
    shown.print(_judged(found), soft_wrap=True)
    for warned in found["warnings"]:
        shown.print(f"Warning: {warned['text']}")
    flips = Table("wrong labels", "pull on the better", "on the worse", "on the margin (clean = 1)")
    for row in found["flips"][found["objective"]]:
        flips.add_row(f"{row['p']:.0%}", *(f"{row[name]:+.3f}" for name in ("better", "worse")), f"{row['margin']:.2f}")
    shown.print(f"Expected pull of {found['objective']} at the start, below 0 raises:")
    shown.print(flips)
    if "per_pair" in found:
        own = found["per_pair"]
        counts = ", ".join(f"{n} {name}" for name, n in sorted(own["counts"].items()))
        kept = f" ({own['kept']} had theirs already and keep it)" if own["kept"] else ""
        shown.print(f"{own['n']} pairs with their objective in {own['file']}: {counts}{kept}", soft_wrap=True)
    shown.print(f"All of it: {folder / 'advise.json'}")
    shown.print(f"Recommendation: {recommended(found)}. {_more(found)}", soft_wrap=True)


def _judged(found: dict[str, Any]) -> str:
    """Who judged, how many of how many, and what became of the others."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(found.get("unjudged", {}).items()))
    left = f"; left out, see failures.jsonl: {kinds}" if kinds else ""
    return (
        f"Judge {found['judge']}: {found['judged']} of {found['sampled']} asked{left}; {found['pairs']} pairs in all, "
        f"{found['cut']} answers were cut."
    )


def _more(found: dict[str, Any]) -> str:
    if found["settled"] or found["place"] == "contradiction" or not found["judged"]:
        return ""
    if found["needed"] is None:
        return "If 50 % is what it is, more judgements would not settle it. "
    more = found["needed"] - found["judged"]
    return (
        f"About {found['needed']} judged pairs in all, {more} more, would settle it (chance 80 %); "
        f"the file has {found['pairs']}. "
    )
