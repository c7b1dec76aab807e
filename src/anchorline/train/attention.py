"""Attention over packed rows, without a dense mask, behind transformers' `AttentionInterface`.

Of each example, one causal call covers the prompt with its first branch. Every further branch is one call of its own
queries against [prompt, branch], causal from the bottom right. The opening that prompts of a row share asks once, in a
call of its own, and its keys stand before theirs. On a GPU the whole row is one call instead (gpu_attention.py), and in
bfloat16 on a CPU where native.cpp runs (cpu_attention.py). The layout travels as the forward argument `packed_layout`, so
that gradient checkpointing recomputes with it.

>>> model.set_attn_implementation(PACKED)  # doctest: +SKIP
>>> model(tokens, position_ids=positions, packed_layout=row.layout)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from anchorline.errors import ModelError
from anchorline.train import cpu_attention, gpu_attention
from anchorline.train.cpu_attention import causal_attention, visible
from anchorline.train.layout import Branching
from anchorline.train.native import native

PACKED = "anchorline_packed"

BY_ROW = {"cuda"}
"""Kinds of devices on which a row is one call (gpu_attention.py)."""
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Layer types whose tokens only meet in attention. In others (SSM, convolution, linear) state flows along the row."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_layout: tuple[Branching, ...] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one packed row.

    Args:
        module: the layer's attention module.
        query: [1, heads, T, width], rotated already.
        key: [1, key heads, T, width].
        value: [1, key heads, T, width].
        attention_mask: ignored; none is made for this implementation.
        packed_layout: where the examples lie.
        scaling: factor on the scores.
        dropout: probability on the attention weights.
        sliding_window: how far back a token sees, counted in positions.
        softcap: refused.
        s_aux: attention sinks; refused.

    Returns:
        [1, T, heads, width], and None in the place of attention weights.

    """
    if softcap is not None or s_aux is not None:
        raise ModelError("soft-capped attention and attention sinks do not run packed; set train.forward to plain")
    if packed_layout is None:
        raise ModelError("the packed attention was called without a layout; use train.forward.packed_logps")
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotated in float32
    if device in BY_ROW and not dropout:
        out = gpu_attention.row_attention(query, key, value, packed_layout, scale=scaling, window=sliding_window)
        return out.transpose(1, 2), None
    attend = _causal
    groups = query.shape[1] // key.shape[1]
    if device == "cpu" and query.dtype == torch.bfloat16 and not dropout and value.shape[3] == query.shape[3]:
        if (compiled := native()) is not None:
            out = cpu_attention.row_attention(
                compiled, query, key, value, packed_layout, scale=scaling, window=sliding_window
            )
            return out, None
        attend = _causal_bf16
    elif groups > 1:
        # repeated once for the row instead of once a call: torch's CPU kernel takes no grouped heads
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    # one split a tensor: its backward is one concatenation, where slices would each fill a row-wide gradient with zeros
    shared = max(branching.opening for branching in packed_layout)
    sizes = [shared, *(size for branching in packed_layout for size in branching.sizes)]
    opening, *parts = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    outputs: list[torch.Tensor] = []
    if shared:
        outputs.append(attend(opening[0], opening[1], opening[2], scaling, dropout, sliding_window))
    for branching in packed_layout:
        prompt, *branches = parts[: len(branching.ends) + 1]
        del parts[: len(branching.ends) + 1]
        for number, branch in enumerate(branches):
            seen = [opening, prompt, branch] if branching.opening else [prompt, branch]
            k, v = (torch.cat([part[i] for part in seen], dim=2) for i in (1, 2))
            q = torch.cat([prompt[0], branch[0]], dim=2) if number == 0 else branch[0]
            outputs.append(attend(q, k, v, scaling, dropout, sliding_window))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _causal(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Causal attention aligned at the bottom right: the last query sees the last key."""
    queries, keys = q.shape[2], k.shape[2]
    window = sliding_window if sliding_window is not None and keys > sliding_window else None
    if queries == keys and window is None:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout)
    # [queries, keys] of one branch, not [T, T] of the row
    seen = visible(queries, keys, window, q.device)
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, dropout_p=dropout)


def _causal_bf16(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """The same on a CPU in bfloat16, without dropout."""
    assert not dropout
    return causal_attention(q, k, v, scale=scaling, window=sliding_window)


def refuse_unpackable(model: PreTrainedModel) -> None:
    """Raise for architectures whose tokens meet elsewhere than in attention.

    Raises:
        ModelError: which property of the model it is, and to set train.forward to plain.

    """
    config = model.config.get_text_config(decoder=True)
    kinds = set(config.to_dict().get("layer_types") or ()) - KNOWN_LAYERS
    why = None
    if kinds:
        why = f"its layers are of the kind {', '.join(sorted(kinds))}"
    elif getattr(model, "_is_stateful", False):
        why = "its state flows along the row"
    elif not (getattr(model, "_supports_attention_backend", False) and getattr(model, "_supports_sdpa", False)):
        why = "its attention cannot be replaced by torch's own"
    if why:
        raise ModelError(f"{config.model_type} does not run packed: {why}; set train.forward to plain")


AttentionInterface.register(PACKED, packed_attention)
