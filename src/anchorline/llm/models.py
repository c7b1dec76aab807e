"""From a model id to a folder, and from a folder to a model and its tokenizer.

An id is `embedded:NAME`, a folder with `config.json`, or a hub id `owner/name` (through `HF_HOME`, `HF_TOKEN`). A folder
that holds a PEFT adapter is loaded together with the base model that it names.

>>> resolve("embedded:smollm2-135m-instruct")  # doctest: +SKIP
PosixPath('/home/me/.cache/anchorline/models/smollm2-135m-instruct-3f2a…')
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from anchorline.errors import MissingExtra, ModelError
from anchorline.llm.device import Device, DtypeName, keep_freed_memory, pick_device
from anchorline.llm.embedded import PREFIX, embedded_path
from anchorline.llm.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PART = 4096
"""Bytes that are read of a tensor in one place."""
MOST_HEADER = 100 << 20
"""Bytes; safetensors itself reads no longer one."""


class Loaded(NamedTuple):
    """A causal language model in eval mode on its device, its tokenizer, and where it came from."""

    model: Any
    """transformers' model, or PEFT's around it."""
    tokenizer: PreTrainedTokenizerBase
    path: Path
    device: Device


def resolve(model: str) -> Path:
    """The local folder behind a model id; hub ids are fetched or found in the hub's cache.

    Raises:
        ModelError: nothing is there, and what to do about it.

    """
    if model.startswith(PREFIX):
        return embedded_path(model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not ((folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()):
            raise ModelError(
                f"the folder {model} holds no model: config.json or adapter_config.json was expected in it"
            )
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or not HUB_ID.fullmatch(model):
        raise ModelError(
            f"no model at {model!r}: expected embedded:smollm2-135m-instruct, an existing folder, or a hub id owner/name"
        )
    return _from_hub(model)


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "*.txt"]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"the model {model!r} could not be fetched from the hub ({first_line(error)}); check the id, the network and "
            "HF_TOKEN, or name a local folder"
        ) from error


def load(model: str, *, dtype: DtypeName = "auto") -> Loaded:
    """Load a model for answering or training.

    Raises:
        ModelError: it is missing, not a causal language model, or has no chat template.
        MissingExtra: torch and transformers are not installed.

    """
    device = pick_device(dtype)
    if device.name == "cpu":
        keep_freed_memory()
    path = resolve(model)
    try:
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra("running a model", "train") from error
    base = adapter_base(path)
    with quiet():
        try:
            network: Any = AutoModelForCausalLM.from_pretrained(
                resolve(base) if base else path, dtype=torch_dtype(device)
            )
            tokenizer = load_tokenizer(model)
            if base:
                from peft import PeftModel

                # in one format: PEFT would keep the adapter in float32, and every layer would turn states to and fro
                network = PeftModel.from_pretrained(network, str(path)).to(torch_dtype(device))
        except ModelError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"the model {model!r} could not be loaded: {first_line(error)}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"the model {model!r} has no chat template; anchorline aligns chat models")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return Loaded(network.to(device.name).eval(), tokenizer, path, device)


def load_tokenizer(model: str) -> Any:
    """The tokenizer alone, as transformers gives it.

    Raises:
        ModelError: there is none.
        MissingExtra: transformers is not installed.

    """
    path = resolve(model)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra("running a model", "train") from error
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"the tokenizer of {model!r} could not be loaded: {first_line(error)}") from error


def _contiguous(head: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The states that the head reads, as one block of memory.

    Of the last positions of several rows, which are strided, torch multiplies each row with its own copy of frozen
    weights: gigabytes, and seconds, for a batch of 60.
    """
    del head
    return tuple(state.contiguous() for state in inputs)


def torch_dtype(device: Device) -> torch.dtype:
    """The torch object for the device's dtype name."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[device.dtype]


def adapter_base(path: Path) -> str | None:
    """The id of the model under the PEFT adapter in this folder, or None where it holds whole weights."""
    file = path / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str):
        raise ModelError(f"{file} names no base model (base_model_name_or_path)")
    return base


def first_line(error: Exception) -> str:
    """The first line of an error's text, bounded, for a message of ours."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def end_of_turn(loaded: Loaded) -> frozenset[int]:
    """The token ids at which the model stops."""
    configured = loaded.model.generation_config.eos_token_id if loaded.model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, loaded.tokenizer.eos_token_id] if i is not None)


def fingerprint(path: Path) -> str:
    """A hash of what decides a model's outputs: config, tokenizer, template, and its weights.

    Of each tensor its name, type and shape are read, and a few KiB at its start, middle and end: that takes milliseconds for
    a large model, too, and a fine-tune of any layers differs somewhere in what is read. Files of weights
    of another kind (`.bin`) are read whole.
    """
    base = adapter_base(path)
    digest = hashlib.sha256(fingerprint(resolve(base)).encode() if base else b"")
    for file in sorted(
        p for p in path.iterdir() if p.suffix in {".json", ".jinja", ".safetensors", ".bin", ".model", ".txt"}
    ):
        digest.update(json.dumps([file.name, file.stat().st_size]).encode())
        with file.open("rb") as f:
            for piece in _weights(f) if file.suffix == ".safetensors" else [hashlib.file_digest(f, "sha256").digest()]:
                digest.update(piece)
    return digest.hexdigest()


def _weights(file: BinaryIO) -> Iterator[bytes]:
    """The header of a safetensors file (8 bytes with its length, then JSON), and a part of every tensor."""
    opening = file.read(8)
    yield opening
    header = file.read(min(int.from_bytes(opening, "little"), MOST_HEADER))
    yield header
    try:
        places = [entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"]
        spans = sorted((int(begin), int(end)) for begin, end in places)
    except (ValueError, LookupError, TypeError, AttributeError):
        return  # the file is torn: whoever loads it says so
    for begin, end in ((begin, end) for begin, end in spans if 0 <= begin < end):
        for start in sorted({begin, max(begin, (begin + end - PART) // 2), max(begin, end - PART)}):
            file.seek(len(opening) + len(header) + start)
            yield file.read(min(PART, end - start))
