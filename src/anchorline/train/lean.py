"""What a layer computes between its products is computed again in the backward, instead of kept: a quarter of the
activations, for a few hundredths of the time.

RMS norms keep their input only, gated activations the gate and what it lets through. Both do what they did before: in
half precision no figure changes by a bit. (In float32 a norm's input gets its gradient from one sum instead of two, which
may add up otherwise.) A gated activation is known by what its module's `forward` uses; every other is left alone.

Where native.cpp runs, it computes norms and gates of the usual kind (weight · x / rms(x), SiLU) in one pass each way. Its
sums add up in another order than torch's, so that one figure in a thousand rounds to the neighbouring bfloat16.

>>> with computing_again(model):  # doctest: +SKIP
...     packed_logps(model, row).sum().backward()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from anchorline.train.native import LANES, Native, native

GATED = ("down_proj", "act_fn", "gate_proj", "up_proj")
"""down_proj(act_fn(gate_proj(x)) * up_proj(x)): the names in a forward that does this and nothing else."""
SILU = (torch.nn.SiLU, SiLUActivation)
USUAL_NORM = LlamaRMSNorm.forward.__code__
"""weight · x / rms(x), which most architectures have written the same way."""


class _Again(torch.autograd.Function):
    """`run` without its insides; `tensors` are its inputs, and leaves that it reads by itself."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensor], inputs: int, *tensors: Tensor) -> Tensor:
        ctx.run, ctx.inputs = run, inputs
        ctx.save_for_backward(*tensors)
        return run(*tensors[:inputs])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        wanted = ctx.needs_input_grad[2:]
        tensors = [
            x.detach().requires_grad_(needed) if number < ctx.inputs else x
            for number, (x, needed) in enumerate(zip(ctx.saved_tensors, wanted, strict=True))
        ]
        with torch.enable_grad():
            out = ctx.run(*tensors[: ctx.inputs])
        found = iter(torch.autograd.grad(out, [x for x, needed in zip(tensors, wanted, strict=True) if needed], grad))
        return None, None, *(next(found) if needed else None for needed in wanted)


class _NativeNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compiled: Native, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.compiled, ctx.eps = compiled, eps
        return compiled.norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_x, of_weight = ctx.compiled.norm_backward(*ctx.saved_tensors, grads[0], ctx.eps)
        return None, of_x, of_weight, None


class _NativeGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compiled: Native, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.compiled = compiled
        return compiled.gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *ctx.compiled.gated_backward(*ctx.saved_tensors, grads[0])


@contextmanager
def computing_again(model: torch.nn.Module) -> Iterator[None]:
    """Inside, norms and gated activations keep their inputs alone for the backward, which has to be inside as well."""
    with ExitStack() as stack:
        for module in model.modules():
            instead = None
            if type(module).__name__.endswith("RMSNorm") and not list(module.children()):
                instead = partial(_norm, module, module.forward)
            elif type(module).forward.__code__.co_names == GATED:
                instead = partial(_gated, module)
            if instead is not None:
                module.forward = instead
                stack.callback(module.__dict__.pop, "forward")
        yield


def _norm(module: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if _usual(module) and module.weight.dtype == x.dtype and (compiled := _native_for(x)) is not None:
        return _NativeNorm.apply(compiled, x, module.weight, module.variance_epsilon)  # pyright: ignore[reportReturnType]
    return _Again.apply(forward, 1, x, *module.parameters())  # pyright: ignore[reportReturnType]


def _gated(module: Any, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    if isinstance(module.act_fn, SILU) and (compiled := _native_for(gate)) is not None:
        kept = _NativeGated.apply(compiled, gate, up)
    else:
        kept = _Again.apply(lambda gate, up: module.act_fn(gate) * up, 2, gate, up)
    return module.down_proj(kept)


def _native_for(x: Tensor) -> Native | None:
    usable = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[-1] % LANES == 0
    return native() if usable else None


def _usual(module: Any) -> bool:
    code = type(module).forward.__code__
    return all(getattr(code, part) == getattr(USUAL_NORM, part) for part in ("co_code", "co_names", "co_consts"))
