"""A whole training of the tiny model: where it starts, where it goes, what it leaves, and that a killed one continues."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from accelerate import PartialState
from peft import PeftModel
from safetensors.torch import load_file
from test_train_toys import PAD, SIZES, llama, pair, save_tiny, template, tiny, tokenizer, words
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from anchorline.errors import DataError, ModelError, TrainingError, UserError
from anchorline.train import run
from anchorline.train.config import LoraSettings, TrainSettings
from anchorline.train.forward import plain_logps
from anchorline.train.run import train
from anchorline.train.score import score
from anchorline.train.tokenise import tokenise
from anchorline.types import Message, Pair, Unpaired

ROWS = [pair(i) for i in range(6)]
ANSWERS = [Unpaired(p.id, p.prompt, p.chosen if i % 2 else p.rejected, bool(i % 2)) for i, p in enumerate(ROWS)]
LORA = LoraSettings(rank=4)


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """accelerate collects garbage after each training, through all that the imports left: a third of the time here."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def settings(objective="apo_zero", **changes: Any) -> TrainSettings:
    plain: dict[str, Any] = {
        "objective": objective,
        "learning_rate": 2e-3,
        "epochs": 2,
        "pairs_per_step": 4,
        "warmup": 0,
        "schedule": "constant_with_warmup",
        "dtype": "float32",
        "lora": LORA,
    }
    return TrainSettings(**{**plain, **changes})


def metrics(folder: Path) -> list[dict[str, Any]]:
    """One dict a step, without the clocks."""
    lines = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def pairs(folder: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(folder / "train" / "pairs.parquet").to_pylist()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "model").glob("*.safetensors")
    return load_file(file)


# ---- where it starts and where it goes ----------------------------------------------------------------------------

FIRST_LOSS = {
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "apo_up": 1.0,
    "dpo": math.log(2),
    "kto": 0.5,
    "apo_zero_unpaired": 0.5,
}
# after training: which way the mean rewards of chosen and rejected have gone; None where the objective does not say
WAY = {
    "apo_zero": (1, -1),
    "apo_down": (None, -1),
    "apo_up": (1, None),
    "dpo": (None, -1),
    "kto": (1, -1),
    "apo_zero_unpaired": (1, -1),
    "sft": (1, None),
    "apo_zero=1,sft=0.2": (1, -1),
}


def check_start(folder: Path, objective: str) -> None:
    rows = [row for row in pairs(folder) if row["step"] == 1]
    rewards = [row[n] for row in rows for n in ("chosen_reward", "rejected_reward", "reward") if n in row]
    assert len(rewards) in (6, 12) and max(map(abs, rewards)) < 1e-3
    first = metrics(folder)[0]
    assert abs(first["chosen_reward"]) < 1e-3 and abs(first["rejected_reward"]) < 1e-3
    if objective in FIRST_LOSS:
        assert first["loss"] == pytest.approx(FIRST_LOSS[objective], abs=1e-3)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("objective", WAY)
def test_rewards_start_at_zero_and_go_where_the_objective_says(objective, lora, model, tmp_path):
    train(ROWS, model, settings(objective, lora=lora, pairs_per_step=6, epochs=4, learning_rate=5e-3), tmp_path)
    check_start(tmp_path, objective)
    last = metrics(tmp_path)[-1]
    for way, name in zip(WAY[objective], ("chosen_reward", "rejected_reward"), strict=True):
        assert way is None or way * last[name] > 0.02, name
    if objective != "sft":
        assert last["margin"] > 0.05 and last["loss"] < metrics(tmp_path)[0]["loss"]


@pytest.mark.parametrize("objective", ["kto", "apo_zero_unpaired", "sft"])
def test_single_labelled_answers_train_too(objective, model, tmp_path):
    made = train(ANSWERS, model, settings(objective, pairs_per_step=6, epochs=4, learning_rate=5e-3), tmp_path)
    check_start(tmp_path, "" if objective == "sft" else objective)
    last = metrics(tmp_path)[-1]
    assert made.rows == 6 and last["chosen_reward"] > 0.02
    assert objective == "sft" or last["rejected_reward"] < -0.02


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_rewards_start_at_zero_in_half_precision_and_in_rows_unlike_the_references(lora, model, tmp_path):
    train(ROWS, model, settings("dpo", lora=lora, dtype="bfloat16", pairs_per_step=6, tokens_per_row=60), tmp_path)
    check_start(tmp_path, "dpo")
    first = next(row for row in pairs(tmp_path) if row["step"] == 1)
    exact = logps_of(AutoModelForCausalLM.from_pretrained(model))
    assert (exact - first["policy_chosen"]).abs().min() > 1e-4, "this was not bfloat16"
    assert {w.dtype for w in weights(tmp_path).values()} == {torch.float32}


def test_apo_downs_first_gradient_does_not_know_the_chosen_answer(model, tmp_path):
    """At the reference its gradient on the chosen answer is exactly 0."""
    row = pair(0, chosen="w1 w2", rejected="w60 w61 w62")
    for name, one in {"down": row, "other chosen": replace(row, chosen="w3 w4 w5 w6")}.items():
        train([one], model, settings("apo_down", epochs=1, lora=None), tmp_path / name)
    norms = [metrics(tmp_path / name)[0]["grad_norm"] for name in ("down", "other chosen")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0.1


# ---- one step is the mean over its pairs, however they are laid out -------------------------------------------------


@pytest.fixture(scope="module", params=[LORA, None], ids=["lora", "full"])
def in_one_row(request, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one-row")
    train(ROWS[:5], model, settings(lora=request.param), folder)
    return request.param, folder


@pytest.mark.parametrize(
    "changes", [{"tokens_per_row": 40}, {"forward": "plain"}, {"gradient_checkpointing": True}], ids=str
)
def test_rows_accumulation_checkpointing_and_the_plain_forward_change_nothing(changes, in_one_row, model, tmp_path):
    """Adam divides rounding errors by themselves where a gradient is 0, so the weights are compared through their use."""
    lora, folder = in_one_row
    train(ROWS[:5], model, settings(lora=lora, **changes), tmp_path)
    a, b = metrics(folder), metrics(tmp_path)
    assert len(a) == len(b) == 4  # the second step of each epoch has one pair only
    for one, other in zip(a, b, strict=True):
        assert other | {"epoch": 0} == pytest.approx(one | {"epoch": 0}, rel=1e-3, abs=1e-3)
    for one, other in zip(
        *(sorted(pairs(f), key=lambda r: (r["step"], r["id"])) for f in (folder, tmp_path)), strict=True
    ):
        assert {k: other[k] for k in ("id", "step", "epoch")} == {k: one[k] for k in ("id", "step", "epoch")}
        assert other["policy_chosen"] == pytest.approx(one["policy_chosen"], rel=1e-3)


def test_gradient_checkpointing_computes_every_layer_twice(model, tmp_path, monkeypatch):
    calls: list[int] = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "anchorline.train.attention.scaled_dot_product_attention", lambda *a, **k: calls.append(1) or attend(*a, **k)
    )
    counts = []
    for name, checkpointing in (("a", False), ("b", True)):
        calls.clear()
        chosen = settings(gradient_checkpointing=checkpointing, reference_cache=str(tmp_path / f"{name}-reference"))
        train(ROWS, model, chosen.model_copy(update={"epochs": 1, "pairs_per_step": 6}), tmp_path / name)
        counts.append(len(calls))
    assert counts[1] - counts[0] == 2 * (len(ROWS) * 2 + 1)  # layers; pairs, branches, and the row's opening


def test_the_records_agree_with_each_other_and_hold_every_pair_once_an_epoch(model, tmp_path):
    train(ROWS[:5], model, settings(tokens_per_row=40, epochs=3), tmp_path)
    rows = pairs(tmp_path)
    assert sorted((r["epoch"], r["id"]) for r in rows) == [(e, f"p{i}") for e in range(3) for i in range(5)]
    for line in metrics(tmp_path):
        mine = [r for r in rows if r["step"] == line["step"]]
        assert line["loss"] == pytest.approx(sum(r["loss"] for r in mine) / len(mine), rel=1e-5)
        assert line["margin"] == pytest.approx(sum(r["margin"] for r in mine) / len(mine), rel=1e-5, abs=1e-7)
    for row in rows:
        assert row["chosen_reward"] == pytest.approx(0.1 * (row["policy_chosen"] - row["reference_chosen"]), abs=1e-5)


def test_the_rate_rises_over_the_warm_up_and_falls_after_it(model, tmp_path):
    train(ROWS, model, settings(pairs_per_step=1, epochs=2, warmup=0.25, schedule="linear"), tmp_path)
    rates = [line["learning_rate"] for line in metrics(tmp_path)]
    assert len(rates) == 12 and rates.index(max(rates)) == 3 and max(rates) == pytest.approx(2e-3)
    assert rates[:4] == sorted(rates[:4]) and rates[3:] == sorted(rates[3:], reverse=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("one", [{"epochs": 1, "pairs_per_step": 6}, {"arguments": {"max_steps": 1}}], ids=str)
def test_a_run_of_one_step_trains(one, schedule, model, tmp_path):
    made = train(ROWS, model, settings(warmup=0.1, schedule=schedule, **one), tmp_path)
    assert made.steps == 1
    assert all(w.abs().max() > 1e-4 for name, w in weights(tmp_path).items() if "lora_B" in name)  # they begin as 0


def test_gradients_are_left_alone_at_a_norm_of_zero(model, tmp_path):
    train(ROWS[:4], model, settings(epochs=1, max_grad_norm=0), tmp_path)
    assert metrics(tmp_path)[0]["grad_norm"] > 0


def test_the_same_seed_trains_the_same_adapter_and_another_seed_another(model, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(ROWS, model, settings(epochs=1, pairs_per_step=6), tmp_path / name, seed=seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a) and metrics(tmp_path / "a") == metrics(tmp_path / "b")
    # one step of 0.002 with all pairs in it: what differs is where the adapters began
    assert all((a[k] - c[k]).abs().max() > 0.01 for k in a if "lora_A" in k)


def test_another_model_in_the_same_folder_gets_a_reference_of_its_own(model, tmp_path):
    for name in (model, save_tiny(tmp_path / "other", seed=1)):
        train(ROWS, name, settings(epochs=1, pairs_per_step=6), tmp_path)
        check_start(tmp_path, "apo_zero")
    assert len(list((tmp_path / "reference").iterdir())) == 2


@pytest.mark.parametrize(("dtype", "kept"), [("float32", 1), ("bfloat16", 2)])
def test_the_reference_by_autocast_is_not_the_one_by_lent_copies(dtype, kept, model, tmp_path, monkeypatch):
    """In float32 there is no difference, and one process uses what several have computed."""
    for name in ("alone", "wrapped"):
        if name == "wrapped":
            monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # on a CPU accelerate does nothing more about it
        train(ROWS, model, settings(epochs=1, pairs_per_step=6, dtype=dtype), tmp_path / name)
        rewards = [row[f"{side}_reward"] for row in pairs(tmp_path / name) for side in ("chosen", "rejected")]
        assert max(map(abs, rewards)) < 1e-6, name
    assert len(list((tmp_path / "reference").iterdir())) == kept


# ---- killed, and continued ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a kill looks like from within: nothing may catch it."""


class KillAfter:
    """A progress whose bar for training falls at a given step."""

    def __init__(self, step: int) -> None:
        self.left = step

    @contextmanager
    def task(self, label: str, *, total: int, unit: str):
        def advance(count: int, note: str = "") -> None:
            self.left -= count if label == "train" else 0
            if self.left <= 0:
                raise Killed

        yield advance


def same(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    assert pairs(a) == pairs(b)
    mine, other = weights(a), weights(b)
    assert mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)


@contextmanager
def own_reference(folder: Path):
    """Log-probs kept by another test came out of other rows, so they are rounded otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANCHORLINE_REFERENCE_CACHE", str(folder / "reference"))
        yield


INTERRUPTED = {
    "lora": settings(pairs_per_step=2, tokens_per_row=1, save_steps=2, schedule="cosine", warmup=0.2),
    "dropout, kto": settings("kto", pairs_per_step=2, save_steps=2, lora=LoraSettings(rank=4, dropout=0.2)),
    "full": settings("dpo", pairs_per_step=2, save_steps=2, lora=None),
}


@pytest.fixture(scope="module", params=INTERRUPTED)
def uninterrupted(request, model, tmp_path_factory):
    """Settings, what `train` gave, and its folder."""
    chosen, folder = INTERRUPTED[request.param], tmp_path_factory.mktemp("whole")
    with own_reference(folder):
        return chosen, train(ROWS, model, chosen, folder), folder


@pytest.fixture(scope="module")
def with_lora(model, tmp_path_factory):
    chosen, folder = INTERRUPTED["lora"], tmp_path_factory.mktemp("whole")
    with own_reference(folder):
        train(ROWS, model, chosen, folder)
    return chosen, folder


def test_a_killed_training_continues_to_the_very_same_end(uninterrupted, model, tmp_path):
    chosen, made, whole = uninterrupted
    # the first kill comes before any checkpoint, the second after line 3 was written behind checkpoint 2
    for step in (1, 4):
        with pytest.raises(Killed):
            train(ROWS, model, chosen, tmp_path, progress=KillAfter(step))
    assert len(metrics(tmp_path)) == 3 and not (tmp_path / "model").exists()
    again = train(ROWS, model, chosen, tmp_path)
    assert (again.rows, again.steps) == (made.rows, made.steps) == (6, 6)
    same(tmp_path, whole)


def test_a_checkpoint_that_a_kill_tore_is_not_continued_from(with_lora, model, tmp_path, monkeypatch):
    chosen, whole = with_lora
    calls = []

    def killed(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return original(self, *args)

    original = Trainer._save_optimizer_and_scheduler  # after the weights, before all else
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", killed)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill tidies nothing up
        train(ROWS, model, chosen, tmp_path)
    assert {p.name for p in (tmp_path / "train").glob("*checkpoint-*")} == {"checkpoint-2", ".checkpoint-writing"}
    torn = {p.name for p in (tmp_path / "train/.checkpoint-writing/checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in torn and "trainer_state.json" not in torn
    train(ROWS, model, chosen, tmp_path)
    same(tmp_path, whole)


@pytest.mark.parametrize("call", ["write_rows", "_save"])
def test_a_kill_after_the_last_step_costs_no_step(call, with_lora, model, tmp_path, monkeypatch):
    chosen, whole = with_lora

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(f"anchorline.train.run.{call}", killed)
        train(ROWS, model, chosen, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("anchorline.train.trainer.loss", killed)
        train(ROWS, model, chosen, tmp_path)
    same(tmp_path, whole)


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_kill_while_it_tidies_up_loses_nothing(moment, with_lora, model, tmp_path, monkeypatch):
    chosen, whole = with_lora
    unlink, remove = Path.unlink, shutil.rmtree

    def killed_at_the_state(path, missing_ok=False):
        if moment == "before" and path.name == "trainer_state.json":
            raise Killed
        unlink(path, missing_ok=missing_ok)

    def killed_at_the_rest(path, *args, **kwargs):
        if (tmp_path / "train/pairs.parquet").exists():  # the Trainer itself removes old checkpoints before that
            (Path(path) / "adapter_model.safetensors").unlink()
            if moment == "after":
                remove(path)
            raise Killed
        remove(path, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", killed_at_the_state)
        patch.setattr("anchorline.train.run.shutil.rmtree", killed_at_the_rest)
        train(ROWS, model, chosen, tmp_path)
    train(ROWS, model, chosen, tmp_path)
    same(tmp_path, whole)


def test_as_many_checkpoints_are_kept_as_the_settings_say(model, tmp_path):
    kept = []
    look = At(5, lambda _: kept.extend(sorted(p.name for p in (tmp_path / "train").glob("*checkpoint-*"))))
    chosen = settings(pairs_per_step=2, save_steps=1, save_total_limit=3)
    train(ROWS, model, chosen, tmp_path, callbacks=[look])
    assert kept == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("learning_rate", lambda rows, chosen: (rows, chosen.model_copy(update={"learning_rate": 1e-4}))),
        ("lora", lambda rows, chosen: (rows, chosen.model_copy(update={"lora": LoraSettings(rank=2)}))),
        ("rows", lambda rows, chosen: (rows[::-1], chosen)),
    ],
)
def test_another_call_does_not_continue_the_checkpoints_of_this_one(named, change, with_lora, model, tmp_path):
    chosen, whole = with_lora
    with pytest.raises(Killed):
        train(ROWS, model, chosen, tmp_path, progress=KillAfter(5))
    rows, other = change(ROWS, chosen)
    with pytest.raises(TrainingError, match=f"checkpoint-4 is of a training with other {named}; expected the same"):
        train(rows, model, other, tmp_path)
    train(ROWS, model, chosen.model_copy(update={"save_steps": 3}), tmp_path)
    same(tmp_path, whole)


def test_a_copy_of_a_checkpoint_by_hand_is_nobodys(with_lora, model, tmp_path):
    chosen, whole = with_lora
    copy = tmp_path / "train/checkpoint-2-backup"
    keep = At(4, lambda _: shutil.copytree(tmp_path / "train/checkpoint-2", copy))
    with pytest.raises(Killed):
        train(ROWS, model, chosen, tmp_path, progress=KillAfter(5), callbacks=[keep])
    train(ROWS, model, chosen, tmp_path)
    assert [p.name for p in (tmp_path / "train").glob("checkpoint-*")] == [copy.name]
    assert (copy / "trainer_state.json").exists()
    shutil.rmtree(copy)
    same(tmp_path, whole)


def test_no_checkpoint_goes_before_the_next_one_is_whole(model, tmp_path, monkeypatch):
    there: list[list[str]] = []
    rename = Path.rename

    def watched(path, target):
        if "checkpoint" in path.name:
            there.append(sorted(p.name for p in (tmp_path / "train").glob("checkpoint-*")))
            assert {"trainer_state.json", "optimizer.pt", "rng_state.pth"} <= {p.name for p in path.iterdir()}
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    train(ROWS, model, settings(pairs_per_step=2, save_steps=2), tmp_path)
    assert there == [[], ["checkpoint-2"], ["checkpoint-4"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_a_full_disk_is_one_clear_error_and_leaves_the_last_good_checkpoint(lora, model, tmp_path):
    """A disk of its own, with room for one checkpoint and a half."""
    chosen = settings(lora=lora, pairs_per_step=2, save_steps=2, arguments={"optim": "adamw_torch"})
    whole = tmp_path / "whole"
    train(ROWS, model, chosen, whole)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(disk)], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:

        def fill(_: Any) -> None:
            one = sum(f.stat().st_size for f in (disk / "train/checkpoint-2").iterdir())
            room = shutil.disk_usage(disk).free - one // 2
            (disk / "other").write_bytes(bytes(room))

        with pytest.raises(TrainingError) as told:
            train(ROWS, model, chosen, disk, callbacks=[At(3, fill)])
        assert re.fullmatch(
            rf"the checkpoint of step 4 cannot be written in {disk}/train: .+ \(\d+ MiB are free there\); make room and "
            "start the same command again: it continues from the newest checkpoint that is whole",
            str(told.value),
        ), told.value
        assert [p.name for p in (disk / "train").glob("*checkpoint-*")] == ["checkpoint-2"]
        (disk / "other").unlink()
        train(ROWS, model, chosen, disk)
        same(disk, whole)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # loaded weights are still mapped


# ---- what the Trainer can do besides --------------------------------------------------------------------------------


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.act(kwargs["model"])


class Listening(TrainerCallback):
    """Keeps what a logger would be told."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def test_held_out_pairs_are_measured_during_training(model, tmp_path):
    logger = Listening()
    chosen = settings(pairs_per_step=6, epochs=3, arguments={"eval_strategy": "epoch", "eval_on_start": True})
    heldout = [pair(i) for i in range(20, 27)]
    train(ROWS, model, chosen, tmp_path, heldout=heldout, callbacks=[logger])
    rows = [json.loads(line) for line in (tmp_path / "train/evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["loss"] == pytest.approx(1, abs=1e-4) and abs(rows[0]["margin"]) < 1e-4
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(tmp_path / "model"))
    examples = tokenise(heldout, template(), max_tokens=100, overlong="drop").examples
    with torch.no_grad():
        gained = plain_logps(trained, examples, pad=PAD)
        with trained.disable_adapter():
            gained -= plain_logps(trained, examples, pad=PAD)
    rewards = 0.1 * gained.reshape(-1, 2)
    expected = (1 - rewards[:, 0].sigmoid() + rewards[:, 1].sigmoid()).mean()
    assert rows[3]["loss"] == pytest.approx(float(expected), abs=1e-4)
    assert rows[3]["accuracy"] == pytest.approx(float((rewards[:, 0] > rewards[:, 1]).float().mean()))
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3], "the evaluations are in a file of their own"
    evaluated = [logs["eval_loss"] for logs in logger.logs if "eval_loss" in logs]
    assert evaluated == [row["loss"] for row in rows]
    assert [logs["margin"] for logs in logger.logs if "learning_rate" in logs] == [
        r["margin"] for r in metrics(tmp_path)
    ]


def test_held_out_pairs_may_have_objectives_that_training_has_not(model, tmp_path):
    chosen = settings(pairs_per_step=6, epochs=1, arguments={"eval_on_start": True, "eval_strategy": "epoch"})
    heldout = [replace(pair(i), objective="kto") for i in range(20, 24)]
    train(ROWS, model, chosen, tmp_path, heldout=heldout)
    rows = [json.loads(line) for line in (tmp_path / "train/evaluations.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-4) and len(rows) == 2
    assert "anchor" not in pairs(tmp_path)[0], "training pairs were given what only held-out ones ask for"


def test_evaluation_does_not_change_the_training(model, tmp_path):
    chosen = settings(lora=LoraSettings(rank=4, dropout=0.3))
    train(ROWS, model, chosen, tmp_path / "a")
    measured = chosen.model_copy(update={"arguments": {"eval_strategy": "steps", "eval_steps": 1}})
    train(ROWS, model, measured, tmp_path / "b", heldout=[pair(9)])
    a, b = (weights(tmp_path / name) for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_trainers_own_arguments_reach_it(model, tmp_path):
    rates = {}
    for name, more in {
        "restarts": {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
        "three steps": {"max_steps": 3},
        "sgd": {"optim": "sgd"},
    }.items():
        made = train(ROWS, model, settings(pairs_per_step=2, arguments=more), tmp_path / name)
        rates[name] = [row["learning_rate"] for row in metrics(tmp_path / name)]
        assert made.steps == len(rates[name])
    assert len(rates["three steps"]) == 3
    assert rates["restarts"][3] == pytest.approx(2e-3) and rates["restarts"][2] < 1e-3
    moved = [abs(pairs(tmp_path / name)[-1]["margin"]) for name in ("sgd", "restarts")]
    assert 0 < moved[0] < moved[1] / 10, "plain gradient descent moves little at this rate"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"eval_stategy": "epoch"}, "has no such argument; did you mean eval_strategy?"),
        ({"learning_rate": 1.0}, "train.arguments.learning_rate is decided by train.learning_rate; set that"),
        ({"logging_steps": 5}, "is decided by nothing: each step is logged"),
        ({"optim": "nonsense"}, "train.arguments: nonsense is not a valid OptimizerNames"),
        ({"eval_strategy": "epoch"}, "eval_strategy wants held-out pairs, and there are none"),
        ({"report_to": "wandb"}, "train.arguments: .*wandb"),
    ],
)
def test_arguments_that_cannot_be_handed_through_are_one_line(given, told, model, tmp_path):
    with pytest.raises(UserError, match=told) as error:
        train(ROWS, model, settings(arguments=given), tmp_path)
    assert "\n" not in str(error.value)


def test_a_value_that_the_trainer_refuses_is_told_before_the_reference_is_computed(model, tmp_path):
    with pytest.raises(UserError, match="not a valid OptimizerNames"):
        train(ROWS, model, settings(arguments={"optim": "nonsense"}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_launcher_several_gpus_are_one(tmp_path, monkeypatch):
    """The Trainer would give each GPU a part of a packed row."""
    for name, answer in {"is_available": True, "device_count": 2, "set_device": None}.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, answer=answer: answer)
    plain = TrainingArguments(str(tmp_path), report_to="none")
    assert plain.device.type == "cuda" and plain.n_gpu == 2, "transformers does not count as it did"
    arguments = run._arguments(settings(), {}, 4, tmp_path, seed=0, bf16=False)
    PartialState._reset_state()  # it would still believe in the GPUs
    assert (arguments.device.type, arguments.n_gpu, arguments.train_batch_size) == ("cuda", 1, 4)


# ---- what it leaves -------------------------------------------------------------------------------------------------


def logps_of(network: Any) -> torch.Tensor:
    examples = tokenise(ROWS, template(), max_tokens=100, overlong="drop").examples
    with torch.no_grad():
        return plain_logps(network.eval(), examples, pad=PAD)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_the_saved_model_loads_plainly_and_is_the_trained_one(lora, model, tmp_path):
    train(ROWS, model, settings(lora=lora, pairs_per_step=6, epochs=5, merge=lora is not None), tmp_path)
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == [
        "arithmetic.json",
        "diagnostics.json",
        "metrics.jsonl",
        "pairs.parquet",
    ]
    base = AutoModelForCausalLM.from_pretrained(model)
    before = logps_of(base)
    if lora is None:
        trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    else:
        assert json.loads((tmp_path / "model/adapter_config.json").read_text())["base_model_name_or_path"] == model
        trained = PeftModel.from_pretrained(base, str(tmp_path / "model"))
    after = logps_of(trained)
    moved = (after - before).reshape(-1, 2).mean(0) * 0.1
    last = metrics(tmp_path)[-1]  # of the weights one step earlier: already well on the way
    assert moved[0] > last["chosen_reward"] > 0.01 and moved[1] < last["rejected_reward"] < -0.01
    if lora is not None:
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model/merged")
        assert merged.config._attn_implementation == "sdpa"
        assert torch.allclose(logps_of(merged), after, rtol=1e-4)


def test_a_model_whose_attention_cannot_be_replaced_trains_with_the_plain_forward(tmp_path):
    kind = tiny(Gemma2Config(**SIZES, head_dim=8), Gemma2ForCausalLM)
    kind.save_pretrained(tmp_path / "gemma2")
    tokenizer().save_pretrained(tmp_path / "gemma2")
    with pytest.raises(ModelError, match=r"gemma2 does not run packed: .* set train\.forward to plain"):
        train(ROWS, str(tmp_path / "gemma2"), settings(), tmp_path)
    train(ROWS, str(tmp_path / "gemma2"), settings(forward="plain", pairs_per_step=6), tmp_path)
    check_start(tmp_path, "apo_zero")
    assert (tmp_path / "model/adapter_config.json").is_file()


# ---- what it refuses ------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_trained_on_are_named_and_the_rest_is_trained(model, tmp_path):
    rows = [*ROWS, pair(7, chosen="w1 <end>"), pair(8, rejected=words(60))]
    made = train(rows, model, settings(max_tokens=40, epochs=1), tmp_path)
    assert made.rows == 6 and [(f.id, f.kind) for f in made.failures] == [("p7", "boundary"), ("p8", "overlong")]
    assert {row["id"] for row in pairs(tmp_path)} == {p.id for p in ROWS}


def test_nothing_left_to_train_on_is_an_error_that_says_why(model, tmp_path):
    rows = [pair(i, chosen="w1 <end>") for i in range(3)]
    with pytest.raises(DataError, match=r"no row is left to train on: .*2 times.* \(row p0, and 2 more\)"):
        train(rows, model, settings(), tmp_path)
    with pytest.raises(DataError, match=r"no row is left to train on$"):
        train([], model, settings(), tmp_path)


def test_a_loss_that_is_not_a_number_stops_with_the_step_and_the_row(model, tmp_path, monkeypatch):
    from anchorline.train import trainer

    calls, original = [], trainer.loss

    def breaks(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(trainer, "loss", breaks)
    with pytest.raises(TrainingError, match=r"not a number at step 2 \(rows p\d.*lower train\.learning_rate"):
        train(ROWS, model, settings(), tmp_path)


def test_training_an_adapter_again_is_refused_with_the_way_out(model, tmp_path):
    made = train(ROWS, model, settings(epochs=1), tmp_path)
    with pytest.raises(ModelError, match=r"is an adapter.*train\.merge"):
        train(ROWS, str(made.model), settings(), tmp_path / "second")


def test_an_adapter_on_modules_that_are_not_there_is_refused(model, tmp_path):
    with pytest.raises(ModelError, match="the adapter does not fit the model"):
        train(ROWS, model, settings(lora=LoraSettings(target=["no_such_module"])), tmp_path)


@pytest.mark.parametrize("target", [["q_proj", "lm_head"], ["embed_tokens"], r".*\.q_proj|lm_head"], ids=str)
def test_merging_an_adapter_on_a_tied_head_is_refused_before_training(target, model, tmp_path):
    chosen = settings(epochs=1, merge=True, lora=LoraSettings(rank=4, target=target))
    name = "embed_tokens" if target == ["embed_tokens"] else "lm_head"
    with pytest.raises(
        UserError, match=rf"train\.merge cannot .*{name} into .*leave out train\.merge, or take {name} out"
    ):
        train(ROWS, model, chosen, tmp_path)
    assert not (tmp_path / "train").exists()


def test_an_adapter_on_a_head_of_its_own_is_merged(tmp_path):
    tiny(llama(tie_word_embeddings=False)).save_pretrained(tmp_path / "untied")
    tokenizer().save_pretrained(tmp_path / "untied")
    lora = LoraSettings(rank=4, target=["q_proj", "lm_head"])
    train(ROWS, str(tmp_path / "untied"), settings(merge=True, lora=lora), tmp_path)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "untied"), str(tmp_path / "model")
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model/merged")
    assert torch.allclose(logps_of(merged), logps_of(adapted), rtol=1e-4)


def test_a_system_message_and_earlier_turns_are_part_of_the_prompt(model, tmp_path):
    said = (Message("system", "w1"), Message("user", "w2"), Message("assistant", "w3"), Message("user", "w4"))
    made = train([Pair("p", said, "w5 w6", "w7")], model, settings(epochs=1), tmp_path)
    assert made.rows == 1 and pairs(tmp_path)[0]["chosen_tokens"] == 3


def test_each_pair_is_trained_and_recorded_and_scored_by_its_own_objective(model, tmp_path):
    own = ["dpo", None, "apo_up", None, "dpo", "apo_down"]
    mixed = [replace(row, objective=name) for row, name in zip(ROWS, own, strict=True)]
    train(mixed, model, settings(pairs_per_step=6, tokens_per_row=500), tmp_path)
    first = {row["id"]: row for row in pairs(tmp_path) if row["step"] == 1}
    assert [first[row.id]["objective"] for row in mixed] == own
    assert [first[row.id]["loss"] for row in mixed] == pytest.approx(
        [math.log(2) if name == "dpo" else 1 for name in own], abs=1e-3
    )
    slopes = [(first[row.id]["chosen_gradient"], first[row.id]["rejected_gradient"]) for row in mixed]
    start = {"dpo": (-0.5, 0.5), "apo_up": (-0.25, 0), "apo_down": (0, 0.25), None: (-0.25, 0.25)}
    assert sum(slopes, ()) == pytest.approx(sum((start[name] for name in own), ()), abs=1e-3)

    scored = {row["id"]: row for row in score(mixed, str(tmp_path / "model"), settings()).rows}
    for row, name in zip(mixed, own, strict=True):
        new = scored[row.id]
        assert new.get("objective") == name
        (alone,) = score([replace(row, objective=None)], str(tmp_path / "model"), settings(name or "apo_zero")).rows
        assert (new["loss"], new["chosen_weight"], new["state"]) == pytest.approx(
            (alone["loss"], alone["chosen_weight"], alone["state"]), abs=1e-4
        )
