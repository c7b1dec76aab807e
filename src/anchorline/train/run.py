"""One training run: from pairs to an adapter, with everything that a look back needs.

    train/  metrics.jsonl   one line an optimizer step
            pairs.parquet   one row a pair and epoch: log-probs, rewards, loss, where they moved, as trained
            diagnostics.json    pairs won, live and stranded; displacement by region; what the gate before step 1 saw
            checkpoint-N/   the Trainer's own; a killed run continues from the newest
    model/  the adapter (or all weights), the tokenizer; on request merged/

>>> trained = train(pairs, "embedded:smollm2-135m-instruct", TrainSettings(), folder)  # doctest: +SKIP
>>> trained.rows, trained.steps  # doctest: +SKIP
(290, 74)
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from anchorline.data.files import write_rows
from anchorline.data.jsonl import read_appended, read_json, write_json, write_jsonl
from anchorline.errors import DataError, ModelError
from anchorline.llm.device import pick_device
from anchorline.llm.models import Loaded, adapter_base, end_of_turn, fingerprint, load
from anchorline.llm.quiet import quiet
from anchorline.objectives.names import DESCRIPTIONS
from anchorline.progress import SILENT, Progress
from anchorline.train.attention import PACKED, refuse_unpackable
from anchorline.train.config import LoraSettings, TrainSettings
from anchorline.train.diagnostics import diagnose
from anchorline.train.forward import check_forward, plain_attention
from anchorline.train.gate import check_start
from anchorline.train.records import Recorder
from anchorline.train.reference import reference_key, reference_logps
from anchorline.train.reference_tokens import read_reference_tokens
from anchorline.train.tokenise import Template, Tokenised, response_key, tokenise, with_mismatched
from anchorline.train.trainer import AnchoredTrainer, TrainingData
from anchorline.types import Failure, Pair, Unpaired


class Trained(NamedTuple):
    """What a training run made: the model's folder, rows trained on, optimizer steps, and rows left out."""

    model: Path
    rows: int
    steps: int
    failures: list[Failure]


def train(
    rows: Sequence[Pair] | Sequence[Unpaired],
    model: str,
    settings: TrainSettings,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Trained:
    """Train `model` on pairs (or single labelled answers) and write `train/`, `reference/` and `model/` in `folder`.

    A folder with checkpoints of the same call is continued, to the same result. Rewards are
    r = beta · (log π(y|x) − log π_ref(y|x)), where the reference is the model as it came.

    Raises:
        ModelError: the model cannot be trained (or not packed).
        DataError: no row is left to train on.
        TrainingError: training does not start where it should (`gate`), or the loss is not finite.

    """
    loaded = load_policy(model, settings)
    data = tokenise(
        rows,
        Template(loaded.tokenizer, end_of_turn(loaded)),
        max_tokens=settings.max_tokens,
        overlong=settings.overlong,
    )
    if not data.examples:
        raise DataError(f"no row is left to train on{_why(data)}")
    examples = data.examples
    if any(DESCRIPTIONS[name].needs_reference_point for name in settings.objective):
        examples = with_mismatched(examples)
    logs = folder / "train"
    logs.mkdir(parents=True, exist_ok=True)
    pad = loaded.tokenizer.pad_token_id
    assert isinstance(pad, int)

    with quiet(), autocast(loaded):
        if settings.forward == "packed":
            check_forward(loaded.model, min(examples, key=lambda e: e.longest), pad=pad)
        key = reference_key(fingerprint(loaded.path), dtype=loaded.device.dtype, forward=settings.forward)
        reference = reference_logps(
            loaded.model,
            examples,
            folder / "reference",
            key=key,
            packed=settings.forward == "packed",
            pad=pad,
            progress=progress,
        )
    arguments = _arguments(settings, len(examples), logs, seed=seed, bf16=loaded.device.dtype == "bfloat16")
    total = _steps(arguments, len(examples))
    with quiet(), progress.task("train", total=total, unit="steps") as advance:
        set_seed(seed)  # the adapter's first weights
        policy = with_adapter(loaded, settings, model)
        with autocast(loaded):
            start = check_start(policy, examples, reference, settings, pad=pad)
        wanted = {response_key(e.prompt, response) for e in examples for response in e.responses}
        recorder = Recorder(
            settings,
            reference_tokens=read_reference_tokens(folder / "reference" / f"{key}.jsonl", wanted),
            tokenizer=loaded.tokenizer,
            ends=end_of_turn(loaded),
        )
        trainer = AnchoredTrainer(
            model=policy,
            args=arguments,
            data=TrainingData(examples, reference),
            settings=settings,
            pad=pad,
            folder=logs,
            advance=advance,
            recorder=recorder,
        )
        checkpoint = _newest_checkpoint(logs)
        done = _step_of(checkpoint) if checkpoint else 0
        for name in ("metrics.jsonl", "pairs.jsonl"):
            _forget_after(logs / name, step=done)
        advance(done)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        _save(policy, loaded, folder / "model", merge=settings.merge)
    records = [row for _, row in read_appended(logs / "pairs.jsonl").rows]
    write_json(logs / "diagnostics.json", {"start": start._asdict(), **diagnose(records)})
    write_rows(logs / "pairs.parquet", records)
    for old in logs.glob("checkpoint-*"):
        (old / TRAINER_STATE_NAME).unlink(missing_ok=True)  # first, so that half of it never looks whole
        shutil.rmtree(old)
    (logs / "pairs.jsonl").unlink()  # last: whoever continues from a checkpoint needs its lines
    return Trained(folder / "model", len(examples), total, data.failures)


def load_policy(model: str, settings: TrainSettings) -> Loaded:
    """The model as training wants it: packed attention; float32 weights where all of them are trained.

    Raises:
        ModelError: the model is an adapter, or does not run packed.

    """
    loaded = load(model, dtype=settings.dtype if settings.lora else "float32")
    if adapter_base(loaded.path):
        raise ModelError(
            f"{model} is an adapter, and training starts from whole weights; train it with train.merge first"
        )
    if settings.forward == "packed":
        refuse_unpackable(loaded.model)
        loaded.model.set_attn_implementation(PACKED)
    # full training keeps float32 weights and multiplies in the format that was asked for
    return loaded._replace(device=pick_device(settings.dtype))


def with_adapter(loaded: Loaded, settings: TrainSettings, model: str) -> Any:
    """The policy: the model under fresh adapters, or the model itself for full training."""
    if settings.lora is None:
        return loaded.model
    from peft import LoraConfig, get_peft_model

    lora = settings.lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=_targets(loaded, lora),
        layers_to_transform=_last_layers(loaded, lora.last_layers),
        task_type="CAUSAL_LM",
    )
    try:
        policy = get_peft_model(loaded.model, config)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ModelError(f"the adapter does not fit the model: {str(error).splitlines()[0][:300]}") from error
    # what the adapter names as its base: the id for the hub, a path for everything else
    policy.peft_config["default"].base_model_name_or_path = (
        model if "/" in model and not Path(model).exists() else str(loaded.path)
    )
    return policy


def _targets(loaded: Loaded, lora: LoraSettings) -> str | list[str]:
    """The modules that get an adapter; PEFT wants them by name where only some layers are adapted."""
    if lora.last_layers is None or lora.target != "all-linear":
        return lora.target
    head = loaded.model.get_output_embeddings()
    linear = {name for name, m in loaded.model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    return sorted({name.rpartition(".")[2] for name in linear})


def _last_layers(loaded: Loaded, count: int | None) -> list[int] | None:
    layers = loaded.model.config.get_text_config(decoder=True).num_hidden_layers
    if count is None:
        return None
    if count > layers:
        raise ModelError(f"train.lora.last_layers is {count}, but the model has {layers} layers")
    return list(range(layers - count, layers))


def _arguments(settings: TrainSettings, rows: int, logs: Path, *, seed: int, bf16: bool) -> TrainingArguments:
    row = row_pairs(settings)
    steps = math.ceil(math.ceil(rows / settings.pairs_per_step) * settings.epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TrainingArguments(
            output_dir=str(logs),
            per_device_train_batch_size=row,
            gradient_accumulation_steps=settings.pairs_per_step // row,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=math.ceil(settings.warmup * steps),
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            gradient_checkpointing=settings.gradient_checkpointing,
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            data_seed=seed,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_steps=settings.save_steps,
            save_total_limit=1,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
        )


def _steps(arguments: TrainingArguments, rows: int) -> int:
    """Optimizer steps, as the Trainer counts them."""
    batches = math.ceil(rows / arguments.per_device_train_batch_size)
    an_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    return math.ceil(an_epoch * arguments.num_train_epochs)


def row_pairs(settings: TrainSettings) -> int:
    """Pairs in a row, so that rows of one size make a step."""
    return _largest_divisor(settings.pairs_per_step, settings.pairs_per_row)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def autocast(loaded: Loaded) -> torch.autocast:
    """The arithmetic of the training steps, for every other log-prob too: else the rewards at step 0 would not be 0."""
    return torch.autocast(loaded.model.device.type, torch.bfloat16, enabled=loaded.device.dtype == "bfloat16")


def _newest_checkpoint(logs: Path) -> Path | None:
    """The newest whole checkpoint. The Trainer writes its state last, so one without it was torn by a kill: it goes."""
    for folder in sorted(logs.glob("checkpoint-*"), key=_step_of, reverse=True):
        try:
            read_json(folder / TRAINER_STATE_NAME)
        except DataError:
            shutil.rmtree(folder)
        else:
            return folder
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _forget_after(file: Path, *, step: int) -> None:
    """Drop the lines that a killed run wrote after its newest checkpoint: they come again."""
    if file.is_file():
        write_jsonl(file, [row for _, row in read_appended(file).rows if row["step"] <= step])


def _save(policy: Any, loaded: Loaded, target: Path, *, merge: bool) -> None:
    scratch = target.with_name(".model-writing")
    shutil.rmtree(scratch, ignore_errors=True)
    with plain_attention(policy):
        policy.save_pretrained(scratch)
        loaded.tokenizer.save_pretrained(scratch)
        if merge and hasattr(policy, "merge_and_unload"):
            policy.merge_and_unload().save_pretrained(scratch / "merged")
            loaded.tokenizer.save_pretrained(scratch / "merged")
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)


def _why(data: Tokenised) -> str:
    return (
        f": {data.failures[0].reason} (row {data.failures[0].id}, and {len(data.failures) - 1} more)"
        if data.failures
        else ""
    )
