"""The reference's log-probs: computed once, kept beside the data, found again by what they depend on.

One file a reference, named by a hash of the model's weights, tokenizer and template, the dtype and the forward. In it, one
line an answer, under a hash of its tokens; so truncation, new rows and a second objective cost only what is new. A line
holds the sum and the log-prob of every token (`reference_tokens`), so that a change can be traced to its place.

>>> table = reference_logps(model, examples, folder, key="3f…", settings=settings, pad=0)  # doctest: +SKIP
>>> table[response_key(example.prompt, example.responses[0])]  # doctest: +SKIP
-61.25
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anchorline.data.jsonl import append_jsonl, read_appended
from anchorline.errors import TrainingError
from anchorline.progress import SILENT, Progress
from anchorline.train.forward import by_branch, example_token_logps, response_sums
from anchorline.train.reference_tokens import as_text
from anchorline.train.tokenise import Example, response_key

BATCH = 8
"""Examples packed into one row here."""


def reference_key(model_fingerprint: str, *, dtype: str, forward: str) -> str:
    """The name of the file: everything that changes a log-prob, save the tokens themselves."""
    return hashlib.sha256(json.dumps([model_fingerprint, dtype, forward]).encode()).hexdigest()[:16]


def reference_logps(
    model: Any,
    examples: Sequence[Example],
    folder: Path,
    *,
    key: str,
    packed: bool,
    pad: int,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """Summed log-prob, in nats, of every response of `examples` under `model`, by `response_key`.

    `model` is the reference itself: the policy before its first step. A killed call keeps what it had.

    Raises:
        TrainingError: a log-prob is not finite.

    """
    file = folder / f"{key}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    table = {row["answer"]: row["logp"] for _, row in read_appended(file).rows if "tokens" in row}
    owed = [e for e in (_owed(example, table) for example in examples) if e is not None]
    owed.sort(key=lambda e: -e.longest)
    with progress.task("reference log-probs", total=len(owed), unit="prompts") as advance, torch.no_grad():
        for start in range(0, len(owed), BATCH):
            batch = owed[start : start + BATCH]
            tokens = example_token_logps(model, batch, packed=packed, pad=pad)
            sums, parts = response_sums(tokens, batch).tolist(), map(as_text, by_branch(tokens, batch))
            keys = [response_key(e.prompt, response) for e in batch for response in e.responses]
            if not all(map(math.isfinite, sums)):
                raise TrainingError(
                    "the reference gives a log-prob that is not finite; the model's weights are damaged"
                )
            lines = zip(keys, sums, parts, strict=True)
            append_jsonl(file, [{"answer": k, "logp": v, "tokens": t} for k, v, t in lines])
            table |= zip(keys, sums, strict=True)
            advance(len(batch))
    return table


def _owed(example: Example, table: dict[str, float]) -> Example | None:
    """The example with those of its responses that the table lacks."""
    missing = tuple(r for r in example.responses if response_key(example.prompt, r) not in table)
    return replace(example, responses=missing, labels=(None,) * len(missing)) if missing else None
