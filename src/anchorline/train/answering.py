"""Answers by the model as training computes it, where native.cpp runs: a third faster than by torch's operations.

Layers, norms and gates are those of training (arithmetic.py); with one new token a row, attention is a pass over the keys.

>>> with answering(loaded):  # doctest: +SKIP
...     list(answer_batches(loaded, prompts, settings, seed=0))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from anchorline.llm.models import Loaded
from anchorline.train.arithmetic import multiplying_in
from anchorline.train.native import WIDE, native, unchanging

ANSWERING = "anchorline_answering"


@contextmanager
def answering(loaded: Loaded) -> Iterator[None]:
    """Inside, the model answers faster, if it lies in bfloat16 on a CPU that native.cpp runs on; else as it did."""
    model: Any = loaded.model
    if native() is None or loaded.device != ("cpu", "bfloat16") or model.config._attn_implementation != "sdpa":
        yield
        return
    model.set_attn_implementation(ANSWERING)
    try:
        with multiplying_in(model, torch.bfloat16), unchanging(model.parameters()):
            yield
    finally:
        model.set_attn_implementation("sdpa")


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    compiled = native()
    plain = (
        compiled is not None and query.shape[2] == 1 and query.shape[3] == value.shape[3] and not query.shape[3] % WIDE
    )
    mask = attention_mask is None or (attention_mask.dtype == torch.bool and attention_mask.shape[1:3] == (1, 1))
    narrow = all(x.dtype == torch.bfloat16 for x in (query, key, value))
    if compiled is None or not (plain and mask and narrow) or any(more.get(name) is not None for name in OTHERS):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return compiled.answer(query, key, value, attention_mask, scale), None


OTHERS = ("position_bias", "softcap", "s_aux", "cache")
"""What an attention may be given that is not computed here."""

AttentionInterface.register(ANSWERING, _attention)
AttentionMaskInterface.register(ANSWERING, sdpa_mask)
