"""The reference's log-probs: computed once, kept for every epoch, objective and run, found by what they depend on.

One folder a reference, named by a hash of the model's weights, adapter, tokenizer and template, of the number formats
and the forward. In it, one line an answer, under a hash of its tokens; so truncation, new rows and a second objective
cost only what is new. A line holds the sum and the log-prob of every token (`reference_tokens`), so that a change can be
traced to its place. Each run appends to a file of its own, so runs may share the folder at the same time.

>>> table = reference_logps(model, examples, folder, key="3f…", packed=True, tokens_per_row=3072, pad=0)  # doctest: +SKIP
>>> table[response_key(example.prompt, example.responses[0])]  # doctest: +SKIP
-61.25
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from anchorline.data.jsonl import append_jsonl, read_appended
from anchorline.errors import TrainingError
from anchorline.llm.embedded import cache_folder
from anchorline.progress import SILENT, Progress
from anchorline.train.forward import by_branch, example_token_logps, response_sums, rounds_to_half
from anchorline.train.layout import rows_of
from anchorline.train.processes import count, gathered, rank
from anchorline.train.reference_tokens import as_text
from anchorline.train.tokenise import Example, response_key

BATCH = 64
"""Examples that are cut into rows together, the longest first: a row's examples are of like lengths."""
SAMPLE = 4
"""Examples whose kept log-probs are compared with the model's before they are believed."""
HALF_SHARE, HALF_NATS = 0.02, 0.5
"""How far a kept log-prob may be off in half precision, where a processor may round by what else is in the row."""
LAYOUT = 4
"""Counts the ways in which rows have been laid out and computed: another one rounds otherwise, and finds nothing of before."""


def reference_folder(named: str | None) -> Path:
    """The folder that a recipe names, that ANCHORLINE_REFERENCE_CACHE names, or `reference` in the user's cache."""
    named = named or os.environ.get("ANCHORLINE_REFERENCE_CACHE")
    return Path(named).expanduser() if named else cache_folder() / "reference"


def reference_key(model_fingerprint: str, *, arithmetic: str, forward: str) -> str:
    """The folder's name: everything that changes a log-prob, save the tokens themselves."""
    return hashlib.sha256(json.dumps([model_fingerprint, arithmetic, forward, LAYOUT]).encode()).hexdigest()[:16]


def reference_logps(
    model: Any,
    examples: Sequence[Example],
    folder: Path,
    *,
    key: str,
    packed: bool,
    tokens_per_row: int,
    pad: int,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """Summed log-prob, in nats, of every response of `examples` under `model`, by `response_key`.

    `model` is the reference itself: the policy before its first step. A killed call keeps what it had. Several processes
    divide what is missing; each gets the whole table.

    Raises:
        TrainingError: a log-prob is not finite, or the kept ones are not this model's.

    """
    place = folder / key
    place.mkdir(parents=True, exist_ok=True)
    table = _merged(gathered(_kept(place)))
    _verify(model, examples, table, place, packed=packed, pad=pad)
    owed = [e for e in (_owed(example, table) for example in examples) if e is not None]
    owed.sort(key=lambda e: -e.longest)
    rows = [row for i in range(0, len(owed), BATCH) for row in rows_of(owed[i : i + BATCH], tokens_per_row)]
    mine = rows[rank() :: count()] if count() > 1 else rows
    file, new = place / f"{uuid4().hex[:12]}.jsonl", {}
    total = sum(map(len, mine))
    with progress.task("reference log-probs", total=total, unit="prompts") as advance, torch.no_grad():
        for row in mine:
            tokens = example_token_logps(model, row, packed=packed, pad=pad)
            sums, parts, keys = response_sums(tokens, row).tolist(), map(as_text, by_branch(tokens, row)), _keys(row)
            if not all(map(math.isfinite, sums)):
                raise TrainingError(
                    "the reference gives a log-prob that is not finite; the model's weights are damaged"
                )
            lines = zip(keys, sums, parts, strict=True)
            append_jsonl(file, [{"answer": k, "logp": v, "tokens": t} for k, v, t in lines])
            new |= zip(keys, sums, strict=True)
            advance(len(row))
    return _merged([table, *gathered(new)])


def _kept(place: Path) -> dict[str, float]:
    """What earlier runs, or this one before it was killed, have computed."""
    rows = (row for file in sorted(place.glob("*.jsonl")) for _, row in read_appended(file).rows)
    return {row["answer"]: row["logp"] for row in rows if "tokens" in row}


def _merged(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: logp for table in tables for key, logp in table.items()}


def _verify(
    model: Any, examples: Sequence[Example], table: Mapping[str, float], place: Path, *, packed: bool, pad: int
) -> None:
    """Ask the model again for a few of the kept log-probs.

    Raises:
        TrainingError: they differ by more than rounding explains.

    """
    kept = [e for e in examples if _owed(e, table) is None]
    sample = sorted(kept[:: max(len(kept) // SAMPLE, 1)][:SAMPLE], key=lambda e: e.id)
    if not sample:
        return
    with torch.no_grad():
        sums = response_sums(example_token_logps(model, sample, packed=packed, pad=pad), sample)
    half = rounds_to_half(model)
    ids = [e.id for e in sample for _ in e.responses]
    for name, key, found in zip(ids, _keys(sample), sums.tolist(), strict=True):
        # other rows round otherwise; another model is nats away on nearly every answer
        if not abs(found - table[key]) <= (HALF_SHARE * abs(found) + HALF_NATS if half else 1e-4 * abs(found) + 1e-3):
            raise TrainingError(
                f"the kept reference log-probs are not this model's: row {name} has {table[key]:.4f} there, and the model "
                f"gives {found:.4f}; delete {place} and start again"
            )


def _keys(examples: Sequence[Example]) -> list[str]:
    return [response_key(e.prompt, response) for e in examples for response in e.responses]


def _owed(example: Example, table: Mapping[str, float]) -> Example | None:
    """The example with those of its responses that the table lacks."""
    missing = tuple(r for r in example.responses if response_key(example.prompt, r) not in table)
    return replace(example, responses=missing, labels=(None,) * len(missing)) if missing else None
