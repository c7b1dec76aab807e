"""The number format of the forward and backward: bfloat16 products beside float32 weights.

In one process the float32 weights that the model has get bfloat16 copies, once an optimizer step, and the model computes
with the copies alone. Each copy's gradient is added to the float32 weight's as soon as it is there, and freed. Clipping,
optimizer, checkpoints and saving see the float32 weights only. What is cheap to compute again is not kept (lean.py).

As under autocast, what products are added to stays float32: the stream of states from layer to layer, norms inside, and the
rotation of queries and keys. Of four answers of some 700 tokens, the log-probs are off by 0.3 to 1 nat; in bfloat16 throughout
it was 0.9 to 2.3, mostly to one side, and gradients were off by 4.9 instead of 3.4 %. Most of that came from the rotation.

>>> with multiplying_in(model, torch.bfloat16):  # doctest: +SKIP
...     packed_logps(model, row).sum().backward()
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from anchorline.train.adapted import adapted_layers
from anchorline.train.attention import PACKED
from anchorline.train.lean import computing_again, is_norm
from anchorline.train.processes import launched
from anchorline.train.rotation import rotating_once
from anchorline.train.steady import stands_for, steady_rows


def wrapped() -> bool:
    """Whether the run's weights are shared between processes, or wrapped: then the copies' gradients would go astray."""
    return launched() > 1 or any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))


@contextmanager
def multiplying_in(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Inside, `model` computes in `dtype`, and its backward adds to the gradients of its own weights.

    The context has to stay open through the backward: gradient checkpointing computes with the copies again.
    """
    if dtype == torch.float32:
        yield
        return
    modules = list(model.modules())  # once: with adapters they are thousands, and each walk takes milliseconds
    with ExitStack() as stack:
        if wrapped():
            stack.enter_context(torch.autocast(next(model.parameters()).device.type, dtype))
        else:
            _lend_copies(model.config, modules, dtype, stack)
            stack.enter_context(computing_again(modules, dtype))
            stack.enter_context(adapted_layers(modules))
            stack.enter_context(rotating_once(modules))
        # open through the backward: a checkpointed layer is computed again there
        stack.enter_context(steady_rows(modules))
        yield


def _lend_copies(config: Any, modules: Sequence[torch.nn.Module], dtype: torch.dtype, stack: ExitStack) -> None:
    copies: dict[int, Tensor] = {}  # by the weight: a tied one has one copy
    for module in modules:
        own = {name: p for name, p in module._parameters.items() if p is not None}
        hook = None
        if isinstance(module, torch.nn.Embedding):
            # a lookup gains nothing from a copy, and the gradient of a frequent word is a sum that wants float32
            if _adds_rows(module):
                vars(module)["forward"] = partial(_look_up, module)
                stack.callback(vars(module).pop, "forward")
            else:
                hook = module.register_forward_hook(lambda _, __, out: out.float())
        elif type(module).__name__.endswith("RotaryEmbedding"):
            hook = module.register_forward_hook(partial(_rotation, config, dtype))
        elif own and not is_norm(module):
            hook = module.register_forward_pre_hook(partial(_narrow, dtype))
            for name, weight in own.items():
                if weight.dtype != torch.float32:
                    continue
                if id(weight) not in copies:
                    copies[id(weight)] = _copy(weight, dtype)
                module._parameters[name] = copies[id(weight)]  # pyright: ignore[reportArgumentType]
                stack.callback(module._parameters.__setitem__, name, weight)
        if hook is not None:
            stack.callback(hook.remove)


class _Lookup(torch.autograd.Function):
    """Rows of an embedding; their gradients go into the weight's own at once, for which torch would first fill a matrix
    as large as the weight with zeros, and then add all of it.
    """

    @staticmethod
    def forward(ctx: Any, module: torch.nn.Embedding, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.module, ctx.weight = module, weight
        ctx.save_for_backward(tokens)
        return embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (tokens,), weight, (grad,) = ctx.saved_tensors, ctx.weight, grads
        if ctx.module.padding_idx is not None:
            grad = grad.masked_fill((tokens == ctx.module.padding_idx)[..., None], 0)
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, tokens.flatten(), grad.flatten(0, -2))
        return None, None, None


def _adds_rows(module: torch.nn.Embedding) -> bool:
    """Whether `_Lookup` does what the module does. On a GPU its sums would come out differently from run to run."""
    weight, usual = module.weight, type(module) is torch.nn.Embedding and module.max_norm is None
    usual &= not (module.sparse or module.scale_grad_by_freq)
    return usual and weight.requires_grad and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _look_up(module: torch.nn.Embedding, tokens: Tensor) -> Tensor:
    return _Lookup.apply(module, tokens, module.weight)  # pyright: ignore[reportReturnType]


def _rotation(config: Any, dtype: torch.dtype, _: Any, __: Any, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cosines and sines in float32, but where an attention wants queries and keys as narrow as values."""
    return out if config._attn_implementation == PACKED else tuple(x.to(dtype) for x in out)


def _narrow(dtype: torch.dtype, _: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The stream of states where a layer takes it without a norm in between."""
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in given)


def _copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    copy = torch.nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad)
    if weight.requires_grad:
        copy.register_post_accumulate_grad_hook(_hand_over(weight))
        stands_for(copy, weight)
    return copy


def _hand_over(weight: Tensor) -> Callable[[Tensor], None]:
    """Adds a copy's gradient to its weight's and frees it."""

    def hand_over(copy: Tensor) -> None:
        if copy.grad is None:  # it has gone to the weight's already
            return
        if weight.grad is None:
            weight.grad = copy.grad.to(weight.dtype)
        else:
            weight.grad += copy.grad
        copy.grad = None

    return hand_over
