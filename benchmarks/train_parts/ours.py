"""anchorline's trainer on the benchmark's pairs, in a process of its own: `ours.py JOB.json` prints one JSON line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet
import torch
from measure import Steps, forget_peak, peak_gb  # pyright: ignore[reportMissingImports]  (beside this file)

from anchorline.data.jsonl import read_appended
from anchorline.progress import Advance
from anchorline.train.config import LoraSettings, TrainSettings
from anchorline.train.run import train
from anchorline.types import Message, Pair


class Clock:
    """A Progress that keeps the times."""

    def __init__(self) -> None:
        self.steps, self.reference_s = Steps(), 0.0

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Advance]:
        del total, unit
        start = time.perf_counter()
        yield lambda count, rate="": self.steps.mark() if label == "train" and count else None
        if label != "train":
            self.reference_s += time.perf_counter() - start


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    pairs = [
        Pair(str(i), (Message("user", p["prompt"]),), p["chosen"], p["rejected"]) for i, p in enumerate(job["pairs"])
    ]
    settings = TrainSettings(
        objective={"apo_zero": 1.0},
        beta=job["beta"],
        learning_rate=job["learning_rate"],
        schedule="constant_with_warmup",
        warmup=0.0,
        pairs_per_step=job["pairs_per_step"],
        lora=LoraSettings(rank=16, alpha=32) if job["lora"] else None,
        max_tokens=100_000,
        dtype="bfloat16",
        save_steps=100_000,
        reference_cache=str(Path(job["folder"]) / "reference"),  # else an earlier run's would cost nothing
        gradient_checkpointing=job.get("checkpointing", False),
    )
    clock = Clock()
    forget_peak()
    folder = Path(job["folder"])
    train(pairs, job["model"], settings, folder, seed=0, progress=clock)
    rows = [row for _, row in read_appended(folder / "train" / "metrics.jsonl").rows]
    seen = pyarrow.parquet.read_table(folder / "train" / "pairs.parquet").to_pylist()
    figures = {
        "step_s": clock.steps.seconds_per_step,
        "reference_s": clock.reference_s,
        "peak_gb": peak_gb(),
        "losses": [row["loss"] for row in rows],
        "order": [int(row["id"]) for row in sorted(seen, key=lambda row: row["step"])],
    }
    print(json.dumps(figures))


main()
