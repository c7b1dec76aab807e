"""A run that is killed anywhere and started again ends as if nothing had happened, with no answer lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from safetensors.numpy import load_file

from anchorline.data import read_json, read_jsonl
from anchorline.recipe import load_recipe, run
from tiny_chat import save_tiny_chat, write_recipe

pytestmark = pytest.mark.e2e

SETTINGS = ["train.save_steps=1", "train.epochs=2", "train.pairs_per_step=2"]
ENGINES = ["anchorline.train.run", "anchorline.evals.preference", "anchorline.evals.drift", "anchorline.report", "peft"]
TOUCHING = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
SAME_BYTES = (
    "recipe.yaml", "prompts.jsonl", "answers.jsonl", "pairs.jsonl", "failures.jsonl", "measure.json",
    "evals/prompts.jsonl", "evals/before.jsonl", "evals/general.jsonl", "evals/after.jsonl", "evals/answers.jsonl",
    "evals/pairs.jsonl", "evals/style.json", "evals/preference.json", "evals/preference.jsonl", "evals/drift.json",
)  # fmt: skip


class KilledAt:
    """Progress that kills its own process, as `kill -9` does, once a task has come so far."""

    def __init__(self, label: str, count: int) -> None:
        self.label, self.left = label, count

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        def advance(count: int, note: str = "") -> None:
            if label.startswith(self.label) and count:
                self.left -= count
                if self.left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        yield advance


def child(folder: Path, progress: KilledAt | None, touches: int | None) -> None:
    """A run in a process of its own, killed by `progress`, or when it touches the run folder's files so many times."""
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ["ANCHORLINE_REFERENCE_CACHE"] = str(folder / "reference")  # the server that forks has an older one
    if touches is not None:
        left = [touches]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in TOUCHING and isinstance(arguments[0], str | os.PathLike):
                # inside of a folder that is removed, names come without it
                if "out" in Path(arguments[0]).parts or event in ("os.remove", "os.rmdir"):
                    left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
    if progress:
        run(load_recipe("r/recipe.yaml", SETTINGS), Path("out"), progress=progress)
    else:
        run(load_recipe("r/recipe.yaml", SETTINGS), Path("out"))


def in_a_process(folder: Path, progress: KilledAt | None = None, *, touches: int | None = None) -> int:
    """The exit code of `child`. The engines are imported once, by the server that forks the children."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(ENGINES)
    process = context.Process(target=child, args=(folder, progress, touches))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe in `r`, its model, and a run in `out` that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    save_tiny_chat(folder / "model")
    write_recipe(folder / "r", "../model")
    assert in_a_process(folder) == 0
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """The same recipe and model, not yet run."""
    for name in ("r", "model"):
        shutil.copytree(whole / name, tmp_path / name)
    return tmp_path


def lines(file: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(file)]


def assert_same(one: Path, other: Path) -> None:
    """The two run folders hold the same answers, pairs, weights, training record and figures."""
    for name in SAME_BYTES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    weights = [load_file(folder / "model" / "adapter_model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for key in weights[0]:
        assert (weights[0][key] == weights[1][key]).all(), key
    steps = [
        [{k: v for k, v in row.items() if "second" not in k} for row in lines(folder / "train" / "metrics.jsonl")]
        for folder in (one, other)
    ]
    assert steps[0] == steps[1] and len(steps[0]) > 1
    tables = [pyarrow.parquet.read_table(folder / "train" / "pairs.parquet").to_pylist() for folder in (one, other)]
    assert tables[0] == tables[1] and tables[0]
    summaries = [read_json(folder / "summary.json") for folder in (one, other)]
    for summary in summaries:
        del summary["seconds"], summary["peak_rss_gib"]
    assert summaries[0] == summaries[1]
    assert (one / "report.html").is_file()
    torn = (".partial", ".tmp", "checkpoint-", ".model-writing")
    left_behind = {file.name for file in one.rglob("*") if any(part in file.name for part in torn)}
    assert left_behind == set()


@pytest.mark.parametrize(
    ("label", "count"),
    [
        ("answers: answers", 4),
        ("answers: before", 2),
        ("answers: general", 1),
        ("reference log-probs", 1),
        ("train", 2),
        ("train", 4),
        ("answers: after", 2),
        ("held-out pairs", 1),
        ("drift", 1),
    ],
)
def test_killed_in_a_stage(whole: Path, place: Path, label: str, count: int) -> None:
    assert in_a_process(place, KilledAt(label, count)) == -signal.SIGKILL
    assert not (place / "out" / "report.html").exists()
    kept = answers(place)
    assert in_a_process(place) == 0
    assert kept.items() <= answers(place).items(), "an answer was lost"
    assert_same(place / "out", whole / "out")


def answers(place: Path) -> dict[str, str]:
    """The training answers that are on disk."""
    files = [place / "out" / name for name in ("answers.jsonl", "answers.jsonl.partial")]
    return {row["id"]: row["text"] for file in files if file.is_file() for row in lines(file)}


TOUCHES = [int(word) for word in os.environ.get("ANCHORLINE_TEST_TOUCHES", "25 150 215 294 298").split()]


@pytest.mark.parametrize("touches", TOUCHES)
def test_killed_between_two_touches_of_its_files(whole: Path, place: Path, touches: int) -> None:
    """Whatever file was about to be written, renamed or removed; twice, as misfortunes come.

    By itself the run touches its files some 500 times; ANCHORLINE_TEST_TOUCHES names other moments to try.
    """
    for after in (touches, touches // 2):
        assert in_a_process(place, touches=after) in (-signal.SIGKILL, 0)
    assert in_a_process(place) == 0
    assert_same(place / "out", whole / "out")


def command(place: Path, *words: str) -> subprocess.Popen[str]:
    """`anchorline run` as a user starts it."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "anchorline", "run", "r/recipe.yaml", "--out", "out", *settings, *words],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # a shell that starts tests in the background has them ignore Ctrl-C, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def wait_for(process: subprocess.Popen[str], found: Callable[[], bool]) -> None:
    """Until the run has come so far."""
    end = time.monotonic() + 120
    while not found():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)


def test_ctrl_c_then_kill_then_to_the_end(whole: Path, place: Path) -> None:
    process = command(place)
    wait_for(process, (place / "out" / "answers.jsonl").is_file)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("stopped; what is finished is kept. Continue with: anchorline run r/recipe.yaml --set ")
    assert err.count("\n") == 1 and "--out out" in err

    process = command(place)
    wait_for(process, lambda: any((place / "out" / "train").glob("checkpoint-*")))
    process.kill()
    process.communicate()

    process = command(place, "--json")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.count("\n") == 1 and json.loads(out) == read_json(place / "out" / "summary.json")
    assert_same(place / "out", whole / "out")
