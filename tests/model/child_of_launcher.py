"""What `accelerate launch` starts in the tests: several trainings, one after the other, on tiny models.

    accelerate launch … child_of_launcher.py KIND MODEL FOLDER ACTION

accelerate shards on GPUs only. For KINDs fsdp2 and zero3 it is told here that the CPU is one, before anything else happens.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from test_train_run import ROWS, At, settings

from anchorline.cli.show import exit_code
from anchorline.errors import TrainingError
from anchorline.train.config import LoraSettings, RetainSettings
from anchorline.train.processes import joined, rank
from anchorline.train.retain import Retained
from anchorline.types import Answer

FIVE = ROWS[:5]  # of a step with one pair, the second process has none
CASES: dict[str, Any] = {
    "lora": settings(),
    "full": settings(lora=None),
    "accumulated": settings("dpo", pairs_per_step=5, tokens_per_row=1),
    "retained": settings(),
    "full, kept": settings(lora=None, pairs_per_step=2, save_steps=2, schedule="cosine", epochs=3),
    "lora, bfloat16": settings(dtype="bfloat16"),
    "full, bfloat16": settings(lora=None, dtype="bfloat16"),
    "dropout, kept": settings(lora=LoraSettings(rank=4, dropout=0.2), pairs_per_step=2, save_steps=2, epochs=3),
}
RETAIN = {
    "retained": Retained(
        [Answer(f"own{p.id}", p.prompt, p.rejected, "stop") for p in ROWS[:3]],
        RetainSettings(prompts="-", weight=3.0, per_step=3),
    )
}
KEPT = {"ddp": "dropout, kept", "fsdp2": "full, kept", "zero3": "full, kept"}


def is_sharded(model: Any) -> bool:
    """Whether every weight that trains is divided."""
    from torch.distributed.tensor import DTensor

    return all(
        isinstance(p, DTensor) or (hasattr(p, "ds_tensor") and p.numel() < p.ds_numel)
        for p in model.parameters()
        if p.requires_grad
    )


def sharding_on_the_cpu(kind: str) -> None:
    """As on GPUs; ZeRO-3 divides small weights too, which it would leave whole."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    if kind == "zero3":
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        DeepSpeedZeroConfig.model_fields["param_persistence_threshold"].default = 0
        DeepSpeedZeroConfig.model_rebuild(force=True)


def main(kind: str, model: str, folder: Path, action: str) -> None:
    """Train as `action` says."""
    from anchorline.train.run import train

    def run(case: str, name: str, step: int, act: Any) -> None:
        chosen = CASES[case].model_copy(update={"reference_cache": str(folder / "reference")})
        train(FIVE, model, chosen, folder / name, retain=RETAIN.get(case), callbacks=[At(step, act)])

    def check(network: Any) -> None:
        assert is_sharded(network) is (kind != "ddp"), "the weights are not divided, so nothing is tested"

    def fail(_: Any) -> None:
        if rank() == 1:
            raise TrainingError("the second process gives up")

    with joined():
        if action == "killed":
            run(KEPT[kind], "killed", 6, lambda _: os.kill(os.getpid(), signal.SIGKILL))
        elif action == "failing":
            run("lora", "failing", 2, fail)
        elif action == "bfloat16":
            for case in ("lora, bfloat16", "full, bfloat16"):
                run(case, case, 1, check)
        else:
            for case in ("lora", "full", "accumulated", "retained"):
                run(case, case, 1, check)
            for name in ("killed", "whole"):
                run(KEPT[kind], name, 1, check)


if __name__ == "__main__":
    if sys.argv[1] != "ddp":
        sharding_on_the_cpu(sys.argv[1])
    sys.exit(exit_code(lambda: main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])))
