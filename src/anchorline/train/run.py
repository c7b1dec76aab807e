"""One training run: from pairs to an adapter, with everything that a look back needs.

    train/  arithmetic.json where it ran and in which format, and the speeds by which `dtype: auto` chose it
            metrics.jsonl   one line an optimizer step
            pairs.parquet   one row a pair and epoch: log-probs, rewards, loss, where they moved, as trained
            diagnostics.json    pairs won, live and stranded; displacement by region; what the gate before step 1 saw
            checkpoint-N/   the Trainer's own; a killed run continues from the newest, where it is called likewise
    model/  the adapter (or all weights), the tokenizer; on request merged/

>>> trained = train(pairs, "embedded:smollm2-135m-instruct", TrainSettings(), folder)  # doctest: +SKIP
>>> trained.rows, trained.steps  # doctest: +SKIP
(290, 74)
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from transformers import TrainerCallback, TrainingArguments, set_seed

from anchorline.data.files import write_rows
from anchorline.data.jsonl import read_appended, read_json, write_json, write_jsonl
from anchorline.errors import DataError, RecipeError
from anchorline.llm.device import measured_products, pick_device
from anchorline.llm.models import Loaded, end_of_turn, fingerprint, load, torch_dtype
from anchorline.llm.quiet import quiet
from anchorline.progress import SILENT, Progress
from anchorline.train.arguments import from_arguments, further_arguments
from anchorline.train.arithmetic import wrapped
from anchorline.train.checkpoints import CALL, checkpoints, continues, disk_trouble, newest_checkpoint, remove, step_of
from anchorline.train.config import AUTO, TrainSettings
from anchorline.train.diagnostics import diagnose
from anchorline.train.forward import check_forward, plain_attention
from anchorline.train.gate import Start, check_start
from anchorline.train.native import native, unchanging
from anchorline.train.policy import autocast, load_policy, with_adapter
from anchorline.train.processes import joined, led, rank
from anchorline.train.records import Recorder
from anchorline.train.reference import reference_folder, reference_key, reference_logps
from anchorline.train.reference_tokens import wanted_tokens
from anchorline.train.retain import Retained, tokenise_retained
from anchorline.train.tokenise import Template, Tokenised, needs_mismatched, tokenise, with_mismatched
from anchorline.train.trainer import AnchoredTrainer, TrainingData, share_of
from anchorline.types import Failure, Pair, Unpaired

ELSEWHERE = {"reference_cache", "save_steps", "save_total_limit", "profile_steps", "merge"}
"""Settings with which a training may be continued that was begun without them: they change none of its steps."""


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
    heldout: Sequence[Pair] | Sequence[Unpaired] = (),
    retain: Retained | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    seed: int = 0,
    progress: Progress = SILENT,
) -> Trained:
    """Train `model` on pairs (or single labelled answers) and write `train/` and `model/` in `folder`.

    A folder with checkpoints of the same call is continued, to the same result. Rewards are
    r = beta · (log π(y|x) − log π_ref(y|x)), where the reference is the model as it came. Where a launcher has started
    several processes, each of them makes this call.

    Args:
        rows: what to train on.
        model: a model's id or folder.
        settings: how.
        folder: the run folder.
        heldout: rows to measure during training, where `settings.arguments` has an `eval_strategy`.
        retain: answers of `model` that are to stay as likely as they are, beside the objective.
        callbacks: the Trainer's.
        seed: of the adapter's first weights, the order of the rows and dropout.
        progress: told of each step.

    Raises:
        RecipeError: `settings.arguments` holds what cannot be handed to the Trainer.
        ModelError: the model cannot be trained (or not packed).
        DataError: no row is left to train on.
        TrainingError: training does not start where it should (`gate`), the folder holds checkpoints of another call, the
            loss is not finite, or the disk is full.

    """
    with joined():
        shown = progress if rank() == 0 else SILENT
        return _train(rows, model, settings, folder, heldout, retain, callbacks, seed, shown)


def _train(
    rows: Sequence[Pair] | Sequence[Unpaired],
    model: str,
    settings: TrainSettings,
    folder: Path,
    heldout: Sequence[Pair] | Sequence[Unpaired],
    retain: Retained | None,
    callbacks: Sequence[TrainerCallback],
    seed: int,
    progress: Progress,
) -> Trained:
    if settings.objective == AUTO:
        raise RecipeError(
            "objective auto is decided by `anchorline advise` or in a run; name an objective to train here"
        )
    further = further_arguments(settings.arguments)
    evaluates = further.get("eval_strategy", "no") != "no"
    logs = folder / "train"
    if settings.dtype == "auto":
        settings = settings.model_copy(update={"dtype": led(lambda: _format(logs))})
    loaded = load_policy(model, settings)
    data, measured = (
        tokenise(
            given,
            Template(loaded.tokenizer, end_of_turn(loaded)),
            max_tokens=settings.max_tokens,
            overlong=settings.overlong,
        )
        for given in (rows, heldout if evaluates else [])
    )
    if not data.examples:
        raise DataError(f"no row is left to train on{_why(data)}")
    if evaluates and not measured.examples:
        raise DataError(f"train.arguments.eval_strategy wants held-out pairs, and there are none{_why(measured)}")
    retain = retain if retain and retain.settings.weight > 0 else None
    kept = Tokenised([], [])
    if retain:
        template = Template(loaded.tokenizer, end_of_turn(loaded))
        kept = tokenise_retained(retain.answers, template, max_tokens=settings.max_tokens)
        if not kept.examples:
            raise DataError(f"no answer is left to retain{_why(kept)}; see retain.prompts")
    examples, heldout_examples = data.examples, measured.examples
    examples, heldout_examples = (
        with_mismatched(part, max_tokens=settings.max_tokens) if needs_mismatched(part, settings.objective) else part
        for part in (examples, heldout_examples)
    )
    bf16 = loaded.device.dtype == "bfloat16"
    arguments = _arguments(settings, further, len(examples), logs, seed=seed, bf16=bf16)
    total = steps_of(settings, further, len(examples))
    weights = fingerprint(loaded.path)
    logs.mkdir(parents=True, exist_ok=True)
    given = {"model": weights, "rows": rows, "retain": retain, "seed": seed}
    led(lambda: _begin(logs, loaded, given | settings.model_dump(exclude=ELSEWHERE)))
    pad = cast("int", loaded.tokenizer.pad_token_id)
    with quiet(), autocast(loaded), unchanging(loaded.model.parameters()):
        if settings.forward == "packed":
            check_forward(loaded.model, min(examples, key=lambda e: e.longest), pad=pad)
        cache = reference_folder(settings.reference_cache)
        key = reference_key(weights, arithmetic=_arithmetic(loaded), forward=settings.forward)
        reference = reference_logps(
            loaded.model,
            [*examples, *heldout_examples, *kept.examples],
            cache,
            key=key,
            packed=settings.forward == "packed",
            tokens_per_row=settings.tokens_per_row,
            pad=pad,
            progress=progress,
        )
    # loggers and DeepSpeed print what they find; stdout is for what the command says
    with quiet(), redirect_stdout(sys.stderr), progress.task("train", total=total, unit="steps") as advance:
        set_seed(seed)  # the adapter's first weights
        policy = with_adapter(loaded, settings, model)
        with autocast(loaded):
            start = check_start(policy, examples, reference, settings, cache / key, pad=pad)
        recorder = Recorder(
            settings,
            reference_tokens=wanted_tokens(cache / key, [*examples, *heldout_examples]),
            tokenizer=loaded.tokenizer,
            ends=end_of_turn(loaded),
        )
        with from_arguments(further):
            trainer = AnchoredTrainer(
                model=policy,
                args=arguments,
                data=TrainingData(
                    examples,
                    reference,
                    heldout_examples,
                    kept.examples,
                    wanted_tokens(cache / key, kept.examples) if retain else {},
                ),
                settings=settings,
                dtype=torch_dtype(loaded.device),
                pad=pad,
                folder=logs,
                advance=advance,
                recorder=recorder,
                retain=retain.settings if retain else None,
                callbacks=callbacks,
            )
        checkpoint = led(lambda: _last_state(logs))
        advance(step_of(checkpoint) if checkpoint else 0)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        with disk_trouble("the model", folder):
            _save(trainer, policy, loaded, folder / "model", merge=settings.merge)
    led(lambda: _tidy(logs, start))
    return Trained(folder / "model", len(examples), total, [*data.failures, *kept.failures])


def _begin(logs: Path, loaded: Loaded, call: Mapping[str, Any]) -> None:
    continues(logs, call)
    write_json(logs / "arithmetic.json", _facts(loaded))


def _format(logs: Path) -> str:
    """The format for `dtype: auto`; a training that continues keeps the one that it began with."""
    begun = logs / "arithmetic.json"
    if begun.is_file() and newest_checkpoint(logs):
        return read_json(begun)["dtype"]
    return pick_device().dtype


def _last_state(logs: Path) -> Path | None:
    """The newest checkpoint; what was recorded after it is forgotten."""
    checkpoint = newest_checkpoint(logs)
    for name in ("metrics.jsonl", "pairs.jsonl", "evaluations.jsonl"):
        _forget_after(logs / name, step=step_of(checkpoint) if checkpoint else 0)
    return checkpoint


def _tidy(logs: Path, start: Start) -> None:
    records = [row for _, row in read_appended(logs / "pairs.jsonl").rows]
    write_json(logs / "diagnostics.json", {"start": start._asdict(), **diagnose(records)})
    write_rows(logs / "pairs.parquet", records)
    for old in checkpoints(logs):
        remove(old)
    (logs / CALL).unlink()
    (logs / "pairs.jsonl").unlink()  # last: whoever continues from a checkpoint needs its lines


def _arguments(
    settings: TrainSettings, further: Mapping[str, Any], rows: int, logs: Path, *, seed: int, bf16: bool
) -> TrainingArguments:
    steps = steps_of(settings, further, rows)
    own: dict[str, Any] = {
        "output_dir": str(logs),
        "per_device_train_batch_size": share_of(settings).pairs,  # the trainer cuts them into rows
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        # the first of them has a rate of 0: a run of one step would train nothing
        "warmup_steps": min(math.ceil(settings.warmup * steps), steps - 1),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": settings.gradient_checkpointing,
        # DeepSpeed asks for it; FSDP would narrow what the stand-in for the head returns, and the trainer brings its own
        "bf16": bf16 and _by_deepspeed(further),
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "data_seed": seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_steps": settings.save_steps,
        "save_total_limit": settings.save_total_limit,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with from_arguments(further):
            arguments = TrainingArguments(**{**own, **further})
            # several GPUs and no launcher: the Trainer would cut a packed row between them
            arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _by_deepspeed(further: Mapping[str, Any]) -> bool:
    return wrapped() and (os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" or bool(further.get("deepspeed")))


def steps_of(settings: TrainSettings, further: Mapping[str, Any], rows: int) -> int:
    """Optimizer steps, as the Trainer counts them."""
    with from_arguments(further):
        most = int(further.get("max_steps", -1))
    return most if most > 0 else math.ceil(math.ceil(rows / settings.pairs_per_step) * settings.epochs)


def _dtype_of(loaded: Loaded) -> Literal["float32", "bfloat16"]:
    """The format in which the weights lie."""
    return "bfloat16" if next(loaded.model.parameters()).dtype == torch.bfloat16 else "float32"


def _arithmetic(loaded: Loaded) -> str:
    """What decides how a log-prob is rounded: where, and in which formats weights lie, are multiplied, and are added up.

    In half precision also whether by autocast, which rounds otherwise than lent copies.
    """
    formats = (_dtype_of(loaded), loaded.device.dtype, "float32")
    narrowing = "autocast" if loaded.device.dtype == "bfloat16" and wrapped() else None
    return " ".join(filter(None, (loaded.device.name, *formats, narrowing, _native(loaded))))


def _facts(loaded: Loaded) -> dict[str, Any]:
    return {**loaded.device._asdict(), "gflops": measured_products(), "native": _native(loaded)}


def _native(loaded: Loaded) -> str | None:
    """What computes beside torch in a training's steps, if anything does."""
    compiled = native() if loaded.device == ("cpu", "bfloat16") else None
    return None if compiled is None else compiled.name


def _forget_after(file: Path, *, step: int) -> None:
    """Drop the lines that a killed run wrote after its newest checkpoint: they come again."""
    if file.is_file():
        write_jsonl(file, [row for _, row in read_appended(file).rows if row["step"] <= step])


def _save(trainer: AnchoredTrainer, policy: Any, loaded: Loaded, target: Path, *, merge: bool) -> None:
    """Write the trained model, in one step. All processes come here: of sharded weights each holds a part."""
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state: Any = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if state:  # gathered, tied weights stand there twice
        own = {name for names in (policy.named_parameters(), policy.named_buffers()) for name, _ in names}
        state = {name: tensor for name, tensor in state.items() if name in own}

    def write() -> None:
        scratch = target.with_name(".model-writing")
        shutil.rmtree(scratch, ignore_errors=True)
        with plain_attention(policy):
            policy.save_pretrained(scratch, state_dict=state)
            loaded.tokenizer.save_pretrained(scratch)
            if merge and hasattr(policy, "merge_and_unload"):
                whole = load(str(scratch), dtype=_dtype_of(loaded)).model if sharded else policy
                whole.merge_and_unload().save_pretrained(scratch / "merged")
                loaded.tokenizer.save_pretrained(scratch / "merged")
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)

    led(write)


def _why(data: Tokenised) -> str:
    return (
        f": {data.failures[0].reason} (row {data.failures[0].id}, and {len(data.failures) - 1} more)"
        if data.failures
        else ""
    )
