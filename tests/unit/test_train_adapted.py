"""A LoRA layer in one step is PEFT's: outputs and gradients as near to the truth; what it cannot do is left to PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from test_train_native import EXAMPLES, FORMAT, native_here, off
from test_train_toys import PAD, SIZES, llama, tiny

from anchorline.train import adapted
from anchorline.train.arithmetic import multiplying_in
from anchorline.train.attention import PACKED
from anchorline.train.forward import example_logps

KINDS = {
    "llama": lambda: tiny(llama()),
    "qwen2 with biases": lambda: tiny(transformers.Qwen2Config(**SIZES), transformers.Qwen2ForCausalLM),
}


def with_lora(kind: str = "llama", **settings: Any) -> Any:
    native_here()
    config = LoraConfig(
        **{"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    )
    torch.manual_seed(0)
    model: Any = get_peft_model(KINDS[kind](), config)
    model.set_attn_implementation(PACKED)
    return model.train()


def step(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Log-probs and the adapters' gradients."""
    model.zero_grad()
    with multiplying_in(model, dtype):
        logps = example_logps(model, EXAMPLES, packed=True, pad=PAD)
        (logps * torch.linspace(-1, 1.3, len(logps))).sum().backward()
    assert not any("forward" in module.__dict__ for module in model.modules()), "nothing stays changed"
    return {"logps": logps.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ranks of the layers that were computed in one step."""
    calls: list[int] = []
    apply = adapted._Adapted.apply

    def counted(*given: Any) -> Any:
        calls.append(len(given[4]))
        return apply(*given)

    monkeypatch.setattr(adapted._Adapted, "apply", counted)
    return calls


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_and_gradients_are_as_near_to_the_truth_as_pefts(kind, by_torch, fused, monkeypatch):
    if by_torch:  # of the backward's large products, as with AMX
        monkeypatch.setattr(adapted, "multiplying_back", lambda grad: None)
    model = with_lora(kind)
    truth = {name: value.double() for name, value in step(model, torch.float32).items()}
    ours = step(model, torch.bfloat16)
    assert fused == [3] * 7 * SIZES["num_hidden_layers"]
    monkeypatch.setattr(adapted, "native", lambda: None)
    theirs = step(model, torch.bfloat16)
    assert ours.keys() == theirs.keys() == truth.keys() and len(ours) == 1 + 2 * 7 * SIZES["num_hidden_layers"]
    for name, value in truth.items():
        assert off(ours[name], value) < max(2 * off(theirs[name], value), 4 * FORMAT), name
    assert not all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_at_the_start_it_is_the_model_without_it_to_the_last_bit(fused):
    model = with_lora(init_lora_weights=True)
    with torch.no_grad(), multiplying_in(model, torch.bfloat16):
        policy = example_logps(model, EXAMPLES, packed=True, pad=PAD)
        assert fused
        with model.disable_adapter():
            reference = example_logps(model, EXAMPLES, packed=True, pad=PAD)
    assert torch.equal(policy, reference)


@pytest.mark.filterwarnings("ignore:`lora_bias")
@pytest.mark.parametrize(
    "settings", [{"lora_dropout": 0.3}, {"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}]
)
def test_other_kinds_are_pefts_own(settings, fused, monkeypatch):
    model = with_lora(**settings)
    torch.manual_seed(1)
    found = step(model, torch.bfloat16)
    monkeypatch.setattr(adapted, "native", lambda: None)
    torch.manual_seed(1)
    theirs = step(model, torch.bfloat16)
    if settings == {"use_rslora": True}:  # another factor, which is heeded
        assert fused and torch.allclose(found["logps"], theirs["logps"], rtol=0.01)
    else:
        assert not fused and all(torch.equal(found[name], value) for name, value in theirs.items())


def test_two_adapters_or_none_are_pefts_own(fused):
    model = with_lora()
    model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    step(model, torch.bfloat16)
    assert not fused
    model.base_model.set_adapter("second")
    step(model, torch.bfloat16)
    assert set(fused) == {2}
    fused.clear()
    with torch.no_grad(), model.disable_adapter(), multiplying_in(model, torch.bfloat16):
        example_logps(model, EXAMPLES, packed=True, pad=PAD)
    assert not fused
