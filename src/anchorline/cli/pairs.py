"""`anchorline pairs`: answers become pairs, by any of the four makers, in a run or from a file alone (no torch needed).

>>> from anchorline.cli.pairs import pairs
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anchorline.cli.options import (
    Json,
    Set,
    check_out,
    is_recipe,
    recipe_and_folder,
    refuse_overrides,
    run_stage,
    settings,
)
from anchorline.cli.show import exit_code, print_json, print_unanswered, progress

if TYPE_CHECKING:
    from anchorline.pairs.settings import Maker

MAKERS: dict[str, Maker] = {
    "clair": "clair",
    "on-policy": "on_policy",
    "off-policy": "off_policy",
    "stronger": "stronger",
}


def pairs(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MAKER] SOURCE",
            help="The maker: clair, on-policy, off-policy or stronger (else the recipe's own pairs are made). The source: a "
            "recipe, a run folder, or a file of answers (rows with prompt and text, or with prompt and completions).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Run folder; without a maker and for a file of answers the pairs' file (.jsonl, .parquet).",
            show_default=False,
        ),
    ] = None,
    style: Annotated[str | None, typer.Option(help="The style's YAML file.", show_default=False)] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Let the style run the Python functions that it names.")
    ] = False,
    reviser: Annotated[
        str | None,
        typer.Option(
            metavar="rules|MODEL", help="clair: the style's repairs, or a model that revises.", show_default=False
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="style|MODEL", help="on-policy, off-policy: the style's checks, or a model.", show_default=False
        ),
    ] = None,
    stronger: Annotated[
        str | None, typer.Option(metavar="MODEL", help="stronger: the model that answers.", show_default=False)
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="Where those models are: an OpenAI-compatible endpoint.", show_default=False),
    ] = None,
    max_usd: Annotated[
        float | None, typer.Option(help="Stop before more than this is spent, resumes included.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop before more tokens are used, resumes included.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make a pilot's rows only and say what all of them will cost.")
    ] = False,
    pilot: Annotated[
        int | None,
        typer.Option(min=2, help="Rows of the pilot of --dry-run; 20 unless given.", show_default=False),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again for what failed.")] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="Use the endpoints' batch interface: half the price, within a day.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="local|ray", help="Make the rows here, or on a Ray cluster's workers.", show_default=False
        ),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Make pairs. What does not become a pair goes to failures.jsonl with its reason.

    clair: rejected is the policy's answer, chosen its minimal revision, by the style's own repairs or by a model.
    on-policy: the worse and the better of the policy's samples. off-policy: of other models' answers.
    stronger: chosen is a stronger model's own answer.

    With a maker's name the set goes to sets/MAKER of the run folder, beside the others; matched.jsonl holds the pairs whose
    prompts all sets have. Every reply is kept in requests.sqlite and never paid for again.
    Of a file without a maker, what falls out goes beside --out: for made.jsonl to made.failures.jsonl.

    [bold]Examples[/bold]

      anchorline pairs recipes/harbour.yaml

      anchorline pairs answers.jsonl --style styles/harbour.yaml --out pairs.jsonl

      anchorline pairs clair recipes/harbour.yaml --reviser gpt-4o-mini --dry-run --pilot 20

      anchorline pairs clair answers.jsonl --reviser qwen --base-url http://127.0.0.1:8000/v1 --out runs/qwen

      anchorline pairs on-policy runs/harbour --judge gpt-4o-mini --max-usd 5

      RAY_ADDRESS=auto anchorline pairs stronger runs/harbour --stronger gpt-4o --engine ray
    """
    maker, source = _maker_and_source(words)
    if pilot is not None and not dry_run:
        raise typer.Exit(exit_code(_pilot_alone))
    if maker is None and not is_recipe(source):
        for_makers = {
            "--reviser": reviser if reviser != "rules" else None,
            "--judge": judge,
            "--stronger": stronger,
            "--base-url": base_url,
            "--max-usd": max_usd,
            "--max-tokens": max_tokens,
            "--dry-run": dry_run or None,
            "--retry-failed": retry_failed or None,
            "--batch": batch or None,
            "--engine": engine,
        }
        unused = [option for option, value in for_makers.items() if value is not None]
        if overrides:
            raise typer.Exit(exit_code(refuse_overrides))
        if unused:
            raise typer.Exit(exit_code(lambda: _refuse(unused, source)))
        raise typer.Exit(exit_code(lambda: _from_file(source, out, style, trust_code=trust_code, as_json=as_json)))
    for option, model, its in (("--reviser", reviser, "clair"), ("--stronger", stronger, "stronger")):
        if model is not None and maker not in (None, its):
            raise typer.BadParameter(
                f"{words[0]} asks no such model; leave it out, or make the pairs by {its}", param_hint=option
            )
    # a set beside the run's own pairs leaves the recipe's maker alone
    named = {"style": style, "trust_code": trust_code or None, "pairs__maker": None if is_recipe(source) else maker}
    for name, model, own in (("reviser", reviser, "rules"), ("judge", judge, "style")):
        named[f"pairs__{name}"] = None if model is None else own if model == own else "llm"
        named[f"llm__{name}__model"] = None if model == own else model
    named["llm__stronger__model"] = stronger
    named["pairs__engine"] = engine
    if base_url is not None:
        if not any(value and key.startswith("llm__") for key, value in named.items()):
            raise typer.BadParameter(
                "it says where the models are that --reviser, --judge or --stronger name, and none is named; name one, or "
                "set the recipe's own: --set llm.reviser.base_url=URL",
                param_hint="--base-url",
            )
        named |= {
            f"llm__{key.split('__')[1]}__base_url": base_url for key, value in named.items() if value and "llm" in key
        }
    named |= {
        f"llm__budget__{key}": str(value)
        for key, value in {"max_usd": max_usd, "max_tokens": max_tokens}.items()
        if value is not None
    }
    given = settings(overrides, **named)
    if dry_run:
        how = {"retry_failed": retry_failed, "batch": batch}
        raise typer.Exit(exit_code(lambda: _dry_run(source, given, out, maker, pilot or 20, **how, as_json=as_json)))
    run_stage(
        source,
        given,
        out,
        upto="pairs",
        as_json=as_json,
        command=f"pairs {maker.replace('_', '-')}" if maker else "pairs",
        data_setting="pairs.answers",
        maker=maker,
        retry_failed=retry_failed,
        batch=batch,
    )


def _maker_and_source(words: list[str]) -> tuple[Maker | None, str]:
    if len(words) == 1:
        return None, words[0]
    maker = MAKERS.get(words[0])
    if maker is None or len(words) > 2:
        raise typer.BadParameter(
            f"got {' '.join(words)!r}, expected a SOURCE, or one of {', '.join(MAKERS)} and a SOURCE"
        )
    return maker, words[1]


def _pilot_alone() -> None:
    from anchorline.errors import RecipeError

    raise RecipeError("--pilot counts the rows of a dry run; add --dry-run, or leave --pilot out")


def _refuse(unused: list[str], source: str) -> None:
    """A file alone is revised by the style's rules: no model is asked, and there is nothing to try out."""
    from anchorline.errors import RecipeError

    raise RecipeError(
        f"{', '.join(unused)}: of no use for a file alone, whose answers the style's rules revise; leave it out, or name "
        f"a maker before the file: anchorline pairs clair {source}"
    )


def _dry_run(
    source: str,
    given: list[str],
    out: Path | None,
    maker: Maker | None,
    rows: int,
    *,
    retry_failed: bool,
    batch: bool,
    as_json: bool,
) -> None:
    from anchorline.recipe import Calls, try_out

    recipe, folder = recipe_and_folder(source, given, out, data_setting="pairs.answers")
    with progress() as shown:
        calls = Calls(retry_failed=retry_failed, batch=batch)
        found = try_out(recipe, folder, maker=maker, rows=rows, calls=calls, progress=shown)
    if as_json:
        print_json(found)
        return
    kept = found["kept"]
    print(f"pilot: {found['pilot']} of {found['rows']} rows by {found['maker']}; {kept['share']:.0%} became pairs")
    for kind, count in found["failures"].items():
        print(f"  not a pair: {count} {kind} (one of them: {found['reasons'][kind]})")
    print_unanswered(found["failures"])
    if found["tokens"] is None:
        print("nothing can be estimated: the models answered none of the pilot's requests")
        return
    for what, mark in (("tokens", ",.0f"), ("usd", ",.4f")):
        if found[what] is None:
            names = " ".join(f"--set llm.{name}.prices='{{input: 0.15, output: 0.6}}'" for name in found["unpriced"])
            print(f"{what}: unknown; give the price{f', such as {names}' if names else ''}")
        else:
            mean, low, high = (format(found[what][key], mark) for key in ("mean", "low", "high"))
            print(f"{what}, all {found['rows']} rows: {mean} (95 % interval {low} to {high})")


def _from_file(source: str, out: Path | None, style: str | None, *, trust_code: bool, as_json: bool) -> None:
    from anchorline.data import check_writable, failure_to_row, pair_to_row, read_answers, write_jsonl, write_rows
    from anchorline.errors import DataError, RecipeError
    from anchorline.pairs import clair_pairs, no_pair
    from anchorline.recipe.stages import malformed
    from anchorline.style import load_style

    if style is None or out is None:
        raise RecipeError("a file of answers needs --style (a YAML file) and --out (where the pairs go)")
    beside = out.with_suffix(".failures.jsonl")  # named after the pairs, as others may lie in the same folder
    check_writable(out)
    check_out(out, source, style)
    check_out(beside, source, style)
    loaded = load_style(style, trust_code=trust_code)
    answers, problems = read_answers(source)
    made = clair_pairs(answers, loaded, policy="")
    if not made.pairs:
        raise DataError(no_pair(made.failures), file=source)
    failures = [*(malformed(problem, "pairs") for problem in problems), *made.failures]
    write_rows(out, [pair_to_row(pair) for pair in made.pairs])
    write_jsonl(beside, [failure_to_row(failure) for failure in failures])
    counts = {"pairs": len(made.pairs), "failures": len(failures)}
    if as_json:
        print_json(counts)
    else:
        print(f"{len(made.pairs)} pairs in {out}; {len(failures)} rows left out, see {beside}")
