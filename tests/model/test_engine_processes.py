"""The trainer and real processes: one that is killed with SIGKILL, and two that train together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train_run import ROWS, metrics, pairs, same, settings
from test_train_toys import save_tiny

from anchorline.train.run import train

pytestmark = pytest.mark.model

UNIT = Path(__file__).parent.parent / "unit"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(UNIT), "HF_HUB_OFFLINE": "1"}
LONG = settings(pairs_per_step=2, epochs=20, save_steps=5, schedule="cosine")

TRAIN = """
import sys
from pathlib import Path
from test_engine_processes import LONG, ROWS
from anchorline.train.run import train
train(ROWS, sys.argv[1], LONG, Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def as_many_threads_as_the_children():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def child(code: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{UNIT}{os.pathsep}{Path(__file__).parent}", **variables}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_a_training_killed_with_sigkill_continues_to_the_same_end(model, tmp_path):
    running = child(TRAIN, model, str(tmp_path / "killed"))
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed/train").glob("checkpoint-1?")):
            assert time.monotonic() < deadline and running.poll() is None, running.communicate()[1]
            time.sleep(0.005)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == -signal.SIGKILL and not (tmp_path / "killed/model").exists()
    done = len(metrics(tmp_path / "killed"))
    assert 10 <= done < 60
    train(ROWS, model, LONG, tmp_path / "killed")
    train(ROWS, model, LONG, tmp_path / "whole")
    same(tmp_path / "killed", tmp_path / "whole")
    assert len(pairs(tmp_path / "killed")) == 120


# One step of plain gradient descent at a rate of 1: the weights' change is the gradient.
STEP = """
import json, os, sys
from pathlib import Path
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments
from test_train_run import ROWS, settings
from test_train_toys import END, PAD, template
from anchorline.llm.models import load
from anchorline.train.attention import PACKED
from anchorline.train.reference import reference_logps
from anchorline.train.tokenise import tokenise
from anchorline.train.trainer import AnchoredTrainer, TrainingData

model, folder, kind, rows = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
network = load(model, dtype="float32").model
network.set_attn_implementation(PACKED)
examples = tokenise(ROWS[:4], template(), max_tokens=99, overlong="drop").examples
found = reference_logps(network, examples, folder / "reference", key="k", packed=True, pad=PAD)
reference = {key: logp + 0.5 for key, logp in found.items()}  # not the policy's own: the four pairs then weigh differently
if kind == "lora":
    torch.manual_seed(0)
    network = get_peft_model(network, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
arguments = TrainingArguments(
    output_dir=str(folder), per_device_train_batch_size=rows, max_steps=1, optim="sgd", learning_rate=1.0,
    lr_scheduler_type="constant", max_grad_norm=0, use_cpu=True, logging_steps=1, seed=0,
    ddp_backend="gloo" if "RANK" in os.environ else None,
    save_strategy="no", remove_unused_columns=False, disable_tqdm=True, report_to="none", dataloader_pin_memory=False,
)
trainer = AnchoredTrainer(
    model=network, args=arguments, data=TrainingData(examples, reference), settings=settings(), pad=PAD,
    folder=folder, advance=lambda _: None,
)
before = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
trainer.train()
gradients = {n: (before[n] - p.detach()).contiguous() for n, p in network.named_parameters() if p.requires_grad}
assert arguments.world_size == 4 // rows
if arguments.process_index == 0:
    from safetensors.torch import save_file
    save_file(gradients, folder / "gradients.safetensors")
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_processes_take_the_step_that_one_takes(kind, model, tmp_path):
    port = free_port()
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    folders = {name: tmp_path / name for name in ("one", "two-0", "two-1")}
    for folder in folders.values():
        folder.mkdir()
    children = [child(STEP, model, str(folders["one"]), kind, "4")]
    for rank in "01":
        children.append(
            child(STEP, model, str(folders[f"two-{rank}"]), kind, "2", RANK=rank, LOCAL_RANK=rank, **together)
        )
    try:
        for process in children:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in children:  # a rank whose partner failed would wait for it
            process.kill()
            process.communicate()
    one, two = (load_file(folders[name] / "gradients.safetensors") for name in ("one", "two-0"))
    assert one.keys() == two.keys() and sum(float(g.norm()) for g in one.values()) > 1
    for name, gradient in one.items():
        assert torch.allclose(two[name], gradient, rtol=1e-4, atol=1e-5), name
    lines = [json.loads((folders[name] / "metrics.jsonl").read_text()) for name in ("one", "two-0")]
    assert lines[1]["loss"] == pytest.approx(lines[0]["loss"], abs=1e-5)
