"""KTO, a baseline for single labelled answers: an answer's reward is judged against a KL estimate, not against 0.

>>> import torch
>>> reference_point(torch.tensor([-9.0, -12.0]), torch.tensor([-12.0, -11.0]))
tensor(1.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anchorline.objectives.logps import AnswerLogps, answer_rewards, check_float, check_rows


def kto(
    logps: AnswerLogps,
    *,
    reference_point: Float[Tensor, ""],
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " answers"]:
    """A baseline for single labelled answers; `apo_zero_unpaired` does without the reference point.

    Loss: weight * (1 - s(r - beta z)) where the label is True, weight * (1 - s(beta z - r)) where it is False;
    Ethayarajh et al., arXiv 2402.01306, the KTO loss. z is `reference_point`, in nats and not times beta. A weight
    above 1 is for the rarer kind of label. Gradient on r: -weight d(r - beta z) where True, the opposite where False.
    Shapes: [answers] and a scalar in, [answers] out. Between 0 and the weight; half of it where policy is the
    reference (z is then 0).
    """
    if reference_point.shape != ():
        raise ValueError(f"reference_point has shape {tuple(reference_point.shape)}: expected (), one number a batch")
    if reference_point.requires_grad:
        raise ValueError("reference_point carries a gradient: detach it, KTO holds it constant")
    advantage = answer_rewards(logps, beta=beta) - beta * reference_point
    return torch.where(
        logps.label, desirable_weight * torch.sigmoid(-advantage), undesirable_weight * torch.sigmoid(advantage)
    )


def reference_point(
    policy_mismatched: Float[Tensor, " answers"], reference_mismatched: Float[Tensor, " answers"]
) -> Float[Tensor, ""]:
    """z: the mean of log pi_theta(y'|x) - log pi_ref(y'|x) over completions y' of other prompts, at least 0.

    Shapes: [answers] twice, out a scalar without gradient. Units: nats, to nats.
    """
    check_rows(policy_mismatched=policy_mismatched, reference_mismatched=reference_mismatched)
    check_float(policy_mismatched=policy_mismatched, reference_mismatched=reference_mismatched)
    if len(policy_mismatched) == 0:
        raise ValueError("reference_point got 0 mismatched completions: expected at least 1")
    return (policy_mismatched - reference_mismatched).mean().detach().clamp(min=0)
