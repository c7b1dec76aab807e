"""The trainer: transformers' own loop, with packed rows in and one of the objectives as the loss.

>>> trainer = AnchoredTrainer(model=model, args=arguments, data=data, settings=settings)  # doctest: +SKIP
>>> trainer.train()  # doctest: +SKIP
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from anchorline.data.jsonl import append_jsonl
from anchorline.errors import TrainingError
from anchorline.objectives.kto import reference_point
from anchorline.objectives.logps import AnswerLogps, PairLogps
from anchorline.objectives.metrics import pair_metrics
from anchorline.objectives.table import loss
from anchorline.train.arithmetic import multiplying_in
from anchorline.train.config import TrainSettings
from anchorline.train.forward import example_logps
from anchorline.train.layout import rows_of
from anchorline.train.tokenise import Example, response_key


class TrainingData(NamedTuple):
    """What is trained on: examples of one kind (all pairs, or all single answers) and their reference log-probs."""

    examples: Sequence[Example]
    reference: Mapping[str, float]


class BatchLogps(NamedTuple):
    """A batch's log-probs: the rows for the objective, and kto's reference point where the batch has mismatched ones."""

    rows: PairLogps | AnswerLogps
    reference_point: Tensor | None


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
        dtype: torch.dtype,
        pad: int,
        folder: Path,
        advance: Callable[[int], None],
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=list(range(len(data.examples))),  # pyright: ignore[reportArgumentType]
            data_collator=self._collate,
            callbacks=[_Advance(advance)],
        )
        # the collator's labels count rows: the loss is summed and divided by the rows of the whole step
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.data, self.settings, self.pad, self.folder = data, settings, pad, folder
        self.dtype = dtype
        self._records: list[dict[str, Any]] = []
        self._started = time.monotonic()

    def _collate(self, indices: list[int]) -> dict[str, Any]:
        return {"labels": torch.ones(len(indices)), "rows": indices}

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of a step's pairs, row by row; their gradients add up."""
        rows = rows_of([self.data.examples[i] for i in inputs["rows"]], self.settings.tokens_per_row)
        count = self._equal_count(len(rows))
        losses = []
        with multiplying_in(model, self.dtype):
            for number in range(count):
                examples = rows[min(number, len(rows) - 1)]
                last = number == count - 1
                # a process with fewer rows goes through one more, weightless, so that all make the same collective calls
                weight = float(number < len(rows))
                with nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
                    part = {"rows": examples, "weight": weight}
                    losses.append(super().training_step(model, part, num_items_in_batch))
        return torch.stack(losses).sum()

    def _equal_count(self, rows: int) -> int:
        if self.args.world_size == 1:
            return rows
        most = torch.tensor(rows, device=self.args.device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss of one packed row, summed over its pairs and divided by the pairs of the step."""
        assert not return_outputs, "the trainer trains; evals measures"
        examples = inputs["rows"]
        policy = example_logps(model, examples, packed=self.settings.forward == "packed", pad=self.pad)
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
                f"the loss is not a number at step {self.state.global_step + 1} (rows {', '.join(bad[:3])}); "
                "lower train.learning_rate, or set train.dtype to float32"
            )
        weight = inputs.get("weight", 1.0)
        if weight:
            self._record(examples, batch.rows, rows)
        count = num_items_in_batch if num_items_in_batch is not None else len(rows)
        # gradients are averaged over processes, but the count is of all processes together
        return weight * rows.sum() / count * (self.args.world_size if num_items_in_batch is not None else 1)

    def _record(self, examples: Sequence[Example], logps: PairLogps | AnswerLogps, rows: Tensor) -> None:
        columns: dict[str, list[Any]] = {"id": [e.id for e in examples], "loss": rows.detach().tolist()}
        columns |= {name: value.detach().tolist() for name, value in logps._asdict().items()}
        if isinstance(logps, PairLogps):
            metrics = pair_metrics(logps, beta=self.settings.beta)._asdict()
        else:
            metrics = {"reward": self.settings.beta * (logps.policy - logps.reference).detach()}
        columns |= {name: value.tolist() for name, value in metrics.items()}
        step, epoch = self.state.global_step + 1, int(self.state.epoch or 0)
        names = list(columns)
        for values in zip(*columns.values(), strict=True):
            self._records.append({"step": step, "epoch": epoch, **dict(zip(names, values, strict=True))})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Append the step's numbers to `metrics.jsonl` and its pairs to `pairs.jsonl`."""
        del start_time
        if "loss" not in logs or not self.is_world_process_zero():
            return
        records, self._records = self._records, []
        row: dict[str, Any] = {"step": self.state.global_step, "epoch": round(self.state.epoch or 0.0, 4)}
        row |= {k: logs[k] for k in ("loss", "learning_rate", "grad_norm")}
        row |= step_metrics(records)
        row["seconds"] = round(time.monotonic() - self._started, 3)
        append_jsonl(self.folder / "pairs.jsonl", records)
        append_jsonl(self.folder / "metrics.jsonl", [row])


def step_metrics(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over the pairs of a step; over the wanted and unwanted answers of a step without pairs."""
    if not records:
        return {}
    if "chosen_reward" in records[0]:
        names = {"chosen_reward": "chosen_reward", "rejected_reward": "rejected_reward", "margin": "margin"}
        names |= {"accuracy": "correct", "both_fell": "both_fell"}
        names |= {n: n for n in ("chosen_stuck", "rejected_stuck", "margin_stuck")}
        return {name: _mean([float(r[field]) for r in records]) for name, field in names.items()}
    return {
        "chosen_reward": _mean([r["reward"] for r in records if r["label"]]),
        "rejected_reward": _mean([r["reward"] for r in records if not r["label"]]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class _Advance(TrainerCallback):
    """Moves the progress bar by one optimizer step."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1)
