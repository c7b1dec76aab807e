"""Evaluations on the embedded model: the command, resumed and cached; lm-evaluation-harness on a local task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anchorline.cli.main import app
from anchorline.evals.stats import wilson
from tiny_chat import write_rows

pytestmark = pytest.mark.model
STYLE = "name: s\nrules:\n  - {kind: max_words, limit: 8, name: short}\n  - {kind: no_exclamation, name: calm}\n"


def evaluate(*words: str | Path) -> dict:
    done = CliRunner().invoke(app, ["eval", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["tasks"]


def test_style_winrate_and_drift_of_a_model_against_itself(embedded: str, tmp_path: Path) -> None:
    (tmp_path / "style.yaml").write_text(STYLE)
    prompts = write_rows(tmp_path / "few.jsonl", [{"prompt": "Say hi.", "group": "x"}, {"prompt": "Name a colour."}])
    words = ["--model", embedded, "--against", embedded, "--prompts", prompts, "--style", tmp_path / "style.yaml"]
    words += ["--tasks", "style,winrate,drift", "--out", tmp_path / "out", "--set", "eval.max_new_tokens=12"]
    words += ["--set", "eval.general_tokens=8"]
    tasks = evaluate(*words)
    first = tasks["style"]["figures"][0]
    assert first["n"] == 2 and first["value"] == first["against"]["value"] and first["difference"]["p"] == 1.0
    assert tasks["winrate"]["table"]["ties"] == 2 and tasks["winrate"]["figures"][0]["value"] == 0.5
    assert tasks["drift"]["table"]["kl_per_token"] == pytest.approx(0, abs=1e-6)
    assert set(tasks["drift"]["table"]["groups"]) == {"x", "few"}
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "<script" not in page and "all rules kept" in page
    answers = sorted((tmp_path / "out" / "answers").glob("*.jsonl"))
    before = [file.stat().st_mtime_ns for file in answers]
    moved = [json.loads(line) for line in (tmp_path / "out" / "drift.jsonl").read_text().splitlines()]
    assert len(moved) == 2 and all(row["tokens"] > 0 for row in moved)
    general = write_rows(tmp_path / "elsewhere.jsonl", [{"prompt": "Count to three."}])
    elsewhere = evaluate(*words, "--general", general)
    assert (elsewhere["drift"]["table"]["prompts"], elsewhere["style"]["figures"][0]["n"]) == (1, 2)
    assert evaluate(*words) == tasks and [file.stat().st_mtime_ns for file in answers] == before


def test_mixeval_by_rules(embedded: str, tmp_path: Path) -> None:
    free = {"0": {"prompt": "What is 1 + 1?", "target": ["2"], "benchmark_name": "GSM8k", "context": None}}
    choice = {
        str(n): {"prompt": "Water is", "options": ["dry", "wet"], "target": [1], "benchmark_name": "B", "context": None}
        for n in range(2)
    }
    (tmp_path / "free-form.json").write_text(json.dumps(free))
    (tmp_path / "multiple-choice.json").write_text(json.dumps(choice))
    found = evaluate(
        "--model", embedded, "--tasks", "mixeval_hard", "--data", tmp_path, "--out", tmp_path / "out",
        "--set", "eval.max_new_tokens=8",
    )["mixeval_hard"]  # fmt: skip
    assert [(figure["name"], figure["n"]) for figure in found["figures"]] == [
        ("overall", 3), ("free-form", 1), ("free-form: GSM8k", 1), ("multiple choice", 2), ("multiple choice: B", 2),
    ]  # fmt: skip


def contrary(model: str, folder: Path) -> Path:
    """The same model with its head's sign turned: what was likely is unlikely."""
    import torch

    from anchorline.llm.models import load

    loaded = load(model, dtype="float32")
    head = torch.nn.Parameter(-loaded.model.lm_head.weight.detach().clone())
    loaded.model.config.tie_word_embeddings = False
    loaded.model.lm_head.weight = head
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # the harness's own, and its many dependencies'
def test_a_local_task_of_the_harness(embedded: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[lm-eval]'")
    rows = [{"q": "The capital of France is", "c": [" Paris", " banana"], "a": n} for n in (0, 0, 1)]
    data = write_rows(tmp_path / "data.jsonl", rows)
    (tmp_path / "cities.yaml").write_text(
        "task: cities_of_ours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        f"{data}\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: a\n"
        "doc_to_choice: c\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n    aggregation: mean\n"
        "    higher_is_better: true\n"
    )
    words = ["--model", embedded, "--tasks", "lm_eval", "--lm-task", "cities_of_ours", "--lm-include", tmp_path]
    words += ["--out", tmp_path / "out"]
    # a model against which the first says the same of two and another thing of one
    (figure,) = evaluate(*words, "--against", contrary(embedded, tmp_path / "other"))["lm_eval"]["figures"]
    assert (figure["name"], figure["n"]) == ("cities_of_ours: acc", 3)
    assert figure["value"] == pytest.approx(2 / 3)
    assert (figure["low"], figure["high"]) == wilson(2, 3)[1:]
    assert figure["against"]["value"] == pytest.approx(1 / 3), "it takes the banana each time"
    difference = figure["difference"]
    assert (difference["n"], difference["mean"]) == (3, pytest.approx(1 / 3))
    assert (difference["test"], difference["p"]) == ("McNemar, exact", 1.0), "two for us, one for the other"
    samples = [json.loads(line) for line in (tmp_path / "out" / "lm_eval-model.jsonl").read_text().splitlines()]
    assert [(row["task"], row["doc"]["a"], row["acc"]) for row in samples] == [
        ("cities_of_ours", 0, 1.0), ("cities_of_ours", 0, 1.0), ("cities_of_ours", 1, 0.0),
    ]  # fmt: skip
    assert (tmp_path / "out" / "lm_eval-against.jsonl").is_file()
    # what was replied is not asked for again: with these log-probs turned round it takes the banana
    (replies,) = (tmp_path / "out" / "lm_eval").glob("model-*.jsonl")
    said = [json.loads(line) for line in replies.read_text().splitlines()]
    assert len(said) == 6 and all(log_prob < 0 for row in said for log_prob in row["reply"][:1])
    turned = [row | {"reply": [-row["reply"][0], row["reply"][1]]} for row in said]
    replies.write_text("".join(json.dumps(row) + "\n" for row in turned))
    assert evaluate(*words, "--against", embedded)["lm_eval"]["figures"][0]["value"] == pytest.approx(1 / 3)
    done = CliRunner().invoke(app, ["eval", *map(str, words), "--lm-task", "no_such_task"])
    assert done.exit_code == 2 and "no_such_task" in done.output
