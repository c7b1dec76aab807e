"""`anchorline eval`: before against after in a run, or any model by itself or against another.

>>> from anchorline.cli.evaluate import evaluate
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchorline.cli.options import Json, Set, run_stage, settings
from anchorline.cli.show import exit_code, print_json, progress

if TYPE_CHECKING:
    from anchorline.evals.settings import EvaluationSettings


def evaluate(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A recipe or run folder; or leave it out and name --model."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model: a folder (adapter too), a hub id, embedded:….", show_default=False)
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The other model; an adapter's base unless given.", show_default=False)
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Some of style,preference,drift,winrate,mixeval_hard,lm_eval.", metavar="NAMES", show_default=False
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(help="A file of prompts; may be repeated.", show_default=False)
    ] = None,
    general: Annotated[
        list[str] | None,
        typer.Option(help="Prompts for drift, where --prompts are others; may be repeated.", show_default=False),
    ] = None,
    style: Annotated[str | None, typer.Option(help="The style's YAML file.", show_default=False)] = None,
    pairs: Annotated[str | None, typer.Option(help="Held-out pairs, for preference.", show_default=False)] = None,
    answers: Annotated[
        str | None, typer.Option(help="Given answers to win against, in place of --against.", show_default=False)
    ] = None,
    data: Annotated[str | None, typer.Option(help="The folder of MixEval-Hard's files.", show_default=False)] = None,
    judge: Annotated[
        str | None, typer.Option(help="The model that judges; the style's checks unless given.", show_default=False)
    ] = None,
    judge_url: Annotated[str | None, typer.Option(help="Where the judge is served.", show_default=False)] = None,
    parser: Annotated[
        str | None, typer.Option(help="MixEval-Hard's answers read by rules or by judge.", show_default=False)
    ] = None,
    lm_task: Annotated[
        list[str] | None,
        typer.Option(help="A task of lm-evaluation-harness; may be repeated.", show_default=False),
    ] = None,
    lm_include: Annotated[
        str | None, typer.Option(help="A folder with your own task files for it.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first prompts of each file, pairs, items.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder; of a recipe runs/NAME, else runs/eval.", show_default=False),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    r"""Compare before and after in a run, or evaluate any model, alone or against another.

    [bold]Examples[/bold]

      anchorline eval runs/harbour --json

      anchorline eval --model runs/harbour/model --tasks style,winrate,drift \
        --style styles/harbour.yaml --prompts runs/harbour/evals/prompts.jsonl \
        --general prompts/general.jsonl --out runs/checked
    """
    named = {
        "against": against,
        "style": style,
        "pairs": pairs,
        "answers": answers,
        "data": data,
        "parser": parser,
        "lm_include": lm_include,
        "judge__model": judge,
        "judge__base_url": judge_url,
    }
    words = settings(overrides, **named)
    if recipe is not None and model is None:
        if len(words) > len(overrides or []) or tasks is not None or prompts or general or lm_task or limit is not None:
            raise typer.Exit(exit_code(_either))
        run_stage(recipe, list(overrides or []), out, upto="evaluate", as_json=as_json, command="eval")

    def call() -> None:
        if model is None or recipe is not None:
            _either()
        lists = {
            "prompts": prompts,
            "general": general,
            "lm_tasks": lm_task,
            "tasks": None if tasks is None else tasks.split(","),
            "limit": limit,
        }
        _evaluate({"model": model, **{k: v for k, v in lists.items() if v is not None}}, words, out, as_json=as_json)

    raise typer.Exit(exit_code(call, again="the same command"))


def _either() -> None:
    from anchorline.errors import RecipeError

    raise RecipeError("name either a recipe or run folder (with --set alone), or --model with its options")


def _evaluate(data: dict[str, Any], words: list[str], out: Path | None, *, as_json: bool) -> None:
    from pydantic import ValidationError

    from anchorline.data import write_json
    from anchorline.errors import RecipeError
    from anchorline.evals.runner import Evaluation
    from anchorline.evals.settings import EvaluationSettings
    from anchorline.evals.table import evaluate as evaluate_all
    from anchorline.recipe.config import override_setting, problem
    from anchorline.report.evaluation_page import write_evaluation_page

    for word in words:
        override_setting(data, word)
    try:
        asked = EvaluationSettings.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"eval: {problem(error)}") from None
    folder = out or Path("runs/eval")
    _check_folder(folder, asked, named=out is not None)
    table: dict[str, Any] = {}
    with progress() as shown:
        for table in evaluate_all(Evaluation(asked, folder, progress=shown)):
            write_json(folder / "evaluation.json", table)
            write_evaluation_page(folder / "evaluation.html", table)
    if as_json:
        print_json(table)
    else:
        _show(table, folder)


def _check_folder(folder: Path, asked: EvaluationSettings, *, named: bool) -> None:
    """Make it, and refuse one in which something would be lost: what is read, or another model's evaluation.

    A folder that was not `named` holds the evaluation that was asked for last.
    """
    from anchorline.data import check_place, read_json
    from anchorline.data.jsonl import writing
    from anchorline.errors import RecipeError
    from anchorline.evals.table import TASKS

    given = (*asked.prompts, *asked.general, asked.pairs, asked.answers)
    for file in (Path(name) for name in given if name is not None):
        if file.stem.partition("-")[0] in TASKS and file.resolve().parent == folder.resolve():
            raise RecipeError(f"{file} is read, and may be replaced with --out {folder}; name another folder")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / "evaluation.json"
    check_place(file)
    if not file.exists():
        return
    there = read_json(file)
    if not isinstance(there, dict) or "model" not in there:
        raise RecipeError(f"{file} is not an evaluation of anchorline; name another folder with --out")
    if named and there["model"] != asked.model:
        raise RecipeError(
            f"{folder} holds the evaluation of {there['model']}, not of {asked.model}; name another folder with --out"
        )


def _show(table: dict[str, Any], folder: Path) -> None:
    print(f"model: {table['model']}" + (f"; against: {table['against']}" if table["against"] else ""))
    for name, task in table["tasks"].items():
        print(f"{name}:")
        for figure in task["figures"]:
            print(f"  {figure['name']}: {_value(figure, figure)}, n = {figure['n']}{_beside(figure)}")
        if "flips" in task.get("table", {}):
            _show_verdicts(task)
        for side, one in task.get("tables", {}).items():
            if "overall" in one:
                print(
                    f"  {side}: {one['overall']['by_lot']} of {one['overall']['n']} answers could not be read; by lot"
                )
        for line in task.get("left_out", []):
            print(f"  left out: {line}")
    print(f"everything is in {folder}")


def _show_verdicts(task: dict[str, Any]) -> None:
    from anchorline.report.figures import reading

    found = task["table"]
    rate = "–" if found["flip_rate"] is None else f"{found['flip_rate']:.1%}"
    print(f"  {found['wins']} wins, {found['losses']} losses, {found['ties']} ties; flip rate {rate} of {found['n']}")
    if found["p"] is not None:
        print(f"  that neither is better: p = {found['p']:.3g} (sign test, exact, wins against losses)")
    controlled = found["length_controlled"]
    if controlled["rate"] is None:
        print("  length control needs 10 results or more")
    else:
        print(f"  at equal lengths {reading(controlled['low'], controlled['high'])}")
    print(f"  against: {task['against']}")


def _value(figure: dict[str, Any], one: dict[str, Any]) -> str:
    def text(value: float) -> str:
        return f"{value:.1%}" if figure["unit"] == "share" else f"{value:.4f}"

    if one["value"] is None:
        return "–"
    return text(one["value"]) + ("" if one["low"] is None else f" ({text(one['low'])} to {text(one['high'])})")


def _beside(figure: dict[str, Any]) -> str:
    if not figure["against"]:
        return ""
    found = figure["difference"]
    p = "" if not found or found["p"] is None else f"; p = {found['p']:.3g} ({found['test']})"
    return f"; against: {_value(figure, figure['against'])}{_difference(figure)}{p}"


def _difference(figure: dict[str, Any]) -> str:
    found = figure["difference"]
    if not found or found["mean"] is None:
        return ""

    def text(value: float) -> str:
        return f"{100 * value:+z.1f}" if figure["unit"] == "share" else f"{value:+z.4f}"

    span = "" if found["low"] is None else f" ({text(found['low'])} to {text(found['high'])})"
    return f"; difference: {text(found['mean'])}{span}{' points' if figure['unit'] == 'share' else ''}"
