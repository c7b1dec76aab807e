"""Evaluations of a model's answers to prompts: which rules they keep, and whether they are better than others' answers.

>>> style_task(Evaluation(settings, folder))["figures"][0]  # doctest: +SKIP
{'name': 'all rules kept', 'n': 60, 'value': 0.95, 'low': 0.86, 'high': 0.98, 'against': {...}, 'difference': {...}}
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

from anchorline.data import failure_to_row, read_answers
from anchorline.errors import DataError, MissingExtra, StyleError, UserError
from anchorline.evals.figure import Figures, make_figure
from anchorline.evals.runner import Evaluation, Side
from anchorline.evals.style import share_kept
from anchorline.evals.winrate import judge_answers, winrate_table
from anchorline.judge import Judge, Sampling, pairwise_judge, style_judge, verdict_to_row
from anchorline.style import Style, check
from anchorline.types import Answer, Prompt


def style_needs(work: Evaluation) -> tuple[Style, list[Prompt]]:
    """A style with rules, and the prompts."""
    style = work.style
    if not style.rules:
        raise StyleError(f"the style {style.name!r} has no rules to count by; add rules, or take winrate with --judge")
    return style, work.asked.prompts


def style_task(work: Evaluation, needs: tuple[Style, list[Prompt]]) -> Figures:
    """The share of answers that keep each rule and all rules; against another model with McNemar's test."""
    style, prompts = needs
    sides: list[Side] = ["model", "against"] if work.against else ["model"]
    answers = {side: work.answers(side, prompts, "prompts") for side in sides}
    shares = {side: share_kept(style, answers[side]) for side in sides}
    kept = {side: [check(style, answer.prompt, answer.text) for answer in answers[side]] for side in sides}
    for side in sides:
        rows = zip(answers[side], kept[side], strict=True)
        work.keep(f"style-{side}", ({"id": answer.id, "rules": row, "answer": answer.text} for answer, row in rows))

    def kept_figure(name: str, rule: str | None) -> Figures:
        parts = {side: shares[side]["rules"][rule] if rule else shares[side]["all"] for side in sides}
        results = {side: [float(row[rule] if rule else all(row.values())) for row in kept[side]] for side in sides}
        return make_figure(name, len(prompts), parts["model"], parts.get("against"), results, work.settings.seed)

    names = [rule.name for rule in style.rules]
    return {
        "figures": [kept_figure("all rules kept", None), *(kept_figure(name, name) for name in names)],
        "words": {side: shares[side]["words"] for side in sides},
        "cut": {side: shares[side]["cut"] for side in sides},
        "left_out": work.asked.problems,
    }


class WinrateNeeds(NamedTuple):
    """What win rates need beside the model."""

    style: Style | None
    """The judge, where no model is; else its rubric."""
    given: tuple[dict[str, Answer], list[str]] | None
    """Given answers by the id of their prompt, and what is lacking; None: the other model answers."""


def winrate_needs(work: Evaluation) -> WinrateNeeds:
    """A judge, and whom to compare with."""
    asked, settings = work.asked, work.settings
    if settings.judge is None:
        work.need(settings.style, "--judge (a model) or --style (its checks)")
        style_judge(work.style)
    else:
        work.need_judge()
    if find_spec("sklearn") is None:
        raise MissingExtra("the length-controlled win rate", "eval")
    style = work.style if settings.style else None
    if settings.answers and settings.against and set(settings.tasks) == {"winrate"}:
        raise UserError("--against and --answers both say whose answers to win against; give one of them")
    if settings.answers:
        return WinrateNeeds(style, _given(settings.answers, asked.prompts))
    work.need(work.against, "--against (a model) or --answers (given ones)")
    return WinrateNeeds(style, None)


def winrate_task(work: Evaluation, needs: WinrateNeeds) -> Figures:
    """The model's answers against another model's or given ones, by a judge that is asked in both orders."""
    style, given = needs
    prompts = work.asked.prompts
    left_out = list(work.asked.problems)
    if given:
        theirs, missing = given
        left_out += missing
        prompts = [prompt for prompt in prompts if prompt.id in theirs]
        other = [theirs[prompt.id] for prompt in prompts]
    else:
        other = work.answers("against", prompts, "prompts")
    ours = work.answers("model", prompts, "prompts")

    async def run() -> Any:
        settings = work.settings.judge
        if settings is None:
            return await judge_answers(style_judge(work.style), ours, other, progress=work.progress)
        sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_p)
        async with work.judge() as endpoint:
            judge: Judge = pairwise_judge(endpoint, style=style, sampling=sampling)
            return await judge_answers(judge, ours, other, progress=work.progress)

    judged = asyncio.run(run())
    if judged.failures and not judged.verdicts:
        raise work.silent(len(judged.failures), "pairs", judged.failures[0].reason)
    table = winrate_table(judged.verdicts, [(a.text, b.text) for a, b in judged.answers], seed=work.settings.seed)
    rows = [
        {"id": a.id, **verdict_to_row(verdict), "model": a.text, "against": b.text}
        for verdict, (a, b) in zip(judged.verdicts, judged.answers, strict=True)
    ]
    work.keep("winrate", [*rows, *map(failure_to_row, judged.failures)])
    controlled = table["length_controlled"]
    return {
        "figures": [
            make_figure("win rate", table["n"], table | {"share": table["win_rate"]}),
            make_figure("win rate, length-controlled", controlled["n"], controlled | {"share": controlled["rate"]}),
        ],
        "table": table,
        "against": work.settings.answers or work.against_shown,
        "unjudged": len(judged.failures),
        "left_out": [*left_out, *(f"{row.id}: {row.reason}" for row in judged.failures)],
    }


def _given(source: str, prompts: Sequence[Prompt]) -> tuple[dict[str, Answer], list[str]]:
    """Given answers by the id of the prompt that they answer, and the prompts without one."""
    found = read_answers(source)
    by_prompt = {answer.prompt: answer for answer in found.rows}
    theirs = {
        prompt.id: replace(by_prompt[prompt.messages], id=prompt.id)
        for prompt in prompts
        if prompt.messages in by_prompt
    }
    if not theirs:
        raise DataError("answers none of the prompts; give answers to the same conversations", file=source)
    missing = [f"{prompt.id}: {source} has no answer to it" for prompt in prompts if prompt.id not in theirs]
    return theirs, [*map(str, found.problems), *missing]
