"""TRL's DPOTrainer on the benchmark's pairs, in a process of its own: `trl_side.py JOB.json` prints one JSON line."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measure import Steps, forget_peak, peak_gb  # pyright: ignore[reportMissingImports]  (beside this file)
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class Clock(TrainerCallback):
    """Notes when a step has ended."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.mark()


class Recorded(DPOTrainer):
    """The same trainer; it also keeps each micro-batch's loss as a number."""

    losses: list[tuple[int, float]]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.losses.append((self.state.global_step, float(result[0] if return_outputs else result)))
        return result


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or job["threads"]))
    # as TRL would load it, save that frozen weights under an adapter are bfloat16, which is faster
    exact = job.get("exact", False)
    dtype = torch.bfloat16 if job["lora"] and not exact else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    turns = [
        {
            "prompt": [{"role": "user", "content": p["prompt"]}],
            "chosen": [{"role": "assistant", "content": p["chosen"]}],
            "rejected": [{"role": "assistant", "content": p["rejected"]}],
        }
        for p in (job["pairs"][i] for i in job["order"])
    ]
    micro = job.get("micro_batch", job["pairs_per_step"])
    arguments = DPOConfig(
        output_dir=job["folder"],
        loss_type="apo_zero",
        beta=job["beta"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=job["pairs_per_step"] // micro,
        num_train_epochs=1,
        max_length=None,
        bf16=not exact,
        gradient_checkpointing=job["checkpointing"],
        precompute_ref_log_probs=job["precompute"],
        train_sampling_strategy="sequential",
        seed=0,
        data_seed=0,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if job["lora"] else None
    steps = Steps()
    forget_peak()
    start = time.perf_counter()
    trainer = Recorded(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(turns),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Clock(steps)],
    )
    trainer.losses = []
    precompute_s = time.perf_counter() - start if job["precompute"] else 0.0
    trainer.train()
    by_step: dict[int, list[float]] = {}
    for step, loss in trainer.losses:
        by_step.setdefault(step, []).append(loss)
    figures = {
        "step_s": steps.seconds_per_step,
        "reference_s": precompute_s,
        "peak_gb": peak_gb(),
        "losses": [sum(x) / len(x) for x in by_step.values()],
        "device": str(trainer.accelerator.device),
        "dtype": str(next(trainer.model.parameters()).dtype),
    }
    print(json.dumps(figures))


main()
