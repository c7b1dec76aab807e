"""bfloat16 copies: the model computes with them, its own float32 weights get the gradients, and nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_train_toys import PAD, SIZES, example, llama, relative, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from anchorline.train.arithmetic import multiplying_in
from anchorline.train.attention import PACKED
from anchorline.train.forward import example_logps

EXAMPLES = [example([2, 17, 30], [9, 10, 11, 12], [70, 71, 72]), example([2, 17, 31, 5], [7, 8], [9, 10, 11])]


def model_of(kind: str) -> Any:
    model = tiny(llama(tie_word_embeddings=kind != "untied"))
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False))
    model.set_attn_implementation(PACKED)
    return model


def gradients(model: Any, dtype: torch.dtype, times: int = 1) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    with multiplying_in(model, dtype):
        for _ in range(times):
            logps = example_logps(model, EXAMPLES, packed=True, pad=PAD)
            (logps * torch.linspace(-1, 1.3, len(logps))).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["tied", "untied", "lora"])
def test_the_weights_get_the_gradients_that_float32_gives_them_within_the_format(kind):
    model = model_of(kind)
    before = dict(model.named_parameters())
    exact, wanted = gradients(model, torch.float32)
    logps, found = gradients(model, torch.bfloat16)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    assert found.keys() == wanted.keys() and {g.dtype for g in found.values()} == {torch.float32}
    assert 1e-6 < relative(logps, exact) < 0.03, "this was not bfloat16, or it was wrong"
    whole = torch.cat([g.flatten() for g in wanted.values()]).norm()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() < 0.1 * gradient.norm() + 0.01 * whole, name


def test_gradients_of_several_rows_add_up_in_float32():
    model = model_of("tied")
    _, once = gradients(model, torch.bfloat16)
    _, thrice = gradients(model, torch.bfloat16, times=3)
    assert all(relative(thrice[name], 3 * g) < 1e-5 for name, g in once.items())


class Large(TorchDispatchMode):
    """Names the operations that make something as large as a given tensor."""

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self.numbers, self.made = like.numel(), list[str]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function._schema.is_mutable and out.numel() == self.numbers:
            self.made.append(function.overloadpacket.__name__)
        return out


@pytest.mark.parametrize("usual", [True, False], ids=["as it is", "another's"])
def test_looked_up_rows_get_their_gradients_without_a_matrix_of_zeros(usual):
    model = tiny(llama(tie_word_embeddings=False, pad_token_id=PAD))
    table = model.model.embed_tokens
    assert table.padding_idx == PAD
    if not usual:
        table.__class__ = type("Embedding", (torch.nn.Embedding,), {})
    words, weights = torch.tensor([[5, 6, PAD], [5, 5, 40]]), torch.linspace(-1, 1, 32)
    with multiplying_in(model, torch.bfloat16), Large(table.weight) as large:
        for _ in range(2):
            (table(words) * weights).sum().backward()
    expected = ["zeros_like"] if usual else 2 * ["embedding_dense_backward"]
    assert [name for name in large.made if name != "detach"] == expected
    times = torch.zeros(len(table.weight), 1)
    times[5], times[6], times[40] = 6, 2, 2  # and none for the padding
    assert torch.allclose(table.weight.grad, times * weights, rtol=1e-6, atol=0)


def test_checkpointed_layers_compute_with_the_copies_again():
    model = model_of("tied").train()
    _, plain = gradients(model, torch.bfloat16)
    model.activation_checkpointing_enable({"use_reentrant": False})
    _, again = gradients(model, torch.bfloat16)
    assert all(relative(again[name], g) < 1e-6 for name, g in plain.items())


def test_weights_come_back_after_a_failure():
    model = model_of("tied")
    before = dict(model.named_parameters())
    with pytest.raises(RuntimeError, match="stop"), multiplying_in(model, torch.bfloat16):
        assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        raise RuntimeError("stop")
    assert all(before[name] is p for name, p in model.named_parameters())
    model.set_attn_implementation("sdpa")
    assert model(torch.tensor([[5]])).logits.dtype == torch.float32  # the lookup's hook is gone too


def test_where_weights_are_wrapped_autocast_stays(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    model = model_of("tied")
    with multiplying_in(model, torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        assert {p.dtype for p in model.parameters()} == {torch.float32}


ARCHITECTURES = {
    "llama": (llama(), LlamaForCausalLM),
    "norms behind its layers": (Olmo2Config(**SIZES), Olmo2ForCausalLM),
    "norms of queries and keys": (Qwen3Config(**SIZES, head_dim=8), Qwen3ForCausalLM),
    "another norm, and a factor behind the lookup": (Gemma3TextConfig(**SIZES, head_dim=8), Gemma3ForCausalLM),
    "layers side by side": (PhiConfig(**SIZES), PhiForCausalLM),
    "learned positions": (
        GPT2Config(vocab_size=SIZES["vocab_size"], n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=64),
        GPT2LMHeadModel,
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_the_stream_of_states_stays_float32_whatever_the_layers_are(name, packed, weights):
    config, kind = ARCHITECTURES[name]
    model = tiny(config, kind)
    model.set_attn_implementation(PACKED if packed else "sdpa")
    exact = example_logps(model, EXAMPLES, packed=packed, pad=PAD)
    exact.sum().backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    model.to(weights)
    layers = next(module for _, module in model.named_modules() if isinstance(module, torch.nn.ModuleList))
    streams: list[torch.dtype] = []
    for layer in layers:
        layer.register_forward_hook(
            lambda _, __, out: streams.append((out if isinstance(out, torch.Tensor) else out[0]).dtype)
        )
    with multiplying_in(model, torch.bfloat16):
        logps = example_logps(model, EXAMPLES, packed=packed, pad=PAD)
        logps.sum().backward()
    assert streams == [torch.float32] * len(layers)
    assert 1e-6 < relative(logps.detach(), exact.detach()) < 0.02
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert relative(found, wanted) < (0.03 if weights == torch.float32 else 0.05)
    assert not any(m._forward_pre_hooks for m in model.modules())
