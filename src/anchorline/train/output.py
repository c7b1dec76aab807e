"""A model's output head, whatever it is made of: a matrix, tied or not, a bias, adapters, a factor, a soft cap.

>>> output_head(model).token_logps(hidden, targets)  # doctest: +SKIP
tensor([-3.1, -0.4])
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from anchorline.errors import ModelError
from anchorline.train.head import Scores, token_logps


class OutputHead(NamedTuple):
    """What turns hidden states into scores. Its weights are read when it is asked: wrappers may gather them late."""

    module: Any
    """What the model calls: a linear layer, or PEFT's wrapper around one."""
    how: Scores

    @property
    def changed_after(self) -> bool:
        """Whether the model changes the scores after its head."""
        return self.how != Scores()

    def token_logps(self, hidden: Float[Tensor, "tokens width"], targets: Int[Tensor, " tokens"]) -> Tensor:
        """Log-prob of each target, in nats."""
        linear_layer, adapters = _parts(self.module)
        more = tuple((_shrunk(hidden, a), a.up) for a in adapters)
        return token_logps(hidden, linear_layer.weight, targets, bias=linear_layer.bias, more=more, how=self.how)

    def logits(self, hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocabulary"]:
        """All scores, in float32."""
        linear_layer, adapters = _parts(self.module)
        scores = linear(hidden, linear_layer.weight.to(hidden.dtype)).float()
        for adapter in adapters:
            scores = scores + linear(_shrunk(hidden, adapter).to(hidden.dtype), adapter.up.to(hidden.dtype)).float()
        if linear_layer.bias is not None:
            scores = scores + linear_layer.bias.float()
        scores = scores * self.how.factor
        return scores if self.how.cap is None else (scores / self.how.cap).tanh() * self.how.cap


class _Adapter(NamedTuple):
    """A low-rank adapter: states go down, are scaled, and up."""

    down: Any
    up: Tensor
    scaling: float
    dropout: Any


def output_head(model: Any) -> OutputHead:
    """The model's output head.

    Raises:
        ModelError: it is of a kind that is not known here.

    """
    while hasattr(model, "module"):
        model = model.module
    head = model.get_output_embeddings()
    _parts(head)
    return OutputHead(head, _how(model.config))


def _how(config: Any) -> Scores:
    values = config.get_text_config(decoder=True).to_dict()
    # some architectures multiply by one number of this kind, one divides; the check before training knows better
    factor = values.get("logit_scale") or values.get("output_multiplier") or 1.0
    divisor = values.get("logits_scaling") or 1.0
    return Scores(float(factor) / float(divisor), values.get("final_logit_softcapping"))


def _parts(head: Any) -> tuple[torch.nn.Linear, list[_Adapter]]:
    """The linear layer that is in force, and the adapters on it."""
    active = [] if getattr(head, "disable_adapters", False) else list(getattr(head, "active_adapters", ()))
    if hasattr(head, "modules_to_save"):  # trained whole, beside the original
        head = head.modules_to_save[active[0]] if active else head.original_module
        active = []
    layer = getattr(head, "base_layer", head)
    if not isinstance(layer, torch.nn.Linear):
        raise ModelError(f"the model's head is a {type(layer).__name__}, not a matrix; set train.forward to plain")
    if layer is head:
        return layer, []
    lora = getattr(head, "lora_A", None)
    if lora is None or getattr(head, "lora_variant", None) or getattr(head, "merged", False):
        raise ModelError("the adapter on the model's head is no plain LoRA; set train.forward to plain")
    names = [name for name in active if name in lora]
    return layer, [_Adapter(lora[n], head.lora_B[n].weight, head.scaling[n], head.lora_dropout[n]) for n in names]


def _shrunk(hidden: Tensor, adapter: _Adapter) -> Tensor:
    return adapter.down(adapter.dropout(hidden.to(adapter.down.weight.dtype))) * adapter.scaling
