"""The stage `advise`: the policy answers a sample of the prompts anew, a judge compares, and the objective follows.

>>> advise_set(run)  # doctest: +SKIP
[]
>>> decided(recipe, run.folder).objective  # doctest: +SKIP
{'apo_zero': 1.0}
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from anchorline.advise import (
    Compared,
    advise,
    compared_from_row,
    compared_to_row,
    flip_table,
    meet,
    own_objectives,
    warnings_of,
)
from anchorline.data import answer_from_row, pair_from_row, read_json, read_pairs, write_json
from anchorline.errors import UNANSWERED, DataError, EndpointError, MissingExtra, ModelError, RecipeError
from anchorline.judge import style_judge
from anchorline.pairs import make
from anchorline.recipe.config import Recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.desk import check_endpoints, open_desk, settings_of
from anchorline.recipe.making import sampling, two_answer_judge
from anchorline.recipe.sampling import ask_policy
from anchorline.train.config import AUTO, TrainSettings
from anchorline.types import Answer, Failure, Pair, Prompt

if TYPE_CHECKING:
    from anchorline.judge import Judge
    from anchorline.recipe.desk import Desk

ADVICE = "advise.json"
ANSWERED = "advise/answers.jsonl"
JUDGED = "advise/verdicts.jsonl"
FRESH = 2**20
"""Added to the seed and to a sample's index, beyond any other's: else the cache, or the same luck, would give the very
answers that the pairs were made of."""
OWN = frozenset({"clair", "stronger"})
"""Makers whose rejected answer is the policy's own."""


def decided(recipe: Recipe, folder: Path) -> TrainSettings:
    """The settings of training; with `objective: auto`, once the advisor has spoken, with its objective."""
    if recipe.train.objective != AUTO or not (folder / ADVICE).is_file():
        return recipe.train
    return recipe.train.model_copy(update={"objective": {read_json(folder / ADVICE)["objective"]: 1.0}})


def check_advise(run: RunContext) -> None:
    """Raise a UserError, or MissingExtra, where the stage could not judge or not warn."""
    if importlib.util.find_spec("scipy") is None:
        raise MissingExtra("advising on an objective", "train")
    if run.recipe.advise.judge == "llm":
        check_endpoints(run.recipe, ["judge"])
    elif run.recipe.style is None:
        raise RecipeError(
            "objective auto judges by a style or a model, and `style` is lacking: give one with --set style=FILE, or a "
            "model with --set advise.judge=llm --set llm.judge.model=NAME"
        )
    else:
        style_judge(run.style)


def advise_set(run: RunContext) -> list[Failure]:
    """Write `advise.json` with the answers and verdicts that it rests on; the rows that could not be judged."""
    recipe, asked = run.recipe, run.recipe.advise
    pairs = run.read("pairs.jsonl", pair_from_row)
    # where the style does not apply, its pairs are turned round: a judge by the style would see them the wrong way
    fit = [pair for pair in pairs if not pair.provenance.details.get("turned")]
    drawn = sorted(random.Random(recipe.seed).sample(range(len(fit)), min(asked.prompts, len(fit))))  # noqa: S311 - a sample
    sample = [fit[n] for n in drawn]
    failures = _answer(run, [Prompt(pair.id, pair.prompt) for pair in sample])
    answers = run.read(ANSWERED, answer_from_row)
    met, unjudged = asyncio.run(_judge(run, {pair.id: pair for pair in sample}, [a for a in answers if a.text.strip()]))
    failures += unjudged
    judge = settings_of(recipe, "judge").model if asked.judge == "llm" else f"style:{run.style.name}"
    if not met and unjudged and all(failure.kind in UNANSWERED for failure in unjudged):
        raise EndpointError(f"the judge {judge} answered none of {len(unjudged)} requests: {unjudged[0].reason}")
    run.write(JUDGED, met, compared_to_row)
    hidden, why = _hidden(run, sample)
    own = len(_own_rejected(run, pairs))
    advice = advise(met, level=asked.level, experimental=asked.experimental, own_rejected=own > len(pairs) / 2)
    rows = {**advice._asdict(), "chosen": advice.chosen._asdict(), "rejected": advice.rejected._asdict()}
    found: dict[str, Any] = {
        **rows,
        "policy": run.policy_name,
        "judge": judge,
        "level": asked.level,
        "pairs": len(pairs),
        "sampled": len(sample),
        "judged": len(met),
        "unjudged": Counter(failure.kind for failure in failures),
        "cut": sum(answer.finish == "length" for answer in answers),
        "own_rejected": own,
        "hidden": _spread(hidden) | {"skipped": why},
        "warnings": [warned._asdict() for warned in warnings_of(pairs, hidden=hidden)],
        "flips": {name: flip_table(name) for name in dict.fromkeys((advice.objective, "apo_zero", "apo_down", "dpo"))},
    }
    write_json(run.path(ADVICE), found)
    return failures


class OwnPairs(NamedTuple):
    """Pairs with an objective each, and how many of them had one already, which stays."""

    pairs: list[Pair]
    kept: int


def own_pairs(recipe: Recipe, folder: Path) -> OwnPairs:
    """All pairs of `pairs.file` with an objective each, as the advice and the verdicts in the folder say."""
    source = run_source(recipe)
    run = RunContext(recipe, folder)
    met = run.read(JUDGED, compared_from_row)
    asked, advised = recipe.advise, read_json(folder / ADVICE)
    own = advised["own_rejected"] > advised["pairs"] / 2
    advice = advise(met, level=asked.level, experimental=asked.experimental, own_rejected=own)
    given = read_pairs(source).rows
    mine = _own_rejected(run, given)
    own_ones = own_objectives(given, met, advice, experimental=asked.experimental, own_rejected=mine)
    return OwnPairs(own_ones, sum(pair.objective is not None for pair in given))


def run_source(recipe: Recipe) -> str:
    """The file of pairs."""
    if recipe.pairs.file is None:
        raise RecipeError("the recipe makes its pairs; --per-pair takes a file of pairs")
    return recipe.pairs.file


def _own_rejected(run: RunContext, pairs: Sequence[Pair]) -> set[str]:
    """The ids of pairs whose rejected answer is a sample of this policy."""
    return {p.id for p in pairs if p.provenance.maker in OWN and same_model(p.provenance.policy, run.policy_name)}


def same_model(one: str, other: str) -> bool:
    """Whether two spellings name one model: a folder may be given relative to here or not."""
    return one == other or (Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other))


def _answer(run: RunContext, prompts: list[Prompt]) -> list[Failure]:
    if run.recipe.llm.policy is not None:
        return ask_policy(run, prompts, run.recipe.sample, ANSWERED, "advise", salt=FRESH)
    answers = run.answer(run.loaded(run.recipe.train.dtype), prompts, run.recipe.sample, ANSWERED, salt=FRESH)
    return [Failure(a.id, "advise", "empty", "the model's answer is empty") for a in answers if not a.text.strip()]


async def _judge(
    run: RunContext, pairs: dict[str, Pair], answers: Sequence[Answer]
) -> tuple[list[Compared], list[Failure]]:
    met: list[Compared] = []
    failures: list[Failure] = []
    async with open_desk(run, retry_failed=True) as desk:  # a judge that was away the last time is asked again
        judge = await _judge_of(run, desk)
        with run.progress.task("judge", total=len(answers), unit="answers") as advance:

            def take(result: Compared | Failure) -> None:
                (failures if isinstance(result, Failure) else met).append(result)  # pyright: ignore[reportArgumentType]
                advance(1)

            await make(answers, lambda answer: meet(pairs[answer.id], answer.text, judge), on_result=take)
    return met, failures


async def _judge_of(run: RunContext, desk: Desk) -> Judge:
    if run.recipe.advise.judge == "style":
        return style_judge(run.style)
    return two_answer_judge(run, await desk.endpoint("judge"), sampling(settings_of(run.recipe, "judge")))


def _hidden(run: RunContext, sample: list[Pair]) -> tuple[list[dict[str, Any]], str | None]:
    """The similarity of the hidden states of each sampled pair, or why there is none."""
    if not run.recipe.advise.hidden:
        return [], "advise.hidden is off"
    if run.recipe.model is None:
        return [], "the policy's weights are not here"
    from anchorline.train.hidden import hidden_similarity

    run.release()
    try:
        return hidden_similarity(sample, run.model, run.recipe.train, progress=run.progress), None
    except (ModelError, DataError) as error:
        return [], str(error)


def _spread(hidden: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def median(name: str) -> float | None:
        ordered = sorted(row[name] for row in hidden)
        return ordered[len(ordered) // 2] if ordered else None

    return {"n": len(hidden), "median_cosine": median("cosine"), "median_ches": median("ches")}
