"""Log-probabilities of given tokens, in chunks, without ever holding the [tokens, vocabulary] matrix.

The gradient of one token's log-prob in its hidden state is W[y] - softmax(Wh)·W. The softmax is at hand in the forward,
so that row is formed there and only scaled in the backward: the logits are never computed twice, unless the head itself
is trained. (A matrix gradient needs each token's weight in the loss, which is known in the backward only.)

>>> logps = token_logps(hidden, head.weight, targets)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 256
"""Tokens whose logits exist at one time: 50 MB in float32 at 49,152 words."""


class _TokenLogps(torch.autograd.Function):
    """Letters: R response tokens, C a chunk of them, D width, V vocabulary."""

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor) -> Tensor:
        for_hidden, for_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        rows_RD = torch.empty_like(hidden_RD) if for_hidden else None
        logps_R = torch.empty(len(targets_R), dtype=_wide(hidden_RD.dtype), device=hidden_RD.device)
        for start in range(0, len(targets_R), CHUNK):
            chunk = slice(start, start + CHUNK)
            y_C = targets_R[chunk]
            logits_CV = (hidden_RD[chunk] @ weight_VD.T).to(logps_R.dtype)
            norm_C = logits_CV.logsumexp(-1)
            logps_R[chunk] = logits_CV.gather(-1, y_C[:, None]).squeeze(-1) - norm_C
            if rows_RD is not None:
                probs_CV = logits_CV.sub_(norm_C[:, None]).exp_().to(weight_VD.dtype)
                rows_RD[chunk] = weight_VD[y_C] - probs_CV @ weight_VD
        saved = (hidden_RD, weight_VD, targets_R) if for_weight else (None, None, None)
        ctx.save_for_backward(rows_RD, *saved)
        return logps_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_R,) = grads
        rows_RD, hidden_RD, weight_VD, targets_R = ctx.saved_tensors
        grad_hidden = None if rows_RD is None else rows_RD * grad_R[:, None].to(rows_RD.dtype)
        if hidden_RD is None:
            return grad_hidden, None, None
        grad_VD = torch.zeros(weight_VD.shape, dtype=_wide(weight_VD.dtype), device=weight_VD.device)
        for start in range(0, len(targets_R), CHUNK):
            chunk = slice(start, start + CHUNK)
            h_CD, g_C, y_C = hidden_RD[chunk], grad_R[chunk], targets_R[chunk]
            probs_CV = (h_CD @ weight_VD.T).to(grad_R.dtype).softmax(-1)
            scores_CV = probs_CV.mul_(-g_C[:, None])
            scores_CV[torch.arange(len(y_C), device=y_C.device), y_C] += g_C
            grad_VD += (scores_CV.to(h_CD.dtype).T @ h_CD).to(grad_VD.dtype)
        return grad_hidden, grad_VD.to(weight_VD.dtype), None


def token_logps(
    hidden: Float[Tensor, "tokens width"], weight: Float[Tensor, "vocabulary width"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Log softmax(hidden @ weightᵀ)[target] of each row, in nats, float32 (float64 where the inputs are).

    Args:
        hidden: the states that predict the targets.
        weight: the head, without a bias.
        targets: token ids.

    Raises:
        ValueError: the shapes do not fit.

    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"expected hidden [tokens, width], weight [vocabulary, width], targets [tokens]; "
            f"got {tuple(hidden.shape)}, {tuple(weight.shape)}, {tuple(targets.shape)}"
        )
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        with torch.autocast(device, enabled=False):
            return _TokenLogps.apply(hidden, weight, targets)  # pyright: ignore[reportReturnType]
    return _TokenLogps.apply(hidden, weight.to(hidden.dtype), targets)  # pyright: ignore[reportReturnType]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
