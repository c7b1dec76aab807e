"""The advisor: win rates and intervals, places, per-pair objectives, warnings, wrong labels."""

from __future__ import annotations

import asyncio
import random
from statistics import NormalDist

import pytest
import torch

from anchorline.advise import (
    Compared,
    advise,
    compared_from_row,
    compared_to_row,
    flip_table,
    own_objectives,
    warnings_of,
)
from anchorline.advise.flips import STARTS
from anchorline.advise.rates import judgements_needed, win_rate
from anchorline.judge import pairwise_judge
from anchorline.llm.fake import FakeEndpoint
from anchorline.objectives.gradients import reward_gradients
from anchorline.objectives.logps import PairLogps
from anchorline.types import Message, Pair, Verdict

WIN, LOSS, TIE = Verdict("a"), Verdict("b"), Verdict("tie")
FLIP = Verdict("tie", flip=True)


def met(chosen, rejected):
    return [Compared(str(n), w, x) for n, (w, x) in enumerate(zip(chosen, rejected, strict=True))]


def pair(n, chosen="The lamp left on Monday by van", rejected="The lamp left on Tuesday by van", prompt="Where is it"):
    return Pair(f"p{n}", (Message("user", f"{prompt} {n}?"),), chosen, rejected)


def test_a_tie_is_half_a_win_and_a_flip_is_a_tie():
    rate = win_rate([WIN] * 3 + [TIE, FLIP] + [LOSS] * 5)
    assert (rate.share, rate.n, rate.wins, rate.losses, rate.ties, rate.flips) == (0.4, 10, 3, 5, 2, 1)
    assert rate.side == "open" and rate.low < 0.4 < rate.high
    assert win_rate([]).share is None and win_rate([]).side == "open"


@pytest.mark.parametrize(
    ("chosen", "rejected", "place", "objective", "settled"),
    [
        ([LOSS] * 20, [WIN] * 20, "between", "apo_zero", True),
        ([WIN] * 20, [WIN] * 20, "above", "apo_down", True),
        ([LOSS] * 20, [LOSS] * 20, "below", "apo_zero", True),
        ([WIN] * 20, [LOSS] * 20, "contradiction", "apo_zero", False),
        ([WIN, LOSS] * 10, [WIN] * 20, "not settled", "apo_zero", False),
        ([WIN] * 20, [WIN] * 11 + [LOSS] * 9, "not settled", "apo_zero", False),
        ([FLIP] * 200, [FLIP] * 200, "not settled", "apo_zero", False),
        ([], [], "not settled", "apo_zero", False),
    ],
)
def test_where_the_policy_stands(chosen, rejected, place, objective, settled):
    found = advise(met(chosen, rejected))
    assert (found.place, found.objective, found.settled) == (place, objective, settled)
    up = advise(met(chosen, rejected), experimental=True)
    assert up.objective == ("apo_up" if place == "below" else objective)
    assert ("experimental" in found.reason) == (place == "below")


def test_answers_that_are_the_policys_own_need_not_be_beaten():
    half = met([LOSS] * 20, [WIN, LOSS] * 10)
    assert advise(half).place == "not settled"
    assert advise(half, own_rejected=True)[:3] == ("between", "apo_zero", True)


def test_how_many_judgements_settle_it():
    """30 of 50 is open; the number that is told settles about four of five draws, and half of it clearly fewer."""
    found = advise(met([WIN] * 30 + [LOSS] * 20, [WIN] * 50))
    assert found.place == "not settled" and found.needed == judgements_needed(0.6) == 194
    assert advise(met([FLIP] * 40, [WIN] * 40)).needed is None
    draw = random.Random(5)

    def settled(n):
        return sum(
            win_rate([WIN if draw.random() < 0.6 else LOSS for _ in range(n)]).side == "above" for _ in range(400)
        )

    assert 0.74 < settled(194) / 400 < 0.86
    assert settled(97) / 400 < 0.6
    assert NormalDist().inv_cdf(0.975) == pytest.approx(1.96, abs=1e-2)


def test_an_always_first_judge_is_a_half_with_every_verdict_flipped():
    judge = pairwise_judge(FakeEndpoint("VERDICT: A"))
    verdicts = [asyncio.run(judge((Message("user", "Hi"),), f"a{n}", "b")) for n in range(30)]
    rate = win_rate(verdicts)
    assert (rate.share, rate.flips, rate.n, rate.side) == (0.5, 30, 30, "open")
    assert advise(met(verdicts, verdicts)).place == "not settled"


def test_each_pair_gets_what_its_own_verdicts_ask_for():
    verdicts = met([LOSS, WIN, LOSS, TIE, WIN, LOSS], [WIN, WIN, LOSS, WIN, LOSS, FLIP])
    rows = [Pair(str(n), (), "a", "b") for n in range(7)]  # the last was not judged
    above = advise(met([WIN] * 20, [WIN] * 20))
    found = [p.objective for p in own_objectives(rows, verdicts, above)]
    assert found == ["apo_zero", "apo_down", "apo_down", "apo_down", "apo_down", "apo_down", "apo_down"]
    between = advise(met([LOSS] * 20, [WIN] * 20))
    found = [p.objective for p in own_objectives(rows, verdicts, between, experimental=True)]
    assert found == ["apo_zero", "apo_down", "apo_up", "apo_zero", "apo_zero", "apo_zero", "apo_zero"]


def test_verdicts_survive_the_file():
    one = Compared("p", Verdict("a", judge="j"), Verdict("tie", flip=True, judge="j"))
    assert compared_from_row(compared_to_row(one)) == one


def kinds(pairs, **more):
    return {w.kind: w.figures for w in warnings_of(pairs, **more)}


def test_a_sound_set_is_not_warned_of():
    rows = [pair(n) for n in range(120)]
    assert kinds(rows) == {}
    assert kinds(rows[:99]) == {"few_pairs": {"n": 99}}


def test_length_needs_a_majority_that_the_sign_test_believes():
    long = "The lamp left on Monday by van and more"
    assert kinds([pair(n, chosen=long) for n in range(120)])["length_bias"]["longer"] == 120
    few = [pair(n, chosen=long) if n else pair(n, rejected=long) for n in range(8)]  # 7 of 8: p = 0.07
    assert "length_bias" not in kinds(few)
    even = [pair(n, chosen=long) if n % 2 else pair(n, rejected=long) for n in range(120)]
    assert "length_bias" not in kinds(even)


def test_conflicts_duplicates_and_few_prompts():
    rows = [pair(n) for n in range(120)]
    found = kinds([*rows, rows[3], rows[4].swap()])
    assert found["duplicates"]["duplicates"] == 1 and found["conflicts"]["conflicting"] == 2
    assert (
        kinds([pair(n % 7, chosen=f"The lamp left on Monday by van {n}") for n in range(120)])["few_prompts"]["prompts"]
        == 7
    )


def test_contrast_style_words_and_hidden_states():
    rows = [pair(n) for n in range(120)]
    assert "low_contrast" in kinds([pair(n, chosen="wholly other words stand here now") for n in range(120)])
    asking = [pair(n, prompt="Answer briefly, where is") for n in range(10)]
    assert kinds([*asking, *rows[10:]])["style_words"]["prompts"] == 10
    assert "style_words" not in kinds([*asking[:5], *rows[5:]])
    alike = [{"cosine": 0.999}] * 12 + [{"cosine": 0.9}] * 88
    assert kinds(rows, hidden=alike)["displacement"] == {"alike": 12, "n": 100}
    assert "displacement" not in kinds(rows, hidden=alike[6:])


@pytest.mark.parametrize("objective", STARTS)
def test_wrong_labels_are_what_autograd_says_of_a_mixture(objective):
    same, tokens = torch.tensor([-9.0]), torch.tensor([5])
    on_chosen, on_rejected = (
        g.item() for g in reward_gradients(objective, PairLogps(same, same, same, same, tokens, tokens))
    )
    assert STARTS[objective] == pytest.approx((on_chosen, on_rejected), abs=1e-6)
    for row in flip_table(objective):
        p = row["p"]
        assert row["better"] == pytest.approx((1 - p) * on_chosen + p * on_rejected, abs=1e-6)
        assert row["worse"] - row["better"] == pytest.approx(row["margin"] * (on_rejected - on_chosen), abs=1e-6)
    assert flip_table("dpo")[2]["target"] == pytest.approx(2.1972, abs=1e-3)
