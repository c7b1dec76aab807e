"""How far the policy has gone from its reference along given texts: exact KL over the vocabulary, token by token.

>>> token_divergence(policy, reference, example, packed=True, pad=0).kl.mean()  # doctest: +SKIP
tensor(0.0812)
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anchorline.train.forward import output_head, packed_hidden
from anchorline.train.layout import pack
from anchorline.train.tokenise import Example


class Divergence(NamedTuple):
    """One number a response token, in nats."""

    kl: Float[Tensor, " tokens"]
    """KL(policy ‖ reference) of the next-token distributions."""
    change: Float[Tensor, " tokens"]
    """log π(token) − log π_ref(token) of the token that is there."""


@torch.no_grad()
def token_divergence(
    policy: Any, reference: Any, switched_off: AbstractContextManager[Any], example: Example, *, packed: bool
) -> Divergence:
    """Compare policy and reference along the first response of `example`.

    Args:
        policy: the trained model.
        reference: the reference; the same object as `policy` where `switched_off` turns its adapter off.
        switched_off: entered around the reference's forward.
        example: a prompt with one response, in the device's reach.
        packed: whether the models attend packed.

    """
    log_p = _response_logits(policy, example, packed=packed).log_softmax(-1)
    with switched_off:
        log_q = _response_logits(reference, example, packed=packed).log_softmax(-1)
    gap = log_p - log_q
    targets = torch.tensor(example.responses[0], device=gap.device)
    return Divergence((log_p.exp() * gap).sum(-1), gap.gather(-1, targets[:, None]).squeeze(-1))


def _response_logits(model: Any, example: Example, *, packed: bool) -> Float[Tensor, "tokens vocabulary"]:
    device = next(model.parameters()).device
    if packed:
        hidden = packed_hidden(model, pack([example]).to(device))
        return torch.nn.functional.linear(hidden, output_head(model).weight.to(hidden.dtype)).float()
    prompt, response = example.prompt, example.responses[0]
    logits = model(input_ids=torch.tensor([[*prompt, *response]], device=device), use_cache=False).logits
    return logits[0, len(prompt) - 1 : len(prompt) + len(response) - 1].float()
