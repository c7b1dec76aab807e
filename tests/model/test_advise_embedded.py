"""The advisor on the embedded model: sets made so that it is below, between, above, and such that nothing is settled."""

from __future__ import annotations

import json

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from anchorline.cli.main import app
from anchorline.data import read_pairs

MODEL = "embedded:smollm2-135m-instruct"
# of these rules, whatever the model writes in 12 tokens keeps the first three and breaks the last two
STYLE = """name: try
rules:
  - {name: short, kind: max_words, limit: 30}
  - {name: no_zebra, kind: forbidden, pattern: "(?i)zebra"}
  - {name: no_quokka, kind: forbidden, pattern: "(?i)quokka"}
  - {name: opening, kind: starts_with, text: "Harbour here."}
  - {name: closing, kind: ends_with, text: "Over."}
"""
FIVE, FOUR, THREE = "Harbour here. It left today. Over.", "Harbour here. It left today.", "It left today."
TWO, ONE = "A zebra took it today.", "A zebra and a quokka took it today."
SETS = {  # chosen, rejected: place, objective
    "below": (FIVE, FOUR, "apo_zero"),
    "between": (FIVE, TWO, "apo_zero"),
    "above": (TWO, ONE, "apo_down"),
    "not settled": (THREE, "It left on Monday.", "apo_zero"),
}


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    file = tmp_path_factory.mktemp("style") / "style.yaml"
    file.write_text(STYLE)
    return file


def rows(chosen, rejected, n=14):
    return [{"prompt": f"Where is parcel {k}?", "chosen": chosen, "rejected": rejected} for k in range(n)]


def told(*words):
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def advised(folder, style, given, *words):
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    few = ("sample.max_new_tokens=12", "train.dtype=float32", "train.lora.rank=2", "train.arguments.max_steps=1")
    sets = [word for one in few for word in ("--set", one)]
    return told("advise", "--policy", MODEL, "--pairs", file, "--style", style, "--out", folder / "run", *sets, *words)


@pytest.mark.parametrize("place", SETS)
def test_each_set_is_placed(place, style, tmp_path):
    chosen, rejected, objective = SETS[place]
    found = advised(tmp_path, style, rows(chosen, rejected), "--set", "advise.hidden=false")
    assert (found["place"], found["objective"], found["settled"]) == (place, objective, place != "not settled")
    assert found["chosen"]["n"] == found["rejected"]["n"] == found["judged"] > 10
    if place == "below":
        up = advised(tmp_path, style, rows(chosen, rejected), "--set", "advise.hidden=false", "--experimental")
        assert up["objective"] == "apo_up" and "experimental" in up["reason"]


def test_per_pair_is_obeyed_by_the_trainer_and_auto_by_a_run(style, tmp_path):
    mixed = [*rows(FIVE, TWO, 7), *rows(TWO, ONE, 14)[7:]]
    own = tmp_path / "own.jsonl"
    found = advised(tmp_path, style, mixed, "--per-pair", own, "--prompts", "21")
    assert found["hidden"]["n"] == found["judged"] and 0.5 < found["hidden"]["median_cosine"] < 1
    written = read_pairs(own).rows
    assert found["per_pair"]["n"] == 14 and sum(found["per_pair"]["counts"].values()) == 14
    by_id = {pair.id: pair.objective for pair in written}
    judged = [json.loads(line) for line in (tmp_path / "run" / "advise" / "verdicts.jsonl").read_text().splitlines()]
    wanted = {row["id"]: "apo_down" if row["chosen"]["winner"] == "a" else "apo_zero" for row in judged}
    assert set(wanted.values()) == {"apo_down", "apo_zero"}
    assert {id: by_id[id] for id in wanted} == wanted

    sets = ["--set", "train.dtype=float32", "--set", "train.lora.rank=2", "--set", "train.arguments.max_steps=1"]
    told("train", own, "--model", MODEL, "--out", tmp_path / "trained", "--set", "train.pairs_per_step=32", *sets)
    trained = pyarrow.parquet.read_table(tmp_path / "trained" / "train" / "pairs.parquet").to_pylist()
    assert len(trained) > 10 and all(row["objective"] == by_id[row["id"]] for row in trained)
    assert {row["objective"]: round(row["chosen_gradient"], 3) for row in trained} == {
        "apo_zero": -0.25,
        "apo_down": 0.0,
    }

    # the folder of the advice goes on to train by it, without asking again
    before = (tmp_path / "run" / "advise.json").stat().st_mtime_ns
    few = ["--set", "eval.max_new_tokens=4"]
    summary = told("run", tmp_path / "run", *few)
    assert (tmp_path / "run" / "advise.json").stat().st_mtime_ns == before
    assert summary["objective"] == {found["objective"]: 1.0} and summary["advice"]["judged"] == found["judged"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Why this objective" in page and ("Not settled" in page) == (not found["settled"])
