"""What a layer computes between its products is computed again in the backward, instead of kept: a third of the
activations, for a few hundredths of the time.

Norms of the usual kind, weight · x / rms(x), keep what comes out of them, which the products behind keep in any case, and a
figure a token: what goes in, the stream of states in float32, need not be there in the backward. Other norms keep their
input. Gated activations keep the gate and what it lets through; the product of the two is made again for the layer behind.
A gated activation is known by what its module's `forward` uses; every other is left alone.

Where native.cpp runs, it computes norms and gates of the usual kind (SiLU) in one pass each way. Its sums add up in another
order than torch's, so that one figure in a thousand rounds to the neighbouring bfloat16. In a layer of the usual kind,
x + attention(norm(x)) and the same with the activation, what is added to the stream is added in the norm's pass, and so is
on the way back what comes back to the stream.

>>> with computing_again(list(model.modules()), torch.bfloat16):  # doctest: +SKIP
...     packed_logps(model, row).sum().backward()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import layer_norm
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from anchorline.train.native import LANES, Native, native

GATED = ("down_proj", "act_fn", "gate_proj", "up_proj")
"""down_proj(act_fn(gate_proj(x)) * up_proj(x)): the names in a forward that does this and nothing else."""
SILU = (torch.nn.SiLU, SiLUActivation)
TINY = 1e-30
"""What a norm's weight has to be away from 0, so that it can be divided out again."""
USUAL_NORM = LlamaRMSNorm.forward
"""weight · x / rms(x), which most architectures have written the same way."""
USUAL_LAYER = LlamaDecoderLayer.forward
"""Likewise: the stream of states, to which attention and activation, each behind a norm, are added."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""What a module's call runs beside its forward: a norm with any of them is called."""


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


class _UsualNorm(torch.autograd.Function):
    """Letters: D width."""

    @staticmethod
    def forward(
        ctx: Any, compiled: Native | None, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        if compiled is not None:
            out, inverse = compiled.norm(x.contiguous(), weight_D, eps)
        else:
            wide = x.float()
            inverse = (wide.pow(2).mean(-1) + eps).rsqrt()
            out = (weight_D * (wide * inverse[..., None])).to(dtype)
        ctx.save_for_backward(out, weight_D, inverse)
        ctx.compiled, ctx.dtype = compiled, x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        out, weight_D, inverse = ctx.saved_tensors
        if ctx.compiled is not None:
            of_x, of_weight, _ = ctx.compiled.norm_backward(out, weight_D, inverse, grads[0], ctx.dtype)
            return None, of_x, of_weight, None, None
        grad, normal = grads[0].float(), out.float() / weight_D
        inner = grad * weight_D
        of_x = (inner - normal * (inner * normal).mean(-1, keepdim=True)) * inverse[..., None]
        return None, of_x.to(ctx.dtype), (grad * normal).flatten(0, -2).sum(0), None, None


class _NormedStream(torch.autograd.Function):
    """The stream x, with `more` added if there is any, and its norm."""

    @staticmethod
    def forward(
        ctx: Any, compiled: Native, x: Tensor, more: Tensor | None, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if more is None:
            stream, (out, inverse) = x.view_as(x), compiled.norm(x, weight_D, eps)
        else:
            stream, out, inverse = compiled.norm_of_sum(x, more, weight_D, eps)
        ctx.save_for_backward(out, weight_D, inverse)
        ctx.compiled, ctx.narrow = compiled, more is not None
        return stream, out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_stream, of_out = grads
        of_x, of_weight, of_more = ctx.compiled.norm_backward(
            *ctx.saved_tensors, of_out, torch.float32, beside=of_stream, narrow=ctx.narrow
        )
        return None, of_x, of_more, of_weight, None


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compiled: Native, x: Tensor, more: Tensor) -> Tensor:
        del ctx
        return compiled.added(x, more)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        del ctx
        return None, grads[0], grads[0].bfloat16()


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
def computing_again(modules: Sequence[Any], dtype: torch.dtype) -> Iterator[None]:
    """Inside, norms give `dtype`; they and gated activations keep little for the backward, which has to be inside as well."""
    # a checkpointed layer frees what the product would be made of again
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in modules)
    norms = {m: _usual(type(m), USUAL_NORM) and bool(m.weight.abs().min() > TINY) for m in modules if is_norm(m)}
    passed = {m for m, usual in norms.items() if usual and not any(getattr(m, hooks) for hooks in HOOKS)}
    sums = dtype == torch.bfloat16 and not checkpointed  # the layer's own forward is what is checkpointed
    with ExitStack() as stack:
        for module in modules:
            instead = None
            if module in norms:
                instead = partial(_norm, module, module.forward, dtype, norms[module])
            elif type(module).forward.__code__.co_names == GATED:
                instead = partial(_gated, module, checkpointed)
            elif sums and _usual(type(module), USUAL_LAYER) and passed.issuperset(_norms_of(module)):
                instead = partial(_layer, module, module.forward)
            if instead is not None:
                vars(module)["forward"] = instead
                stack.callback(vars(module).pop, "forward")
        yield


def is_norm(module: torch.nn.Module) -> bool:
    """Whether it norms over the last dimension: by its name, as each architecture has a class of its own."""
    return type(module).__name__.endswith(("RMSNorm", "LayerNorm")) and not list(module.children())


def _norm(module: Any, forward: Callable[[Tensor], Tensor], dtype: torch.dtype, usual: bool, x: Tensor) -> Tensor:
    if usual:
        compiled = _native_for(x) if x.dtype in {torch.bfloat16, torch.float32} and dtype == torch.bfloat16 else None
        return _UsualNorm.apply(compiled, x, module.weight.float(), module.variance_epsilon, dtype)  # pyright: ignore[reportReturnType]
    if type(module) is torch.nn.LayerNorm:  # torch's own takes no weights narrower than what they multiply
        forward = partial(_layer_norm, module)
    return _Again.apply(lambda x: forward(x.float()).to(dtype), 1, x, *module.parameters())  # pyright: ignore[reportReturnType]


def _layer_norm(module: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    weight, bias = (None if p is None else p.float() for p in (module.weight, module.bias))
    return layer_norm(x, module.normalized_shape, weight, bias, module.eps)


def _layer(module: Any, forward: Callable[..., Tensor], hidden_states: Tensor, *rest: Any, **named: Any) -> Tensor:
    compiled = _native_for(hidden_states) if hidden_states.dtype == torch.float32 else None
    if compiled is None or rest:
        return forward(hidden_states, *rest, **named)
    x, (first, second) = hidden_states.contiguous(), _norms_of(module)
    x, normed = _NormedStream.apply(compiled, x, None, first.weight.float(), first.variance_epsilon)  # pyright: ignore[reportGeneralTypeIssues]
    more = module.self_attn(hidden_states=normed, **named)[0].bfloat16().contiguous()
    x, normed = _NormedStream.apply(compiled, x, more, second.weight.float(), second.variance_epsilon)  # pyright: ignore[reportGeneralTypeIssues]
    return _Added.apply(compiled, x, module.mlp(normed).bfloat16().contiguous())  # pyright: ignore[reportReturnType]


def _norms_of(layer: Any) -> tuple[Any, Any]:
    return layer.input_layernorm, layer.post_attention_layernorm


def _gated(module: Any, checkpointed: bool, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    if isinstance(module.act_fn, SILU) and gate.dtype == torch.bfloat16 and (compiled := _native_for(gate)) is not None:
        run, kept = compiled.gated, _NativeGated.apply(compiled, gate, up)
    else:
        run = lambda gate, up: module.act_fn(gate) * up  # noqa: E731
        kept = _Again.apply(run, 2, gate, up)
    with nullcontext() if checkpointed else _made_again(kept, partial(run, gate.detach(), up.detach())):
        return module.down_proj(kept)


def _made_again(kept: Tensor, make: Callable[[], Tensor]) -> saved_tensors_hooks:
    """What layers inside keep of `kept`, whole and in whatever shape, is made again where the backward asks for it."""
    place = kept.data_ptr(), kept.numel(), kept.dtype  # alone: what autograd keeps of these functions must not keep it

    def pack(x: Tensor) -> Tensor | torch.Size:
        return x.shape if x.is_contiguous() and (x.data_ptr(), x.numel(), x.dtype) == place else x

    def unpack(x: Tensor | torch.Size) -> Tensor:
        return x if isinstance(x, Tensor) else make().view(x)

    return saved_tensors_hooks(pack, unpack)


def _native_for(x: Tensor) -> Native | None:
    return native() if x.device.type == "cpu" and x.shape[-1] % LANES == 0 else None


@cache
def _usual(kind: type[torch.nn.Module], usual: Callable[..., Any]) -> bool:
    """Whether a module's forward is written as this one."""
    codes = (getattr(unwrap(forward), "__code__", None) for forward in (kind.forward, usual))
    mine, its = ([getattr(code, part, None) for part in ("co_code", "co_names", "co_consts")] for code in codes)
    return mine == its
