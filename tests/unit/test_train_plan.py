"""The plan counts what training then does, measures on the model, and writes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_train_run import ROWS, metrics, settings
from test_train_toys import PAD, pair, save_tiny, template, tiny, words
from torch import nn
from typer.testing import CliRunner

from anchorline.cli.main import app
from anchorline.data import pair_to_row
from anchorline.errors import RecipeError
from anchorline.train.attention import PACKED
from anchorline.train.config import RetainSettings
from anchorline.train.footprint import Footprint, line, measure_row
from anchorline.train.layout import pack
from anchorline.train.plan import HELD, packing, plan, token_table
from anchorline.train.retain import Retained
from anchorline.train.run import train
from anchorline.train.tokenise import tokenise
from anchorline.types import Answer, Message


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def tokenised(rows):
    return tokenise(rows, template(), max_tokens=999, overlong="drop").examples


def test_tokens_are_counted_by_what_they_are_for():
    examples = tokenised([pair(0, chosen=words(4), rejected=words(2)), pair(1, chosen=words(8), rejected=words(2))])
    table = token_table(examples)
    assert table["chosen"] == {"total": 14, "mean": 7.0, "p5": 5.2, "p50": 7.0, "p95": 8.8, "max": 9}  # with <end>
    assert table["rejected"]["total"] == 6 and table["prompt"]["max"] == max(len(e.prompt) for e in examples)


def test_packing_says_what_training_packs(model, tmp_path, monkeypatch):
    chosen = settings(pairs_per_step=4, tokens_per_row=40, epochs=1)
    examples = tokenised(ROWS)
    found = packing(examples, chosen, seed=0, share=True)
    seen = []
    original = pack

    def watched(row, *, share):
        seen.append(original(row, share=share).tokens.shape[1])
        return original(row, share=share)

    train(ROWS[:1], model, chosen, tmp_path / "warm")
    monkeypatch.setattr("anchorline.train.forward.pack", watched)
    made = train(ROWS, model, chosen, tmp_path / "run")
    assert (found["rows"], found["pairs_per_row"]) == (3, 2) and len(seen) >= 3
    assert plan(ROWS, model, chosen)["steps"] == made.steps == len(metrics(tmp_path / "run")) == 2
    assert found["tokens_apart"] == sum(len(e.prompt) + len(r) for e in examples for r in e.responses)
    assert found["tokens"] < found["tokens_apart"] <= found["tokens_padded"]
    assert found["saved"] == pytest.approx(1 - found["tokens"] / found["tokens_apart"])
    unshared = packing(examples, chosen, seed=0, share=False)
    assert unshared["tokens"] == sum(e.tokens for e in examples) > found["tokens"]
    assert found["longest_row"] <= max(seen) + 10 and found["longest_row"] in range(20, 60)


@pytest.mark.parametrize(
    ("overlong", "expected"),
    [
        ("drop", {"rows": 2, "dropped": 2, "truncated": 0, "stops": False}),
        ("truncate", {"rows": 2, "dropped": 1, "truncated": 1, "stops": False}),  # of p8 one answer only would be cut
        ("error", {"rows": 2, "dropped": 2, "truncated": 0, "stops": True}),
    ],
)
def test_overlong_rows_are_counted_with_what_would_become_of_them(overlong, expected, model, tmp_path):
    rows = [
        *ROWS,
        pair(7, chosen=words(60), rejected="w3 " + words(70)),
        pair(8, rejected=words(60)),
        pair(9, chosen="w1 <end>"),
    ]
    chosen = settings(max_tokens=40, overlong=overlong, epochs=1)
    found = plan(rows, model, chosen)
    assert {key: found["overlong"][key] for key in expected} == expected and found["overlong"]["ids"] == ["p7", "p8"]
    assert [row["id"] for row in found["unfit"]] == ["p9"]
    if overlong != "error":
        assert found["rows"] == train(rows, model, chosen, tmp_path).rows


def test_the_measured_row_leaves_the_model_as_it_was_and_counts_what_its_forward_keeps():
    network = tiny()
    network.set_attn_implementation(PACKED)
    before = {name: p.clone() for name, p in network.named_parameters()}
    examples = tokenised(ROWS)
    one, two = (measure_row(network, examples[:n], settings(), pad=PAD) for n in (2, 4))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in network.named_parameters())
    assert two.tokens == pack(examples[:4]).tokens.shape[1] > one.tokens and min(one[1:]) > 0
    # a layer keeps at least what its linear maps and its activation read: 4 bytes a number
    least = network.config.num_hidden_layers * (2 * 32 + 3 * 64) * 4
    assert least * one.tokens < one.saved_bytes < two.saved_bytes < 40 * least * one.tokens


def test_what_is_kept_is_counted_exactly_where_it_can_be_worked_out(monkeypatch):
    """Two linear maps with a sigmoid between keep their inputs and the sigmoid's output: 3 tensors."""
    network = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Sigmoid(), nn.Linear(16, 4, bias=False))
    data = torch.randn(5, 8)
    monkeypatch.setattr("anchorline.train.footprint.example_token_logps", lambda policy, *_, **__: policy(data))
    kept = measure_row(network, tokenised(ROWS[:1]), settings(), pad=PAD).saved_bytes
    assert kept == 4 * (5 * 8 + 5 * 16)


def test_a_line_goes_through_two_points_and_never_below_zero():
    assert line([(400, 1.0), (1600, 3.4)]) == (0.2, 0.002)
    assert line([(100, 2.0), (100, 2.0)]) == line([(100, 2.0)]) == (0.0, 0.02)
    assert line([(100, 5.0), (200, 4.0)]) == (0.0, 0.02) == line([(100, 1.0), (200, 4.0)])


def test_the_plan_counts_the_steps_that_the_trainers_arguments_ask_for(model, tmp_path, monkeypatch):
    monkeypatch.setattr("anchorline.train.plan.measure", lambda *_: [Footprint(100, 1.0, 0.5, 0.1, 1000)])
    chosen = settings(pairs_per_step=2, epochs=50, arguments={"max_steps": 2})
    found, whole = (plan(ROWS, model, s) for s in (chosen, chosen.model_copy(update={"arguments": {}})))
    assert found["steps"] == train(ROWS, model, chosen, tmp_path).steps == 2 and whole["steps"] == 150
    assert found["time"]["training"] == pytest.approx(whole["time"]["training"] * 2 / 150, abs=0.002)
    with pytest.raises(RecipeError, match="did you mean max_steps"):
        plan(ROWS, model, settings(arguments={"max_step": 2}))
    with pytest.raises(RecipeError, match=r"train\.arguments: invalid literal"):
        plan(ROWS, model, settings(arguments={"max_steps": "two"}))


def test_memory_and_time_are_sums_of_their_parts(model):
    found = plan(ROWS, model, settings(epochs=3))
    parts = found["memory"]["parts_gib"]
    assert found["memory"]["gib"] == pytest.approx(sum(parts.values()), abs=0.01) and all(
        v >= 0 for v in parts.values()
    )
    times = found["time"]
    assert times["seconds"] == pytest.approx(times["reference"] + times["training"], abs=0.2)
    assert 0 < times["low"] <= times["seconds"] <= times["high"]
    assert found["parameters"]["trained"] < found["parameters"]["all"]
    longer = [plan(ROWS, model, settings(tokens_per_row=size))["packing"]["longest_row"] for size in (1, 45, 100)]
    assert all(a < b for a, b in pairwise(longer))


def test_the_memory_of_logits_is_what_the_head_holds(model, monkeypatch):
    asked = []
    monkeypatch.setattr("anchorline.train.plan.room_bytes", lambda *given: asked.append(given) or 2**30)
    found = plan(ROWS, model, settings(dtype="float32"))
    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    assert asked == [(found["packing"]["longest_row"], vocabulary, torch.float32, "cpu")]
    assert found["memory"]["parts_gib"]["logits"] == HELD


def test_answers_that_are_to_stay_are_counted_as_training_takes_them(model, tmp_path, monkeypatch):
    asked = RetainSettings(prompts="-", per_step=2, max_new_tokens=9)
    answers = [Answer(f"k{i}", (Message("user", "w1"),), words(5), "stop") for i in range(3)]
    chosen = settings(pairs_per_step=4, tokens_per_row=1, epochs=1)
    without, found = plan(ROWS, model, chosen), plan(ROWS, model, chosen, retain=Retained(answers, asked))
    seen = []

    def watched(row, *, share):
        seen.append(row)
        return pack(row, share=share)

    monkeypatch.setattr("anchorline.train.forward.pack", watched)
    train(ROWS, model, chosen, tmp_path, retain=Retained(answers, asked))
    rows = [row for row in seen if row[0].id.startswith("k")]
    taken = rows[-4:]  # after the reference's: two steps with two answers each
    assert (found["retain"]["answers"], found["retain"]["per_step"], found["retain"]["rows"]) == (3, 2, len(taken))
    assert found["retain"]["tokens"] == sum(pack(row, share=True).tokens.shape[1] for row in taken)
    assert found["packing"] == without["packing"] and found["retain"]["not_drawn"] == 0
    to_come = [answer if answer.id == "k0" else replace(answer, text="") for answer in answers]
    longest = plan(ROWS, model, chosen, retain=Retained(to_come, asked))["retain"]
    assert longest["not_drawn"] == 2 and longest["own_tokens"] == found["retain"]["own_tokens"] + 2 * (9 - 6)


# ---- the command ----------------------------------------------------------------------------------------------------


def said(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["train", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.stderr if code else done.stdout


def test_the_command_plans_and_writes_nothing(model, tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    rows = [*ROWS, pair(9, rejected=words(60)), pair(10), pair(11)]
    file.write_text("".join(json.dumps(pair_to_row(p)) + "\n" for p in rows))
    given = [file, "--model", model, "--plan", "--out", tmp_path / "run", "--set", "pairs.heldout=0.1",
             "--set", "train.dtype=float32", "--set", "train.max_tokens=40", "--set", "seed=1"]  # fmt: skip
    found = json.loads(said(*given, "--json"))
    assert (found["rows"], found["steps"], found["overlong"]["rows"]) == (7, 1, 1)  # and one held out
    text = said(*given)
    assert "7 rows to train on" in text and "1 rows: 1 dropped, 0 truncated; p9" in text
    assert "steps: 1; longest row:" in text and "memory: about" in text and "measured just now" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pairs.jsonl"]


def test_a_recipe_whose_pairs_are_not_made_says_how_to_make_them(model, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    (tmp_path / "p.jsonl").write_text('{"prompt": "w1"}\n')
    recipe.write_text(f"model: {model}\nprompts: {{train: p.jsonl}}\n")
    shown = said(recipe, "--plan", "--out", tmp_path / "run", code=2)
    assert "the pairs are not made yet; make them first: anchorline pairs" in shown and shown.count("\n") == 1
    assert not (tmp_path / "run").exists()
