"""The recipes in recipes/ as a user runs them, on the embedded model, cut down until they take a minute or so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from anchorline.data import read_json, read_jsonl

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SMALL = {
    "prompts.limit": 12,
    "sample.max_new_tokens": 32,
    "train.epochs": 1,
    "train.pairs_per_step": 4,
    "eval.max_new_tokens": 24,
    "eval.general_tokens": 16,
    "eval.dtype": "float32",  # in bfloat16 a batch of prompts rounds otherwise than one alone, and answers part at near ties
}
HELD_OUT, GENERAL = 6, 4


def first_rows(source: str, count: int, target: Path) -> Path:
    """The first rows of a prompts' file."""
    target.write_text("".join(json.dumps(row) + "\n" for _, row in list(read_jsonl(source))[:count]))
    return target


# a grid's recipe is harbour's with other settings: test_recipe_grid.py reads it
RECIPES = sorted(file for file in (ROOT / "recipes").glob("*.yaml") if not file.stem.startswith("compare_"))


@pytest.fixture(scope="module", params=RECIPES, ids=lambda file: file.stem)
def finished(
    request: pytest.FixtureRequest, embedded: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The run folder, and the process that wrote it."""
    folder, recipe = tmp_path_factory.mktemp("run"), yaml.safe_load(request.param.read_text())
    beside = request.param.parent
    heldout = first_rows(beside / recipe["prompts"]["heldout"], HELD_OUT, folder / "heldout.jsonl")
    general = first_rows(beside / recipe["prompts"]["general"], GENERAL, folder / "general.jsonl")
    settings = SMALL | {"model": embedded, "prompts.heldout": heldout, "prompts.general": general}
    if "retain" in recipe:
        settings["retain.prompts"] = first_rows(beside / recipe["retain"]["prompts"], GENERAL, folder / "retain.jsonl")
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "anchorline", "run", str(request.param), "--out", str(folder / "out"), *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_the_summary(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = finished
    assert done.stderr == "", "quiet where stderr is no terminal"
    assert done.stdout.count("\n") == 1, "one JSON object and nothing else"
    summary = json.loads(done.stdout)
    assert summary == read_json(out / "summary.json")
    for side in ("before", "after"):
        assert 0 <= summary["style"][side]["all"] <= 1
    assert summary["style"]["n"] == HELD_OUT
    assert summary["drift"]["kl_per_token"] > 0 and summary["drift"]["prompts"] == GENERAL
    assert 0 <= summary["preference"]["accuracy"] <= 1
    assert summary["pairs"] + summary["failures"] >= 12 and summary["pairs"] > 0
    assert sum(summary["objective"].values()) > 0
    retain = ["retain"] if holds(out) else []
    stages = ["prompts", "sample", "baseline", "pairs", "measure", *retain, "train", "evaluate", "report"]
    assert list(summary["seconds"]) == stages and all(second >= 0 for second in summary["seconds"].values())
    assert 0.1 < summary["peak_rss_gib"] < 6


def holds(out: Path) -> bool:
    """Whether the recipe asks for answers that are held in place."""
    asked = yaml.safe_load((out / "recipe.yaml").read_text())["retain"]
    return bool(asked) and asked["weight"] > 0


def test_retained_answers_are_the_references_and_are_trained_on(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = finished
    steps = [row for _, row in read_jsonl(out / "train" / "metrics.jsonl")]
    held = [row["retain_kl"] for row in steps if "retain_kl" in row]
    if not holds(out):
        assert held == [] and not (out / "retain-answers.jsonl").exists()
        return
    assert len(list(read_jsonl(out / "retain-answers.jsonl"))) == GENERAL
    assert len(held) == len(steps) > 1 and held[0] == pytest.approx(0, abs=1e-4)
    assert held[-1] > 1e-4, "the policy moves where it is held, too; else nothing was measured"


def test_every_file_of_a_run_folder(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = finished
    files = (
        "recipe.yaml manifest.json prompts.jsonl answers.jsonl pairs.jsonl failures.jsonl measure.json train/metrics.jsonl "
        "train/pairs.parquet train/diagnostics.json train/arithmetic.json model/adapter_config.json "
        "evals/style.json evals/preference.json evals/drift.json report.html README.md"
    )
    assert [name for name in files.split() if not (out / name).is_file()] == []
    assert not (out / "reference").exists(), "the reference's log-probs lie where runs share them"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>") and str(len(list(read_jsonl(out / "pairs.jsonl")))) in page


def test_at_the_first_step_nothing_has_moved(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = finished
    _, first = next(read_jsonl(out / "train" / "metrics.jsonl"))
    rewards = [first["chosen_reward"], first["rejected_reward"], first["margin"]]
    assert rewards == pytest.approx([0, 0, 0], abs=1e-3)


def test_the_saved_model_loads_without_anchorline_and_answers_the_same(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Greedy answers of peft and transformers alone are the ones that evaluation has measured."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    out, _ = finished
    tokenizer: Any = AutoTokenizer.from_pretrained(out / "model")
    model: Any = AutoPeftModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32).eval()
    answers = [row for _, row in read_jsonl(out / "evals" / "after.jsonl")]
    differ = []
    for answer in answers:
        text = tokenizer.apply_chat_template(answer["prompt"], add_generation_prompt=True, tokenize=False)
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            longer = model.generate(
                **tokens,
                max_new_tokens=SMALL["eval.max_new_tokens"],
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        written = longer.sequences[0, tokens["input_ids"].shape[1] :]
        if tokenizer.decode(written, skip_special_tokens=True).strip() != answer["text"]:
            measured = tokenizer(answer["text"], add_special_tokens=False)["input_ids"]
            place = next(n for n, (a, b) in enumerate(zip(written.tolist(), measured, strict=False)) if a != b)
            logits = longer.logits[place][0]
            differ.append(float(logits[written[place]] - logits[measured[place]]))
    # sums add up otherwise in a batch, which may turn a near tie among the tokens
    assert len(answers) == HELD_OUT and len(differ) <= HELD_OUT // 3
    assert all(gap < 1e-3 for gap in differ), differ


def test_a_second_time_nothing_is_left_to_do(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = finished
    started = {name: stage["started"] for name, stage in read_json(out / "manifest.json")["stages"].items()}
    again = subprocess.run(
        [sys.executable, "-m", "anchorline", "report", str(out), "--json"], capture_output=True, text=True, check=False
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads(again.stdout) == json.loads(done.stdout)
    assert started == {name: s["started"] for name, s in read_json(out / "manifest.json")["stages"].items()}
