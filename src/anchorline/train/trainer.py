"""The trainer: transformers' own loop, with packed rows in and one of the objectives as the loss.

>>> trainer = AnchoredTrainer(model=model, args=arguments, data=data, settings=settings)  # doctest: +SKIP
>>> trainer.train()  # doctest: +SKIP
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from anchorline.data.jsonl import append_jsonl
from anchorline.errors import Diverged
from anchorline.objectives.kto import reference_point
from anchorline.objectives.logps import AnswerLogps, PairLogps
from anchorline.objectives.mixed import each
from anchorline.objectives.table import loss
from anchorline.progress import Advance
from anchorline.train.arithmetic import multiplying_in
from anchorline.train.batches import Beside, Share, StepLoader, StepSampler, Unread
from anchorline.train.checkpoints import written_aside
from anchorline.train.config import RetainSettings, TrainSettings
from anchorline.train.diagnostics import mean, step_metrics
from anchorline.train.forward import by_branch, example_token_logps, response_sums
from anchorline.train.native import unchanging
from anchorline.train.processes import count, gathered, rank
from anchorline.train.profile import ProfileSteps
from anchorline.train.records import BatchLogps, Record, Recorder
from anchorline.train.retain import retain_kl
from anchorline.train.tokenise import Example, response_key


class TrainingData(NamedTuple):
    """What is trained on: examples of one kind (all pairs, or all single answers) and their reference log-probs."""

    examples: Sequence[Example]
    reference: Mapping[str, float]
    heldout: Sequence[Example] = ()
    """Measured during training where `eval_strategy` says so."""
    retained: Sequence[Example] = ()
    """Answers of the reference that are to stay as likely as they are."""
    retained_reference: Mapping[str, np.ndarray] = {}
    """The reference's log-prob of each of their tokens, by `response_key`."""


EVALUATED = 256
"""Held-out examples that are cut into rows together."""


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
    own = tuple(e.objective for e in examples) if any(e.objective for e in examples) else ()
    if sum(label is not None for label in examples[0].labels) == 2:
        c, r = slice(0, None, 2), slice(1, None, 2)
        rows = PairLogps(policy[c], policy[r], reference[c], reference[r], tokens[c], tokens[r])
        return BatchLogps(rows, point, own)
    return BatchLogps(AnswerLogps(policy, reference, wanted, tokens), point)


def batch_losses(batch: BatchLogps, settings: TrainSettings) -> Tensor:
    """The loss of each row of a batch: by its own objective, or by the settings' where it has none."""

    def losses(objective: Mapping[str, float], rows: PairLogps | AnswerLogps) -> tuple[Tensor]:
        found = loss(
            objective,
            rows,
            beta=settings.beta,
            reference_point=batch.reference_point,
            desirable_weight=settings.desirable_weight,
            undesirable_weight=settings.undesirable_weight,
        )
        return (found,)

    (rows,) = each(batch.objectives, settings.objective, batch.rows, losses)
    return rows


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
        advance: Advance,
        recorder: Recorder | None = None,
        retain: RetainSettings | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Without a `recorder`, the records lack the places of the change."""
        self.profile = ProfileSteps(settings.profile_steps)
        super().__init__(
            model=model,
            args=args,
            train_dataset=list(range(len(data.examples))),  # pyright: ignore[reportArgumentType]
            eval_dataset=list(range(len(data.heldout))) or None,  # pyright: ignore[reportArgumentType]
            data_collator=self._collate,
            callbacks=[self.profile, *callbacks],
        )
        self.remove_callback(PrinterCallback)  # it would print every step
        # the collator's labels count rows: the loss is summed and divided by the rows of the whole step
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.data, self.settings, self.pad, self.folder = data, settings, pad, folder
        self.dtype, self.advance, self.recorder = dtype, advance, recorder or Recorder(settings)
        self.retain = retain
        self._records: list[Record] = []
        self._retain_kl: list[float] = []
        self._aside: str | None = None
        self._started = time.monotonic()
        self._logged: float | None = None

    def _collate(self, rows: list[list[int]]) -> dict[str, Any]:
        pairs = sum(number < len(self.data.examples) for row in rows for number in row)
        return {"labels": torch.ones(pairs), "rows": rows}

    def get_train_dataloader(self) -> StepLoader:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The rows of this process, a step at a time: accelerate would repeat pairs where they do not come out even."""
        sizes = [example.tokens for example in self.data.examples]
        process = rank() if count() > 1 else 0
        sampler = StepSampler(
            sizes, share_of(self.settings), process=process, seed=self._data_seed, beside=self._beside
        )
        return StepLoader(Unread(len(sizes)), batch_sampler=sampler, collate_fn=self._collate)  # pyright: ignore[reportArgumentType]

    @property
    def _beside(self) -> Beside:
        sizes = [example.tokens for example in self.data.retained]
        return Beside(sizes, self.retain.per_step if self.retain else 0)

    @property
    def _data_seed(self) -> int:
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def train(self, *given: Any, **named: Any) -> Any:
        """As transformers' own, while frozen weights stand still."""
        model: Any = self.model
        try:
            with unchanging(p for p in model.parameters() if not p.requires_grad), _old_objects_left_alone():
                return super().train(*given, **named)
        finally:
            unset_hf_deepspeed_config()  # else whatever this process loads from now on would be divided by ZeRO-3

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of this process's share of a step, row by row; the gradients add up."""
        self._logged = self._logged or time.monotonic()  # what the Trainer sets up before is no part of step 1
        rows, losses = inputs["rows"], []
        with multiplying_in(model, self.dtype):
            for number, row in enumerate(rows):
                with self._before_the_last(model) if number < len(rows) - 1 else nullcontext():
                    losses.append(super().training_step(model, {"rows": row}, num_items_in_batch))
        return torch.stack(losses).sum()

    @contextmanager
    def _before_the_last(self, model: Any) -> Iterator[None]:
        """Inside, more rows of the step are to come: DDP does not exchange gradients yet, DeepSpeed does not step."""
        state = self.accelerator.gradient_state
        state._set_sync_gradients(False)
        try:
            # FSDP exchanges with every row all the same: it would have to hold undivided gradients
            with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
                yield
        finally:
            state._set_sync_gradients(True)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss of one packed row, summed over its pairs and divided by the pairs of the step.

        A row of retained answers gives their part of the step's weighted mean.
        """
        assert not return_outputs, "the trainer trains; `evaluate` measures"
        # gradients are averaged over processes, but a mean is over the step of all processes together
        processes = self.args.world_size if num_items_in_batch is not None else 1
        first = len(self.data.examples)
        if any(i >= first for i in inputs["rows"]):
            return self._retained(model, [self.data.retained[i - first] for i in inputs["rows"]]) * processes
        examples = [self.data.examples[i] for i in inputs["rows"]]
        if not examples:  # a row for another process: take part in its collective calls, and in nothing else
            return self._tokens(model, self.data.examples[:1]).sum() * 0
        tokens = self._tokens(model, examples)
        batch, rows = self._losses(examples, tokens)
        if not bool(rows.isfinite().all()):
            bad = [e.id for e, row in zip(examples, rows.tolist(), strict=True) if not math.isfinite(row)]
            raise Diverged(f"the loss is not a number at step {self.state.global_step + 1} (rows {', '.join(bad[:3])})")
        where = {"step": self.state.global_step + 1, "epoch": int(self.state.epoch or 0)}
        records = self.recorder.rows(examples, batch, rows, by_branch(tokens, examples))
        self._records += [{**where, **record} for record in records]
        pairs = num_items_in_batch if num_items_in_batch is not None else len(rows)
        return rows.sum() / pairs * processes

    def _retained(self, model: Any, examples: Sequence[Example]) -> Tensor:
        assert self.retain is not None
        tokens = by_branch(self._tokens(model, examples), examples)
        kl = retain_kl(tokens, examples, self.data.retained_reference)
        self._retain_kl += kl.tolist()
        return self.retain.weight * kl.sum() / self._beside.count

    def _tokens(self, model: Any, examples: Sequence[Example]) -> Tensor:
        return example_token_logps(model, examples, packed=self.settings.forward == "packed", pad=self.pad)

    def _losses(self, examples: Sequence[Example], tokens: Tensor) -> tuple[BatchLogps, Tensor]:
        """The log-probs of a row's pairs, and the objective's loss of each."""
        policy = response_sums(tokens, examples)
        keys = [response_key(e.prompt, r) for e in examples for r in e.responses]
        reference = policy.new_tensor([self.data.reference[k] for k in keys])
        batch = batch_logps(examples, policy, reference)
        return batch, batch_losses(batch, self.settings)

    @torch.no_grad()
    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Loss and the step's numbers on the held-out pairs, into `evaluations.jsonl` and to the loggers."""
        model: Any = self.model_wrapped
        heldout = self.data.heldout
        model.eval()
        sizes = [example.tokens for example in heldout]
        records: list[Record] = []
        with self.compute_loss_context_manager(), multiplying_in(model, self.dtype):
            for start in range(0, len(heldout), EVALUATED):
                shares = share_of(self.settings).rows(sizes[start : start + EVALUATED])
                for row in shares[self.args.process_index]:
                    examples = [heldout[start + place] for place in row]
                    tokens = self._tokens(model, examples or heldout[:1])
                    if examples:
                        found = self._losses(examples, tokens)
                        records += self.recorder.rows(examples, *found, by_branch(tokens, examples))
        records = [record for part in gathered(records) for record in part]
        numbers = {"loss": mean([record["loss"] for record in records]), **step_metrics(records)}
        if self.is_world_process_zero():
            row = {"step": self.state.global_step, "epoch": round(self.state.epoch or 0.0, 4), **numbers}
            append_jsonl(self.folder / "evaluations.jsonl", [row])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items() if value is not None}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with written_aside(self.folder, self.state, keep=self.settings.save_total_limit) as aside:
            self._aside = str(aside)
            super()._save_checkpoint(model, trial)
        self._aside = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._aside or super()._get_output_dir(trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Append the step's numbers to `metrics.jsonl` and its pairs to `pairs.jsonl`; hand them to the loggers."""
        if "loss" in logs:
            records = [record for part in gathered(self._records) for record in part]
            self._records = []
            norm = logs.get("grad_norm")
            if norm is not None and not math.isfinite(norm):
                raise Diverged(
                    f"the gradient is not a number at step {self.state.global_step} "
                    f"(rows {', '.join(record['id'] for record in records[:3])})"
                )
            numbers = step_metrics(records)
            if self.retain:
                numbers["retain_kl"] = mean([kl for part in gathered(self._retain_kl) for kl in part])
                self._retain_kl = []
            self._write(logs, numbers, records)
            logs |= {name: value for name, value in numbers.items() if value is not None}
        super().log(logs, start_time)

    def _write(self, logs: Mapping[str, float], numbers: Mapping[str, float | None], records: list[Record]) -> None:
        now = time.monotonic()
        took, self._logged = max(now - (self._logged or self._started), 1e-9), now
        speed = {"pairs_per_second": len(records) / took, "tokens_per_second": sum(map(tokens_of, records)) / took}
        self.advance(1, f"{speed['pairs_per_second']:.2f} pairs/s, {speed['tokens_per_second']:.0f} tokens/s")
        if not self.is_world_process_zero():
            return
        row: dict[str, Any] = {"step": self.state.global_step, "epoch": round(self.state.epoch or 0.0, 4)}
        row |= {k: logs.get(k) for k in ("loss", "learning_rate", "grad_norm")}
        row |= {**numbers, **{name: round(value, 3) for name, value in speed.items()}, **self.profile.shares}
        row["seconds"] = round(now - self._started, 3)
        append_jsonl(self.folder / "pairs.jsonl", records)
        append_jsonl(self.folder / "metrics.jsonl", [row])


@contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """Inside, Python does not look through what was there before for what nobody needs: a third of a second each time."""
    if gc.get_freeze_count():  # the caller has done it, and may want it to stay
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def share_of(settings: TrainSettings) -> Share:
    """How a step is divided between the processes that there are."""
    return Share(settings.pairs_per_step, settings.tokens_per_row, count())


def tokens_of(record: Record) -> int:
    """Tokens of a row's prompt, once, and of its answers."""
    return sum(
        record[name] for name in ("prompt_tokens", "chosen_tokens", "rejected_tokens", "tokens") if name in record
    )
