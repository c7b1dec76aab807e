"""Each evaluation as a task of its own: what it reads, whom it asks, and its figures.

>>> style_task(Evaluation(settings, folder))["figures"][0]  # doctest: +SKIP
{'name': 'all rules kept', 'n': 60, 'value': 0.95, 'low': 0.86, 'high': 0.98, 'against': {...}, 'difference': {...}}
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anchorline.data import failure_to_row, read_answers, read_pairs, write_jsonl
from anchorline.errors import DataError
from anchorline.evals.drift import drift
from anchorline.evals.mixeval_hard import Item, Score, load_items, mixeval_table, question, score_by_rules
from anchorline.evals.mixeval_judge import score_by_judge
from anchorline.evals.paired import compare_results
from anchorline.evals.preference import preference
from anchorline.evals.runner import Evaluation, Side
from anchorline.evals.style import share_kept
from anchorline.evals.winrate import judge_answers, winrate_table
from anchorline.judge import Judge, Sampling, pairwise_judge, style_judge, verdict_to_row
from anchorline.style import check
from anchorline.train.config import TrainSettings
from anchorline.types import Answer, Prompt

Figures = dict[str, Any]


def style_task(work: Evaluation) -> Figures:
    """The share of answers that keep each rule and all rules; against another model with McNemar's test."""
    style, prompts = work.style, work.asked.prompts
    sides: list[Side] = ["model", "against"] if work.against else ["model"]
    answers = {side: work.answers(side, prompts, "prompts") for side in sides}
    shares = {side: share_kept(style, answers[side]) for side in sides}
    kept = {side: [check(style, answer.prompt, answer.text) for answer in answers[side]] for side in sides}

    def figure(name: str, rule: str | None) -> Figures:
        parts = {side: shares[side]["rules"][rule] if rule else shares[side]["all"] for side in sides}
        results = {side: [float(row[rule] if rule else all(row.values())) for row in kept[side]] for side in sides}
        return _figure(name, len(prompts), parts["model"], parts.get("against"), results, work.settings.seed)

    names = [rule.name for rule in style.rules]
    return {
        "figures": [figure("all rules kept", None), *(figure(name, name) for name in names)],
        "words": {side: shares[side]["words"] for side in sides},
        "cut": {side: shares[side]["cut"] for side in sides},
        "left_out": work.asked.problems,
    }


def preference_task(work: Evaluation) -> Figures:
    """Whether the model has come to prefer the better answer of held-out pairs, relative to the reference."""
    found = read_pairs(work.need(work.settings.pairs, "--pairs"))
    settings = TrainSettings(beta=work.settings.beta, forward="plain")
    scored = preference(work.subject(), found.rows[: work.settings.limit], settings, progress=work.progress)
    _keep(work, "preference", scored.rows)
    table = scored.table
    return {
        "figures": [_figure("r_w above r_l", table["n"], table | {"share": table["accuracy"]})],
        "table": table,
        "left_out": [*map(str, found.problems), *(f"row {row.id}: {row.reason}" for row in scored.failures)],
    }


def drift_task(work: Evaluation) -> Figures:
    """How far the model moved from the reference, along the reference's own answers, by group of prompts."""
    asked = work.asked
    answers = work.answers("against", asked.prompts, "general", max_new_tokens=work.settings.eval.general_tokens)
    table = drift(work.subject(), answers, seed=work.settings.seed, groups=asked.groups, progress=work.progress)

    def both(name: str, part: Figures) -> list[Figures]:
        change = {"share": part["logprob_change_per_token"], "low": part["change_low"], "high": part["change_high"]}
        return [
            _figure(f"{name}: KL", part["prompts"], part | {"share": part["kl_per_token"]}, unit="nats a token"),
            _figure(f"{name}: log-prob change", part["prompts"], change, unit="nats a token"),
        ]

    figures = both("all prompts", table)
    if len(table["groups"]) > 1:
        figures += [figure for name, part in table["groups"].items() for figure in both(name, part)]
    return {"figures": figures, "table": table, "left_out": asked.problems}


def winrate_task(work: Evaluation) -> Figures:
    """The model's answers against another model's or given ones, by a judge that is asked in both orders."""
    prompts = work.asked.prompts
    left_out = list(work.asked.problems)
    if work.settings.answers:
        theirs, missing = _given(work.settings.answers, prompts)
        left_out += missing
        prompts = [prompt for prompt in prompts if prompt.id in theirs]
        other = [theirs[prompt.id] for prompt in prompts]
    else:
        other = work.answers("against", prompts, "prompts")
    ours = work.answers("model", prompts, "prompts")

    async def run() -> Any:
        if work.settings.judge is None:
            return await judge_answers(style_judge(work.style), ours, other, progress=work.progress)
        settings, style = work.settings.judge, work.style if work.settings.style else None
        sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_p)
        async with work.judge() as endpoint:
            judge: Judge = pairwise_judge(endpoint, style=style, sampling=sampling)
            return await judge_answers(judge, ours, other, progress=work.progress)

    judged = asyncio.run(run())
    table = winrate_table(judged.verdicts, [(a.text, b.text) for a, b in judged.answers], seed=work.settings.seed)
    rows = [
        {"id": a.id, **verdict_to_row(verdict), "model": a.text, "against": b.text}
        for verdict, (a, b) in zip(judged.verdicts, judged.answers, strict=True)
    ]
    _keep(work, "winrate", [*rows, *map(failure_to_row, judged.failures)])
    controlled = table["length_controlled"]
    return {
        "figures": [
            _figure("win rate", table["n"], table | {"share": table["win_rate"]}),
            _figure("win rate, length-controlled", controlled["n"], controlled | {"share": controlled["rate"]}),
        ],
        "table": table,
        "unjudged": len(judged.failures),
        "left_out": [*left_out, *(f"{row.id}: {row.reason}" for row in judged.failures)],
    }


def mixeval_task(work: Evaluation) -> Figures:
    """MixEval-Hard: overall, each half, each benchmark; against another model paired over the items."""
    items = load_items(work.need(work.settings.data, "--data"), limit=work.settings.limit)
    prompts = [question(item) for item in items]
    sides: list[Side] = ["model", "against"] if work.against else ["model"]
    scores = {side: _scores(work, items, work.answers(side, prompts, "mixeval")) for side in sides}
    tables = {side: mixeval_table(scores[side], seed=work.settings.seed) for side in sides}

    def figure(name: str, *path: str, kind: str | None = None, benchmark: str | None = None) -> Figures:
        def at(side: Side) -> Figures:
            place: Any = tables[side]
            for key in path:
                place = place[key]
            return place | {"share": place["score"]}

        results = {
            side: [
                one.score
                for one in scores[side]
                if (kind in (None, one.item.kind)) and (benchmark in (None, one.item.benchmark))
            ]
            for side in sides
        }
        part = at("model")
        return _figure(name, part["n"], part, at("against") if work.against else None, results, work.settings.seed)

    figures = [figure("overall", "overall")]
    for kind, label in (("free", "free-form"), ("choice", "multiple choice")):
        figures.append(figure(label, kind, kind=kind))
        for name in tables["model"]["benchmarks"][kind]:
            figures.append(figure(f"{label}: {name}", "benchmarks", kind, name, kind=kind, benchmark=name))
    return {"figures": figures, "tables": tables, "parser": work.settings.parser}


def lm_eval_task(work: Evaluation) -> Figures:
    """Tasks of lm-evaluation-harness, with its own metrics."""
    from anchorline.evals.lm_harness import harness

    names = work.settings.lm_tasks or (work.need(None, "--lm-task"),)
    include = Path(work.settings.lm_include) if work.settings.lm_include else None
    sides: list[Side] = ["model", "against"] if work.settings.against else ["model"]
    found = {
        side: harness(work.loaded(side), names, include=include, limit=work.settings.limit, seed=work.settings.seed)
        for side in sides
    }
    figures = []
    for task, metrics in found["model"].items():
        for name, value in metrics.items():
            if name == "n" or "_stderr" in name:
                continue
            parts = {side: _normal(found[side][task], name) for side in sides}
            figures.append(
                _figure(f"{task}: {name}", metrics["n"], parts["model"], parts.get("against"), unit="metric")
            )
            assert figures[-1]["value"] == value
    return {"figures": figures, "tables": found}


def _normal(metrics: Figures, name: str) -> Figures:
    """The metric with the harness's own standard error as a normal interval."""
    metric, _, rest = name.partition(",")
    error = metrics.get(f"{metric}_stderr" + (f",{rest}" if rest else ""))
    value = metrics[name]
    span = {} if error is None else {"low": value - 1.96 * error, "high": value + 1.96 * error}
    return {"share": value, **span}


def _scores(work: Evaluation, items: Sequence[Item], answers: Sequence[Answer]) -> list[Score]:
    seed = work.settings.seed
    pairs = list(zip(items, answers, strict=True))
    if work.settings.parser == "rules":
        return [score_by_rules(item, answer.text, seed=seed) for item, answer in pairs]

    async def run() -> list[Score]:
        settings = work.settings.judge
        async with work.judge() as judge:
            assert settings is not None
            with work.progress.task("judge", total=len(pairs), unit="answers") as advance:

                async def one(item: Item, answer: Answer) -> Score:
                    score = await score_by_judge(
                        item,
                        answer.text,
                        judge=judge,
                        temperature=settings.temperature,
                        top_p=settings.top_p,
                        seed=seed,
                    )
                    advance(1)
                    return score

                return list(await asyncio.gather(*(one(item, answer) for item, answer in pairs)))

    return asyncio.run(run())


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


def _figure(
    name: str,
    n: int | None,
    part: Figures,
    other: Figures | None = None,
    results: dict[str, list[float]] | None = None,
    seed: int = 0,
    *,
    unit: str = "share",
) -> Figures:
    def shown(one: Figures) -> Figures:
        return {"n": n, "value": one["share"], "low": one.get("low"), "high": one.get("high")}

    difference = None
    if other is not None and results is not None:
        difference = compare_results(results["model"], results["against"], seed=seed)._asdict()
    return {
        "name": name,
        "unit": unit,
        **shown(part),
        "against": shown(other) if other else None,
        "difference": difference,
    }


def _keep(work: Evaluation, name: str, rows: list[Figures]) -> None:
    work.folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(work.folder / f"{name}.jsonl", rows)
