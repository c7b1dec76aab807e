# ruff: noqa: F811
"""What training keeps of each pair: it adds up, it names the right places, and scoring the saved model gives it again."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_run import LORA, ROWS, metrics, model, pairs, settings  # noqa: F401 (the fixture `model`)
from test_train_toys import PAD, example, pair, template
from typer.testing import CliRunner

from anchorline.cli.main import app
from anchorline.data import pair_to_row
from anchorline.data.files import scan_rows
from anchorline.errors import DataError, TrainingError
from anchorline.measure.regions import REGIONS
from anchorline.train import gate, trainer
from anchorline.train.config import TrainSettings
from anchorline.train.forward import by_branch, example_token_logps, plain_token_logps
from anchorline.train.gate import check_start
from anchorline.train.policy import load_policy, with_adapter
from anchorline.train.records import Recorder
from anchorline.train.run import train
from anchorline.train.score import score
from anchorline.train.tokenise import response_key, tokenise
from anchorline.train.trainer import batch_logps
from anchorline.types import Unpaired

ONE_STEP: dict[str, Any] = {"pairs_per_step": 6, "learning_rate": 2e-2}


@pytest.fixture(scope="module", params=[LORA, None], ids=["lora", "full"])
def twice(request, model, tmp_path_factory):
    """A training of one step, and one of two steps whose second sees the weights that the first has saved."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for folder, epochs in ((one, 1), (two, 2)):
        train(ROWS, model, settings(lora=request.param, epochs=epochs, **ONE_STEP), folder)
    return one, two, settings(lora=request.param, **ONE_STEP)


def test_scoring_the_saved_model_gives_the_records_of_the_step_after(twice, model):
    one, two, chosen = twice
    scored = score(ROWS, str(one / "model"), chosen, against=model)
    trained = {row["id"]: row for row in pairs(two) if row["epoch"] == 1}
    assert [row["id"] for row in scored.rows] == [p.id for p in ROWS]
    assert max(abs(row["chosen_reward"]) for row in scored.rows) > 0.05, "the step moved nothing"
    for row in scored.rows:
        other = {k: v for k, v in trained[row["id"]].items() if k not in ("step", "epoch")}
        assert row.keys() == other.keys()
        for name, value in row.items():
            if name.endswith("moved"):
                assert [(m["at"], m["token"]) for m in value] == [(m["at"], m["token"]) for m in other[name]]
                assert [m["change"] for m in value] == pytest.approx([m["change"] for m in other[name]], abs=1e-4)
            elif isinstance(value, float):
                assert value == pytest.approx(other[name], rel=1e-4, abs=1e-4), name
            else:
                assert value == other[name], name
    last = metrics(two)[1]
    for name in ("margin", "chosen_weight", "rejected_edited_change", "margin_p10"):
        assert scored.table[name] == pytest.approx(last[name], rel=1e-4, abs=1e-4)


def test_a_training_that_moves_nothing_is_scored_as_the_reference(model, tmp_path):
    train(ROWS, model, settings(learning_rate=1e-30, epochs=1), tmp_path)
    for scored in (score(ROWS, str(tmp_path / "model"), settings()), score(ROWS, model, settings(), against=model)):
        kept = {row["id"]: row for row in pairs(tmp_path)}
        for row in scored.rows:
            for name in ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"):
                assert row[name] == pytest.approx(kept[row["id"]][name], abs=1e-4)
            assert abs(row["chosen_reward"]) < 1e-4 and row["chosen_weight"] == pytest.approx(1)


def test_the_change_of_the_regions_adds_up_to_the_change_of_the_answer(twice):
    rows = [row for row in pairs(twice[1]) if row["epoch"] == 1]
    for row in rows:
        for side in ("chosen", "rejected"):
            change = row[f"policy_{side}"] - row[f"reference_{side}"]
            assert sum(row[f"{side}_{r}_change"] for r in REGIONS) == pytest.approx(change, abs=1e-4)
            assert sum(row[f"{side}_{r}_tokens"] for r in REGIONS) == row[f"{side}_tokens"]
            assert row[f"{side}_end_tokens"] == 1
        assert row["chosen_prefix_tokens"] == row["rejected_prefix_tokens"]
        assert row["chosen_common_tokens"] == row["rejected_common_tokens"]
    assert {row["step"] for row in pairs(twice[1]) if row["epoch"] == 0} == {1}


@pytest.mark.parametrize("words", [4, 9], ids=["as many tokens", "more tokens"])
def test_held_out_rows_with_the_ids_of_training_have_places_of_their_own(words, model, tmp_path):
    rows = [pair(0, chosen="w1 w2 w3 w4", rejected="w5 w6 w7 w8")]
    said = [" ".join(["w1", "w2", last] + ["w9"] * (words - 3)) for last in ("w3", "w4")]
    heldout = pair(0, chosen=said[0], rejected=said[1])
    chosen = settings(epochs=1, arguments={"eval_strategy": "epoch"}, **ONE_STEP)
    found = {}
    for name in (heldout.id, "another"):
        train(rows, model, chosen, tmp_path / name, heldout=[replace(heldout, id=name)])
        found[name] = json.loads((tmp_path / name / "train/evaluations.jsonl").read_text())
    assert found[heldout.id] == found["another"] and abs(found["another"]["chosen_common_change"]) > 1e-3


def test_the_tokens_that_moved_most_are_those_of_the_plain_forward(model, tmp_path):
    row = pair(0, chosen="w1 w2 w3 w4", rejected="w1 w9 w3 w4 w5")
    chosen = settings(epochs=1, lora=None, **ONE_STEP)
    train([row], model, chosen, tmp_path)
    (record,) = score([row], str(tmp_path / "model"), chosen, against=model).rows
    (example,) = tokenise([row], template(), max_tokens=99, overlong="drop").examples
    networks = [
        load_policy(name, settings(lora=None, forward="plain")).model for name in (str(tmp_path / "model"), model)
    ]
    with torch.no_grad():
        after, before = (plain_token_logps(n, [example], pad=PAD) for n in networks)
    change = by_branch(after - before, [example])
    words = [[*row.chosen.split(), "<end>"], [*row.rejected.split(), "<end>"]]
    for side, values, text in zip(("chosen", "rejected"), change, words, strict=True):
        order = values.abs().argsort(descending=True).tolist()[:5]
        moved = record[f"{side}_moved"]
        assert [m["at"] for m in moved] == order and [m["token"] for m in moved] == [text[i] for i in order]
        assert [m["change"] for m in moved] == pytest.approx(values[order].tolist(), abs=1e-4)
    assert record["chosen_prefix_change"] == pytest.approx(float(change[0][0]), abs=1e-4)
    assert record["rejected_edited_change"] == pytest.approx(float(change[1][1] + change[1][4]), abs=1e-4)
    assert record["chosen_common_change"] == pytest.approx(float(change[0][2:4].sum()), abs=1e-4)


def test_packed_and_plain_give_the_same_tokens_in_the_same_order(model):
    network = load_policy(model, settings(lora=None)).model
    examples = tokenise(ROWS, template(), max_tokens=99, overlong="drop").examples
    with torch.no_grad():
        packed = example_token_logps(network, examples, packed=True, pad=PAD)
        network.set_attn_implementation("sdpa")
        plain = example_token_logps(network, examples, packed=False, pad=PAD)
    assert torch.allclose(packed, plain, atol=1e-4) and len(packed) == sum(
        len(r) for e in examples for r in e.responses
    )


def test_the_look_back_names_the_stranded_pair(model, tmp_path):
    """One pair pulls against five others with the answers exchanged: it is carried to the wrong side and left there."""
    rows = [pair(0, chosen="w1 w2", rejected="w3 w4", prompt="w9 w8")]
    rows += [pair(i, chosen="w3 w4", rejected="w1 w2", prompt="w9 w8") for i in range(1, 6)]
    train(rows, model, settings(epochs=12, lora=None, beta=1.0, pairs_per_step=6, learning_rate=5e-3), tmp_path)
    found = json.loads((tmp_path / "train/diagnostics.json").read_text())
    assert found["life"]["stranded"] == ["p0"] and sorted(found["life"]["won"]) == ["p1", "p2", "p3", "p4", "p5"]
    (stranded,) = found["stranded"]
    assert stranded["id"] == "p0" and stranded["chosen_reward"] < -3.64
    last = {row["id"]: row for row in pairs(tmp_path) if row["epoch"] == 11}
    assert last["p0"]["state"] == "stranded" and last["p0"]["chosen_weight"] < 0.1
    assert found["start"]["parameters"] == found["start"]["all_parameters"] > 1000
    assert metrics(tmp_path)[-1]["accuracy"] == pytest.approx(5 / 6)


def test_single_answers_are_kept_and_scored_with_their_tokens(model, tmp_path):
    rows = [Unpaired(p.id, p.prompt, p.chosen, i % 2 == 0) for i, p in enumerate(ROWS)]
    train(rows, model, settings("kto", epochs=1, **ONE_STEP), tmp_path)
    scored = score(rows, str(tmp_path / "model"), settings("kto", **ONE_STEP))
    kept = pairs(tmp_path)
    assert (
        {"reward", "gradient", "weight", "state", "anchor", "moved"}
        <= set(kept[0])
        == set(scored.rows[0]) | {"step", "epoch"}
    )
    assert all(row["weight"] == pytest.approx(1, abs=1e-3) for row in kept)
    assert {row["label"]: row["reward"] > 0 for row in scored.rows} == {True: True, False: False}


def test_whole_weights_without_a_reference_give_log_probs_and_nothing_else(model):
    (row,) = score(ROWS[:1], model, settings()).rows
    assert set(row) == {"id", "prompt_tokens", "policy_chosen", "policy_rejected", "chosen_tokens", "rejected_tokens"}
    with pytest.raises(DataError, match=r"no row is left to score: .*2 times.* \(row p0\)"):
        score([pair(0, chosen="w1 <end>")], model, settings())


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair_to_row(p)) + "\n" for p in ROWS))
    return file


def anchorline(*words: Any) -> str:
    done = CliRunner().invoke(app, ["score", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_scores_a_file_into_a_table(twice, pairs_file, tmp_path, model):
    one, _, chosen = twice
    said = json.loads(
        anchorline(
            "--model",
            one / "model",
            "--pairs",
            pairs_file,
            "--against",
            model,
            "--out",
            tmp_path / "s.parquet",
            "--json",
            "--set",
            "train.dtype=float32",
        )
    )
    expected = score(ROWS, str(one / "model"), chosen, against=model)
    assert said["n"] == 6 and said["margin"] == pytest.approx(expected.table["margin"]) and "rows" not in said
    written = [row for _, row in scan_rows(tmp_path / "s.parquet")]
    assert [row["chosen_reward"] for row in written] == pytest.approx([r["chosen_reward"] for r in expected.rows])
    shown = anchorline("--model", model, "--pairs", pairs_file, "--set", "train.dtype=float32")
    assert shown == "6 rows\n"


def test_the_command_reads_beta_and_pairs_from_a_run_folder(pairs_file, tmp_path, model):
    run = tmp_path / "run"
    done = CliRunner().invoke(
        app,
        [
            "train",
            str(pairs_file),
            "--model",
            model,
            "--out",
            str(run),
            "--set",
            "train.beta=0.5",
            "--set",
            "train.lora.rank=2",
            "--set",
            "train.dtype=float32",
            "--set",
            "train.learning_rate=0.01",
            "--set",
            "train.pairs_per_step=3",
        ],
    )
    assert done.exit_code == 0, done.output
    said = json.loads(anchorline("--model", run, "--json"))
    assert said["n"] == len((run / "pairs.jsonl").read_text().splitlines())
    row = said["rows"][0]
    assert row["chosen_reward"] == pytest.approx(0.5 * (row["policy_chosen"] - row["reference_chosen"]), abs=1e-4)
    assert row["chosen_reward"] != 0


def test_a_model_without_pairs_is_a_mistake_of_one_line(model):
    done = CliRunner().invoke(app, ["score", "--model", model])
    assert done.exit_code == 2 and "--pairs is lacking" in done.stderr and done.stderr.count("\n") == 1


# ---- the gate before the first step, and a loss that breaks ---------------------------------------------------------


def prepared(model: str, chosen: TrainSettings):
    loaded = load_policy(model, chosen)
    examples = tokenise(ROWS, template(), max_tokens=99, overlong="drop").examples
    with torch.no_grad():
        tokens = example_token_logps(loaded.model, examples, packed=True, pad=PAD)
    keys = [response_key(e.prompt, r) for e in examples for r in e.responses]
    reference = dict(zip(keys, [float(t.sum()) for t in by_branch(tokens, examples)], strict=True))
    return with_adapter(loaded, chosen, model), examples, reference


def test_the_gate_counts_what_trains_and_lets_a_sound_start_pass(model):
    policy, examples, reference = prepared(model, settings())
    before = policy.training
    start = check_start(policy, examples, reference, settings(), Path("kept"), pad=PAD)
    assert start.parameters == sum(p.numel() for p in policy.parameters() if p.requires_grad) > 0
    assert start.all_parameters > start.parameters
    assert (start.largest_reward, start.sample) == (0.0, 8) and start.reference_error < 1e-3
    assert policy.training == before


def test_a_policy_that_trains_nothing_is_stopped(model):
    policy, examples, reference = prepared(model, settings())
    policy.requires_grad_(False)
    with pytest.raises(TrainingError, match=r"no parameter of the policy trains; look at train\.lora"):
        check_start(policy, examples, reference, settings(), Path("kept"), pad=PAD)


def test_an_adapter_that_starts_with_an_effect_is_stopped(model):
    policy, examples, reference = prepared(model, settings())
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.add_(0.05)
    with pytest.raises(TrainingError, match=r"not the reference before the first step: a reward is [\d.e-]+ where 0"):
        check_start(policy, examples, reference, settings(), Path("kept"), pad=PAD)


@pytest.mark.parametrize("wrong", [0.02, -1.0, math.nan])
def test_kept_log_probs_of_another_model_are_found_out_and_the_row_is_named(wrong, model):
    policy, examples, reference = prepared(model, settings())
    key = response_key(examples[-1].prompt, examples[-1].responses[0])
    with pytest.raises(TrainingError, match=r"not this model's: row p5 has .*; delete kept and start again"):
        check_start(policy, examples, reference | {key: reference[key] + wrong}, settings(), Path("kept"), pad=PAD)


def test_training_goes_through_the_gate(model, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "LARGEST_REWARD", -1.0)
    with pytest.raises(TrainingError, match="before the first step"):
        train(ROWS, model, settings(), tmp_path)
    assert not (tmp_path / "train/metrics.jsonl").exists()


def test_a_log_prob_that_is_not_a_number_stops_with_the_pair_that_has_it(model, tmp_path, monkeypatch):
    calls, original = [], trainer.example_token_logps

    def poisoned(network, examples, **keywords):
        calls.append(1)
        tokens = original(network, examples, **keywords)
        at = next((i for i, e in enumerate(examples) if e.id == "p3"), None)
        if len(calls) > 2 and at is not None:
            end = sum(len(r) for e in examples[: at + 1] for r in e.responses)
            tokens = torch.where(torch.arange(len(tokens)) == end - 1, math.nan, tokens)
        return tokens

    monkeypatch.setattr(trainer, "example_token_logps", poisoned)
    with pytest.raises(TrainingError, match=r"not a number at step [34] \(rows p3\); lower train\.learning_rate"):
        train(ROWS, model, settings(pairs_per_step=3), tmp_path)
    assert len(metrics(tmp_path)) in (2, 3) and not (tmp_path / "model").exists()


def test_a_gradient_that_is_not_a_number_stops_with_the_pairs_of_the_step(model, tmp_path, monkeypatch):
    original = trainer.response_sums

    def steep(tokens, examples):
        tokens.register_hook(lambda gradient: gradient * math.inf)
        return original(tokens, examples)

    monkeypatch.setattr(trainer, "response_sums", steep)
    with pytest.raises(TrainingError, match=r"the gradient is not a number at step 1 \(rows p0\); lower"):
        train(ROWS[:1], model, settings(), tmp_path)
    assert not list(tmp_path.glob("train/checkpoint-*")) and not (tmp_path / "model").exists()


def test_profiled_steps_say_what_share_of_their_time_is_products(model, tmp_path):
    train(ROWS, model, settings(pairs_per_step=2, epochs=2, profile_steps=2), tmp_path)
    shares = [line.get("matmul_share") for line in metrics(tmp_path)]
    assert [share is not None for share in shares] == [False, True, True, False, False, False]
    assert all(0 < share < 1 for share in shares[1:3])  # on a busy machine nearly all of the time is other programs'
    lines = [json.loads(line) for line in (tmp_path / "train/metrics.jsonl").read_text().splitlines()]
    assert all(line["pairs_per_second"] > 0 and line["tokens_per_second"] > line["pairs_per_second"] for line in lines)


def test_objects_from_before_are_left_alone_for_the_training_only(model, tmp_path, monkeypatch):
    counts, original = [], trainer.response_sums
    monkeypatch.setattr(
        trainer, "response_sums", lambda *given: counts.append(gc.get_freeze_count()) or original(*given)
    )
    train(ROWS[:2], model, settings(), tmp_path)
    assert min(counts) > 1000 and not gc.get_freeze_count()
    gc.freeze()
    try:
        train(ROWS[:2], model, settings(), tmp_path / "again")
        assert gc.get_freeze_count(), "that was the caller's own"
    finally:
        gc.unfreeze()


def test_the_state_and_the_pull_are_of_the_pairs_own_objective():
    own = (None, "dpo", "apo_up")
    plain = [example([n], [10, 11], [20]) for n in range(3)]
    examples = [replace(e, objective=name) for e, name in zip(plain, own, strict=True)]
    policy = torch.tensor([-60.0, -60.0] * 3)  # both rewards are -5: apo_zero lets go of chosen, apo_up of rejected
    batch = batch_logps(examples, policy, policy + 50)
    rows = Recorder(TrainSettings()).rows(examples, batch, None, [policy[:2], policy[2:3]] * 3)
    assert [row.get("objective") for row in rows] == list(own)
    assert [row["state"] for row in rows] == ["stranded", "live", "stranded"]
    assert [round(row["chosen_weight"], 2) for row in rows] == [0.03, 0.5, 1.0]
