"""What both contenders are measured with: the steps' clock, and peak memory since a moment of our choice."""

from __future__ import annotations

import time
from pathlib import Path


def forget_peak() -> None:
    """Start the process's peak memory anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gb() -> float:
    """Largest resident memory since `forget_peak`, in 10^9 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9


class Steps:
    """The times at which optimizer steps ended. The first step is warm-up and counts for nobody."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def mark(self) -> None:
        """A step has ended."""
        self.ends.append(time.perf_counter())

    @property
    def seconds_per_step(self) -> float:
        """The mean over all steps but the first."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
