"""The trainer and real processes: one that is killed with SIGKILL, and two that train together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_train_run import ROWS, metrics, pairs, same, settings
from test_train_toys import PAD, save_tiny, template
from transformers import TrainingArguments

from anchorline.llm.models import load
from anchorline.train.attention import PACKED
from anchorline.train.reference import reference_logps
from anchorline.train.run import train
from anchorline.train.tokenise import tokenise
from anchorline.train.trainer import AnchoredTrainer, TrainingData

pytestmark = pytest.mark.model

UNIT = Path(__file__).parent.parent / "unit"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(UNIT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
}
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
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=ENVIRONMENT | variables, stderr=subprocess.PIPE, text=True
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


STEP = """
import sys
from pathlib import Path
import torch.distributed
from test_engine_processes import one_step
one_step(sys.argv[1], Path(sys.argv[2]), rows=2)
torch.distributed.barrier()
torch.distributed.destroy_process_group()  # else gloo's threads may still run when the interpreter ends, which aborts
"""


def one_step(model: str, folder: Path, *, rows: int) -> None:
    """Save the gradients of one step over four pairs, `rows` of them in this process.

    The step is plain gradient descent at a rate of 1: the weights' change is the gradient.
    """
    for kind in ("lora", "full"):
        network: Any = load(model, dtype="float32").model
        network.set_attn_implementation(PACKED)
        examples = tokenise(ROWS[:4], template(), max_tokens=99, overlong="drop").examples
        found = reference_logps(
            network, examples, folder / "reference", key="k", packed=True, tokens_per_row=200, pad=PAD
        )
        # not the policy's own, so that the pairs weigh differently
        reference = {key: logp + 3.0 * (number % 3) for number, (key, logp) in enumerate(found.items())}
        if kind == "lora":
            torch.manual_seed(0)
            network = get_peft_model(network, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=rows,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
        )
        assert arguments.world_size == 4 // rows
        trainer = AnchoredTrainer(
            model=network,
            args=arguments,
            data=TrainingData(examples, reference),
            settings=settings(),
            pad=PAD,
            folder=folder,
            advance=lambda _: None,
        )
        before = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
        trainer.train()
        after = dict(network.named_parameters())
        save_file({name: (p - after[name].detach()) for name, p in before.items()}, folder / f"{kind}.safetensors")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_two_processes_take_the_step_that_one_takes(model, tmp_path):
    folders = [tmp_path / name for name in ("rank-0", "rank-1", "alone")]
    for folder in folders:
        folder.mkdir()
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [
        child(STEP, model, str(folders[rank]), RANK=str(rank), LOCAL_RANK=str(rank), **together) for rank in (0, 1)
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the Trainer's own, which `train` keeps quiet
            one_step(model, folders[2], rows=4)
        for rank in ranks:
            _, errors = rank.communicate(timeout=240)
            assert rank.returncode == 0, errors[-3000:]
    finally:
        for rank in ranks:  # one whose partner failed would wait for it
            rank.kill()
            rank.communicate()
    for kind in ("lora", "full"):
        first, second, alone = (load_file(folder / f"{kind}.safetensors") for folder in folders)
        assert first.keys() == alone.keys() and sum(float(g.norm()) for g in alone.values()) > 1
        for name, gradient in alone.items():
            assert torch.equal(first[name], second[name]), name
            assert torch.allclose(first[name], gradient, rtol=1e-4, atol=1e-5), name
    first, alone = (
        [json.loads(line)["loss"] for line in (folders[i] / "metrics.jsonl").read_text().splitlines()] for i in (0, 2)
    )
    assert first == pytest.approx(alone, abs=1e-5) and len(first) == 2
