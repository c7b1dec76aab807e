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
    scores = {side: _scores(work, items, work.answers(side, prompts, "mixeval")) for side in sides}
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
    return {"figures": figures, "tables": tables, "parser": work.settings.parser}


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
