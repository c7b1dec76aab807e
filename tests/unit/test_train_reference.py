"""Reference log-probs are computed once: what the file holds is not asked of the model again."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from test_train_toys import PAD, example, tiny

from anchorline.errors import TrainingError
from anchorline.train import reference
from anchorline.train.attention import PACKED
from anchorline.train.forward import plain_attention, plain_logps
from anchorline.train.reference import reference_key, reference_logps
from anchorline.train.reference_tokens import read_reference_tokens
from anchorline.train.tokenise import response_key, with_mismatched

EXAMPLES = [example([5, 6, i], [10 + i, 11, 12], [40, 41 + i]) for i in range(20)]


@pytest.fixture
def model() -> Any:
    made = tiny()
    made.set_attn_implementation(PACKED)
    return made


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, ...]]:
    """Every response that the model was asked about."""
    responses: list[tuple[int, ...]] = []
    forward = reference.example_token_logps

    def watched(model, examples, **keywords):
        responses.extend(r for e in examples for r in e.responses)
        return forward(model, examples, **keywords)

    monkeypatch.setattr(reference, "example_token_logps", watched)
    return responses


def compute(model, examples, folder, *, packed=True):
    return reference_logps(model, examples, folder, key="k", packed=packed, tokens_per_row=64, pad=PAD)


def test_every_answer_has_the_log_prob_of_the_plain_forward(model, tmp_path):
    table = compute(model, EXAMPLES, tmp_path)
    with torch.no_grad(), plain_attention(model):
        expected = plain_logps(model, EXAMPLES, pad=PAD).tolist()
    keys = [response_key(e.prompt, r) for e in EXAMPLES for r in e.responses]
    assert [table[k] for k in keys] == pytest.approx(expected, rel=1e-5) and len(table) == len(set(keys))
    with plain_attention(model):
        plainly = compute(model, EXAMPLES, tmp_path / "plain", packed=False)
    assert plainly == pytest.approx(table, rel=1e-5)


def test_a_second_objective_asks_for_nothing(model, tmp_path, asked, monkeypatch):
    first = compute(model, EXAMPLES, tmp_path)
    assert len(asked) == 40
    monkeypatch.setattr(reference, "_verify", lambda *_, **__: None)
    asked.clear()
    assert compute(model, EXAMPLES[::-1], tmp_path) == first and asked == []


def test_only_the_owed_responses_are_computed(model, tmp_path, asked, monkeypatch):
    monkeypatch.setattr(reference, "_verify", lambda *_, **__: None)
    first = compute(model, EXAMPLES[:5], tmp_path)
    asked.clear()
    rows = [
        *EXAMPLES[:6],
        example([5, 6, 2], [12, 11, 12], [77]),
    ]  # the same prompt and chosen answer, another rejected
    table = compute(model, rows, tmp_path)
    assert sorted(asked) == sorted([*EXAMPLES[5].responses, (77,)])
    assert table.items() >= first.items() and len(table) == 13
    asked.clear()
    compute(model, with_mismatched(rows, max_tokens=100), tmp_path)  # kto's borrowed responses are all that is new
    assert sorted(asked) == sorted(e.responses[2] for e in with_mismatched(rows, max_tokens=100))


def test_the_file_of_another_reference_is_not_used(model, tmp_path, asked):
    compute(model, EXAMPLES[:2], tmp_path)
    reference_logps(model, EXAMPLES[:2], tmp_path, key="other", packed=True, tokens_per_row=64, pad=PAD)
    assert len(asked) == 8


def test_the_key_depends_on_each_of_its_parts():
    keys = {
        reference_key(m, arithmetic=a, forward=f)
        for m in "ab"
        for a in ("cpu float32 float32", "cpu float32 bfloat16")
        for f in ("packed", "plain")
    }
    assert len(keys) == 8


def test_a_torn_line_is_owed_again_and_the_file_heals(model, tmp_path, asked):
    first = compute(model, EXAMPLES[:3], tmp_path)
    (file,) = (tmp_path / "k").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][:-9])
    every = {response_key(e.prompt, r) for e in EXAMPLES[:3] for r in e.responses}
    assert len(read_reference_tokens(tmp_path / "k", every)) == len(every) - 1, "what is whole is read"
    asked.clear()
    again = compute(model, EXAMPLES[:3], tmp_path)
    torn = EXAMPLES[2].responses[1]
    assert asked.count(torn) == 1 and again == pytest.approx(first, rel=1e-6)
    kept = [json.loads(line) for f in (tmp_path / "k").iterdir() if f != file for line in f.read_text().splitlines()]
    assert [row["answer"] for row in kept] == [response_key(EXAMPLES[2].prompt, torn)]


def test_a_killed_call_keeps_what_it_had(model, tmp_path, asked, monkeypatch):
    forward, calls = reference.example_token_logps, []

    def killed(*args, **keywords):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(*args, **keywords)

    monkeypatch.setattr(reference, "example_token_logps", killed)
    with pytest.raises(KeyboardInterrupt):
        compute(model, EXAMPLES, tmp_path)
    monkeypatch.setattr(reference, "example_token_logps", forward)
    monkeypatch.setattr(reference, "_verify", lambda *_, **__: None)
    asked.clear()
    compute(model, EXAMPLES, tmp_path)
    assert len(asked) == 40 - 2 * 7  # three rows: 7, 7 and 6 examples of 8 tokens


def test_a_damaged_model_is_an_error_and_leaves_no_line(model, tmp_path):
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(TrainingError, match="not finite"):
        compute(model, EXAMPLES[:2], tmp_path)
    assert list((tmp_path / "k").iterdir()) == []


# ---- shared by runs, and looked at before it is believed ------------------------------------------------------------


def test_a_second_run_asks_again_for_a_few_only(model, tmp_path, asked):
    compute(model, EXAMPLES, tmp_path)
    asked.clear()
    compute(model, EXAMPLES, tmp_path)
    assert len(asked) == 2 * reference.SAMPLE


@pytest.mark.parametrize("damage", [0.01, -30.0, math.nan])
def test_kept_log_probs_of_another_model_are_an_error_that_says_what_to_delete(model, tmp_path, damage):
    compute(model, EXAMPLES, tmp_path)
    (file,) = (tmp_path / "k").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert min(abs(row["logp"]) for row in rows) > 1
    write = [{**row, "logp": row["logp"] * (1 + damage) if damage == damage else 0.0} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in write))
    with pytest.raises(TrainingError, match=rf"not this model's: row e has .* delete {tmp_path}/k and start again"):
        compute(model, EXAMPLES, tmp_path)


def test_what_other_rows_and_half_precision_round_otherwise_is_believed(model, tmp_path):
    with torch.autocast("cpu", torch.bfloat16):
        compute(model, EXAMPLES, tmp_path)
        compute(model, EXAMPLES[::-1], tmp_path)


def test_two_runs_may_write_at_the_same_time(model, tmp_path, monkeypatch):
    """The second begins and ends while the first is on its way."""
    append, began = reference.append_jsonl, []

    def meanwhile(file, rows):
        append(file, rows)
        if not began:
            began.append(1)
            compute(model, EXAMPLES, tmp_path)

    monkeypatch.setattr(reference, "append_jsonl", meanwhile)
    table = compute(model, EXAMPLES, tmp_path)
    assert len(list((tmp_path / "k").iterdir())) == 2 and reference._kept(tmp_path / "k") == pytest.approx(table)


def test_references_lie_where_the_recipe_or_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ANCHORLINE_REFERENCE_CACHE", "/named/by/user")
    assert str(reference.reference_folder("/in/recipe")) == "/in/recipe"
    assert str(reference.reference_folder(None)) == "/named/by/user"
    monkeypatch.delenv("ANCHORLINE_REFERENCE_CACHE")
    monkeypatch.setenv("ANCHORLINE_CACHE", str(tmp_path))
    assert reference.reference_folder(None) == tmp_path / "reference"


def test_rows_that_are_laid_out_otherwise_find_nothing_of_older_ones(monkeypatch):
    before = reference_key("m", arithmetic="cpu", forward="packed")
    monkeypatch.setattr(reference, "LAYOUT", reference.LAYOUT + 1)
    assert reference_key("m", arithmetic="cpu", forward="packed") != before
