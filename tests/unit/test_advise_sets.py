"""The advisor: win rates and intervals, places, per-pair objectives, warnings, wrong labels."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
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
from anchorline.advise.warnings import _length
from anchorline.cli.advise import _more
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


HALF, LOST, WON = [WIN, LOSS] * 20, [LOSS] * 40, [WIN] * 40


@pytest.mark.parametrize(
    ("chosen", "rejected", "place", "objective", "settled"),
    [
        (LOST, HALF, "between", "apo_zero", True),
        (LOST, WON, "between", "apo_zero", True),
        (LOST, LOST, "between", "apo_zero", True),
        (WON, HALF, "above", "apo_down", True),
        (WON, LOST, "above", "apo_down", True),
        (HALF, HALF, "not settled", "apo_zero", False),
        (HALF, LOST, "not settled", "apo_zero", False),
        ([], [], "not settled", "apo_zero", False),
    ],
)
def test_a_set_whose_rejected_is_the_policys_own_is_placed_by_chosen(chosen, rejected, place, objective, settled):
    for experimental in (False, True):  # never below: it cannot be below itself
        found = advise(met(chosen, rejected), own_rejected=True, experimental=experimental)
        assert (found.place, found.objective, found.settled) == (place, objective, settled)
    odd = rejected is LOST and settled
    assert ("loses to rejected all the same (0 of 40)" in found.reason) == odd
    assert ("its own answer" in found.reason) == settled
    assert ("against rejected" in found.reason) is False
    assert advise(met(LOST, HALF)).place == advise(met(WON, HALF)).place == "not settled"


def test_rejected_answers_that_are_the_policys_own_ask_for_no_judgements():
    """45 % against chosen wants a number; 50 % against its own answers is what it has to be."""
    verdicts = met([WIN] * 18 + [LOSS] * 22, HALF)
    assert advise(verdicts, own_rejected=True).needed == judgements_needed(0.45)
    assert advise(verdicts).needed is None
    assert advise(met(HALF, [WIN] * 18 + [LOSS] * 22), own_rejected=True).needed is None


@pytest.mark.parametrize(
    ("chosen", "own", "says"),
    [
        (
            [WIN] * 18 + [LOSS] * 22,
            True,
            "About 783 judged pairs in all, 743 more, would settle it (chance 80 %); the file has 50. ",
        ),
        ([WIN] * 18 + [LOSS] * 22, False, "If 50 % is what it is"),  # against rejected it is
        (HALF, True, "If 50 % is what it is"),
        ([], True, ""),
        ([], False, ""),
        (LOST, True, ""),
    ],
)
def test_what_is_said_of_more_judgements(chosen, own, says):
    found = advise(met(chosen, HALF[: len(chosen)]), own_rejected=own)
    more = _more({**found._asdict(), "judged": found.chosen.n, "pairs": 50})
    assert more.startswith(says) and bool(more) == bool(says)


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
    everyone = {p.id for p in rows}
    found = [p.objective for p in own_objectives(rows, verdicts, between, experimental=True, own_rejected=everyone)]
    assert found == ["apo_zero", "apo_down", "apo_zero", "apo_zero", "apo_down", "apo_zero", "apo_zero"]
    some = [p.objective for p in own_objectives(rows, verdicts, between, experimental=True, own_rejected={"4"})]
    assert some == ["apo_zero", "apo_down", "apo_up", "apo_zero", "apo_down", "apo_zero", "apo_zero"], (
        "of this pair alone"
    )
    given = [replace(p, objective="dpo") if n in (1, 6) else p for n, p in enumerate(rows)]
    found = [p.objective for p in own_objectives(given, verdicts, between)]
    assert found == ["apo_zero", "dpo", "apo_zero", "apo_zero", "apo_zero", "apo_zero", "dpo"]


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


def test_the_length_of_a_large_set_is_tested_at_once():
    """The paper's set has 32,000 pairs. Of 14 pairs, p is 2 · (1 + 14) / 2¹⁴."""
    longer = pair(0, chosen="The lamp left on Monday by van and more")
    assert _length([longer] * 9 + [longer.swap()]) == []  # p = 0.021
    (found,) = _length([longer] * 13 + [longer.swap()])
    assert found.figures == {"longer": 13, "shorter": 1, "n": 14, "p": pytest.approx(30 / 2**14)}
    start = time.perf_counter()
    (found,) = _length([longer] * 20_000 + [longer.swap()] * 12_000)
    assert time.perf_counter() - start < 2  # sums of exact whole numbers take minutes
    assert found.figures["p"] == 0.0 and found.figures["n"] == 32_000


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
