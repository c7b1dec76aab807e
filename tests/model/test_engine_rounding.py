"""In bfloat16 an answer's log-prob does not hang on what else is in its packed row, so rewards at step 0 are 0."""

from __future__ import annotations

import random

import pytest
import torch

from anchorline.llm.models import end_of_turn, load
from anchorline.train import attention
from anchorline.train.arithmetic import multiplying_in
from anchorline.train.attention import PACKED
from anchorline.train.forward import example_logps
from anchorline.train.tokenise import Template, tokenise
from anchorline.types import Message, Pair, Provenance

pytestmark = pytest.mark.model

WORDS = [
    "order",
    "left",
    "our",
    "store",
    "on",
    "Monday",
    "a",
    "neighbour",
    "may",
    "have",
    "it",
    "look",
    "at",
    "the",
    "shed",
]


def pairs() -> list[Pair]:
    """Prompts of two kinds, with and without a system message, and answers of all lengths."""
    drawn = random.Random(0)
    rows = []
    for number in range(12):
        system = (Message("system", "You answer customers."),) if number % 3 else ()
        texts = [" ".join(drawn.choices(WORDS, k=drawn.randint(3, 60))) for _ in range(3)]
        rows.append(
            Pair(str(number), (*system, Message("user", texts[0])), texts[1], texts[2], Provenance("given", "", ""))
        )
    return rows


def torchs_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None, dropout: float, window: int | None
) -> torch.Tensor:
    """Rounds by how many queries and keys it is called with, as kernels do."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return attention._causal(q, k, v, scaling, dropout, window)


@pytest.mark.parametrize("kernel", ["ours", "torch's"])
def test_an_answer_is_as_likely_to_the_last_bit_whatever_else_is_in_its_row(
    embedded: str, kernel: str, monkeypatch: pytest.MonkeyPatch
):
    if kernel == "torch's":
        monkeypatch.setattr(attention, "_causal_bf16", torchs_kernel)
    loaded = load(embedded, dtype="bfloat16")
    loaded.model.set_attn_implementation(PACKED)
    pad = loaded.tokenizer.pad_token_id
    assert isinstance(pad, int)
    examples = tokenise(
        pairs(), Template(loaded.tokenizer, end_of_turn(loaded)), max_tokens=512, overlong="error"
    ).examples
    order = list(range(len(examples)))
    found = []
    for size in (4, 1, 12):  # other neighbours, and other numbers of rows in each product
        random.Random(size).shuffle(order)
        sums: dict[str, list[float]] = {}
        with torch.no_grad(), multiplying_in(loaded.model, torch.bfloat16):
            for start in range(0, len(order), size):
                row = [examples[i] for i in order[start : start + size]]
                logps = example_logps(loaded.model, row, packed=True, pad=pad).tolist()
                sums |= {e.id: logps[2 * k : 2 * k + 2] for k, e in enumerate(row)}
        found.append(sums)
    assert len(found[0]) == 12 and found[0] == found[1] == found[2]
