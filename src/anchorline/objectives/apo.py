"""The anchored objectives: each says for either answer which way its likelihood should move, not only for the gap.

Notation: r_w and r_l are the rewards of chosen and rejected (`logps.rewards`), s is the logistic function, and
d(r) = s(r) (1 - s(r)) is its slope. All losses are bounded, so a pair far on the wrong side stops pulling: see
`metrics.gradient_weight`. The constant 1s change no gradient; they make the loss start at 1.

>>> from anchorline.objectives.logps import PairLogps
>>> same, tokens = torch.tensor([-10.0]), torch.tensor([5])
>>> apo_zero(PairLogps(same, same, same, same, tokens, tokens), beta=0.1)
tensor([1.])
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anchorline.objectives.logps import AnswerLogps, PairLogps, answer_rewards, pair_rewards


def apo_zero(logps: PairLogps, *, beta: float = 0.1) -> Float[Tensor, " pairs"]:
    """For pairs whose chosen answer is better than what the model writes now: raises chosen, lowers rejected.

    Loss: 1 - s(r_w) + s(r_l); arXiv 2408.06266, Eq. 7. Gradient: -d(r_w) on r_w, +d(r_l) on r_l, each on its own.
    Shapes: [pairs] in and out. Between 0 and 2, and 1 where policy is the reference.
    """
    chosen, rejected = pair_rewards(logps, beta=beta)
    # s(-r) is 1 - s(r) without the cancellation: a well-learnt float32 row keeps its small loss and gradient
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down(logps: PairLogps, *, beta: float = 0.1) -> Float[Tensor, " pairs"]:
    """For pairs whose chosen answer is worse than what the model writes now: lowers both answers, rejected more.

    Loss: s(r_w) + 1 - s(r_w - r_l); arXiv 2408.06266, Eq. 8. Gradient: d(r_w) - d(r_w - r_l) on r_w,
    +d(r_w - r_l) on r_l. So at the start chosen stands exactly still and only rejected moves; and chosen is pushed
    up, not down, wherever the margin is nearer to 0 than r_w (at r = (-2, -3), for one).
    Shapes: [pairs] in and out. Between 0 and 2, and 1 where policy is the reference.
    """
    chosen, rejected = pair_rewards(logps, beta=beta)
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def apo_up(logps: PairLogps, *, beta: float = 0.1) -> Float[Tensor, " pairs"]:
    """Experimental, ours: for pairs both of whose answers are better than what the model writes now: raises both.

    Loss: 1 - s(r_l) + 1 - s(r_w - r_l); the mirror of `apo_down`. No paper: arXiv 2408.06266 has no objective for a model
    below both answers. Derived in docs/objectives.md. Gradient: -d(r_w - r_l) on r_w, d(r_w - r_l) - d(r_l) on r_l. So at
    the start rejected stands exactly still and only chosen moves; and rejected is pushed down, not up, wherever the margin
    is nearer to 0 than r_l (at r = (2, 3), for one).
    Shapes: [pairs] in and out. Between 0 and 2, and 1 where policy is the reference.
    """
    chosen, rejected = pair_rewards(logps, beta=beta)
    return torch.sigmoid(-rejected) + torch.sigmoid(rejected - chosen)


def apo_zero_unpaired(logps: AnswerLogps, *, beta: float = 0.1) -> Float[Tensor, " answers"]:
    """`apo_zero` for single labelled answers: raises the wanted ones, lowers the others. No KL estimate is needed.

    Loss: 1 - s(r) where the label is True, s(r) where it is False; arXiv 2408.06266, the two terms of Eq. 7 apart.
    Gradient on r: -d(r) where True, +d(r) where False.
    Shapes: [answers] in and out. Between 0 and 1, and 1/2 where policy is the reference.
    """
    reward = answer_rewards(logps, beta=beta)
    return torch.where(logps.label, torch.sigmoid(-reward), torch.sigmoid(reward))
