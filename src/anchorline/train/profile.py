"""What share of a step's time goes into matrix products: torch's profiler around a few steps.

>>> trainer = Trainer(..., callbacks=[ProfileSteps(3)])  # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from anchorline.train.native import LISTED

PRODUCTS = frozenset(
    {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv", "mkldnn::_linear_pointwise"}
) | {LISTED + name for name in ("linear", "linear_wide", "adapted_forward", "adapted_backward")}
"""The operations that are a matrix product and nothing else."""
FUSED = ("scaled_dot_product", "flash_attention", "efficient_attention", "flex_attention", f"{LISTED}attention")
"""In their names: attention as one operation, in which products and softmax cannot be told apart."""


class ProfileSteps(TrainerCallback):
    """Profiles steps 2 to `count` + 1, the first one being slow for reasons of its own; `shares` is the last one's."""

    def __init__(self, count: int) -> None:
        self.count, self.shares = count, {}
        self._profile: Any = None
        self._begun = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start to listen."""
        self.shares = {}
        if 0 < state.global_step <= self.count:
            devices = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._profile = profile(activities=devices, acc_events=True)
            self._profile.__enter__()
            self._begun = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop, and work out the shares."""
        if self._profile is None:
            return
        wall = time.monotonic() - self._begun
        listened, self._profile = self._profile, None
        listened.__exit__(None, None, None)
        self.shares = time_shares(listened.key_averages(), wall, cuda=torch.cuda.is_available())


def time_shares(operations: Iterable[Any], wall: float, *, cuda: bool) -> dict[str, float]:
    """`matmul_share` and `attention_share` of the step: of its wall clock on a CPU, of all kernels' time on CUDA."""
    spent = {"matmul_share": 0.0, "attention_share": 0.0}
    total = 0.0
    for operation in operations:
        seconds = (operation.self_device_time_total if cuda else operation.self_cpu_time_total) / 1e6
        total += seconds
        if operation.key in PRODUCTS:
            spent["matmul_share"] += seconds
        elif any(part in operation.key for part in FUSED):
            spent["attention_share"] += seconds
    return {name: round(seconds / max(total if cuda else wall, 1e-9), 4) for name, seconds in spent.items()}
