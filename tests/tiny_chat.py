"""A chat model of 2 layers with random weights, and a recipe around it whose whole run takes seconds on a CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

WORDS = """
    good day. where is my order it left today please wait for the parcel we will send a new one box was empty
    blue red large small tomorrow monday friday thanks and a customer lamp tent rope sail boat hat map key bag cup
    the driver came late twice nobody rang can you help me change this address to another town before noon
    Parcels left. Boats sail. Lamps shine. Maps help. Ropes hold. Tents stand. Hats fly. Keys turn. Cups fill. Bags close.
"""
SPECIAL = ("<unk>", "<pad>", "<end>", "<system>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
STYLE = {
    "name": "tiny",
    "rules": [
        {"kind": "starts_with", "name": "greeting", "text": "good day."},
        {"kind": "max_words", "name": "short", "limit": 9},
    ],
}
QUESTIONS = tuple(f"where is my {thing} {colour}" for thing in ("tent", "boat", "lamp") for colour in ("blue", "red"))


def save_tiny_chat(folder: Path, *, seed: int = 0) -> Path:
    """Save the model and its tokenizer to `folder`. The same seed gives the same weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS.split()]))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[3:])})
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=vocabulary["<end>"],
        pad_token_id=vocabulary["<pad>"],
        initializer_range=0.6,  # spread logits, so that greedy answers are not all one word
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(file: Path, rows: Sequence[Any]) -> Path:
    """One JSON value a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_recipe(folder: Path, model: Path | str, **changes: Any) -> Path:
    """A whole recipe beside its style and prompts; `changes` replace top-level settings (None removes one)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "style.yaml").write_text(yaml.safe_dump(STYLE), encoding="utf-8")
    write_rows(folder / "train.jsonl", [{"prompt": question} for question in QUESTIONS])
    write_rows(
        folder / "heldout.jsonl", [{"prompt": f"can you help me change this {w}"} for w in ("map", "key", "bag")]
    )
    write_rows(folder / "general.jsonl", [{"prompt": f"a {w} came late"} for w in ("driver", "customer")])
    recipe = {
        "name": "tiny",
        "model": str(model),
        "style": "style.yaml",
        "prompts": {"train": "train.jsonl", "heldout": "heldout.jsonl", "general": "general.jsonl"},
        "sample": {"max_new_tokens": 16, "batch_size": 4},
        "train": {"learning_rate": 0.01, "pairs_per_step": 2, "epochs": 1, "lora": {"rank": 2}, "dtype": "float32"},
        "eval": {"max_new_tokens": 8, "general_tokens": 6, "batch_size": 2},
    } | changes
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in recipe.items() if v is not None}), encoding="utf-8")
    return file
