"""MixEval-Hard as an evaluation: its questions put to the models, the answers parsed, the scores by half and benchmark.

>>> mixeval_task(Evaluation(settings, folder))["figures"][0]["name"]  # doctest: +SKIP
'overall'
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from anchorline.evals.figure import Figures, make_figure
from anchorline.evals.mixeval_hard import Item, Score, load_items, mixeval_table, question, score_by_rules
from anchorline.evals.mixeval_judge import score_by_judge
from anchorline.evals.runner import Evaluation, Side
from anchorline.types import Answer


def mixeval_needs(work: Evaluation) -> list[Item]:
    """The items, and a judge where one parses."""
    if work.settings.parser == "judge":
        work.need_judge()
    return load_items(work.need(work.settings.data, "--data"), limit=work.settings.limit)


def mixeval_task(work: Evaluation, items: list[Item]) -> Figures:
    """MixEval-Hard: overall, each half, each benchmark; against another model paired over the items."""
    prompts = [question(item) for item in items]
    sides: list[Side] = ["model", "against"] if work.against else ["model"]
    answers = {side: work.answers(side, prompts, "mixeval") for side in sides}
    scores = {side: _scores(work, items, answers[side]) for side in sides}
    for side in sides:
        work.keep(f"mixeval_hard-{side}", map(_row, scores[side], answers[side]))
    unjudged = [(side, one) for side in sides for one in scores[side] if one.error]
    lacking = {one.item.id for _, one in unjudged}  # for both models: what is compared has been scored for both
    scores = {side: [one for one in scores[side] if one.item.id not in lacking] for side in sides}
    tables = {side: mixeval_table(scores[side], seed=work.settings.seed) for side in sides}

    def score_figure(name: str, *path: str, kind: str | None = None, benchmark: str | None = None) -> Figures:
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
        return make_figure(name, part["n"], part, at("against") if work.against else None, results, work.settings.seed)

    figures = [score_figure("overall", "overall")]
    for kind, label in (("free", "free-form"), ("choice", "multiple choice")):
        figures.append(score_figure(label, kind, kind=kind))
        for name in tables["model"]["benchmarks"][kind]:
            figures.append(score_figure(f"{label}: {name}", "benchmarks", kind, name, kind=kind, benchmark=name))
    left_out = [f"{one.item.id} ({side}): {one.error}" for side, one in unjudged]
    return {"figures": figures, "tables": tables, "parser": work.settings.parser, "left_out": left_out}


def _row(score: Score, answer: Answer) -> Figures:
    item = score.item
    found = {"score": None if score.error else score.score, "by_lot": score.by_lot, "error": score.error}
    return {"id": item.id, "benchmark": item.benchmark, "kind": item.kind, **found, "answer": answer.text}


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

    scores = asyncio.run(run())
    if scores and all(score.error for score in scores):
        raise work.silent(len(scores), "answers", str(scores[0].error))
    return scores
