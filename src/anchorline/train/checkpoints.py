"""Checkpoints that a crash, a kill or a full disk cannot spoil: written aside, brought to disk, renamed.

A folder `checkpoint-N` is therefore whole, or it is not there.

>>> newest_checkpoint(Path("runs/harbour/train"))  # doctest: +SKIP
PosixPath('runs/harbour/train/checkpoint-40')
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME

from anchorline.data.jsonl import read_json, write_json
from anchorline.errors import DataError, TrainingError
from anchorline.train.processes import led

ASIDE = ".checkpoint-writing"
CALL = "call.json"
DISK_TROUBLE = ("PytorchStreamWriter", "unexpected pos", "I/O error", "os error")
"""What torch and safetensors say when the disk refuses: neither raises an OSError then."""


@contextmanager
def written_aside(folder: Path, state: Any, *, keep: int) -> Iterator[Path]:
    """Where the Trainer writes `checkpoint-N` of its `state`; afterwards it is in `folder`, and `keep` of them are.

    Every process of the run enters it.

    Raises:
        TrainingError: the disk refuses; what was written goes, and the checkpoints before it stay.

    """
    aside = folder / ASIDE
    name = f"checkpoint-{state.global_step}"
    led(lambda: shutil.rmtree(aside, ignore_errors=True))
    try:
        with disk_trouble(f"the checkpoint of step {state.global_step}", folder):
            yield aside
            led(lambda: _bring(aside / name, folder / name, state, keep=keep))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextmanager
def disk_trouble(what: str, folder: Path) -> Iterator[None]:
    """Turn what a full disk makes of writing into one TrainingError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not isinstance(error, OSError) and not any(words in str(error) for words in DISK_TROUBLE):
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0][:200]
        free = shutil.disk_usage(folder).free / 2**20
        raise TrainingError(
            f"{what} cannot be written in {folder}: {why} ({free:.0f} MiB are free there); make room and start the same "
            "command again: it continues from the newest checkpoint that is whole"
        ) from error


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. What a kill left half removed, or another program half written, goes."""
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    for checkpoint in reversed(checkpoints(folder)):
        try:
            read_json(checkpoint / TRAINER_STATE_NAME)
        except DataError:
            shutil.rmtree(checkpoint)
        else:
            return checkpoint
    return None


def checkpoints(folder: Path) -> list[Path]:
    """All of a folder, the oldest first. What else bears such a name, a copy by hand for one, is not ours."""
    found = [at for at in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", at.name)]
    return sorted(found, key=step_of)


def continues(folder: Path, call: Mapping[str, Any]) -> None:
    """Note what a training was called with; where there are checkpoints, they are of such a call.

    Kept as digests: arguments may hold secrets.

    Raises:
        TrainingError: the checkpoints are of another call, which would be continued with other rows or settings.

    """
    digests = {name: _digest(value) for name, value in call.items()}
    if (folder / CALL).is_file() and (newest := newest_checkpoint(folder)):
        begun = read_json(folder / CALL)
        if other := sorted(name for name in digests if begun.get(name) != digests[name]):
            raise TrainingError(
                f"{newest} is of a training with other {', '.join(other)}; expected the same call, to continue it: "
                "choose another folder, or remove the checkpoint to begin anew"
            )
    write_json(folder / CALL, digests)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its state first, so that half of it never looks whole."""
    (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _bring(written: Path, target: Path, state: Any, *, keep: int) -> None:
    if state.best_model_checkpoint == str(written):
        state.best_model_checkpoint = str(target)
        state.save_to_json(str(written / TRAINER_STATE_NAME))
    for file in written.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    if target.exists():  # of a run that was continued from an older one
        remove(target)
    written.rename(target)
    shutil.rmtree(written.parent)
    _sync_folder(target.parent)
    # its own best is kept beside the newest
    best = state.best_model_checkpoint
    others = [c for c in checkpoints(target.parent) if str(c) != best]
    kept = max(keep - (best is not None and best != str(target)), 1)
    for old in others[: max(len(others) - kept, 0)]:
        remove(old)


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    # part by part: all rows as one text would take their memory again
    for part in value if isinstance(value, (list, tuple)) else [value]:
        digest.update(ascii(part).encode() + b"\0")
    return digest.hexdigest()[:16]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
