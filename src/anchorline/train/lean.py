"""What a layer computes between its products is computed again in the backward, instead of kept: a quarter of the
activations, for a few hundredths of the time.

RMS norms keep their input only, gated activations the gate and what it lets through. Both do what they did before: in
half precision no figure changes by a bit. (In float32 a norm's input gets its gradient from one sum instead of two, which
may add up otherwise.) A gated activation is known by what its module's `forward` uses; every other is left alone.

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

GATED = ("down_proj", "act_fn", "gate_proj", "up_proj")
"""down_proj(act_fn(gate_proj(x)) * up_proj(x)): the names in a forward that does this and nothing else."""


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


def _norm(module: torch.nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return _Again.apply(forward, 1, x, *module.parameters())  # pyright: ignore[reportReturnType]


def _gated(module: Any, x: Tensor) -> Tensor:
    kept = _Again.apply(lambda gate, up: module.act_fn(gate) * up, 2, module.gate_proj(x), module.up_proj(x))
    return module.down_proj(kept)
