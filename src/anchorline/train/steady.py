"""Products in bfloat16 whose rows do not hang on how many there are, on processors where they otherwise do.

With AMX, oneDNN adds a product's terms up in another order where the matrix has more rows, and one sum in ten thousand
rounds to another bfloat16. Over an answer's tokens that makes up to a nat, so that a policy before its first step would not
have its reference's log-probs, which were computed among other rows. Here the forward's products are made by native.cpp,
which adds every row up in one order, or without it in tiles of a fixed number of rows; the backward, where nothing has to be
met again, is whole. Whether it is needed is tried out, once for each shape of a matrix.

>>> with steady_rows(model):  # doctest: +SKIP
...     model(tokens)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, pad

from anchorline.train.native import native

TILE = 256
"""Rows of a product."""
SIZES = (3072, 2048, 1536, 1024, 768, 512, 300, 200, 120, 64, 30, 8)
"""Numbers of rows that are tried out, as far as the product takes `MOST` bytes."""
MANY = 1024
"""Rows with which torch's products in the backward are as fast as native.cpp's tiles: with 600 they take 1.4 times as long."""
MOST = 200_000_000


class _TiledLinear(torch.autograd.Function):
    """Letters: R rows, I inputs, O outputs."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_RI, weight_OI)
        ctx.biased = bias_O is not None
        return tiled(x_RI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_RO,) = grads
        x_RI, weight_OI = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            toward_inputs(grad_RO, weight_OI) if of_x else None,
            _transposed(grad_RO) @ x_RI if of_weight else None,
            grad_RO.sum(0) if of_bias else None,
        )


def tiled(
    x_RI: Float[Tensor, "rows inputs"],
    weight_OI: Float[Tensor, "outputs inputs"],
    bias_O: Float[Tensor, " outputs"] | None = None,
    *,
    out: Tensor | None = None,
) -> Float[Tensor, "rows outputs"]:
    """X @ weightᵀ + bias, by native.cpp or in tiles of `TILE` rows, of which the last one is filled up with zeros."""
    if x_RI.dtype == torch.bfloat16 and (compiled := native()) is not None:
        return compiled.linear(x_RI, weight_OI, bias_O, out=out)
    rows = len(x_RI)
    out_RO = x_RI.new_empty((rows, len(weight_OI))) if out is None else out
    for start in range(0, rows, TILE):
        tile, target = x_RI[start : start + TILE], out_RO[start : start + TILE]
        if bias_O is None and len(tile) == TILE:
            torch.mm(tile, weight_OI.T, out=target)
        else:
            target.copy_(linear(pad(tile, (0, 0, 0, TILE - len(tile))), weight_OI, bias_O)[: len(target)])
    return out_RO


def toward_inputs(
    grad_RO: Float[Tensor, "rows outputs"],
    weight_OI: Float[Tensor, "outputs inputs"],
    *,
    beside: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "rows inputs"]:
    """Grad @ weight, the gradient in what a linear layer was given; `beside`, two factors whose product is added.

    By native.cpp, or by torch where rows are many.
    """
    compiled = native() if grad_RO.dtype == torch.bfloat16 and len(grad_RO) < MANY else None
    if compiled is not None and compiled.tiles:
        return compiled.linear_backward(grad_RO, weight_OI, beside=beside)
    product = grad_RO @ weight_OI
    return product if beside is None else product.addmm_(*beside)


def _transposed(x: Tensor) -> Tensor:
    """Xᵀ, as a copy where native.cpp makes it: oneDNN's own takes longer than the product."""
    compiled = native() if x.dtype == torch.bfloat16 else None
    return x.T if compiled is None else compiled.transposed(x)


@contextmanager
def steady_rows(model: torch.nn.Module) -> Iterator[None]:
    """Inside, half-precision products of the model's linear layers are made in tiles, where this processor needs it."""
    with ExitStack() as stack:
        for module in model.modules():
            if type(module) is not torch.nn.Linear or "forward" in vars(module):  # taken already
                continue
            if sways(module.weight, format_of(module.weight)):
                module.forward = partial(_linear, module)  # pyright: ignore[reportAttributeAccessIssue]
                stack.callback(module.__dict__.pop, "forward")
        yield


def _linear(module: torch.nn.Linear, x: Tensor) -> Tensor:
    dtype = format_of(module.weight)
    weight, bias = module.weight.to(dtype), None if module.bias is None else module.bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        flat = _TiledLinear.apply(x.to(dtype).flatten(0, -2), weight, bias)
    return flat.unflatten(0, x.shape[:-1])  # pyright: ignore[reportOptionalMemberAccess]


def format_of(weight: Tensor) -> torch.dtype:
    """The number format in which a linear layer multiplies here."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def sways(weight_OI: Tensor, dtype: torch.dtype) -> bool:
    """Whether the first rows of a product with a matrix of this shape depend on how many follow, on this processor."""
    if weight_OI.device.type != "cpu" or dtype not in {torch.bfloat16, torch.float16}:
        return False
    if weight_OI.dim() != 2:  # ZeRO-3 keeps it elsewhere until it is needed
        return False
    return _tried(len(weight_OI), weight_OI.shape[1], dtype, torch.get_num_threads())


@lru_cache(maxsize=256)
def _tried(outputs: int, inputs: int, dtype: torch.dtype, threads: int) -> bool:
    del threads  # another number may divide the work otherwise
    sizes = [size for size in SIZES if size * max(outputs, inputs) * dtype.itemsize <= MOST]
    generator = torch.Generator().manual_seed(0)
    half = inputs // 2
    x, weight = (torch.randn((n, half), generator=generator).to(dtype) for n in (max(sizes, default=1), outputs))
    # each term stands once more with the other sign, so that the sums are what rounding leaves: the order shows in all of them
    x, weight = torch.cat([x, -x.flip(1)], 1), torch.cat([weight, weight.flip(1)], 1)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        first = linear(x, weight)[: SIZES[-1]]
        return any(not torch.equal(linear(x[:size], weight)[: SIZES[-1]], first) for size in sizes[1:])
