"""The run folder's memory: which stage is done, with which settings and inputs, what it wrote and how long it took.

A stage's key is a hash of the settings that it reads and of the *contents* of its input files. A stage whose key is
unchanged is not run again; a stage whose inputs were made again, but came out the same, is not either.

>>> stage_key("measure", {"bins": 20}, {"pairs.jsonl": "3f2a"}) == stage_key("measure", {"bins": 20}, {"pairs.jsonl": "3f2a"})
True
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from anchorline.data import read_json, write_json
from anchorline.errors import DataError, RunFolderError

FILE = "manifest.json"


class StageRecord(BaseModel):
    """What the manifest says of one stage."""

    model_config = ConfigDict(extra="forbid")

    key: str
    status: str
    started: str
    seconds: float = 0.0
    """Of all attempts together: a stage that was killed and continued counts both."""
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    peak_rss_gib: float = 0.0


class Manifest(BaseModel):
    """What `manifest.json` holds."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(default_factory=lambda: uuid4().hex)
    """What the run's payments are kept under in a request cache."""
    name: str = ""
    anchorline: str = ""
    seed: int = 0
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
    counts: dict[str, int] = {}
    costs: dict[str, Any] = {}
    """Calls, tokens and US dollars by what they were for, over all resumes; dollars are null where a price is unknown."""
    makers: dict[str, Any] = {}
    """What became of each maker's rows, by stage: pairs, failures, replies, verdicts, costs."""
    stages: dict[str, StageRecord] = {}


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest, or an empty one.

    Raises:
        RunFolderError: it was not written by anchorline, or was damaged.

    """
    file = folder / FILE
    if not file.is_file():
        return Manifest()
    try:
        return Manifest.model_validate(read_json(file))
    except (DataError, ValueError) as error:
        raise RunFolderError(f"{file} is not a manifest of anchorline; name another folder with --out") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step."""
    write_json(folder / FILE, manifest.model_dump())


def stage_key(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The hash under which a stage counts as done."""
    text = json.dumps([stage, settings, dict(inputs)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash(path: Path) -> str:
    """sha256 of a file, or of a folder's files and their names; "missing" where there is nothing."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path)}:{content_hash(file)}\n".encode())
        return digest.hexdigest()
    if not path.is_file():
        return "missing"
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextmanager
def open_folder(folder: Path) -> Iterator[None]:
    """Make the run folder and hold it against a second run; a killed process lets go of it by itself.

    Raises:
        RunFolderError: it cannot be written, is in use, or holds something else.

    """
    read_manifest(folder)  # before the lock: a folder that is not ours stays as it is
    try:
        if (
            folder.is_dir()
            and any(folder.iterdir())
            and not (folder / FILE).is_file()
            and not (folder / ".lock").is_file()
        ):
            raise RunFolderError(f"{folder} holds files that no run wrote; name an empty or a new folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written ({error.strerror}); name another folder with --out") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{folder} is in use by another run; wait for it, or name another folder with --out"
            ) from None
        for torn in folder.rglob(".*.tmp"):  # a killed run was about to put it in the place of a file
            torn.unlink()
        yield
    finally:
        os.close(lock)
