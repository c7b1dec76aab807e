"""The log-probability of each response: packed (fast) and plain (the oracle, and the fallback).

>>> packed_logps(model, pack(examples))  # doctest: +SKIP
tensor([-61.2, -80.4], grad_fn=...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anchorline.errors import ModelError
from anchorline.train.attention import PACKED
from anchorline.train.layout import Row, pack
from anchorline.train.output import OutputHead, output_head
from anchorline.train.steady import steady_rows
from anchorline.train.tokenise import Example


def packed_logps(model: Any, row: Row) -> Float[Tensor, " branches"]:
    """Summed log-prob of every branch of a packed row, in nats, float32.

    `model` may be wrapped (PEFT, DDP, FSDP): it is called, never reached into. Its attention must be `PACKED`.
    """
    return branch_sums(packed_token_logps(model, row), row.branch, row.branches)


def packed_token_logps(model: Any, row: Row) -> Float[Tensor, " tokens"]:
    """Log-prob of every response token of a packed row, in the row's order."""
    return _through_head(model, row, lambda hidden, head: head.token_logps(hidden, row.targets)[:, None])[:, 0]


def packed_hidden(model: Any, row: Row) -> Float[Tensor, "tokens width"]:
    """The hidden states that predict the response tokens of a packed row, before the head."""
    return _through_head(model, row, lambda hidden, _: hidden)


def plain_logps(model: Any, examples: Sequence[Example], *, pad: int) -> Float[Tensor, " branches"]:
    """The same sums from one padded row a branch and the full logits, with the model's own attention."""
    return torch.stack([tokens.sum() for tokens in by_branch(plain_token_logps(model, examples, pad=pad), examples)])


def plain_token_logps(model: Any, examples: Sequence[Example], *, pad: int) -> Float[Tensor, " tokens"]:
    """Log-prob of every response token, branch after branch, from one padded row a branch and the full logits."""
    rows = [(e.prompt, r) for e in examples for r in e.responses]
    width = max(len(p) + len(r) for p, r in rows)
    device = next(model.parameters()).device
    tokens = torch.tensor([[*p, *r, *[pad] * (width - len(p) - len(r))] for p, r in rows], device=device)
    mask = torch.tensor([[1] * (len(p) + len(r)) + [0] * (width - len(p) - len(r)) for p, r in rows], device=device)
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logps = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.cat([logps[i, len(p) - 1 : len(p) + len(r) - 1] for i, (p, r) in enumerate(rows)])


def example_logps(model: Any, examples: Sequence[Example], *, packed: bool, pad: int) -> Float[Tensor, " branches"]:
    """Summed log-prob of every response, packed or plain as the settings say."""
    return response_sums(example_token_logps(model, examples, packed=packed, pad=pad), examples)


def example_token_logps(model: Any, examples: Sequence[Example], *, packed: bool, pad: int) -> Float[Tensor, " tokens"]:
    """Log-prob of every response token: the first response of the first example, then its second, and so on."""
    if not packed:
        return plain_token_logps(model, examples, pad=pad)
    # an opening that the row's neighbours decide rounds as they do, up to nats a response in bfloat16: the reference's
    # log-probs, computed among other neighbours, would not be the policy's before its first step
    row = pack(examples, share=not rounds_to_half(model))
    return packed_token_logps(model, row.to(next(model.parameters()).device))


def by_branch(tokens: Float[Tensor, " tokens"], examples: Sequence[Example]) -> Sequence[Float[Tensor, " tokens"]]:
    """The tokens' values cut into one piece a response, in the order of `example_token_logps`."""
    return tokens.split([len(r) for e in examples for r in e.responses])


def response_sums(tokens: Float[Tensor, " tokens"], examples: Sequence[Example]) -> Float[Tensor, " branches"]:
    """One sum a response, in the order of `example_token_logps`."""
    lengths = torch.tensor([len(r) for e in examples for r in e.responses], device=tokens.device)
    branch = torch.arange(len(lengths), device=tokens.device).repeat_interleave(lengths)
    return branch_sums(tokens, branch, len(lengths))


def branch_sums(tokens: Float[Tensor, " tokens"], branch: Tensor, count: int) -> Float[Tensor, " branches"]:
    """The tokens' values added up by branch."""
    return tokens.new_zeros(count).index_add(0, branch, tokens)


def check_forward(model: Any, example: Example, *, pad: int) -> None:
    """Compare both forwards on one example, so that an architecture that packs wrongly is found before training.

    Raises:
        ModelError: the log-probs differ by more than the dtype explains.

    """
    with torch.no_grad(), plain_attention(model):
        plain = plain_logps(model, [example], pad=pad)
    with torch.no_grad():
        packed = example_logps(model, [example, example], packed=True, pad=pad)[len(example.responses) :]
    exact = not rounds_to_half(model)
    limit = (1e-3 if exact else 5e-2) * plain.abs() + (1e-3 if exact else 1.0)
    if bool(((plain - packed).abs() > limit).any()):
        raise ModelError(
            f"the packed forward gives log-probs {packed.tolist()} where the plain one gives {plain.tolist()}: "
            "this architecture does not run packed; set train.forward to plain"
        )


def rounds_to_half(model: Any) -> bool:
    """Whether the model computes in half precision here: by its weights, by lent copies of them, or by autocast."""
    wide = all(p.dtype in {torch.float32, torch.float64} for p in model.parameters())
    return not wide or torch.is_autocast_enabled(next(model.parameters()).device.type)


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Inside, the model attends as transformers does by default."""
    before = model.config._attn_implementation
    if before != PACKED:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _through_head(model: Any, row: Row, instead: Callable[[Tensor, OutputHead], Tensor]) -> Tensor:
    """Call the model on a packed row with `instead(hidden [R, D], head)` in the place of its output head.

    The head is changed for the time of the call and the model is called as a whole, so that the wrappers' hooks (DDP's
    gradient reduction, FSDP's gathering of the weight) stay in force.
    """
    head = output_head(model)
    made: list[Tensor] = []

    def stand_in(hidden: Tensor) -> Tensor:
        made.append(instead(hidden.squeeze(0), head))
        return made[0][None]

    own = vars(head.module).get("forward")
    head.module.forward = stand_in
    # where the head is another's already, that is `multiplying_in`, which has steady rows; to look takes milliseconds
    steady = steady_rows(model.modules()) if own is None and rounds_to_half(model) else nullcontext()
    try:
        with steady:
            out = model(
                input_ids=row.tokens,
                position_ids=row.positions,
                packed_layout=row.layout,
                logits_to_keep=row.predicts,
                use_cache=False,
            )
    finally:
        del head.module.forward
        if own is not None:
            head.module.forward = own
    if not head.changed_after:
        return out.logits.squeeze(0)
    # what the model did to the stand-in is not wanted, but its output stays in the graph, where wrappers hang their hooks
    return made[0] + 0 * out.logits.squeeze(0)
