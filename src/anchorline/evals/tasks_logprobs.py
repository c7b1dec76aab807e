"""Evaluations of a model's log-probs beside its reference's: what it prefers, and how far it moved elsewhere.

>>> drift_task(Evaluation(settings, folder))["figures"][0]["name"]  # doctest: +SKIP
'all prompts: KL'
"""

from __future__ import annotations

from anchorline.data import Loaded, read_pairs
from anchorline.evals.drift import drift
from anchorline.evals.figure import Figures, make_figure
from anchorline.evals.preference import preference
from anchorline.evals.runner import Asked, Evaluation
from anchorline.train.config import TrainSettings
from anchorline.types import Pair


def preference_needs(work: Evaluation) -> Loaded[Pair]:
    """The pairs, and a model to compare with."""
    work.need_same_tokens()
    return read_pairs(work.need(work.settings.pairs, "--pairs"))


def drift_needs(work: Evaluation) -> Asked:
    """The prompts, and a model to compare with."""
    work.need_same_tokens()
    return work.general


def preference_task(work: Evaluation, found: Loaded[Pair]) -> Figures:
    """Whether the model has come to prefer the better answer of held-out pairs, relative to the reference."""
    settings = TrainSettings(beta=work.settings.beta, forward="plain")
    scored = preference(work.subject(), found.rows[: work.settings.limit], settings, progress=work.progress)
    work.keep("preference", scored.rows)
    table = scored.table
    return {
        "figures": [make_figure("r_w above r_l", table["n"], table | {"share": table["accuracy"]})],
        "table": table,
        "left_out": [*map(str, found.problems), *(f"row {row.id}: {row.reason}" for row in scored.failures)],
    }


def drift_task(work: Evaluation, asked: Asked) -> Figures:
    """How far the model moved from the reference, along the reference's own answers, by group of prompts."""
    answers = work.answers("against", asked.prompts, "general", max_new_tokens=work.settings.eval.general_tokens)
    moved = drift(work.subject(), answers, seed=work.settings.seed, groups=asked.groups, progress=work.progress)
    work.keep("drift", moved.rows)
    table = moved.table

    def both(name: str, part: Figures) -> list[Figures]:
        change = {"share": part["logprob_change_per_token"], "low": part["change_low"], "high": part["change_high"]}
        return [
            make_figure(f"{name}: KL", part["prompts"], part | {"share": part["kl_per_token"]}, unit="nats a token"),
            make_figure(f"{name}: log-prob change", part["prompts"], change, unit="nats a token"),
        ]

    figures = both("all prompts", table)
    if len(table["groups"]) > 1:
        figures += [figure for name, part in table["groups"].items() for figure in both(name, part)]
    return {"figures": figures, "table": table, "left_out": asked.problems}
