"""The rotation of queries and keys in one pass each way, where native.cpp runs.

As architectures write it, it is ten passes over states that became float32 on the way. It is a function of their modules,
so it is changed there, for as long as the context is open; what is no plain bfloat16 on a CPU still goes to the function
that was there.

>>> with rotating_once(model.modules()):  # doctest: +SKIP
...     packed_logps(model, row).sum().backward()
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

from anchorline.train.native import LANES, Native, native

NAME = "apply_rotary_pos_emb"
USUAL = tuple(getattr(modeling_llama, name).__code__.co_code for name in (NAME, "rotate_half"))
"""x cos + (−b, a) sin, of halves (a, b), which most architectures have written the same way."""


class _Rotated(torch.autograd.Function):
    """Letters: H heads, T tokens, D width."""

    @staticmethod
    def forward(ctx: Any, compiled: Native, x_HTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TD, sin_TD)
        ctx.compiled = compiled
        return compiled.rotated(x_HTD, cos_TD, sin_TD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, ctx.compiled.rotated(grads[0], *ctx.saved_tensors, back=True), None, None


@contextmanager
def rotating_once(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Inside, rotations of the usual kind are one pass; the backward has to be inside as well."""
    with ExitStack() as stack:
        for module in {type(part).__module__ for part in modules}:
            names = vars(sys.modules[module]) if module in sys.modules else {}
            found = [getattr(names.get(name), "__code__", None) for name in (NAME, "rotate_half")]
            if native() is not None and tuple(code and code.co_code for code in found) == USUAL:
                before = names[NAME]
                names[NAME] = partial(_rotate, before)
                stack.callback(names.__setitem__, NAME, before)
        yield


def _rotate(
    before: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any
) -> Any:
    """`q`, `k`: [1, heads, T, D]; `cos`, `sin`: [1, T, D]."""
    compiled = native()
    plain = not more and not named and len(q) == len(cos) == 1 and cos.shape[-1] % (2 * LANES) == 0
    formats = (q.dtype, k.dtype, cos.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    if compiled is None or not plain or not formats or q.device.type != "cpu":
        return before(q, k, cos, sin, *more, **named)
    angles = cos[0].contiguous(), sin[0].contiguous()
    return tuple(_Rotated.apply(compiled, x.squeeze(0), *angles).unsqueeze(0) for x in (q, k))  # pyright: ignore[reportOptionalMemberAccess]
