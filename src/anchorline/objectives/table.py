"""Every objective by name, and the weighted sum of several.

A new objective is one function, one line in `names` and one line here.

>>> import torch
>>> same, tokens = torch.tensor([-10.0]), torch.tensor([5])
>>> loss({"apo_zero": 1.0, "sft": 0.2}, PairLogps(same, same, same, same, tokens, tokens), beta=0.1)
tensor([1.4000])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anchorline.errors import UserError
from anchorline.objectives.apo import apo_down, apo_up, apo_zero, apo_zero_unpaired
from anchorline.objectives.dpo import dpo
from anchorline.objectives.kto import kto
from anchorline.objectives.logps import AnswerLogps, PairLogps, pairs_as_answers
from anchorline.objectives.names import DESCRIPTIONS, parse_objective
from anchorline.objectives.sft import sft


class Objective(NamedTuple):
    """One objective: its function, and the fields of `names.Description`."""

    function: Callable[..., Tensor]
    needs: Literal["pairs", "answers", "either"]
    needs_reference: bool
    needs_reference_point: bool
    summary: str


OBJECTIVES: dict[str, Objective] = {
    "apo_zero": Objective(apo_zero, *DESCRIPTIONS["apo_zero"]),
    "apo_down": Objective(apo_down, *DESCRIPTIONS["apo_down"]),
    "apo_up": Objective(apo_up, *DESCRIPTIONS["apo_up"]),
    "apo_zero_unpaired": Objective(apo_zero_unpaired, *DESCRIPTIONS["apo_zero_unpaired"]),
    "dpo": Objective(dpo, *DESCRIPTIONS["dpo"]),
    "kto": Objective(kto, *DESCRIPTIONS["kto"]),
    "sft": Objective(sft, *DESCRIPTIONS["sft"]),
}
assert OBJECTIVES.keys() == DESCRIPTIONS.keys(), "names.py and table.py list different objectives"


def loss(
    weights: str | Mapping[str, float],
    logps: PairLogps | AnswerLogps,
    *,
    beta: float = 0.1,
    reference_point: Float[Tensor, ""] | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " rows"]:
    """The weighted sum of objectives: one loss for each pair, or for each single answer.

    `weights` is anything that `parse_objective` reads. On pairs, an objective for single answers gives each pair the
    mean of its chosen answer's loss and its rejected answer's loss, so that the mean over pairs is the mean over
    answers. `reference_point` and the two label weights are kto's. Shapes: [pairs] or [answers] in, the same out.

    Raises UserError where an objective for pairs gets single answers.
    """
    weights = parse_objective(weights)
    if isinstance(logps, AnswerLogps):
        _refuse_pair_objectives(weights)
    terms = []
    for name, weight in weights.items():
        objective = OBJECTIVES[name]
        keywords: dict[str, Any] = {"beta": beta} if objective.needs_reference else {}
        if objective.needs_reference_point:
            if reference_point is None:
                raise ValueError(f"{name} got no reference_point: pass objectives.kto.reference_point(...)")
            keywords |= {
                "reference_point": reference_point,
                "desirable_weight": desirable_weight,
                "undesirable_weight": undesirable_weight,
            }
        terms.append(weight * _rows(objective, logps, keywords))
    return torch.stack(terms).sum(dim=0)


def _rows(objective: Objective, logps: PairLogps | AnswerLogps, keywords: dict[str, Any]) -> Tensor:
    if objective.needs == "answers" and isinstance(logps, PairLogps):
        rows = objective.function(pairs_as_answers(logps), **keywords)
        return rows.reshape(2, len(logps.policy_chosen)).mean(dim=0)
    return objective.function(logps, **keywords)


def _refuse_pair_objectives(weights: Mapping[str, float]) -> None:
    paired = [name for name in weights if OBJECTIVES[name].needs == "pairs"]
    if paired:
        others = ", ".join(name for name, objective in OBJECTIVES.items() if objective.needs != "pairs")
        raise UserError(
            f"{', '.join(paired)} needs pairs, but the data are single labelled answers: use one of {others}, "
            "or give data with chosen and rejected"
        )
