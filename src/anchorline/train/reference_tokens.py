"""The reference's log-prob of every token, as it stands beside the sum in the reference's files.

Four bytes a token (float32, little-endian) in base64: exact, a quarter of the same numbers in decimal, and still JSON.

>>> import torch
>>> as_text(torch.tensor([-0.5, -2.0]))
'AAAAvwAAAMA='
>>> from_text(as_text(torch.tensor([-0.5, -2.0]))).tolist()
[-0.5, -2.0]
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from anchorline.data.jsonl import read_appended
from anchorline.train.processes import gathered
from anchorline.train.tokenise import Example, response_key


def as_text(tokens: Float[Tensor, " tokens"]) -> str:
    """The log-probs of one answer's tokens as a JSON string."""
    return base64.b64encode(tokens.detach().cpu().float().numpy().astype("<f4").tobytes()).decode()


def from_text(text: str) -> np.ndarray:
    """The log-probs behind such a string, float32."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def read_reference_tokens(place: Path, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The log-probs of the wanted answers' tokens, by `response_key`, from a file or a folder of files.

    A file that a full disk or a kill has cut short is read as far as it goes.
    """
    return {
        row["answer"]: from_text(row["tokens"])
        for file in (sorted(place.glob("*.jsonl")) if place.is_dir() else [place])
        for _, row in read_appended(file).rows
        if row["answer"] in wanted and "tokens" in row
    }


def wanted_tokens(place: Path, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Those of all responses of the examples. All processes have to call it: one may hold what another has computed."""
    wanted = {response_key(e.prompt, response) for e in examples for response in e.responses}
    found = read_reference_tokens(place, wanted)
    if any(gathered(len(found) < len(wanted))):  # the folder is not one that all processes see
        found = {key: tokens for part in gathered(found) for key, tokens in part.items()}
    return found
