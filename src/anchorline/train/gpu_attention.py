"""Attention of a whole packed row in one call on a GPU: torch's FlexAttention with the row's layout as its mask.

Instead of one call a branch: a row of many short branches would launch thousands of small kernels. The mask is known by
blocks of 128 × 128, and a block that nobody sees is never computed.

Has not been run on a GPU. The same function without compilation, which computes every score, is held against the call a
branch in the tests; and before training `check_forward` holds it against the plain forward on the GPU itself.

>>> row_attention(q, k, v, row.layout)  # doctest: +SKIP
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from anchorline.train.layout import Branching

SHARED = -1
"""The number of the example to which the opening belongs, and of the branch to which a prompt belongs."""


def row_attention(
    q: Float[Tensor, "1 heads tokens width"],
    k: Float[Tensor, "1 key_heads tokens width"],
    v: Float[Tensor, "1 key_heads tokens width"],
    layout: tuple[Branching, ...],
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "1 heads tokens width"]:
    """Attention in which a token sees its opening, its prompt, and its own branch up to itself.

    Args:
        q: queries of the row.
        k: keys; each head serves heads / key_heads query heads.
        v: values.
        layout: where the examples lie.
        scale: factor on the scores; 1 / sqrt(width) by default.
        window: how many positions back a token sees, its own included; all by default.

    """
    attend = _compiled() if q.is_cuda else flex_attention
    mask = row_mask(layout, window, q.device)
    out = attend(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(out, Tensor)
    return out


@lru_cache(maxsize=4)
def row_mask(layout: tuple[Branching, ...], window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of keys each block of queries sees; made once a row, all layers use it."""
    example, branch, position = (torch.tensor(values, device=device) for values in places(layout))
    opens = torch.tensor([bool(branching.opening) for branching in layout], device=device)

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = example[query] == example[key]
        own = own & ((branch[key] == SHARED) | (branch[key] == branch[query]))
        # a compiled index does not count from the end: the opening's own tokens, of example SHARED, ask for the first
        opening = (example[key] == SHARED) & opens[example[query].clamp(min=0)]
        near = True if window is None else position[query] - position[key] < window
        return (query >= key) & (own | opening) & near

    tokens = len(example)
    return create_block_mask(
        seen, B=None, H=None, Q_LEN=tokens, KV_LEN=tokens, device=device, _compile=device.type == "cuda"
    )


def places(layout: tuple[Branching, ...]) -> tuple[list[int], list[int], list[int]]:
    """Of every token of a row: the number of its example, of its branch, and its position.

    >>> places((Branching(opening=1, start=1, prompt_end=2, ends=(4, 5)),))
    ([-1, 0, 0, 0, 0], [-1, -1, 0, 0, 1], [0, 1, 2, 3, 2])
    """
    shared = max(branching.opening for branching in layout)
    example, branch, position = [SHARED] * shared, [SHARED] * shared, list(range(shared))
    for number, branching in enumerate(layout):
        prompt, *sizes = branching.sizes
        example += [number] * (prompt + sum(sizes))
        branch += [SHARED] * prompt + [k for k, size in enumerate(sizes) for _ in range(size)]
        before = branching.opening + prompt
        position += [*range(branching.opening, before), *(before + i for size in sizes for i in range(size))]
    return example, branch, position


@lru_cache(maxsize=1)
def _compiled():  # noqa: ANN202  (a compiled function has no name for its type)
    return torch.compile(flex_attention, dynamic=True)
