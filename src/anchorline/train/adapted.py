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
    """Inside, LoRA layers of the plain kind compute in one step; the backward has to be inside as well."""
    with ExitStack() as stack:
        if native() is not None:
            layers: list[Any] = [module for module in model.modules() if type(module) is LoraLinear]
            for module in layers:
                module.forward = partial(_forward, module, module.forward)
                stack.callback(module.__dict__.pop, "forward")
        yield


def _forward(module: Any, peft: Callable[..., Tensor], x: Tensor, *rest: Any, **more: Any) -> Tensor:
    compiled, name = native(), module.active_adapters[0]
    if compiled is None or rest or more or not _plain(module, name) or x.device.type != "cpu":
        return peft(x, *rest, **more)
    base = module.get_base_layer()
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    if any(p.dtype != torch.bfloat16 for p in (base.weight, down, up)) or base.weight.requires_grad:
        return peft(x)
    flat = _Adapted.apply(compiled, x.bfloat16().flatten(0, -2), base.weight, base.bias, down, up, module.scaling[name])
    return flat.unflatten(0, x.shape[:-1])  # pyright: ignore[reportOptionalMemberAccess]


def _plain(module: Any, name: str) -> bool:
    """Whether one adapter without dropout, bias or a variant is what the layer adds."""
    return (
        not module.disable_adapters
        and not module.merged
        and list(module.active_adapters) == [name]
        and name in module.lora_A
        and name not in module.lora_variant
        and type(module.lora_dropout[name]) is torch.nn.Identity
        and module.lora_B[name].bias is None
        and type(module.get_base_layer()) is torch.nn.Linear
        and (module.get_base_layer().bias is None or not module.get_base_layer().bias.requires_grad)
    )
