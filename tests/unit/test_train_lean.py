"""What is computed again in the backward is what was kept before, in less memory, and nothing is left behind."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from test_train_toys import PAD, SIZES, example, llama, relative, tiny
from torch.autograd.graph import saved_tensors_hooks

from anchorline.train import arithmetic, lean
from anchorline.train.arithmetic import multiplying_in
from anchorline.train.attention import PACKED
from anchorline.train.forward import example_logps
from anchorline.train.lean import computing_again
from anchorline.train.native import native

EXAMPLES = [example([2, 17, 30], [9, 10, 11, 12], [70, 71, 72]), example([2, 17, 31, 5], [7, 8], [9, 10, 11])]
KINDS = {
    "llama": lambda: tiny(llama()),
    "qwen3": lambda: tiny(transformers.Qwen3Config(**SIZES), transformers.Qwen3ForCausalLM),
    "gemma3": lambda: tiny(transformers.Gemma3TextConfig(**SIZES, head_dim=8), transformers.Gemma3ForCausalLM),
}


def model_of(kind: str) -> Any:
    model = KINDS[kind.removesuffix(", lora")]().train()
    if kind.endswith(", lora"):
        model = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False))
    model.set_attn_implementation(PACKED)
    return model


def step(model: Any, dtype: torch.dtype = torch.bfloat16) -> tuple[dict[str, torch.Tensor], int]:
    """Log-probs and gradients, and the bytes that the backward kept."""
    model.zero_grad()
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with multiplying_in(model, dtype):
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with saved_tensors_hooks(keep, lambda x: x):
            logps = example_logps(model, EXAMPLES, packed=True, pad=PAD)
        (logps * torch.linspace(-1, 1.3, len(logps))).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logps": logps.detach(), **found}, sum(kept.values())


@pytest.mark.parametrize("kind", [*KINDS, "llama, lora"])
def test_log_probs_are_the_same_to_the_last_bit_and_gradients_to_the_format(kind, monkeypatch):
    model = model_of(kind)
    exact, _ = step(model, torch.float32)
    monkeypatch.setattr(lean, "native", lambda: None)
    found, less = step(model)
    monkeypatch.setattr(arithmetic, "computing_again", lambda *_: nullcontext())
    plain, kept = step(model)
    assert found.keys() == plain.keys() and len(found) > 4
    assert torch.equal(found.pop("logps"), plain.pop("logps"))
    for name, value in plain.items():
        # norms of the usual kind go back from their own outputs, which were rounded, others from one sum of all that read them;
        # how far that goes hangs on the processor, as does how far the format is from float32
        assert relative(found[name], value) < 0.75 * relative(value, exact[name]), name
    assert less < 0.75 * kept


def test_a_norm_that_lets_a_figure_vanish_keeps_what_it_cannot_find_again():
    model = model_of("llama")
    norm = model.model.layers[0].input_layernorm
    norm.weight.data[3] = 0
    found, _ = step(model)
    with multiplying_in(model, torch.float32):
        model.zero_grad()
        logps = example_logps(model, EXAMPLES, packed=True, pad=PAD)
        (logps * torch.linspace(-1, 1.3, len(logps))).sum().backward()
    assert all(value.isfinite().all() for value in found.values())
    assert float(norm.weight.grad[3]) != 0
    assert found["model.layers.0.input_layernorm.weight"][3] == pytest.approx(float(norm.weight.grad[3]), rel=0.1)


def test_norms_and_gated_activations_are_found_and_nothing_stays_changed():
    model = model_of("llama")
    with computing_again(list(model.modules()), torch.bfloat16):
        changed = {name.rpartition(".")[2] for name, module in model.named_modules() if "forward" in module.__dict__}
        layers = {str(number) for number in range(SIZES["num_hidden_layers"])}
        assert changed == {"input_layernorm", "post_attention_layernorm", "norm", "mlp"} | layers
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.skipif(native() is None, reason="native.cpp does not run here")
@pytest.mark.parametrize("kind", ["llama", "qwen3", "llama, lora"])
def test_sums_in_the_norms_pass_are_the_layers_own(kind, monkeypatch):
    model = model_of(kind)
    found, kept = step(model)
    taken: list[Any] = []

    def as_it_was(module: Any, forward: Any, *given: Any, **named: Any) -> torch.Tensor:
        taken.append(module)
        return forward(*given, **named)

    monkeypatch.setattr(lean, "_layer", as_it_was)
    before, as_much = step(model)
    assert len(taken) == SIZES["num_hidden_layers"] and kept == as_much
    assert found.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in found.items())


def test_layers_whose_norms_have_to_be_called_stay_as_they_are():
    gemma, llama, vanished, watched = model_of("gemma3"), model_of("llama"), model_of("llama"), model_of("llama")
    llama.activation_checkpointing_enable({"use_reentrant": False})
    vanished.model.layers[0].post_attention_layernorm.weight.data[3] = 0
    watched.model.layers[1].input_layernorm.register_forward_hook(lambda *_: None)
    changed = []
    for model in (gemma, llama, vanished, watched):
        with computing_again(list(model.modules()), torch.bfloat16):
            changed.append([number for number, layer in enumerate(model.model.layers) if "forward" in vars(layer)])
    numbers = range(SIZES["num_hidden_layers"])
    assert changed == [[], [], *([n for n in numbers if n != left] for left in (0, 1))]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_product_of_a_gated_activation_is_kept_nowhere(checkpointed, monkeypatch):
    """Not for the layer behind; nor is what it is made of, where a checkpointed layer frees it."""
    made: list[weakref.ref[torch.Tensor]] = []
    real = lean._made_again

    def watched(*given: Any) -> Any:
        made.append(weakref.ref(given[0]))
        return real(*given)

    model = model_of("llama")
    if checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    monkeypatch.setattr(lean, "_made_again", watched)
    with multiplying_in(model, torch.bfloat16):
        logps = example_logps(model, EXAMPLES, packed=True, pad=PAD)
        assert bool(made) is not checkpointed
        assert all(product() is None for product in made)
        logps.sum().backward()
