# ruff: noqa: F811
"""Answers with native.cpp: the model's own to the format's precision, and nothing stays changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from test_llm_generate import loaded
from test_train_native import FORMAT, calls, off  # noqa: F401 (the fixture `calls`)
from test_train_toys import SIZES, llama, tiny, words

from anchorline.evals.answers import answer_all
from anchorline.llm.cache_room import roomy_cache
from anchorline.llm.device import Device
from anchorline.llm.models import Loaded
from anchorline.llm.types import SampleSettings
from anchorline.train.answering import answering
from anchorline.types import Message, Prompt

KINDS = {
    "llama": lambda: tiny(llama(head_dim=32)),
    "grouped, windowed": lambda: tiny(
        transformers.MistralConfig(**SIZES, head_dim=64, sliding_window=6), transformers.MistralForCausalLM
    ),
    "narrow heads": lambda: tiny(llama()),  # which native.cpp does not attend with
}
PROMPTS = [Prompt(f"p{i}", (Message("user", words(3 + 4 * i, first=i)),)) for i in range(4)]


def policy(kind: str, dtype: torch.dtype, *, adapter: bool) -> Loaded:
    model: Any = KINDS[kind]()
    if adapter:
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False))
    name = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return loaded(model.to(dtype).eval())._replace(device=Device("cpu", name))


@torch.inference_mode()
def scores(model: Any) -> torch.Tensor:
    """Of two rows, of which one is padded, the next token's scores after the prompt and after two more tokens."""
    tokens = torch.tensor([[0, 0, 0, 5, 6, 7], [8, 9, 10, 11, 12, 13]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    cache, found = roomy_cache(model.config, room=8), []
    for more in (tokens, torch.tensor([[20], [21]]), torch.tensor([[22], [23]])):
        if more is not tokens:
            mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -more.shape[1] :]
        out = model(input_ids=more, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
        found.append(out.logits[:, -1].double())
    return torch.cat(found)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_as_near_to_the_truth_as_torchs(kind, adapter, calls):
    truth = scores(policy(kind, torch.float32, adapter=adapter).model)
    fast = policy(kind, torch.bfloat16, adapter=adapter)
    plain = scores(fast.model)
    assert not calls
    with answering(fast):
        found = scores(fast.model)
    layers = SIZES["num_hidden_layers"]
    assert calls.count("answer") == (0 if kind == "narrow heads" else 2 * layers)
    assert [calls.count(name) for name in ("norm_forward", "norm_of_sum")] == [3 * (layers + 1), 3 * layers]
    assert off(found, truth) < max(1.5 * off(plain, truth), 2 * FORMAT)
    assert torch.equal(scores(fast.model), plain), "nothing stays changed"


def test_answers_go_this_way_in_bfloat16_only(tmp_path, calls):
    settings = SampleSettings(max_new_tokens=6, temperature=0.0)
    for dtype in (torch.float32, torch.bfloat16):
        model = policy("llama", dtype, adapter=True)
        answers = answer_all(tmp_path / f"{dtype}.jsonl", model, PROMPTS, settings, seed=0)
        assert [answer.id for answer in answers] == [prompt.id for prompt in PROMPTS]
        assert bool(calls) == (dtype == torch.bfloat16)
        assert model.model.config._attn_implementation == "sdpa"
