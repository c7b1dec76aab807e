"""DPO, the baseline that asks for a gap between the answers and for nothing else.

>>> import torch
>>> from anchorline.objectives.logps import PairLogps
>>> same, tokens = torch.tensor([-10.0]), torch.tensor([5])
>>> dpo(PairLogps(same, same, same, same, tokens, tokens), beta=0.1)
tensor([0.6931])
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from anchorline.objectives.logps import PairLogps, pair_rewards


def dpo(logps: PairLogps, *, beta: float = 0.1) -> Float[Tensor, " pairs"]:
    """A baseline to compare with: the gap may also grow while both answers become less likely.

    Loss: -log s(r_w - r_l); Rafailov et al., arXiv 2305.18290, Eq. 7. Gradient: -s(r_l - r_w) on r_w, the opposite
    on r_l. Shapes: [pairs] in and out. Above 0 and without upper bound; ln 2 where policy is the reference.
    """
    chosen, rejected = pair_rewards(logps, beta=beta)
    return softplus(rejected - chosen)
