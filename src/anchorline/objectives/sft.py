"""Supervised fine-tuning on the wanted answers, as a baseline or as a small term beside another objective.

>>> import torch
>>> from anchorline.objectives.logps import PairLogps
>>> chosen, rejected = torch.tensor([-10.0]), torch.tensor([-14.0])
>>> sft(PairLogps(chosen, rejected, chosen, rejected, torch.tensor([5]), torch.tensor([4])))
tensor([2.])
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchorline.objectives.logps import AnswerLogps, PairLogps, check_float, check_rows


def sft(logps: PairLogps | AnswerLogps) -> Float[Tensor, " rows"]:
    """Imitates the chosen answer of each pair, or each answer whose label is True; the reference plays no part.

    Loss: -log pi_theta(y|x) / tokens of y. Per token, because the anchored objectives it is added to are bounded by 2
    while a summed log-likelihood is in the hundreds. An answer whose label is False has loss 0 and no gradient: it
    still counts as a row when the caller takes the mean. Every answer weighs the same, whatever its length.
    Shapes: [pairs] or [answers] in, the same out. Units: nats a token.
    """
    check_rows(**logps._asdict())
    if isinstance(logps, PairLogps):
        return _per_token(logps.policy_chosen, logps.chosen_tokens)
    loss = _per_token(logps.policy, logps.tokens)
    return torch.where(logps.label, loss, torch.zeros_like(loss))


def _per_token(policy: Float[Tensor, " rows"], tokens: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    check_float(policy=policy)
    # an answer without tokens has log-probability 0: its loss is 0, not 0 / 0
    return -policy / tokens.clamp(min=1)
