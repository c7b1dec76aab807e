"""Products in bfloat16 by native.cpp: where torch's rows hang on how many there are, and where torch is slower.

With AMX, oneDNN adds a product's terms up in another order where the matrix has more rows, and one sum in ten thousand
rounds to another bfloat16. Over an answer's tokens that makes up to a nat, so that a policy before its first step would not
have its reference's log-probs, which were computed among other rows. Here the forward's products are made by native.cpp,
which adds every row up in one order, or without it in tiles of a fixed number of rows; the backward, where nothing has to be
met again, is whole. Whether it is needed is tried out, once for each shape of a matrix.

Without AMX native.cpp is the faster one, both ways: weights that do not change are laid out for it once, others on the way,
and a weight's gradient is added to that of the float32 weight at once.

>>> with steady_rows(model.modules()):  # doctest: +SKIP
...     model(tokens)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, pad

from anchorline.train.native import OUTPUTS, Native, native

TILE = 256
"""Rows of a product."""
SIZES = (3072, 2048, 1536, 1024, 768, 512, 300, 200, 120, 64, 30, 8)
"""Numbers of rows that are tried out, as far as the product takes `MOST` bytes."""
MANY = 1024
"""Rows with which torch's products in the backward are as fast as native.cpp's tiles: with 600 they take 1.4 times as long."""
MOST = 200_000_000
WHOLE = "_anchorline_whole"
"""The attribute of a copy under which the weight is that it stands for."""


class _TiledLinear(torch.autograd.Function):
    """Letters: R rows, I inputs, O outputs."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_RI, weight_OI)
        ctx.whole = whole_of(weight_OI)  # what is saved may come back as another tensor
        return tiled(x_RI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_RO,) = grads
        x_RI, weight_OI = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            toward_inputs(grad_RO, weight_OI) if of_x else None,
            weight_gradient(grad_RO, x_RI, ctx.whole) if of_weight else None,
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
    if (compiled := native_for(x_RI)) is not None:
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
) -> Float[Tensor, "rows inputs"]:
    """Grad @ weight, the gradient in what a linear layer was given."""
    compiled = multiplying_back(grad_RO)
    return grad_RO @ weight_OI if compiled is None else compiled.linear_backward(grad_RO, weight_OI)


def multiplying_back(grad_RO: Tensor) -> Native | None:
    """native.cpp, where it makes this product of a backward: with AMX, torch is as fast where rows are many, or a head's."""
    compiled = native_for(grad_RO)
    if compiled is not None and compiled.tiles and (len(grad_RO) >= MANY or grad_RO.shape[1] > OUTPUTS):
        return None
    return compiled


def weight_gradient(
    grad_RO: Float[Tensor, "rows outputs"], x_RI: Float[Tensor, "rows inputs"], whole: Tensor | None
) -> Float[Tensor, "outputs inputs"] | None:
    """Gradᵀ @ x, a linear layer's gradient in its weight; None where it has been added to that of `whole`."""
    compiled = native_for(grad_RO)
    if compiled is None:
        return grad_RO.T @ x_RI
    if compiled.tiles:  # oneDNN's own copy of gradᵀ takes longer than the product
        made = grad_RO.new_empty((grad_RO.shape[1], x_RI.shape[1]))
        for part, out in zip(grad_RO.split(OUTPUTS, 1), made.split(OUTPUTS), strict=True):
            torch.mm(compiled.transposed(part), x_RI, out=out)
        return made
    made = compiled.weight_gradient(grad_RO, x_RI, None if whole is None else whole.grad)
    return handed_over(made.to(grad_RO.dtype) if whole is None else made, whole)


def stands_for(copy: Tensor, weight: Tensor) -> None:
    """What products add to the gradient of `copy` may be added, in float32, to that of `weight` instead."""
    setattr(copy, WHOLE, weight)


def whole_of(copy: Tensor) -> Tensor | None:
    """The weight that `stands_for` has named."""
    return vars(copy).get(WHOLE)


def handed_over(made: Tensor, whole: Tensor | None) -> Tensor | None:
    """Autograd's share of a gradient: none of it where it is that of `whole`, to whose gradient it was added."""
    if whole is None:
        return made
    whole.grad = made
    return None


def native_for(x: Tensor) -> Native | None:
    """native.cpp, where it multiplies in this tensor's format."""
    return native() if x.dtype == torch.bfloat16 and x.device.type == "cpu" else None


@contextmanager
def steady_rows(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Inside, half-precision products of linear layers are made in tiles, where this processor needs it."""
    with ExitStack() as stack:
        for module in modules:
            if type(module) is not torch.nn.Linear or "forward" in vars(module):  # taken already
                continue
            if made_here(module.weight, format_of(module.weight)):
                vars(module)["forward"] = partial(_linear, module)
                stack.callback(vars(module).pop, "forward")
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


def made_here(weight_OI: Tensor, dtype: torch.dtype) -> bool:
    """Whether the products of a forward with this matrix are made here: where torch's sway, or are slower."""
    compiled = native_for(weight_OI) if weight_OI.dtype == dtype and weight_OI.dim() == 2 else None
    return (compiled is not None and not compiled.tiles) or sways(weight_OI, dtype)


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
