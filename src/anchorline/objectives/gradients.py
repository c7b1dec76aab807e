"""How hard an objective still pulls on each answer: the slope of the loss in the answer's reward, by autograd.

>>> import torch
>>> from anchorline.objectives.logps import PairLogps
>>> same, tokens = torch.tensor([-10.0]), torch.tensor([5])
>>> start = PairLogps(same, same, same, same, tokens, tokens)
>>> reward_gradients("dpo", start, beta=0.1)
(tensor([-0.5000]), tensor([0.5000]))
>>> gradient_peaks("dpo", start, beta=0.1)
(tensor([1.]), tensor([1.]))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anchorline.objectives.logps import AnswerLogps, PairLogps
from anchorline.objectives.names import parse_objective
from anchorline.objectives.table import OBJECTIVES, loss


def reward_gradients(
    weights: str | Mapping[str, float],
    logps: PairLogps | AnswerLogps,
    *,
    beta: float = 0.1,
    reference_point: Float[Tensor, ""] | None = None,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Float[Tensor, " rows"], ...]:
    """D loss / d r of each row: (on r_w, on r_l) of pairs, or one tensor of answers; arguments as for `table.loss`.

    Below 0: the objective raises the answer. Computed from the very function that is trained with, on copies, so nothing
    of it reaches the model. The reference is held fixed, so d/dr is d/d(log-prob) / beta.
    """
    moving = {name: value.detach().clone() for name, value in logps._asdict().items() if name.startswith("policy")}
    with torch.enable_grad():
        for value in moving.values():
            value.requires_grad_()
        rows = loss(
            weights,
            logps._replace(**moving),
            beta=beta,
            reference_point=reference_point,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )
        # each row's loss depends on its own log-probs alone, so the gradient of the sum is each row's
        found = torch.autograd.grad(rows.sum(), list(moving.values()), allow_unused=True, materialize_grads=True)
    return tuple(gradient / beta for gradient in found)


def gradient_peaks(
    weights: str | Mapping[str, float],
    logps: PairLogps | AnswerLogps,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Float[Tensor, " rows"], ...]:
    """The steepest that |d loss / d r| can be, shaped as `reward_gradients`: of a sum of objectives, the sum of peaks."""
    weights = parse_objective(weights)
    if isinstance(logps, PairLogps):
        wanted = torch.ones_like(logps.chosen_tokens, dtype=torch.bool)
        sides = [(wanted, logps.chosen_tokens), (~wanted, logps.rejected_tokens)]
    else:
        sides = [(logps.label, logps.tokens)]
    found = []
    for label, tokens in sides:
        peak = torch.zeros(label.shape, device=label.device)
        kto_weight = torch.where(label, desirable_weight, undesirable_weight)
        for name, weight in weights.items():
            # on pairs, an objective for answers gives the mean of both answers' losses
            halved = isinstance(logps, PairLogps) and OBJECTIVES[name].needs == "answers"
            peak = peak + weight * (0.5 if halved else 1.0) * _PEAKS[name](label, tokens, kto_weight, beta)
        found.append(peak)
    return tuple(found)


def share_left(
    gradients: tuple[Float[Tensor, " rows"], ...], peaks: tuple[Float[Tensor, " rows"], ...]
) -> tuple[Float[Tensor, " rows"], ...]:
    """|gradient| as a share of its peak; 0 where the objective never pulls at all."""
    return tuple(
        torch.where(peak > 0, gradient.abs() / peak.clamp(min=1e-30), torch.zeros_like(peak))
        for gradient, peak in zip(gradients, peaks, strict=True)
    )


def _logistic(label: Bool[Tensor, " rows"], tokens: Tensor, kto: Tensor, beta: float) -> Tensor:
    del tokens, kto, beta
    return torch.full(label.shape, 0.25, device=label.device)


def _log_logistic(label: Bool[Tensor, " rows"], tokens: Tensor, kto: Tensor, beta: float) -> Tensor:
    del tokens, kto, beta
    return torch.ones(label.shape, device=label.device)


def _kto(label: Bool[Tensor, " rows"], tokens: Tensor, kto: Tensor, beta: float) -> Tensor:
    del label, tokens, beta
    return 0.25 * kto


def _imitation(label: Bool[Tensor, " rows"], tokens: Int[Tensor, " rows"], kto: Tensor, beta: float) -> Tensor:
    del kto
    return torch.where(label, 1 / (beta * tokens.clamp(min=1)), 0.0)


_PEAKS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "apo_zero": _logistic,
    "apo_down": _logistic,
    "apo_up": _logistic,
    "apo_zero_unpaired": _logistic,
    "dpo": _log_logistic,
    "kto": _kto,
    "sft": _imitation,
}
assert _PEAKS.keys() == OBJECTIVES.keys(), "an objective has no peak"
