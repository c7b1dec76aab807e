"""A whole run with the real engines on the tiny model: progress on a terminal, and what a changed setting reruns."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from anchorline.cli.main import app
from anchorline.data import read_json, read_jsonl
from tiny_chat import save_tiny_chat, write_recipe

pytestmark = pytest.mark.e2e

TRAINED = {"train", "evaluate", "report"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe in `r` that was run to its end in `out`, with a terminal in the place of stderr."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_chat(folder / "model")
    write_recipe(folder / "r", "../model")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "anchorline", "run", "r/recipe.yaml", "--out", "out"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120", "OMP_NUM_THREADS": "1"},
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the run has ended and its end of the terminal is closed
        pass
    out, _ = process.communicate()
    os.close(ours)
    assert process.returncode == 0, shown
    (folder / "shown.txt").write_bytes(shown)
    (folder / "printed.txt").write_bytes(out)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    torch.set_num_threads(1)


def test_a_terminal_sees_every_long_step(place: Path) -> None:
    shown = (place / "shown.txt").read_text()
    for label in (
        "answers: answers", "answers: before", "answers: general", "answers: after", "measure", "reference log-probs",
        "train", "held-out pairs", "drift",
    ):  # fmt: skip
        assert label in shown, label
    assert "6/6" in shown and "left" in shown
    assert "Traceback" not in shown and "Warning" not in shown


def test_the_last_lines_are_the_outcome(place: Path) -> None:
    printed = (place / "printed.txt").read_text().splitlines()
    assert printed[0].startswith("tiny: ") and "rows left out" in printed[0]
    assert printed[-1].endswith("everything is in out")


def ran(*words: str) -> set[str]:
    """Run with these words, and the stages that did."""
    before = stages()
    result = CliRunner().invoke(app, ["run", "r/recipe.yaml", "--out", "out", *words])
    assert result.exit_code == 0 and result.stderr == "", result.output
    return {name for name, stage in stages().items() if stage != before[name]}


def stages() -> dict[str, Any]:
    return read_json(Path("out/manifest.json"))["stages"]


def test_a_finished_run_does_nothing() -> None:
    assert ran() == set()


def test_a_changed_setting_reruns_what_depends_on_it_and_back_gives_the_first_result() -> None:
    first = {name: Path("out", name).read_bytes() for name in ("answers.jsonl", "evals/drift.json", "evals/style.json")}
    assert ran("--set", "train.beta=0.3") == TRAINED
    assert ran("--objective", "dpo") == TRAINED
    assert ran("--set", "sample.temperature=1.5") == {"sample", "pairs", "measure"} | TRAINED
    assert Path("out/answers.jsonl").read_bytes() != first["answers.jsonl"]
    assert ran() == {"sample", "pairs", "measure"} | TRAINED
    assert {name: Path("out", name).read_bytes() for name in first} == first


def test_full_training_without_an_adapter() -> None:
    assert ran("--set", "train.lora=null") == TRAINED
    assert Path("out/model/model.safetensors").is_file() and not Path("out/model/adapter_config.json").exists()
    assert read_json(Path("out/summary.json"))["drift"]["kl_per_token"] > 0
    rewards = [row for _, row in read_jsonl("out/evals/preference.jsonl")]
    assert any(row["chosen_reward"] for row in rewards), "the reference is the model as it came"


def test_further_samples_of_the_policy_are_other_answers(place: Path) -> None:
    """The same prompts in the same places, as `pairs.samples: 2` asks for them, must not have the same luck."""
    CliRunner().invoke(
        app, ["pairs", "on-policy", "r/recipe.yaml", "--out", "samples", "--set", "sample.temperature=2"]
    )
    first = {row["id"]: row["text"] for _, row in read_jsonl(place / "samples/answers.jsonl")}
    again = {row["id"].removesuffix("#1"): row["text"] for _, row in read_jsonl(place / "samples/more-answers.jsonl")}
    assert first.keys() == again.keys() and len(first) == 6
    assert all(again[id] != text for id, text in first.items())
