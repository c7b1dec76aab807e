"""LoRA layers in fewer passes: base and adapter are one step forward and one backward, where native.cpp runs.

PEFT makes the adapter's output whole, multiplies it by its factor and adds it, each a pass over memory that costs as much as
the adapter's thin products; so does autograd on the way back. Here the adapter's product is added while the base's output is
written, the gradient of the input is one sum, and those of the adapter go into its own, in float32. It rounds once where PEFT
rounds three times.

>>> with adapted_layers(model.modules()):  # doctest: +SKIP
...     packed_logps(model, row).sum().backward()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor

from anchorline.train.native import Native, native
from anchorline.train.steady import handed_over, multiplying_back, whole_of


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
        out_RO, inner_RK = compiled.adapted(x_RI, weight_OI, bias_O, down_KI, up_OK, factor)
        ctx.save_for_backward(x_RI, inner_RK, weight_OI, down_KI, up_OK)
        ctx.compiled, ctx.factor, ctx.whole = compiled, factor, (whole_of(down_KI), whole_of(up_OK))
        return out_RO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_RO,) = grads
        x_RI, inner_RK, weight_OI, *thin = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1]
        here = wanted and multiplying_back(grad_RO) is not None
        of_inner, of_x, *made = ctx.compiled.adapted_backward(
            *(grad_RO, x_RI, inner_RK, weight_OI if here else None, *thin, ctx.factor),
            into=tuple(None if weight is None else weight.grad for weight in ctx.whole),
        )
        if wanted and of_x is None:
            of_x = (grad_RO @ weight_OI).addmm_(of_inner, thin[0], alpha=ctx.factor)
        handed = [handed_over(grad, weight) for grad, weight in zip(made, ctx.whole, strict=True)]
        return None, of_x, None, None, *handed, None


@contextmanager
def adapted_layers(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Inside, LoRA layers of the plain kind compute in one step; the backward has to be inside as well.

    Their weights and the number of their adapters stay as they are at the start; adapters may be switched off and on.
    """
    compiled = native()
    with ExitStack() as stack:
        if compiled is not None:
            layers: list[Any] = [module for module in modules if type(module) is LoraLinear]
            for module in layers:
                name = module.active_adapters[0] if module.active_adapters else ""
                if _plain(module, name):
                    parts = _parts(module, name)
                    vars(module)["forward"] = partial(_forward, module, module.forward, compiled, parts)
                    stack.callback(vars(module).pop, "forward")
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
