"""LoRA layers in fewer passes: base and adapter are one step forward and one backward, where native.cpp runs.

PEFT makes the adapter's output whole, multiplies it by its factor and adds it, each a pass over memory that costs as much as
the adapter's thin products; so does autograd on the way back. Here the adapter's product is added while the base's output is
written, and the gradient of the input is one sum. It rounds once where PEFT rounds three times.

>>> with adapted_layers(model):  # doctest: +SKIP
...     packed_logps(model, row).sum().backward()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor
from torch.nn.functional import linear

from anchorline.train.native import Native, native
from anchorline.train.steady import sways, toward_inputs


class _Adapted(torch.autograd.Function):
    """Letters: R rows, I inputs, O outputs, K the adapter's rank."""

    @staticmethod
    def forward(
        ctx: Any,
        compiled: Native,
        x_RI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_KI: Tensor,
        up_OK: Tensor,
        factor: float,
    ) -> Tensor:
        inner_RK = compiled.linear(x_RI, down_KI)
        ctx.save_for_backward(x_RI, inner_RK, weight_OI, down_KI, up_OK)
        ctx.compiled, ctx.factor = compiled, factor
        if sways(weight_OI, weight_OI.dtype):
            return compiled.linear(x_RI, weight_OI, bias_O, beside=(inner_RK, up_OK), factor=factor)
        return linear(x_RI, weight_OI, bias_O).addmm_(inner_RK, up_OK.T, alpha=factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_RO,) = grads
        x_RI, inner_RK, weight_OI, down_KI, up_OK = ctx.saved_tensors
        grad_RK = (grad_RO @ up_OK).mul_(ctx.factor)
        of_x = toward_inputs(grad_RO, weight_OI, beside=(grad_RK, down_KI)) if ctx.needs_input_grad[1] else None
        of_down = ctx.compiled.crossed(grad_RK, x_RI)
        of_up = ctx.compiled.crossed(inner_RK, grad_RO, ctx.factor).T
        return None, of_x, None, None, of_down, of_up, None


@contextmanager
def adapted_layers(model: torch.nn.Module) -> Iterator[None]:
    """Inside, LoRA layers of the plain kind compute in one step; the backward has to be inside as well.

    Their weights and the number of their adapters stay as they are at the start; adapters may be switched off and on.
    """
    compiled = native()
    with ExitStack() as stack:
        if compiled is not None:
            layers: list[Any] = [module for module in model.modules() if type(module) is LoraLinear]
            for module in layers:
                name = module.active_adapters[0] if module.active_adapters else ""
                if _plain(module, name):
                    module.forward = partial(_forward, module, module.forward, compiled, _parts(module, name))
                    stack.callback(module.__dict__.pop, "forward")
        yield


def _forward(
    module: Any,
    peft: Callable[..., Tensor],
    compiled: Native,
    parts: tuple[Any, ...],
    x: Tensor,
    *rest: Any,
    **more: Any,
) -> Tensor:
    if rest or more or module.disable_adapters or module.merged:
        return peft(x, *rest, **more)
    flat = _Adapted.apply(compiled, x.bfloat16().flatten(0, -2), *parts)
    return flat.unflatten(0, x.shape[:-1])  # pyright: ignore[reportOptionalMemberAccess]


def _parts(module: Any, name: str) -> tuple[Any, ...]:
    """What `_Adapted` computes with, looked up once: a module's attributes take as long as a small product."""
    base = module.get_base_layer()
    return base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


def _plain(module: Any, name: str) -> bool:
    """Whether one adapter without dropout, bias or a variant is what the layer adds, all in bfloat16 on a CPU."""
    if list(module.active_adapters) != [name] or name not in module.lora_A or name in module.lora_variant:
        return False
    base, down, up = module.get_base_layer(), module.lora_A[name], module.lora_B[name]
    weights = (base.weight, down.weight, up.weight)
    return (
        type(module.lora_dropout[name]) is torch.nn.Identity
        and up.bias is None
        and type(base) is torch.nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and all(weight.dtype == torch.bfloat16 and weight.device.type == "cpu" for weight in weights)
    )
