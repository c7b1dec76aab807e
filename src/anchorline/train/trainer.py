"""The trainer: transformers' own loop, with packed rows in and one of the objectives as the loss.

>>> trainer = AnchoredTrainer(model=model, args=arguments, data=data, settings=settings)  # doctest: +SKIP
>>> trainer.train()  # doctest: +SKIP
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import Trainer, TrainingArguments

from anchorline.data.jsonl import append_jsonl
from anchorline.errors import TrainingError
from anchorline.objectives.kto import reference_point
from anchorline.objectives.logps import AnswerLogps, PairLogps
from anchorline.objectives.table import loss
from anchorline.progress import Advance
from anchorline.train.config import TrainSettings
from anchorline.train.diagnostics import step_metrics
from anchorline.train.forward import by_branch, example_token_logps, response_sums
from anchorline.train.profile import ProfileSteps
from anchorline.train.records import BatchLogps, Record, Recorder
from anchorline.train.tokenise import Example, response_key


class TrainingData(NamedTuple):
    """What is trained on: examples of one kind (all pairs, or all single answers) and their reference log-probs."""

    examples: Sequence[Example]
    reference: Mapping[str, float]


def batch_logps(examples: Sequence[Example], policy: Tensor, reference: Tensor) -> BatchLogps:
    """Sort the branches' log-probs (both [branches], in the order of examples and responses) into what objectives read."""
    labels = [label for e in examples for label in e.labels]
    tokens = torch.tensor([len(r) for e in examples for r in e.responses], device=policy.device)
    real = torch.tensor([label is not None for label in labels], device=policy.device)
    point = None
    if not bool(real.all()):
        point = reference_point(policy[~real], reference[~real])
    policy, reference, tokens = policy[real], reference[real], tokens[real]
    wanted = torch.tensor([bool(label) for label in labels if label is not None], device=policy.device)
    if sum(label is not None for label in examples[0].labels) == 2:
        c, r = slice(0, None, 2), slice(1, None, 2)
        rows = PairLogps(policy[c], policy[r], reference[c], reference[r], tokens[c], tokens[r])
        return BatchLogps(rows, point)
    return BatchLogps(AnswerLogps(policy, reference, wanted, tokens), point)


class AnchoredTrainer(Trainer):
    """transformers' Trainer on packed rows."""

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        data: TrainingData,
        settings: TrainSettings,
        pad: int,
        folder: Path,
        advance: Advance,
        recorder: Recorder | None = None,
    ) -> None:
        """Without a `recorder`, the records lack the places of the change."""
        self.profile = ProfileSteps(settings.profile_steps)
        super().__init__(
            model=model,
            args=args,
            train_dataset=list(range(len(data.examples))),  # pyright: ignore[reportArgumentType]
            data_collator=self._collate,
            callbacks=[self.profile],
        )
        # the collator's labels count rows: the loss is summed and divided by the rows of the whole step
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.data, self.settings, self.pad, self.folder = data, settings, pad, folder
        self.advance, self.recorder = advance, recorder or Recorder(settings)
        self._records: list[Record] = []
        self._started = time.monotonic()
        self._logged: float | None = None

    def _collate(self, indices: list[int]) -> dict[str, Any]:
        return {"labels": torch.ones(len(indices)), "rows": indices}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss of one packed row, summed over its pairs and divided by the pairs of the step."""
        assert not return_outputs, "the trainer trains; evals measures"
        self._logged = self._logged or time.monotonic()  # what the Trainer sets up before is no part of step 1
        examples = [self.data.examples[i] for i in inputs["rows"]]
        tokens = example_token_logps(model, examples, packed=self.settings.forward == "packed", pad=self.pad)
        policy = response_sums(tokens, examples)
        keys = [response_key(e.prompt, r) for e in examples for r in e.responses]
        reference = policy.new_tensor([self.data.reference[k] for k in keys])
        batch = batch_logps(examples, policy, reference)
        settings = self.settings
        rows = loss(
            settings.objective,
            batch.rows,
            beta=settings.beta,
            reference_point=batch.reference_point,
            desirable_weight=settings.desirable_weight,
            undesirable_weight=settings.undesirable_weight,
        )
        if not bool(rows.isfinite().all()):
            bad = [e.id for e, row in zip(examples, rows.tolist(), strict=True) if not math.isfinite(row)]
            raise TrainingError(
                f"the loss is not a number at step {self.state.global_step + 1} (rows {', '.join(bad[:3])}); {WAY_OUT}"
            )
        where = {"step": self.state.global_step + 1, "epoch": int(self.state.epoch or 0)}
        records = self.recorder.rows(examples, batch, rows, by_branch(tokens, examples))
        self._records += [{**where, **record} for record in records]
        count = num_items_in_batch if num_items_in_batch is not None else len(rows)
        # gradients are averaged over processes, but the count is of all processes together
        return rows.sum() / count * (self.args.world_size if num_items_in_batch is not None else 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Append the step's numbers to `metrics.jsonl` and its pairs to `pairs.jsonl`, those of all processes."""
        del start_time
        if "loss" not in logs:
            return
        # processes that run out of pairs are given some again: each counts once
        records = list({record["id"]: record for record in gather_object(self._records)}.values())
        self._records = []
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            raise TrainingError(
                f"the gradient is not a number at step {self.state.global_step} "
                f"(rows {', '.join(record['id'] for record in records[:3])}); {WAY_OUT}"
            )
        now = time.monotonic()
        took, self._logged = max(now - (self._logged or self._started), 1e-9), now
        speed = {"pairs_per_second": len(records) / took, "tokens_per_second": sum(map(tokens_of, records)) / took}
        self.advance(1, f"{speed['pairs_per_second']:.2f} pairs/s, {speed['tokens_per_second']:.0f} tokens/s")
        if not self.is_world_process_zero():
            return
        row: dict[str, Any] = {"step": self.state.global_step, "epoch": round(self.state.epoch or 0.0, 4)}
        row |= {k: logs[k] for k in ("loss", "learning_rate", "grad_norm")}
        row |= step_metrics(records) | {name: round(value, 3) for name, value in speed.items()} | self.profile.shares
        row["seconds"] = round(now - self._started, 3)
        append_jsonl(self.folder / "pairs.jsonl", records)
        append_jsonl(self.folder / "metrics.jsonl", [row])


WAY_OUT = "lower train.learning_rate, or set train.dtype to float32"


def tokens_of(record: Record) -> int:
    """Tokens of a row's prompt, once, and of its answers."""
    return sum(
        record[name] for name in ("prompt_tokens", "chosen_tokens", "rejected_tokens", "tokens") if name in record
    )
