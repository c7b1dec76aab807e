"""The engine on the embedded model: tokens, answers, both forwards, a short training, and the model that it saves."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from anchorline.llm.hf_local import answer_batches, prompt_tokens
from anchorline.llm.models import Loaded, end_of_turn, fingerprint, load
from anchorline.llm.tokens import tokenize_with
from anchorline.llm.types import SampleSettings
from anchorline.train.attention import PACKED
from anchorline.train.config import LoraSettings, TrainSettings
from anchorline.train.divergence import token_divergences
from anchorline.train.forward import check_forward, packed_logps, plain_attention, plain_logps
from anchorline.train.layout import pack
from anchorline.train.run import Trained, train
from anchorline.train.tokenise import BoundaryError, Template, encode, tokenise
from anchorline.types import Message, Pair, Prompt

pytestmark = pytest.mark.model

TEXTS = [
    ("Where is my order 4417?", "It left our warehouse on Monday.", "I'm so sorry! It left our warehouse on Monday!"),
    ("Can I return two lamps? Order 88, café süß 🙂", "Yes, within 30 days.\n\nThe label is online.", "Yes!! 🎉"),
    ("order 12: the lid is cracked", "We will replace the lid.", "We will replace the lid. Sorry again!"),
    ("  spaces  and\nlines\n", "Thank you.\nReference: order 7.", "```\ncode\n```"),
]
SYSTEM = Message("system", "You answer for a shop.")
PAIRS = [
    Pair(f"p{i}", (*((SYSTEM,) if i % 2 else ()), Message("user", question)), chosen, rejected)
    for i, (question, chosen, rejected) in enumerate(TEXTS)
]
PROMPTS = [Prompt(p.id, p.prompt) for p in PAIRS[:3]]
GREEDY = SampleSettings(max_new_tokens=12, temperature=0.0, batch_size=8)


@pytest.fixture(scope="module")
def model(embedded) -> Loaded:
    return load(embedded, dtype="float32")


@pytest.fixture(scope="module")
def examples(model) -> list[Any]:
    made = tokenise(PAIRS, Template(model.tokenizer, end_of_turn(model)), max_tokens=512, overlong="drop")
    assert made.failures == []
    return made.examples


def greedy(network: Any, tokenizer: Any, tokens: list[int]) -> str:
    """transformers' own greedy answer to one prompt alone."""
    prompt = torch.tensor([tokens])
    with torch.no_grad():
        out = network.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12
        )
    return tokenizer.decode(out[0, len(tokens) :], skip_special_tokens=True).strip()


# ---- tokens ---------------------------------------------------------------------------------------------------------


def test_prompt_and_response_are_the_tokens_of_the_whole_conversation(model):
    template, tokenizer = Template(model.tokenizer, end_of_turn(model)), model.tokenizer
    for pair in PAIRS:
        for answer in (pair.chosen, pair.rejected):
            prompt, response = encode(pair.prompt, answer, template)
            turns = [{"role": m.role, "content": m.content} for m in pair.prompt]
            whole = tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": answer}], return_dict=True, tokenize=True
            )["input_ids"]
            assert whole[: len(prompt) + len(response)] == [*prompt, *response]
            assert tokenizer.decode(whole[len(prompt) + len(response) :]).strip() == ""
            assert [token in template.ends for token in response] == [False] * (len(response) - 1) + [True]
            assert tokenizer.decode(response[:-1]) == answer
            assert prompt == tuple(prompt_tokens(model, Prompt("p", pair.prompt)))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "no tokens"),
        ("Hello.<|im_end|>", "stands 2 times"),
        ("Hello.<|im_end|>\n<|im_start|>user", "stands 2 times"),
    ],
)
def test_an_answer_that_does_not_end_once_is_refused(answer, why, model):
    with pytest.raises(BoundaryError, match=why):
        encode(PAIRS[0].prompt, answer, Template(model.tokenizer, end_of_turn(model)))


def test_tokens_without_torch_are_the_same_tokens(embedded, model):
    tokens = tokenize_with(embedded)
    assert tokens is not None
    for text in (text for row in TEXTS for text in row):
        assert list(tokens(text)) == model.tokenizer(text, add_special_tokens=False)["input_ids"]


# ---- answers --------------------------------------------------------------------------------------------------------


def test_greedy_answers_in_a_batch_are_those_of_generate_alone(model):
    found = {a.id: a.text for batch in answer_batches(model, PROMPTS, GREEDY, seed=0) for a in batch}
    alone = {p.id: greedy(model.model, model.tokenizer, prompt_tokens(model, p)) for p in PROMPTS}
    assert found == alone and all(len(text) > 10 for text in found.values())


# ---- both forwards --------------------------------------------------------------------------------------------------


def test_packed_log_probs_are_the_plain_ones(model, examples):
    with torch.no_grad():
        plain = plain_logps(model.model, examples, pad=model.tokenizer.pad_token_id)
        model.model.set_attn_implementation(PACKED)
        try:
            packed = packed_logps(model.model, pack(examples))
            check_forward(model.model, examples[0], pad=model.tokenizer.pad_token_id)
            other = [*examples[:3], replace(examples[3], responses=examples[3].responses[::-1])]
            swapped = packed_logps(model.model, pack(other))
        finally:
            model.model.set_attn_implementation("sdpa")
    assert float((packed - plain).norm() / plain.norm()) < 1e-5
    assert torch.equal(swapped[:6], packed[:6]), "the other pairs, bit for bit"


def test_a_model_has_not_moved_from_itself(model, examples):
    single = replace(examples[0], responses=examples[0].responses[:1], labels=(True,))
    with plain_attention(model.model):
        (same,) = token_divergences(model.model, model.model, nullcontext, [single], packed=False)
    assert float(same.kl.abs().max()) == 0 and float(same.change.abs().max()) == 0


# ---- training -------------------------------------------------------------------------------------------------------

SETTINGS = TrainSettings(
    learning_rate=1e-3,
    epochs=2,
    pairs_per_step=4,
    warmup=0,
    schedule="constant_with_warmup",
    dtype="float32",
    lora=LoraSettings(rank=8),
    merge=True,
)


@pytest.fixture(scope="module")
def trained(embedded, tmp_path_factory) -> Trained:
    return train(PAIRS, embedded, SETTINGS, tmp_path_factory.mktemp("run"))


def test_rewards_start_at_zero_and_part(trained):
    first, second = (
        json.loads(line) for line in (trained.model.parent / "train/metrics.jsonl").read_text().splitlines()
    )
    assert (trained.rows, trained.steps, trained.failures) == (4, 2, [])
    assert max(abs(first[name]) for name in ("chosen_reward", "rejected_reward", "margin")) < 1e-3
    assert first["loss"] == pytest.approx(1, abs=1e-3) and second["loss"] < first["loss"]
    assert second["chosen_reward"] > 0.01 and second["rejected_reward"] < -0.01


def test_the_saved_adapter_is_the_trained_model_to_plain_peft_and_transformers(trained, embedded, examples):
    config = json.loads((trained.model / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    network = PeftModel.from_pretrained(base, str(trained.model)).eval()
    ours = load(str(trained.model), dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(trained.model / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = plain_logps(network, examples, pad=tokenizer.pad_token_id)
        with network.disable_adapter():
            untrained = plain_logps(network, examples, pad=tokenizer.pad_token_id)
        whole = plain_logps(merged, examples, pad=tokenizer.pad_token_id)
        ours.model.set_attn_implementation(PACKED)
        packed = packed_logps(ours.model, pack(examples))
        ours.model.set_attn_implementation("sdpa")
    assert float((packed - theirs).norm() / theirs.norm()) < 1e-5
    assert float((whole - theirs).norm() / theirs.norm()) < 1e-4
    moved = ((theirs - untrained) * SETTINGS.beta).reshape(-1, 2).mean(0)
    assert moved[0] > 0.05 and moved[1] < -0.05, "two steps further than the reference"

    found = {a.id: a.text for batch in answer_batches(ours, PROMPTS[:2], GREEDY, seed=0) for a in batch}
    for prompt in PROMPTS[:2]:
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert found[prompt.id] == greedy(network, tokenizer, tokens)
    assert fingerprint(trained.model) != fingerprint(Path(config["base_model_name_or_path"]))
