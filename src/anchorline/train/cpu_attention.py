"""Causal attention for bfloat16 on a CPU: torch's kernel forward, a backward of its own.

On a CPU the backward of torch's flash kernel does not use the processor's bfloat16 products and takes two to five times
as long as the same products one by one. Here each is one batched matrix product in bfloat16, softmax and sums are
float32, and heads of a group share their keys without a copy. Queries go in blocks, whose scores are computed again, so
nothing of size [queries, keys] is kept.

>>> causal_attention(q, k, v)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 300_000
"""Scores that exist at one time in the backward: 1.2 MB in float32, which stay in a core's cache."""


class _CausalAttention(torch.autograd.Function):
    """Letters: N key heads, G query heads a key head, Q queries, K keys, D width."""

    @staticmethod
    def forward(ctx: Any, q_NGQD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float, window: int | None) -> Tensor:
        queries, keys, groups = q_NGQD.shape[2], k_NKD.shape[1], q_NGQD.shape[1]
        k_NGKD, v_NGKD = (x[:, None].expand(-1, groups, -1, -1) for x in (k_NKD, v_NKD))
        seen = None if window is None and queries == keys else visible(queries, keys, window, q_NGQD.device)
        out_NGQD = scaled_dot_product_attention(
            q_NGQD, k_NGKD, v_NGKD, attn_mask=seen, is_causal=seen is None, scale=scale
        )
        ctx.save_for_backward(q_NGQD, k_NKD, v_NKD, out_NGQD)
        ctx.scale, ctx.window = scale, window
        return out_NGQD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_NGQD,) = grads
        q_NGQD, k_NKD, v_NKD, out_NGQD = ctx.saved_tensors
        heads, keys, queries = q_NGQD.shape[0] * q_NGQD.shape[1], k_NKD.shape[1], q_NGQD.shape[2]
        dtype, wide = q_NGQD.dtype, torch.float64 if q_NGQD.dtype == torch.float64 else torch.float32
        unseen_QK = torch.zeros(queries, keys, dtype=wide).masked_fill_(
            ~visible(queries, keys, ctx.window, q_NGQD.device), float("-inf")
        )
        own_NGQ1 = (grad_NGQD.to(wide) * out_NGQD).sum(-1, keepdim=True)  # what softmax's normalisation takes off
        grad_q = torch.empty_like(q_NGQD)
        grad_k, grad_v = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k_NKD, v_NKD))
        size = max(BLOCK // (heads * keys), 1)
        for start in range(0, queries, size):
            rows = slice(start, min(start + size, queries))
            last = keys - queries + rows.stop  # behind it, no query of the block sees a key
            k, v = k_NKD[:, :last], v_NKD[:, :last]
            q, grad = _together(q_NGQD[:, :, rows]), _together(grad_NGQD[:, :, rows])
            scores = _apart(q @ k.transpose(1, 2), q_NGQD).to(wide).mul_(ctx.scale).add_(unseen_QK[rows, :last])
            weights = scores.softmax(-1)
            grad_v[:, :last] += _together(weights.to(dtype)).transpose(1, 2) @ grad
            slopes = _apart(grad @ v.transpose(1, 2), q_NGQD).to(wide)
            slopes = _together(slopes.sub_(own_NGQ1[:, :, rows]).mul_(weights).to(dtype))
            grad_q[:, :, rows] = _apart(slopes @ k, q_NGQD) * ctx.scale
            grad_k[:, :last] += slopes.transpose(1, 2) @ q
        return grad_q, grad_k.mul_(ctx.scale).to(dtype), grad_v.to(dtype), None, None


def causal_attention(
    q: Float[Tensor, "1 heads queries width"],
    k: Float[Tensor, "1 key_heads keys width"],
    v: Float[Tensor, "1 key_heads keys width"],
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "1 heads queries width"]:
    """Attention in which the last query sees the last key, and no query sees a key behind its own.

    Args:
        q: queries, as many as keys or fewer.
        k: keys; each head serves heads / key_heads query heads.
        v: values.
        scale: factor on the scores; 1 / sqrt(width) by default.
        window: how many keys back a query sees, its own included; all by default.

    """
    groups, keys = q.shape[1] // k.shape[1], k.shape[2]
    window = None if window is None or window >= keys else window
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = _CausalAttention.apply(q[0].unflatten(0, (k.shape[1], groups)), k[0], v[0], scale, window)
    return out.flatten(0, 1)[None]  # pyright: ignore[reportOptionalMemberAccess]


def visible(queries: int, keys: int, window: int | None, device: torch.device) -> Bool[Tensor, "queries keys"]:
    """Which keys a query sees, aligned at the bottom right: the last query sees the last key."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _together(x: Tensor) -> Tensor:
    """The heads of a group as one: [N, G, a, b] to [N, G·a, b]."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _apart(x: Tensor, like: Tensor) -> Tensor:
    """Back: [N, G·a, b] to [N, G, a, b], with G of `like`."""
    return x.view(x.shape[0], like.shape[1], -1, x.shape[-1])
