"""What to watch in each pair: rewards, the margin, whether both answers fell, and whether its gradient has died.

The anchored losses are flat far from 0. Where a reward is far on the wrong side, the loss no longer moves it: beyond
`STUCK_REWARD` less than a tenth of the steepest gradient is left. (The reward itself is 3.64; at 3.6 it is 10.4 %.)

>>> gradient_weight(torch.tensor([0.0, 2.0, -STUCK_REWARD]))
tensor([1.0000, 0.4200, 0.1000])
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anchorline.objectives.logps import PairLogps, pair_rewards

STUCK_REWARD = math.log((1 + math.sqrt(0.9)) / (1 - math.sqrt(0.9)))
"""|r| at which 4 s(r) (1 - s(r)) = 1/10, so s(r) = (1 + sqrt(0.9)) / 2."""


class PairMetrics(NamedTuple):
    """One number a pair, without gradients; the caller takes means. Rewards and margin have no unit."""

    chosen_reward: Float[Tensor, " pairs"]
    rejected_reward: Float[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"]
    """r_w - r_l."""
    correct: Bool[Tensor, " pairs"]
    """margin > 0: the policy prefers chosen more than the reference does. A margin of 0 is not correct."""
    both_fell: Bool[Tensor, " pairs"]
    """Both answers are less likely than under the reference."""
    chosen_stuck: Bool[Tensor, " pairs"]
    """r_w < -STUCK_REWARD: apo_zero and apo_zero_unpaired barely raise this chosen answer any more."""
    rejected_stuck: Bool[Tensor, " pairs"]
    """r_l > STUCK_REWARD: apo_zero and apo_zero_unpaired barely lower this rejected answer any more."""
    margin_stuck: Bool[Tensor, " pairs"]
    """margin < -STUCK_REWARD: apo_down and apo_up barely open this gap any more. (dpo is steepest there.)"""


def pair_metrics(logps: PairLogps, *, beta: float) -> PairMetrics:
    """The metrics of each pair; `beta` must be the one that is trained with. Shapes: [pairs] in and out."""
    chosen, rejected = (reward.detach() for reward in pair_rewards(logps, beta=beta))
    margin = chosen - rejected
    return PairMetrics(
        chosen_reward=chosen,
        rejected_reward=rejected,
        margin=margin,
        correct=margin > 0,
        both_fell=(chosen < 0) & (rejected < 0),
        chosen_stuck=chosen < -STUCK_REWARD,
        rejected_stuck=rejected > STUCK_REWARD,
        margin_stuck=margin < -STUCK_REWARD,
    )


def gradient_weight(reward: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """|d loss / d r| of an anchored term at r, as a share of its peak at r = 0: 4 s(r) (1 - s(r)). Shapes: [rows]."""
    return 4 * torch.sigmoid(reward) * torch.sigmoid(-reward)
