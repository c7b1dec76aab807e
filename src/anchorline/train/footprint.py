"""What one row costs: seconds of its forward and backward, and the bytes that it keeps in between.

>>> line([(400, 1.0), (1600, 3.4)])
(0.2, 0.002)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from anchorline.train.arithmetic import multiplying_in
from anchorline.train.config import TrainSettings
from anchorline.train.forward import example_token_logps, rounds_to_half
from anchorline.train.layout import pack
from anchorline.train.tokenise import Example


class Footprint(NamedTuple):
    """The cost of a row."""

    tokens: int
    seconds: float
    """Forward and backward."""
    forward_seconds: float
    """Forward without a gradient, as the reference is computed."""
    optimizer_seconds: float
    """One step of AdamW."""
    saved_bytes: int
    """What the forward keeps for the backward, weights left out."""


def measure_row(
    policy: Any, row: Sequence[Example], settings: TrainSettings, *, pad: int, dtype: torch.dtype = torch.float32
) -> Footprint:
    """Run a row in a number format. Its gradients are thrown away; the optimizer's step is of size 0."""
    with multiplying_in(policy, dtype):
        footprint = _measured(policy, row, settings, pad=pad)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.0)
    begun = _now()
    optimizer.step()
    stepped = _now() - begun
    policy.zero_grad(set_to_none=True)
    return footprint._replace(optimizer_seconds=stepped)


def _measured(policy: Any, row: Sequence[Example], settings: TrainSettings, *, pad: int) -> Footprint:
    packed = settings.forward == "packed"
    tokens = max(e.longest for e in row) * sum(len(e.responses) for e in row)
    if packed:
        tokens = pack(row, share=not rounds_to_half(policy)).tokens.shape[1]
    with torch.no_grad():
        begun = _now()
        example_token_logps(policy, row, packed=packed, pad=pad)
        forward = _now() - begun
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in [*policy.parameters(), *policy.buffers()]}

    def saw(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    begun = _now()
    with torch.autograd.graph.saved_tensors_hooks(saw, lambda tensor: tensor):
        total = example_token_logps(policy, row, packed=packed, pad=pad).sum()
    total.backward()
    seconds = _now() - begun
    return Footprint(tokens, seconds, forward, 0.0, sum(kept.values()))


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Start and slope of the line through two points, neither below 0; through the origin where there is one point."""
    (x1, y1), (x2, y2) = points[0], points[-1]
    if x2 <= x1:
        return 0.0, y1 / x1
    slope = (y2 - y1) / (x2 - x1)
    start = y1 - slope * x1
    if start < 0 or slope < 0:  # two measurements that noise has put out of order
        return 0.0, y2 / x2
    return round(start, 12), round(slope, 12)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
