"""What holds behaviour in place: KL(reference ‖ policy), estimated on the reference's own answers.

Let y be a token that the reference drew, and d = log π(y) − log π_ref(y). The terms e^d − 1 − d have the mean
KL(π_ref ‖ π) over the reference's distribution, and their gradients have the mean of its gradient: of −d that is so by
definition, and e^d − 1 adds nothing to either, since Σ π_ref(y)·π(y)/π_ref(y) = 1 for every policy. What it does take
away is chance. Imitation of the drawn tokens (−d alone) has the same mean, but pulls at each of them also where the
policy is the reference: trained on one set of answers for a few epochs, that is a change of its own. Here every single
term is at its minimum there, 0 with a gradient of 0: a token that has become less likely is pushed up, one that has
become more likely is pushed down.

The exact sum over the vocabulary varies less still; it would need the reference's states and its head beside the
policy's, where this needs the one number a token that is kept anyway.

>>> kept_terms(torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -2.5])).round(decimals=4)
tensor([0.0000, 0.1487])
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anchorline.objectives.logps import check_float, check_rows


def kept_terms(policy: Float[Tensor, " tokens"], reference: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """e^d − 1 − d of each token, d = policy − reference, in nats; at least 0, and 0 where policy is the reference.

    Shapes: [tokens] twice, out [tokens]. The tokens must be the reference's own samples at temperature 1, else the mean is
    not KL(reference ‖ policy). A control variate on the plain estimate; compare J. Schulman, "Approximating KL divergence"
    (2020), whose samples are the policy's: there the value is right and the gradient is not.
    """
    check_rows(policy=policy, reference=reference)
    check_float(policy=policy, reference=reference)
    change = policy - reference
    return torch.expm1(change) - change
