"""Pairs scored by a model against its reference, offline: the same records as training keeps, from the saved model.

>>> scored = score(pairs, "runs/harbour/model", TrainSettings())  # doctest: +SKIP
>>> scored.rows[0]["chosen_reward"], scored.table["life"]["counts"]  # doctest: +SKIP
(4.02, {'won': 12, 'live': 271, 'stranded': 7})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from anchorline.errors import DataError
from anchorline.llm.device import pick_device
from anchorline.llm.models import Loaded, adapter_base, end_of_turn, load, resolve, torch_dtype
from anchorline.llm.quiet import quiet
from anchorline.progress import SILENT, Progress
from anchorline.train.arithmetic import multiplying_in
from anchorline.train.attention import PACKED, refuse_unpackable
from anchorline.train.config import TrainSettings
from anchorline.train.diagnostics import diagnose, step_metrics
from anchorline.train.forward import by_branch, example_token_logps, response_sums
from anchorline.train.layout import cut
from anchorline.train.native import unchanging
from anchorline.train.records import Record, Recorder
from anchorline.train.tokenise import Example, Template, needs_mismatched, response_key, tokenise, with_mismatched
from anchorline.train.trainer import batch_logps, batch_losses
from anchorline.types import Failure, Pair, Unpaired

SCORED = 256
"""Rows that are packed together, the output being in the order of the input."""


class Scored(NamedTuple):
    """One record a row, as in `train/pairs.parquet`; their means, states and displacement; and the rows left out."""

    rows: list[Record]
    table: dict[str, Any]
    failures: list[Failure]


class _Models(NamedTuple):
    policy: Loaded
    reference: Any
    """None where there is nothing to compare with."""
    off: Callable[[], AbstractContextManager[Any]]
    """Makes what is entered around the reference's forward."""


def score(
    rows: Sequence[Pair] | Sequence[Unpaired],
    model: str,
    settings: TrainSettings,
    *,
    against: str | None = None,
    progress: Progress = SILENT,
) -> Scored:
    """Log-probs of pairs (or labelled answers) under `model` and, given a reference, rewards and all that follows.

    An adapter's reference is its base, with the adapter off; `against` names another one. The numbers are those of
    training: same tokens, same forward, same number format (`settings`). Whole weights without `against` give log-probs only.

    Raises:
        ModelError: a model is missing, or does not run packed.
        DataError: no row can be scored.

    """
    models = _load(model, against, settings)
    template = Template(models.policy.tokenizer, end_of_turn(models.policy))
    data = tokenise(rows, template, max_tokens=settings.max_tokens, overlong=settings.overlong)
    if not data.examples:
        why = f": {data.failures[0].reason} (row {data.failures[0].id})" if data.failures else ""
        raise DataError(f"no row is left to score{why}")
    examples = data.examples
    if models.reference is not None and needs_mismatched(examples, settings.objective):
        examples = with_mismatched(examples, max_tokens=settings.max_tokens)
    kept: dict[str, np.ndarray] = {}
    recorder = Recorder(settings, reference_tokens=kept, tokenizer=template.tokenizer, ends=template.ends)
    records: list[Record] = []
    with progress.task("score", total=len(examples), unit="rows") as advance, torch.no_grad(), quiet(), _lent(models):
        for start in range(0, len(examples), SCORED):
            part = examples[start : start + SCORED]
            made: dict[int, Record] = {}
            for row in cut([e.tokens for e in part], settings.tokens_per_row):
                made |= zip(row, _records(models, [part[i] for i in row], settings, recorder, kept), strict=True)
                kept.clear()
                advance(len(row))
            records += [made[i] for i in range(len(part))]
    if models.reference is None:
        return Scored(records, {"n": len(records)}, data.failures)
    found = diagnose(records)
    return Scored(records, {"n": found.pop("rows"), **step_metrics(records), **found}, data.failures)


def _records(
    models: _Models, batch: Sequence[Example], settings: TrainSettings, recorder: Recorder, kept: dict[str, np.ndarray]
) -> list[Record]:
    pad, packed = models.policy.tokenizer.pad_token_id, settings.forward == "packed"
    assert isinstance(pad, int)
    ours = example_token_logps(models.policy.model, batch, packed=packed, pad=pad)
    if models.reference is None:
        return _log_probs_only(batch, response_sums(ours, batch).tolist())
    with models.off():
        theirs = example_token_logps(models.reference, batch, packed=packed, pad=pad)
    keys = [response_key(e.prompt, response) for e in batch for response in e.responses]
    kept.update(zip(keys, (piece.float().cpu().numpy() for piece in by_branch(theirs, batch)), strict=True))
    logps = batch_logps(batch, response_sums(ours, batch), response_sums(theirs, batch))
    return recorder.rows(batch, logps, batch_losses(logps, settings), by_branch(ours, batch))


def _lent(models: _Models) -> ExitStack:
    """The arithmetic of training, for both models."""
    with ExitStack() as stack:
        for network in {id(m): m for m in (models.policy.model, models.reference) if m is not None}.values():
            stack.enter_context(multiplying_in(network, torch_dtype(models.policy.device)))
            stack.enter_context(unchanging(network.parameters()))
        return stack.pop_all()


def _log_probs_only(batch: Sequence[Example], sums: list[float]) -> list[Record]:
    found, left = [], iter(sums)
    for example in batch:
        sides = ("_chosen", "_rejected") if len(example.responses) == 2 else ("",)
        record: Record = {"id": example.id, "prompt_tokens": len(example.prompt)}
        for side, response in zip(sides, example.responses, strict=True):
            record[f"policy{side}"] = next(left)
            record[f"{side[1:]}_tokens" if side else "tokens"] = len(response)
        found.append(record)
    return found


def _load(model: str, against: str | None, settings: TrainSettings) -> _Models:
    path = resolve(model)
    base = adapter_base(path)
    # as in training: whole weights are float32 and multiply in the format asked for, those under an adapter are held in it
    dtype = settings.dtype if base else "float32"
    policy = load(model, dtype=dtype)._replace(device=pick_device(settings.dtype))
    if base and (against is None or _same(against, base)):
        models = _Models(policy, policy.model, policy.model.disable_adapter)
    else:
        models = _Models(policy, load(against, dtype=dtype).model if against else None, nullcontext)
    if settings.forward == "packed":
        for network in (policy.model, models.reference):
            if network is not None:
                refuse_unpackable(network)
                network.set_attn_implementation(PACKED)
    return models


def _same(one: str, other: str) -> bool:
    return one == other or Path(resolve(one)).resolve() == Path(resolve(other)).resolve()
