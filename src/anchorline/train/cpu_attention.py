"""Causal attention for bfloat16 on a CPU, forward and backward, as batched matrix products.

torch's flash kernel does not use the processor's bfloat16 products where it has no AMX: forward it takes two to three
times, backward two to five times as long as the same products one by one. Here each is one batched product in bfloat16:
scores are rounded to it, softmax computes in float32 inside, sums over blocks are float32, and heads of a group share
their keys without a copy. Queries go in blocks, which leave out the keys behind them; the scores of a block are computed
again in the backward, so nothing of size [queries, keys] is kept.

That is what torch's operations give anywhere. Where native.cpp runs, `row_attention` does a whole row in one call, three to
four times as fast: its scores never leave the caches.

>>> causal_attention(q, k, v)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anchorline.train.layout import Branching
from anchorline.train.native import Native

SCORES = 300_000
"""Scores that exist at one time, where keys are few: 0.6 MB, which stay in a core's cache."""
QUERIES = 96
"""Queries that a block has at least: with fewer, the products are too thin."""


class _CausalAttention(torch.autograd.Function):
    """Letters: N key heads, G query heads a key head, Q queries, K keys, D width; a block has B queries, sees S keys."""

    @staticmethod
    def forward(ctx: Any, q_NGQD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float, window: int | None) -> Tensor:
        out_NGQD = torch.empty_like(q_NGQD)
        for rows, last in _blocks(q_NGQD, k_NKD):
            weights, _ = _weights(q_NGQD, k_NKD, rows, last, scale, window)
            out_NGQD[:, :, rows] = _apart(weights @ v_NKD[:, :last], q_NGQD)
        ctx.save_for_backward(q_NGQD, k_NKD, v_NKD)
        ctx.scale, ctx.window = scale, window
        return out_NGQD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_NGQD,) = grads
        q_NGQD, k_NKD, v_NKD = ctx.saved_tensors
        grad_q = torch.empty_like(q_NGQD)
        grad_k, grad_v = (torch.zeros(x.shape, dtype=_wide(x.dtype), device=x.device) for x in (k_NKD, v_NKD))
        for rows, last in _blocks(q_NGQD, k_NKD):
            weights, q = _weights(q_NGQD, k_NKD, rows, last, ctx.scale, ctx.window)
            grad = _together(grad_NGQD[:, :, rows])
            grad_v[:, :last] += weights.transpose(1, 2) @ grad
            slopes = grad @ v_NKD[:, :last].transpose(1, 2)
            # softmax's own backward in one pass, in float32 inside; it takes off what the normalisation does
            slopes = torch.ops.aten._softmax_backward_data(slopes, weights, -1, slopes.dtype)
            grad_q[:, :, rows] = _apart(slopes @ k_NKD[:, :last], q_NGQD).mul_(ctx.scale)
            grad_k[:, :last] += slopes.transpose(1, 2) @ q
        return grad_q, grad_k.to(k_NKD.dtype), grad_v.to(v_NKD.dtype), None, None


def _blocks(q_NGQD: Tensor, k_NKD: Tensor) -> Iterator[tuple[slice, int]]:
    """Blocks of queries, each with the number of keys behind which none of its queries sees any."""
    queries, keys = q_NGQD.shape[2], k_NKD.shape[1]
    size = max(SCORES // (q_NGQD.shape[0] * q_NGQD.shape[1] * keys), QUERIES)
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        yield slice(start, stop), keys - queries + stop


def _weights(
    q_NGQD: Tensor, k_NKD: Tensor, rows: slice, last: int, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """The attention weights [N, G·B, S] of a block, and its queries [N, G·B, D] times the scale."""
    q = _together(q_NGQD[:, :, rows]) * scale  # exact in bfloat16 where the scale is a power of two, as for most models
    scores = q @ k_NKD[:, :last].transpose(1, 2)
    count = rows.stop - rows.start
    # without a window all but the block's own square is seen by each of its queries
    square = count if window is None else last
    _apart(scores, q_NGQD)[..., last - square :].masked_fill_(~visible(count, square, window, q.device), float("-inf"))
    return scores.softmax(-1), q


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


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        native: Native,
        q_HTD: Tensor,
        k_NTD: Tensor,
        v_NTD: Tensor,
        sequences: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        out_THD, logs_HT = native.attention(q_HTD, k_NTD, v_NTD, sequences, scale, window)
        ctx.save_for_backward(q_HTD, k_NTD, v_NTD, out_THD, logs_HT, sequences)
        ctx.native, ctx.scale, ctx.window = native, scale, window
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *tensors, sequences = ctx.saved_tensors
        found = ctx.native.attention_backward(*tensors, grads[0], sequences, ctx.scale, ctx.window)
        return None, *found, None, None, None


def row_attention(
    native: Native,
    q: Float[Tensor, "1 heads tokens width"],
    k: Float[Tensor, "1 key_heads tokens width"],
    v: Float[Tensor, "1 key_heads tokens width"],
    layout: tuple[Branching, ...],
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "1 tokens heads width"]:
    """Attention of a packed row in which a token sees its opening, its prompt, and its own branch up to itself.

    Args:
        native: what computes it.
        q: queries of the row.
        k: keys; each head serves heads / key_heads query heads.
        v: values.
        layout: where the examples lie.
        scale: factor on the scores; 1 / sqrt(width) by default.
        window: how many positions back a token sees, its own included; all by default.

    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    rows = (x.squeeze(0) for x in (q, k, v))  # [0] would fill a gradient of its own with zeros
    return _RowAttention.apply(native, *rows, sequences_of(layout), scale, window).unsqueeze(0)  # pyright: ignore[reportOptionalMemberAccess]


@lru_cache(maxsize=8)
def sequences_of(layout: tuple[Branching, ...]) -> Tensor:
    """The causal runs of a row: of each, three stretches, how many of its last tokens ask, and a zero.

    >>> sequences_of((Branching(opening=0, start=0, prompt_end=2, ends=(4, 5)),)).tolist()
    [[0, 0, 0, 2, 2, 4, 4, 0], [0, 0, 0, 2, 4, 5, 1, 0]]
    """
    shared = max(branching.opening for branching in layout)
    runs = [[0, shared, 0, 0, 0, 0, shared, 0]] if shared else []
    for branching in layout:
        start, end = branching.start, branching.prompt_end
        for number, (first, last) in enumerate(pairwise((end, *branching.ends))):
            asks = last - (first if number else start)
            runs.append([0, branching.opening, start, end, first, last, asks, 0])
    return torch.tensor(runs)


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


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
