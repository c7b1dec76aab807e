"""`anchorline run`, and the commands that are one stage of it: sample, train, report.

>>> from anchorline.cli.run import run
"""

from __future__ import annotations

from typing import Annotated

import typer

from anchorline.cli.options import Json, Model, Objective, Out, Set, run_stage, settings
from anchorline.cli.plan import show_plan

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="The recipe's YAML file, or a run folder to bring up to date.")
]
Strict = Annotated[bool | None, typer.Option("--strict", help="Stop at the first malformed row.", show_default=False)]


def run(
    recipe: Recipe,
    out: Out = None,
    overrides: Set = None,
    objective: Objective = None,
    strict: Strict = None,
    as_json: Json = False,
) -> None:
    """Everything: sample, pairs, measure, train, evaluate, report.

    A finished stage is not done again, a killed run goes on where it was, and a changed setting reruns what depends on it.

    [bold]Examples[/bold]

      anchorline run recipes/harbour.yaml

      anchorline run recipes/harbour.yaml --out runs/try --set train.epochs=2 --objective apo_zero=1,sft=0.2
    """
    run_stage(
        recipe,
        settings(overrides, train__objective=objective, strict=strict),
        out,
        upto="report",
        as_json=as_json,
        command="run",
    )


def sample(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A recipe, or a file of prompts (then --model is needed).")
    ],
    out: Out = None,
    model: Model = None,
    overrides: Set = None,
    strict: Strict = None,
    as_json: Json = False,
) -> None:
    """Let the policy answer the training prompts: answers.jsonl.

    [bold]Examples[/bold]

      anchorline sample recipes/harbour.yaml

      anchorline sample prompts.jsonl --model embedded:smollm2-135m-instruct --out runs/try --set sample.temperature=0.9
    """
    run_stage(
        source,
        settings(overrides, model=model, strict=strict),
        out,
        upto="sample",
        as_json=as_json,
        command="sample",
        data_setting="prompts.train",
    )


def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A recipe, or a file or hub id of pairs or labelled answers (then --model is needed).",
        ),
    ],
    out: Out = None,
    model: Model = None,
    objective: Objective = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it would take: tokens, rows, steps, memory, time.")
    ] = False,
    overrides: Set = None,
    strict: Strict = None,
    as_json: Json = False,
) -> None:
    """Train the policy on pairs: model/, train/metrics.jsonl, train/pairs.parquet.

    With --plan, nothing is written: the data are counted, and two short rows are measured on the model.

    [bold]Examples[/bold]

      anchorline train recipes/harbour.yaml --objective dpo --out runs/dpo

      anchorline train pairs.jsonl --model embedded:smollm2-135m-instruct --set train.learning_rate=3e-4 --out runs/mine

      anchorline train runs/harbour --plan
    """
    given = settings(overrides, model=model, train__objective=objective, strict=strict)
    if plan:
        show_plan(source, given, out, as_json=as_json)
    run_stage(
        source,
        given,
        out,
        upto="train",
        as_json=as_json,
        command="train",
        data_setting="pairs.file",
    )


def report(recipe: Recipe, out: Out = None, overrides: Set = None, as_json: Json = False) -> None:
    """Write report.html, README.md and summary.json, after whatever stage is not up to date.

    Without a model the page shows the pairs: how they were made, how contrastive they are, what they cost.

    [bold]Examples[/bold]

      anchorline report runs/harbour

      anchorline report recipes/harbour.yaml --out runs/try
    """
    run_stage(recipe, settings(overrides), out, upto="page", as_json=as_json, command="report")
