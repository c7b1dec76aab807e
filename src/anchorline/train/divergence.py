"""How far the policy has gone from its reference along given texts: exact KL over the vocabulary, token by token.

>>> [d.kl.mean() for d in token_divergences(policy, reference, off, examples, packed=True)]  # doctest: +SKIP
[tensor(0.0812), tensor(0.0644)]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anchorline.train.forward import packed_hidden
from anchorline.train.layout import pack
from anchorline.train.output import output_head
from anchorline.train.tokenise import Example


class Divergence(NamedTuple):
    """One number a response token, in nats."""

    kl: Float[Tensor, " tokens"]
    """KL(policy ‖ reference) of the next-token distributions."""
    change: Float[Tensor, " tokens"]
    """log π(token) − log π_ref(token) of the token that is there."""


@torch.no_grad()
def token_divergences(
    policy: Any,
    reference: Any,
    switched_off: Callable[[], AbstractContextManager[Any]],
    examples: Sequence[Example],
    *,
    packed: bool,
    theirs: list[Tensor] | None = None,
) -> list[Divergence]:
    """Compare policy and reference along the first response of each example.

    Args:
        policy: the trained model.
        reference: the reference; the same object as `policy` where `switched_off` turns its adapter off.
        switched_off: makes what is entered wherever the reference computes.
        examples: prompts with one response each; they go through the models together.
        packed: whether the models attend packed.
        theirs: what the reference's head reads of these examples; an empty list is filled, for the next policy of this
            reference, a full one saves the reference's forward.

    """
    ours = _states(policy, examples, packed=packed)
    theirs = [] if theirs is None else theirs
    if not theirs:
        with switched_off():
            theirs += _states(reference, examples, packed=packed)
    found = []
    for example, own, other in zip(examples, ours, theirs, strict=True):
        # logits of one response at a time: those of all would fill the memory
        log_p = _logits(policy, own, packed=packed)
        with switched_off():  # an adapter may sit on the head
            log_q = _logits(reference, other, packed=packed)
        # two heads for the same tokens may be filled up to different sizes
        log_p, log_q = (x[:, : min(log_p.shape[1], log_q.shape[1])].log_softmax(-1) for x in (log_p, log_q))
        gap = log_p - log_q
        targets = torch.tensor(example.responses[0], device=gap.device)
        kl, change = (log_p.exp() * gap).sum(-1), gap.gather(-1, targets[:, None]).squeeze(-1)
        found.append(Divergence(kl, change))
    return found


def _states(model: Any, examples: Sequence[Example], *, packed: bool) -> Sequence[Float[Tensor, "tokens width"]]:
    """What the head reads (packed), or the logits themselves (plain), where the responses are predicted."""
    device = next(model.parameters()).device
    if packed:
        return packed_hidden(model, pack(examples).to(device)).split([len(e.responses[0]) for e in examples])
    states = []
    for example in examples:
        prompt, response = example.prompt, example.responses[0]
        logits = model(input_ids=torch.tensor([[*prompt, *response]], device=device), use_cache=False).logits
        states.append(logits[0, len(prompt) - 1 : len(prompt) + len(response) - 1])
    return states


def _logits(model: Any, state: Tensor, *, packed: bool) -> Float[Tensor, "tokens vocabulary"]:
    if not packed:
        return state.float()
    return output_head(model).logits(state)
