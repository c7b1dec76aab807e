"""The policy: the model as training wants it, with fresh adapters or with all of its weights.

>>> loaded = load_policy("embedded:smollm2-135m-instruct", TrainSettings())  # doctest: +SKIP
>>> policy = with_adapter(loaded, TrainSettings(), "embedded:smollm2-135m-instruct")  # doctest: +SKIP
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from anchorline.errors import ModelError, RecipeError
from anchorline.llm.device import pick_device
from anchorline.llm.models import Loaded, adapter_base, load, torch_dtype
from anchorline.train.arithmetic import multiplying_in
from anchorline.train.attention import PACKED, refuse_unpackable
from anchorline.train.config import LoraSettings, TrainSettings


def load_policy(model: str, settings: TrainSettings) -> Loaded:
    """The model as training wants it: packed attention; float32 weights where all of them are trained.

    Raises:
        ModelError: the model is an adapter, or does not run packed.
        RecipeError: the adapter could not be merged into this model.

    """
    loaded = load(model, dtype=settings.dtype if settings.lora else "float32")
    if adapter_base(loaded.path):
        raise ModelError(
            f"{model} is an adapter, and training starts from whole weights; train it with train.merge first"
        )
    if settings.merge and settings.lora:
        _refuse_merge(loaded, settings.lora)
    if settings.forward == "packed":
        refuse_unpackable(loaded.model)
        loaded.model.set_attn_implementation(PACKED)
    # full training keeps float32 weights and multiplies in the format that was asked for
    return loaded._replace(device=pick_device(settings.dtype))


def with_adapter(loaded: Loaded, settings: TrainSettings, model: str) -> Any:
    """The policy: the model under fresh adapters, or the model itself for full training."""
    if settings.lora is None:
        return loaded.model
    from peft import get_peft_model

    config = _adapter(loaded, settings.lora)
    try:
        policy = get_peft_model(loaded.model, config)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ModelError(f"the adapter does not fit the model: {str(error).splitlines()[0][:300]}") from error
    # what the adapter names as its base: the id for the hub, a path for everything else
    policy.peft_config["default"].base_model_name_or_path = (
        model if "/" in model and not Path(model).exists() else str(loaded.path)
    )
    return policy


def _adapter(loaded: Loaded, lora: LoraSettings) -> Any:
    """PEFT's settings of the adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=_targets(loaded, lora),
        layers_to_transform=_last_layers(loaded, lora.last_layers),
        task_type="CAUSAL_LM",
    )


def _refuse_merge(loaded: Loaded, lora: LoraSettings) -> None:
    """Of head and embedding as one matrix, an adapter on one of them cannot be merged: the other would change, too."""
    from peft.tuners.tuners_utils import check_target_module_exists

    head, embedding = loaded.model.get_output_embeddings(), loaded.model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    config = _adapter(loaded, lora)
    for name, module in loaded.model.named_modules():
        if (module is head or module is embedding) and check_target_module_exists(config, name):
            short = name.rpartition(".")[2]
            raise RecipeError(
                f"train.merge cannot fold the adapter on {name} into the weights: this model's head and its embedding are "
                f"one matrix, and the other would change, too; leave out train.merge, or take {short} out of train.lora.target"
            )


def _targets(loaded: Loaded, lora: LoraSettings) -> str | list[str]:
    """The modules that get an adapter; PEFT wants them by name where only some layers are adapted."""
    if lora.last_layers is None or lora.target != "all-linear":
        return lora.target
    head = loaded.model.get_output_embeddings()
    linear = {name for name, m in loaded.model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    return sorted({name.rpartition(".")[2] for name in linear})


def _last_layers(loaded: Loaded, count: int | None) -> list[int] | None:
    layers = loaded.model.config.get_text_config(decoder=True).num_hidden_layers
    if count is None:
        return None
    if count > layers:
        raise ModelError(f"train.lora.last_layers is {count}, but the model has {layers} layers")
    return list(range(layers - count, layers))


def autocast(loaded: Loaded) -> AbstractContextManager[None]:
    """The arithmetic of the training steps, for every other log-prob too: else the rewards at step 0 would not be 0."""
    return multiplying_in(loaded.model, torch_dtype(loaded.device))
