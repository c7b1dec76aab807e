"""What every objective reads: summed log-probabilities under policy and reference, and the rewards made of them.

Log-probabilities are in nats, summed over an answer's tokens, in float32 or float64: a sum in half precision moves in
steps of several nats at the size of a real answer, which is more than a whole training run changes.

>>> logps = PairLogps(
...     policy_chosen=torch.tensor([-10.0]), policy_rejected=torch.tensor([-14.0]),
...     reference_chosen=torch.tensor([-12.0]), reference_rejected=torch.tensor([-11.0]),
...     chosen_tokens=torch.tensor([5]), rejected_tokens=torch.tensor([4]),
... )
>>> pair_rewards(logps, beta=0.5)
PairRewards(chosen=tensor([1.]), rejected=tensor([-1.5000]))
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class PairLogps(NamedTuple):
    """Log-probabilities of both answers of each pair, and each answer's length in tokens."""

    policy_chosen: Float[Tensor, " pairs"]
    policy_rejected: Float[Tensor, " pairs"]
    reference_chosen: Float[Tensor, " pairs"]
    reference_rejected: Float[Tensor, " pairs"]
    chosen_tokens: Int[Tensor, " pairs"]
    rejected_tokens: Int[Tensor, " pairs"]


class AnswerLogps(NamedTuple):
    """Log-probabilities of single answers, whether each is wanted (`label`), and its length in tokens."""

    policy: Float[Tensor, " answers"]
    reference: Float[Tensor, " answers"]
    label: Bool[Tensor, " answers"]
    tokens: Int[Tensor, " answers"]


class PairRewards(NamedTuple):
    """r_w and r_l of each pair, without a unit."""

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]


def rewards(
    policy: Float[Tensor, " rows"], reference: Float[Tensor, " rows"], *, beta: float
) -> Float[Tensor, " rows"]:
    """r(x, y) = beta * (log pi_theta(y|x) - log pi_ref(y|x)); arXiv 2408.06266, the reward in Eq. 7 and 8.

    Shapes: [rows] twice, out [rows]. Units: nats in, a number without unit out. Zero where policy is the reference,
    above zero where the answer became more likely.
    """
    check_rows(policy=policy, reference=reference)
    check_float(policy=policy, reference=reference)
    if not beta > 0:
        raise ValueError(f"beta is {beta}: expected a number above 0 (at 0 or below, an objective loses its direction)")
    return beta * (policy - reference)


def pair_rewards(logps: PairLogps, *, beta: float) -> PairRewards:
    """The rewards of both answers; every field of `logps` must have the same [pairs] shape."""
    check_rows(**logps._asdict())
    return PairRewards(
        chosen=rewards(logps.policy_chosen, logps.reference_chosen, beta=beta),
        rejected=rewards(logps.policy_rejected, logps.reference_rejected, beta=beta),
    )


def answer_rewards(logps: AnswerLogps, *, beta: float) -> Float[Tensor, " answers"]:
    """The reward of each answer; every field of `logps` must have the same [answers] shape."""
    check_rows(**logps._asdict())
    return rewards(logps.policy, logps.reference, beta=beta)


def pairs_as_answers(logps: PairLogps) -> AnswerLogps:
    """All chosen answers (label True), then all rejected answers (label False), each in the order of the pairs."""
    check_rows(**logps._asdict())
    chosen = torch.ones_like(logps.chosen_tokens, dtype=torch.bool)
    return AnswerLogps(
        policy=torch.cat([logps.policy_chosen, logps.policy_rejected]),
        reference=torch.cat([logps.reference_chosen, logps.reference_rejected]),
        label=torch.cat([chosen, ~chosen]),
        tokens=torch.cat([logps.chosen_tokens, logps.rejected_tokens]),
    )


def check_rows(**tensors: Tensor) -> None:
    """Raise ValueError unless all have one dimension and one length: torch would broadcast [1] to [n] in silence."""
    (first, expected), *others = ((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    if len(expected) != 1:
        raise ValueError(f"{first} has shape {expected}: expected one dimension, one number a row")
    for name, shape in others:
        if shape != expected:
            raise ValueError(f"{name} has shape {shape} but {first} has {expected}: expected the same shape")


def check_float(**tensors: Tensor) -> None:
    """Raise ValueError unless all are float32 or float64."""
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {tensor.dtype}: expected summed log-probs in float32 or float64")
