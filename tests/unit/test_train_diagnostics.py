"""The numbers of a step and the look back at a training, from records that were written by hand."""

from __future__ import annotations

import pytest

from anchorline.train.diagnostics import diagnose, step_metrics

PLAIN = dict.fromkeys(("both_fell", "chosen_stuck", "rejected_stuck", "margin_stuck"), False)


def record(id_, chosen, rejected, **more):
    return {
        **PLAIN,
        "id": id_,
        "step": 1,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "margin": chosen - rejected,
        "correct": chosen > rejected,
        "chosen_weight": 0.5,
        "rejected_weight": 0.25,
        "state": "live",
        **more,
    }


def test_a_steps_numbers_are_means_and_quantiles_over_its_pairs():
    rows = [record("a", 1.0, 0.0), record("b", 4.0, 6.0), record("c", -2.0, -3.0, both_fell=True)]
    found = step_metrics(rows)
    assert (found["chosen_reward"], found["rejected_reward"], found["margin"]) == (1.0, 1.0, 0.0)
    assert (found["accuracy"], found["both_fell"], found["chosen_fell"]) == pytest.approx((2 / 3, 1 / 3, 1 / 3))
    assert (found["chosen_weight"], found["rejected_weight"]) == (0.5, 0.25)
    assert [found[f"chosen_reward_{q}"] for q in ("p10", "p25", "p50", "p75", "p90")] == pytest.approx(
        [-1.4, -0.5, 1.0, 2.5, 3.4]
    )
    assert found["margin_p50"] == 1.0 and "chosen_prefix_change" not in found


def test_the_displacement_of_a_step_is_its_mean_over_pairs():
    rows = [record("a", 1, 0, chosen_edited_change=3.0), record("b", 1, 0, chosen_edited_change=-1.0)]
    assert step_metrics(rows)["chosen_edited_change"] == 1.0


def test_single_answers_are_told_apart_by_their_label():
    answers = [{"reward": 1.0, "label": True}, {"reward": 3.0, "label": True}]
    found = step_metrics(answers)
    assert (found["chosen_reward"], found["rejected_reward"]) == (2.0, None)
    assert (found["chosen_reward_p50"], found["rejected_reward_p50"]) == (2.0, None)
    assert step_metrics([]) == {}


def test_the_look_back_counts_each_pair_once_as_it_was_last_seen():
    def moved(change, tokens):
        return {"chosen_edited_change": change, "chosen_edited_tokens": tokens}

    rows = [
        record("a", 0, 0, **moved(0.0, 2)),
        record("b", 0, 0, **moved(0.0, 0)),
        record("a", 5, -5, step=2, state="won", **moved(8.0, 2)),
        record("b", -5, -5, step=2, state="stranded", **moved(0.0, 0)),
    ]
    found = diagnose(rows)
    assert found["rows"] == 2 and found["life"] == {
        "counts": {"won": 1, "live": 0, "stranded": 1},
        "won": ["a"],
        "live": [],
        "stranded": ["b"],
    }
    assert found["stranded"] == [{"id": "b", "step": 2, "chosen_reward": -5, "rejected_reward": -5, "margin": 0}]
    edited = found["displacement"]["chosen"]["edited"]
    assert edited == {"change_per_pair": 4.0, "change_per_token": 4.0, "tokens": 2, "pairs": 1}
    assert found["displacement"]["rejected"]["end"]["change_per_pair"] is None
    assert found["weight_left"] == {"chosen": 0.5, "rejected": 0.25}


def test_nothing_trained_is_nothing_to_look_back_at():
    assert diagnose([])["life"]["counts"] == {"won": 0, "live": 0, "stranded": 0}
