"""The trainer and real processes: one that is killed with SIGKILL, and two that train together, whole or sharded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from child_of_launcher import CASES, FIVE, RETAIN
from peft import PeftModel
from test_train_run import ROWS, logps_of, metrics, pairs, same, settings, weights
from test_train_toys import save_tiny
from transformers import AutoModelForCausalLM

from anchorline.train.run import train

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


# ---- two processes ---------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
KINDS = {
    "ddp": ("cpu-ddp.yaml",),
    "fsdp2": ("fsdp2.yaml", "--num_processes", "2"),
    "zero3": ("zero3.yaml", "--num_processes", "2"),
}


def launch(
    kind: str, model: str, folder: Path, action: str, mixed_precision: str = "no"
) -> subprocess.CompletedProcess[str]:
    """Two processes of `child_of_launcher.py`, by the shipped configuration and the launcher as it is."""
    config, *options = KINDS[kind]
    script = Path(__file__).with_name("child_of_launcher.py")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.accelerate_cli",
            "launch",
            "--config_file",
            str(ROOT / "configs" / "accelerate" / config),
            "--main_process_port",
            "0",
            *options,
            "--mixed_precision",
            mixed_precision,
            *map(str, (script, kind, model, folder, action)),
        ],
        env=ENVIRONMENT | _where(kind),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _where(kind: str) -> dict[str, str]:
    if kind == "ddp":
        return {}
    # DeepSpeed compiles what processes of one machine exchange by, and looks for ninja
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu", "PATH": path}


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory) -> Path:
    """The cases in this process."""
    folder = tmp_path_factory.mktemp("alone")
    for case in ("lora", "full", "accumulated", "retained"):
        train(FIVE, model, CASES[case], folder / case, retain=RETAIN.get(case))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def together(request, model, tmp_path_factory) -> Path:
    """The cases in two processes; of two equal trainings one was killed on the way."""
    folder = tmp_path_factory.mktemp(request.param)
    killed = launch(request.param, model, folder, "killed")
    assert killed.returncode != 0 and (folder / "killed/train/checkpoint-6").is_dir() is False, killed.stderr[-3000:]
    assert (folder / "killed/train/checkpoint-4").is_dir() and not (folder / "killed/model").exists()
    done = launch(request.param, model, folder, "cases")
    assert done.returncode == 0, done.stderr[-5000:]
    assert "terminate called" not in done.stderr
    return folder


SIGNS = {"accuracy", "chosen_fell", "both_fell"}


@pytest.mark.parametrize("case", ["lora", "full", "accumulated", "retained"])
def test_two_processes_train_as_one_does(case, together, alone):
    ours, theirs = metrics(together / case), metrics(alone / case)
    assert len(ours) == len(theirs) == (2 if case == "accumulated" else 4)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        # where nothing has moved yet, which way it fell is the sign of a rounding error
        names = one.keys() - SIGNS if one["step"] == 1 else one.keys()
        assert {k: one[k] for k in names} == pytest.approx({k: other[k] for k in names}, rel=1e-3, abs=1e-3)
    # every pair once an epoch, and in the same step
    both = [sorted((r["step"], r["epoch"], r["id"]) for r in pairs(folder / case)) for folder in (together, alone)]
    assert both[0] == both[1] and len(both[0]) == 10
    saved, expected = (weights(folder / case) for folder in (together, alone))
    assert saved.keys() == expected.keys()
    assert all(saved[name].shape == expected[name].shape for name in expected)


def test_the_model_that_two_processes_saved_is_the_one_that_they_trained(together, alone, model):
    """Adam divides rounding errors by themselves where a gradient is 0: compared through their use."""
    for case in ("lora", "full", "retained"):
        found, expected = (logps_of(loaded(folder / case / "model", model)) for folder in (together, alone))
        moved = (expected - logps_of(loaded(None, model))).abs().mean()
        assert (found - expected).abs().max() < 0.02 * moved


def loaded(saved: Path | None, model: str) -> Any:
    base = AutoModelForCausalLM.from_pretrained(model)
    if saved is None:
        return base
    if (saved / "adapter_config.json").exists():
        return PeftModel.from_pretrained(base, str(saved))
    return AutoModelForCausalLM.from_pretrained(saved)


def test_two_killed_processes_continue_to_the_very_same_end(together):
    same(together / "killed", together / "whole")
    assert len(metrics(together / "whole")) == 9


@pytest.mark.parametrize("case", ["lora, bfloat16", "full, bfloat16"])
def test_shards_in_bfloat16_as_their_configurations_have_it(case, in_bfloat16, model, tmp_path):
    kind, folder = in_bfloat16
    train(FIVE, model, CASES[case], tmp_path / "alone")
    ours, theirs = (metrics(folder) for folder in (folder / case, tmp_path / "alone"))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=0.03)
    assert theirs[-1]["margin"] > 0.4
    # DeepSpeed narrows weights that autocast leaves wide, norms among them: of all weights, rewards at step 1 are not quite 0
    narrowed = (kind, case) == ("zero3", "full, bfloat16")
    assert abs(ours[0]["chosen_reward"]) < (0.05 if narrowed else 1e-9)


@pytest.fixture(scope="module", params=["fsdp2", "zero3"])
def in_bfloat16(request, model, tmp_path_factory) -> tuple[str, Path]:
    """The kind, and the folder of its cases."""
    folder = tmp_path_factory.mktemp("bfloat16")
    done = launch(
        request.param, model, folder, "bfloat16", mixed_precision="bf16" if request.param == "zero3" else "no"
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "built successfully" not in done.stdout, "stdout is for what a command says"
    return request.param, folder


def test_an_error_of_one_process_ends_both_and_is_told_once(model, tmp_path):
    ended = launch("ddp", model, tmp_path, "failing")
    told = [line for line in ended.stderr.splitlines() if "error:" in line and "torch" not in line]
    assert ended.returncode == 1 and told == ["error: the second process gives up"], ended.stderr[-3000:]
    assert "anchorline/" not in ended.stderr, "a traceback of ours"
