"""Further arguments of transformers' Trainer that a recipe hands through: loggers, schedules, evaluation, and so on.

What anchorline decides itself is refused with the setting that decides it, as is a name that the Trainer does not know.

>>> further_arguments({"eval_strategy": "epoch"})  # doctest: +SKIP
{'eval_strategy': 'epoch'}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from transformers import TrainingArguments

from anchorline.errors import RecipeError
from anchorline.llm.models import first_line

OWNED: dict[str, str] = {
    "output_dir": "the run folder (--out)",
    "do_train": "the command",
    "do_eval": "eval_strategy",
    "do_predict": "the command",
    "resume_from_checkpoint": "the run folder: a run continues by itself",
    "per_device_train_batch_size": "train.pairs_per_step and train.tokens_per_row",
    "per_device_eval_batch_size": "train.tokens_per_row",
    "gradient_accumulation_steps": "train.pairs_per_step and train.tokens_per_row",
    "auto_find_batch_size": "train.tokens_per_row",
    "num_train_epochs": "train.epochs",
    "learning_rate": "train.learning_rate",
    "warmup_steps": "train.warmup",
    "warmup_ratio": "train.warmup",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "bf16": "train.dtype",
    "fp16": "train.dtype",
    "bf16_full_eval": "train.dtype",
    "fp16_full_eval": "train.dtype",
    "use_cpu": "the machine",
    "seed": "seed",
    "data_seed": "seed",
    "logging_strategy": "nothing: each step is logged",
    "logging_steps": "nothing: each step is logged",
    "logging_nan_inf_filter": "nothing: a loss that is not a number stops the run",
    "save_strategy": "train.save_steps",
    "save_steps": "train.save_steps",
    "save_total_limit": "train.save_total_limit",
    "save_only_model": "train.save_steps: a checkpoint is there to continue from",
    "remove_unused_columns": "the trainer",
    "label_names": "the trainer",
    "label_smoothing_factor": "train.objective",
    "train_sampling_strategy": "the trainer",
    "length_column_name": "the trainer",
    "dataloader_drop_last": "the trainer: every pair is trained on",
    "average_tokens_across_devices": "the trainer: a step's loss is the mean over its pairs",
    "prediction_loss_only": "the trainer",
    "disable_tqdm": "the command's own progress bar",
}
"""Argument to what decides it."""


def further_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, if all of them can be handed through.

    Raises:
        RecipeError: one is not known, or is decided elsewhere.

    """
    known = {field.name for field in fields(TrainingArguments) if field.init}
    for name in given:
        if name in OWNED:
            raise RecipeError(f"train.arguments.{name} is decided by {OWNED[name]}; set that, and leave this out")
        if name not in known:
            close = get_close_matches(name, known - OWNED.keys(), n=1)
            raise RecipeError(
                f"train.arguments.{name}: transformers.TrainingArguments has no such argument"
                + (f"; did you mean {close[0]}?" if close else "")
            )
    return dict(given)


@contextmanager
def from_arguments(given: Mapping[str, Any]) -> Iterator[None]:
    """Inside, the Trainer reads the arguments; what it does not like about them is a RecipeError."""
    try:
        yield
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        if not given:
            raise
        raise RecipeError(f"train.arguments: {first_line(error)}") from error
