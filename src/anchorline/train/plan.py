"""What a training would take, before it starts: tokens, rows, steps, memory, time.

Tokens, rows and steps are counted. Time and memory are measured on two short rows of the data, forward and backward on
the model itself, and carried on in a straight line (`Footprint`, `memory`): both grow with the tokens of a row.

>>> found = plan(pairs, "embedded:smollm2-135m-instruct", TrainSettings())  # doctest: +SKIP
>>> found["steps"], found["time"]["seconds"], found["memory"]["gib"]  # doctest: +SKIP
(37, 184.2, 2.3)
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch

from anchorline.errors import DataError
from anchorline.llm.models import Loaded, end_of_turn, torch_dtype
from anchorline.llm.quiet import quiet
from anchorline.measure.summary import quantile
from anchorline.progress import SILENT, Progress
from anchorline.train.arguments import further_arguments
from anchorline.train.batches import Beside, Share, StepSampler
from anchorline.train.config import TrainSettings
from anchorline.train.footprint import Footprint, line, measure_row
from anchorline.train.head import room_bytes
from anchorline.train.layout import pack
from anchorline.train.native import native
from anchorline.train.policy import load_policy, with_adapter
from anchorline.train.retain import Retained, tokenise_retained
from anchorline.train.run import steps_of
from anchorline.train.tokenise import Example, Template, encode, needs_mismatched, tokenise, with_mismatched
from anchorline.types import Pair, Unpaired

SHORT, LONG = 400, 1600
"""Tokens of the rows that are measured, about."""
LOW, HIGH = 0.75, 1.4
"""The span of the time: what else runs on the machine, and rows unlike the measured ones."""
GIB = 2**30
LIBRARIES = 0.3 * GIB
"""What the training loop imports beside the model (accelerate, datasets, peft), on a CPU."""
HELD = 1.5
"""What the allocator holds for each byte that a row asks for. Measured on a CPU: without it two runs of 2.7 and 3.9 GiB
were foretold as 2.1 and 3.4, with it as 2.6 and 3.8."""


def plan(
    rows: Sequence[Pair] | Sequence[Unpaired],
    model: str,
    settings: TrainSettings,
    *,
    retain: Retained | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Look at a training of `model` on the rows; JSON-ready. It takes seconds and writes nothing.

    `retain`: the answers that are to stay, as `train` takes them. An answer without text, which is not drawn yet, counts as
    if it were as long as it may be.

    Raises:
        RecipeError: `settings.arguments` holds what cannot be handed to the Trainer.
        ModelError: the model cannot be trained.
        DataError: no row is left to train on.

    """
    base = psutil.Process().memory_info().rss
    further = further_arguments(settings.arguments)
    loaded = load_policy(model, settings)
    template = Template(loaded.tokenizer, end_of_turn(loaded))
    whole = tokenise(rows, template, max_tokens=2**40, overlong="drop")
    examples, overlong = without_overlong(rows, whole.examples, template, settings)
    found: dict[str, Any] = {
        "rows": len(examples),
        "unfit": [{"id": f.id, "reason": f.reason} for f in whole.failures],
        "overlong": overlong,
        "tokens": token_table(examples),
    }
    if not examples:
        raise DataError(
            f"no row is left to train on: {len(whole.failures)} do not fit, {overlong['rows']} are over-long"
        )
    if needs_mismatched(examples, settings.objective):
        examples = with_mismatched(examples, max_tokens=settings.max_tokens)
    share = loaded.device.dtype != "bfloat16"
    found["packing"] = packing(examples, settings, seed=seed, share=share)
    if retain:
        found["retain"] = retaining(retain, template, settings, seed=seed, pairs=len(examples), share=share)
    found["steps"] = steps_of(settings, further, len(examples))
    with quiet(), progress.task("measure two rows", total=2, unit="rows") as advance:
        policy = with_adapter(loaded, settings, model)
        found["parameters"] = {
            "trained": sum(p.numel() for p in policy.parameters() if p.requires_grad),
            "all": sum(p.numel() for p in policy.parameters()),
        }
        measured = measure(policy, loaded, examples, settings, advance)
    longest = max(found[part]["longest_row"] for part in ("packing", "retain") if part in found)
    found["memory"] = memory(policy, measured, longest, settings, base=base, dtype=torch_dtype(loaded.device))
    found["time"] = time_of(measured, examples, found, settings, dtype=loaded.device.dtype)
    return found


def retaining(
    retain: Retained, template: Template, settings: TrainSettings, *, seed: int, pairs: int, share: bool
) -> dict[str, Any]:
    """The answers that are to stay: how many, and the rows and tokens that they add to an epoch.

    Of an answer that is not drawn yet the prompt is counted, and as many tokens as it may have.
    """
    drawn = [answer for answer in retain.answers if answer.text]
    kept = tokenise_retained(drawn, template, max_tokens=settings.max_tokens).examples
    most = (next(iter(template.ends)),) * retain.settings.max_new_tokens
    for answer in retain.answers:
        if not answer.text:
            example = Example(answer.id, encode(answer.prompt, "a", template)[0], (most,), (None,))
            kept += [example] if example.longest <= settings.max_tokens else []
    sizes = [example.tokens for example in kept]
    beside = Beside(sizes, retain.settings.per_step)
    share_of_steps = Share(settings.pairs_per_step, settings.tokens_per_row, processes=1)
    steps = StepSampler([0] * pairs, share_of_steps, process=0, seed=seed, beside=beside)
    rows = [[kept[i - pairs] for i in row] for step in steps for row in step if row and row[0] >= pairs]
    lengths = [row_tokens(row, settings, share=share) for row in rows]
    return {
        "answers": len(kept),
        "not_drawn": len(retain.answers) - len(drawn),
        "per_step": beside.count,
        "own_tokens": sum(sizes),
        "rows": len(rows),
        "tokens": sum(lengths),
        "longest_row": max(lengths, default=0),
    }


def without_overlong(
    rows: Sequence[Pair] | Sequence[Unpaired], examples: Sequence[Example], template: Template, settings: TrainSettings
) -> tuple[list[Example], dict[str, Any]]:
    """The examples as training would take them, and what becomes of those over `max_tokens`."""
    limit = settings.max_tokens
    ids = {e.id for e in examples if e.longest > limit}
    what = {"limit": limit, "policy": settings.overlong, "rows": len(ids), "ids": sorted(ids)[:20]}
    kept = {e.id: e for e in examples if e.id not in ids}
    truncated: dict[str, Example] = {}
    if settings.overlong == "truncate":
        again = tokenise([r for r in rows if r.id in ids], template, max_tokens=limit, overlong="truncate")
        truncated = {e.id: e for e in again.examples}
    taken = [kept.get(e.id) or truncated.get(e.id) for e in examples]
    what |= {"truncated": len(truncated), "dropped": len(ids) - len(truncated)}
    what["stops"] = bool(ids) and settings.overlong == "error"
    return [e for e in taken if e is not None], what


def token_table(examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    """Total, mean, quantiles and maximum of the tokens of prompts and answers."""
    paired = bool(examples) and len(examples[0].responses) == 2
    columns = {"prompt": [len(e.prompt) for e in examples]}
    names = ("chosen", "rejected") if paired else ("answer",)
    columns |= {name: [len(e.responses[k]) for e in examples] for k, name in enumerate(names)}
    return {name: _spread(values) for name, values in columns.items()}


def _spread(values: Sequence[int]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {"total": 0}
    shares = {"p5": 0.05, "p50": 0.5, "p95": 0.95}
    quantiles = {name: quantile(ordered, share=share) for name, share in shares.items()}
    return {"total": sum(ordered), "mean": sum(ordered) / len(ordered), **quantiles, "max": ordered[-1]}


def epoch_rows(examples: Sequence[Example], settings: TrainSettings, *, seed: int) -> list[list[Example]]:
    """The rows of the first epoch in one process."""
    share = Share(settings.pairs_per_step, settings.tokens_per_row, processes=1)
    steps = StepSampler([example.tokens for example in examples], share, process=0, seed=seed)
    return [[examples[i] for i in row] for rows in steps for row in rows]


def row_tokens(row: Sequence[Example], settings: TrainSettings, *, share: bool) -> int:
    """Tokens that a row takes: packed, or one padded line for each answer."""
    return pack(row, share=share).tokens.shape[1] if settings.forward == "packed" else _padded(row)


def _padded(row: Sequence[Example]) -> int:
    return max(e.longest for e in row) * sum(len(e.responses) for e in row)


def packing(examples: Sequence[Example], settings: TrainSettings, *, seed: int, share: bool) -> dict[str, Any]:
    """Rows of an epoch, their tokens, and what stands once instead of several times; `share` as in `layout.pack`."""
    rows = epoch_rows(examples, settings, seed=seed)
    apart = [len(e.prompt) + len(r) for e in examples for r in e.responses]
    padded = sum(_padded(row) for row in rows)
    lengths = [row_tokens(row, settings, share=share) for row in rows]
    taken, longest = sum(lengths), max(lengths)
    return {
        "rows": len(rows),
        "pairs_per_row": round(len(examples) / len(rows), 1),
        "longest_row": longest,
        "tokens": taken,
        "tokens_apart": sum(apart),
        "tokens_padded": padded,
        "saved": 1 - taken / sum(apart),
    }


def measure(
    policy: Any, loaded: Loaded, examples: Sequence[Example], settings: TrainSettings, advance: Any
) -> list[Footprint]:
    """Forward and backward of a short and a longer row of the data, the first one after a warm-up."""
    pad = loaded.tokenizer.pad_token_id
    assert isinstance(pad, int)
    found: list[Footprint] = []
    median = sorted(e.longest for e in examples)[len(examples) // 2]
    middling = sorted(examples, key=lambda e: abs(e.longest - median))
    policy.train()
    for target in (SHORT, LONG):
        row, tokens = [], 0
        for example in middling:
            row.append(example)
            tokens += len(example.prompt) + sum(map(len, example.responses))
            if tokens >= target:
                break
        dtype = torch_dtype(loaded.device)
        if not found:
            measure_row(policy, row, settings, pad=pad, dtype=dtype)
        footprint = measure_row(policy, row, settings, pad=pad, dtype=dtype)
        if not found or footprint.tokens > found[0].tokens:
            found.append(footprint)
        advance(1)
    return found


def memory(
    policy: Any,
    measured: Sequence[Footprint],
    longest_row: int,
    settings: TrainSettings,
    *,
    base: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The most memory that training holds, in GiB, as a sum of parts.

    process (as it is now, and the libraries to come) + weights (with their copies in half precision, and those of
    frozen matrices that native.cpp reads) + gradients and Adam's two moments of what trains + `HELD` times: what the
    longest row keeps for its backward (fixed + tokens x slope, as measured; with checkpointing one layer of it, and each
    layer's input), what the head holds of logits (`room_bytes`; with the plain forward, all of them as product, in float32
    and as probabilities), and the gradients that run through one layer.
    """
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    if dtype != torch.float32:
        weights += sum(p.numel() * dtype.itemsize for p in policy.parameters() if p.dtype == torch.float32)
    if dtype == torch.bfloat16 and native() is not None:
        weights += sum(p.nbytes for p in policy.parameters() if p.ndim == 2 and not p.requires_grad)
    trained = [p for p in policy.parameters() if p.requires_grad]
    states = sum(p.numel() * p.element_size() * 3 for p in trained)
    fixed, slope = line([(m.tokens, m.saved_bytes) for m in measured])
    config = policy.config.get_text_config(decoder=True)
    layers, width = config.num_hidden_layers, config.hidden_size
    row = fixed + slope * longest_row
    if settings.gradient_checkpointing:
        row = row / layers + longest_row * width * layers * 4
    running = longest_row * 4 * (2 * config.intermediate_size + 4 * width)
    on_cuda = torch.cuda.is_available()
    if settings.forward == "packed":
        answers = room_bytes(longest_row, config.vocab_size, dtype, "cuda" if on_cuda else "cpu")
    else:
        answers = config.vocab_size * 4 * 3 * longest_row
    parts = {
        "process": 0 if on_cuda else base + LIBRARIES,
        "weights": weights,
        "gradients_and_optimizer": states,
        "longest_row": HELD * (row + running),
        "logits": HELD * answers,
    }
    return {
        "gib": round(sum(parts.values()) / GIB, 3),
        "parts_gib": {name: round(size / GIB, 3) for name, size in parts.items()},
        "bytes_per_token": round(slope),
        "available_gib": round(
            (torch.cuda.mem_get_info()[0] if on_cuda else psutil.virtual_memory().available) / GIB, 1
        ),
        "how": "a sum of parts; what a row keeps for its backward was measured on rows of "
        + " and ".join(f"{m.tokens:,}" for m in measured)
        + " tokens",
    }


def time_of(
    measured: Sequence[Footprint],
    examples: Sequence[Example],
    found: Mapping[str, Any],
    settings: TrainSettings,
    *,
    dtype: str,
) -> dict[str, Any]:
    """Seconds of the reference's log-probs and of the steps, carried on from the measured rows."""
    packed, epochs = found["packing"], found["steps"] / math.ceil(len(examples) / settings.pairs_per_step)
    per_row, per_token = line([(m.tokens, m.seconds) for m in measured])
    forward_row, forward_token = line([(m.tokens, m.forward_seconds) for m in measured])
    more = 4 / 3 if settings.gradient_checkpointing else 1.0
    kept = found.get("retain", {"rows": 0, "tokens": 0, "own_tokens": 0})
    rows, tokens = packed["rows"] + kept["rows"], packed["tokens"] + kept["tokens"]
    training = epochs * (rows * per_row + tokens * per_token) * more
    training += found["steps"] * measured[-1].optimizer_seconds
    reference = packed["rows"] * forward_row + (packed["tokens"] + kept["own_tokens"]) * forward_token
    seconds = training + reference
    return {
        "seconds": round(seconds, 3),
        "low": round(seconds * LOW, 3),
        "high": round(seconds * HIGH, 3),
        "reference": round(reference, 3),
        "training": round(training, 3),
        "pairs_per_second": round(len(examples) * epochs / training, 3),
        "tokens_per_second": round(tokens * epochs / training, 1),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "how": "measured just now, forward and backward of rows of "
        + " and ".join(f"{m.tokens:,}" for m in measured)
        + " tokens; the span allows for other work on the machine and for rows unlike these",
    }
