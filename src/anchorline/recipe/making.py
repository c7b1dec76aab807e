"""A run's rows through one maker, with models asked on the way: results are on disk as they come.

What was answered is in the request cache, so making a set again (after a kill, with more rows, with another parser)
asks only for what is new. The makers are async and a stage is not: the event loop begins and ends in this file.

>>> make_set(run, "clair", stage="pairs", target="pairs.jsonl")  # doctest: +SKIP
Made(pairs=290, failures=[...], counts={'maker': 'clair', 'rows': 300, ...})
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from anchorline.data import (
    answer_from_row,
    append_jsonl,
    candidates_from_row,
    pair_to_row,
    prompt_from_row,
    read_jsonl,
)
from anchorline.data.candidates import Candidate, Candidates
from anchorline.errors import MissingExtra, RecipeError
from anchorline.judge import (
    Judge,
    Sampling,
    load_template,
    pairwise,
    pairwise_judge,
    score,
    score_judge,
    score_scorer,
    style_judge,
    style_scorer,
)
from anchorline.llm.settings import EndpointSettings
from anchorline.pairs import (
    Chooser,
    ask_models,
    by_rounds,
    by_score,
    clair_pairs,
    make,
    off_policy,
    on_policy,
    revise,
    stronger,
    user_template,
    verified,
)
from anchorline.recipe.batching import PerRow, by_batches
from anchorline.recipe.config import Recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.counts import Counts
from anchorline.recipe.desk import Desk, open_desk, settings_of
from anchorline.recipe.shards import clear
from anchorline.style import Style
from anchorline.types import Answer, Failure, Pair, Prompt

WINDOW = 256
"""Rows in the works at the same time: more than any pool's calls, so that no call waits for a row."""
CHUNK = 100
"""Pairs that are written at once."""
MORE = "more-answers.jsonl"
CANDIDATES = "candidates.jsonl"


class Made(NamedTuple):
    """How many pairs were written, the rows that fell out, and what became of all rows, at which cost, as JSON."""

    pairs: int
    failures: list[Failure]
    counts: dict[str, Any]


def make_set(run: RunContext, maker: str, *, stage: str, target: str) -> Made:
    """Make a set of pairs into the file `target`, whole or not at all; a set without a pair is no file.

    Raises:
        BudgetReached, CircuitOpen, KeyRefused: what was answered is kept, and the same call goes on from there.

    """
    file = run.path(target)
    partial = file.with_name(file.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    if run.recipe.pairs.engine == "ray":
        from anchorline.recipe.ray_engine import make_set_by_ray

        return make_set_by_ray(run, maker, stage, file, partial)
    return asyncio.run(_make_set(run, maker, stage, file, partial))


def needed_endpoints(recipe: Recipe, maker: str) -> list[str]:
    """The names of the endpoints that a maker asks, as `desk.settings_of` takes them."""
    pairs = recipe.pairs
    names = []
    if maker == "clair" and pairs.reviser == "llm":
        names.append("reviser")
    if maker == "stronger":
        names.append("stronger")
    if maker == "off_policy" and pairs.answers is None:
        names += [f"others.{n}" for n in range(max(len(recipe.llm.others), 1))]
        if len(recipe.llm.others) == 1:
            raise RecipeError("llm.others holds one model; off_policy needs two or more to choose between")
    by_model = pairs.judge == "llm" if maker in {"on_policy", "off_policy"} else pairs.verify == "llm"
    if by_model:
        names.append("judge")
    return names


def check_style(run: RunContext, maker: str) -> None:
    """Raise a UserError where a maker goes by rules and there are none."""
    recipe, pairs = run.recipe, run.recipe.pairs
    by_rules = (
        (maker == "clair" and pairs.reviser == "rules")
        or (maker in {"on_policy", "off_policy"} and pairs.judge == "style")
        or (maker in {"clair", "stronger"} and pairs.verify == "style")
    )
    otherwise = "or let a model do it (pairs.reviser, pairs.judge or pairs.verify: llm)"
    if by_rules and recipe.style is None:
        raise RecipeError(
            f"the setting `style` is lacking: the maker {maker} would go by its rules; give one with --set style=FILE, "
            + otherwise
        )
    if by_rules and not run.style.rules:
        raise RecipeError(
            f"{recipe.style}: the style has no rules, and the maker {maker} would go by them; give it some, {otherwise}"
        )


def check_unstyled(recipe: Recipe) -> None:
    """Raise a RecipeError where the run's own pairs cannot be turned for unstyled prompts; sets beside them have none."""
    if recipe.prompts and recipe.prompts.unstyled and not unverified_rules(recipe, recipe.pairs.maker):
        raise RecipeError(
            "prompts.unstyled works with maker clair, reviser rules and verify none only (a judge would not prefer the "
            "chosen side of its pairs); leave it out"
        )


def unverified_rules(recipe: Recipe, maker: str) -> bool:
    """Whether the style's repairs are the pairs as they are, without a judge's second look."""
    return maker == "clair" and recipe.pairs.reviser == "rules" and recipe.pairs.verify == "none"


def check_templates(recipe: Recipe, maker: str) -> None:
    """Raise a UserError where a prompt template of the user's own, which the maker would use, cannot be used."""
    pairs, asked = recipe.pairs, needed_endpoints(recipe, maker)
    if pairs.prompt and "reviser" in asked:
        user_template(pairs.prompt)
    if pairs.judge_prompt and "judge" in asked:
        slots = score.SLOTS if pairs.judge_mode == "score" else pairwise.SLOTS
        load_template(pairs.judge_prompt, slots=slots)


def check_engine(recipe: Recipe, maker: str, *, batch: bool) -> None:
    """Raise where `pairs.engine: ray` cannot be."""
    if recipe.pairs.engine != "ray":
        return
    if maker == "clair" and recipe.pairs.reviser == "rules":
        raise RecipeError(
            "pairs.engine is ray, but clair by the style's own repairs is quick work for this process: leave --engine "
            "out, or let a model revise (pairs.reviser: llm)"
        )
    if batch:
        raise RecipeError("--batch orders replies without any worker of ours; leave out either --batch or --engine ray")
    if find_spec("ray") is None:
        raise MissingExtra("--engine ray", "ray")


async def _make_set(run: RunContext, maker: str, stage: str, file: Path, partial: Path) -> Made:
    failures: list[Failure] = []
    counts = Counts(maker)
    clear(partial)  # what it held is made again, from the cache
    partial.touch()
    waiting: list[dict[str, Any]] = []

    def take(result: Pair | Failure, advance: Callable[[int], None]) -> None:
        counts.add(result)
        if isinstance(result, Pair):
            waiting.append(pair_to_row(result))
            if len(waiting) >= CHUNK:
                append_jsonl(partial, waiting)
                waiting.clear()
        else:
            failures.append(result)
        advance(1)

    async with open_desk(run) as desk:
        with run.progress.task(f"pairs: {maker}", total=count_rows(run, maker), unit="rows") as advance:
            tally = await _through(run, maker, desk, rows_of(run, maker), lambda result: take(result, advance))
    append_jsonl(partial, waiting)
    if tally:
        partial.replace(file)
    else:
        partial.unlink()
    return Made(tally, [replace(failure, stage=stage) for failure in failures], counts.row(desk.bill))


async def _through(
    run: RunContext, maker: str, desk: Desk, rows: Iterator[Any], on_result: Callable[[Pair | Failure], None]
) -> int:
    """The rows through the maker, by direct calls or by batches; how many pairs there were."""
    if run.calls.batch:
        listed = list(rows)

        async def build(wrap: Callable[[str], Awaitable[Any]]) -> PerRow:
            return await per_row(run, maker, wrap)

        return await by_batches(run, desk, listed, build, on_result=on_result)
    tally = await make(rows, await per_row(run, maker, desk.endpoint), on_result=on_result, window=WINDOW)
    return tally.made


async def per_row(run: RunContext, maker: str, endpoint: Callable[[str], Awaitable[Any]]) -> PerRow:
    """The maker of one row, its endpoints given by `endpoint`."""
    recipe, policy = run.recipe, run.policy_name
    if maker in {"on_policy", "off_policy"}:
        choose = await _chooser(run, endpoint)
        if maker == "on_policy":
            return lambda row: on_policy(row, choose=choose, policy=policy)
        if recipe.pairs.answers is not None:
            return lambda row: off_policy(row, choose=choose, policy=policy)
        names = needed_endpoints(recipe, maker)
        others = [(await endpoint(name), sampling(settings_of(recipe, name))) for name in names if name != "judge"]

        async def asked(prompt: Prompt) -> Pair | Failure:
            found = await ask_models(prompt, others)
            return found if isinstance(found, Failure) else await off_policy(found, choose=choose, policy=policy)

        return asked
    verify = await _verifier(run, endpoint)
    if maker == "stronger":
        model, how = await endpoint("stronger"), sampling(settings_of(recipe, "stronger"))
        return lambda answer: stronger(answer, model=model, policy=policy, sampling=how, verify=verify)
    if recipe.pairs.reviser == "rules":

        async def repaired(answer: Answer) -> Pair | Failure:
            made = clair_pairs([answer], run.style, policy=policy)
            [result] = [*made.pairs, *made.failures]
            return await verified(result, verify) if isinstance(result, Pair) and verify else result

        return repaired
    reviser, how = await endpoint("reviser"), sampling(settings_of(recipe, "reviser"))
    template = user_template(recipe.pairs.prompt) if recipe.pairs.prompt else None
    style, gates = style_of(run), recipe.pairs.gates
    return lambda answer: revise(
        answer,
        reviser=reviser,
        policy=policy,
        style=style,
        template=template,
        sampling=how,
        gates=gates,
        verify=verify,
    )


def rows_of(run: RunContext, maker: str) -> Iterator[Any]:
    """What the maker takes, read as it goes."""
    if maker in {"clair", "stronger"}:
        return _rows(run, "answers.jsonl", answer_from_row)
    if run.recipe.pairs.answers is not None:
        return _rows(run, CANDIDATES, candidates_from_row)
    if maker == "off_policy":
        return _rows(run, "prompts.jsonl", prompt_from_row)
    return _samples(run)


def count_rows(run: RunContext, maker: str) -> int:
    """How many rows the maker will take."""
    return sum(1 for _ in rows_of(run, maker))


def sampling(settings: EndpointSettings) -> Sampling:
    """How an endpoint is sampled."""
    return Sampling(settings.max_tokens, settings.temperature, settings.top_p)


def style_of(run: RunContext) -> Style | None:
    """The run's style, if it has one."""
    return run.style if run.recipe.style else None


async def _chooser(run: RunContext, endpoint: Callable[[str], Awaitable[Any]]) -> Chooser:
    pairs = run.recipe.pairs
    if pairs.judge == "style":
        return by_score(style_scorer(run.style))
    judge, how = await endpoint("judge"), sampling(settings_of(run.recipe, "judge"))
    if pairs.judge_mode == "score":
        template = load_template(pairs.judge_prompt, slots=score.SLOTS) if pairs.judge_prompt else None
        return by_score(
            score_scorer(judge, n=pairs.judge_samples, style=style_of(run), template=template, sampling=how)
        )
    return by_rounds(two_answer_judge(run, judge, how))


async def _verifier(run: RunContext, endpoint: Callable[[str], Awaitable[Any]]) -> Judge | None:
    pairs = run.recipe.pairs
    if pairs.verify == "none":
        return None
    if pairs.verify == "style":
        return style_judge(run.style)
    judge, how = await endpoint("judge"), sampling(settings_of(run.recipe, "judge"))
    if pairs.judge_mode == "score":
        template = load_template(pairs.judge_prompt, slots=score.SLOTS) if pairs.judge_prompt else None
        return score_judge(judge, n=pairs.judge_samples, style=style_of(run), template=template, sampling=how)
    return two_answer_judge(run, judge, how)


def two_answer_judge(run: RunContext, judge: Any, how: Sampling) -> Judge:
    """The model `judge`, asked in both orders with the recipe's style and template."""
    settings = run.recipe.pairs
    prompt = settings.judge_prompt if settings.judge_mode == "pairwise" else None  # of a score judge it has other slots
    template = load_template(prompt, slots=pairwise.SLOTS) if prompt else None
    return pairwise_judge(judge, style=style_of(run), template=template, sampling=how)


def _rows(run: RunContext, name: str, parse: Callable[..., Any]) -> Iterator[Any]:
    file = run.path(name)
    return (parse(row) for _, row in read_jsonl(file)) if file.is_file() else iter(())


def _samples(run: RunContext) -> Iterator[Candidates]:
    """The policy's samples of each prompt. One that the token limit cut, or that is blank, is none to choose."""
    samples: dict[str, list[Answer]] = defaultdict(list)
    for answer in _rows(run, "answers.jsonl", answer_from_row):
        samples[answer.id].append(answer)
    for answer in _rows(run, MORE, answer_from_row):
        samples[answer.id.rpartition("#")[0]].append(answer)
    # not by the first answers: a prompt without one may have others
    for prompt in _rows(run, "prompts.jsonl", prompt_from_row):
        whole = [a for a in samples[prompt.id] if a.finish == "stop" and a.text.strip()]
        yield Candidates(prompt.id, prompt.messages, tuple(Candidate(a.text, run.policy_name) for a in whole))
