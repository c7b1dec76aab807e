"""The pull that is left on each answer, against formulas and grids; and which pairs are won, live and stranded."""

from __future__ import annotations

import math

import pytest
import torch

from anchorline.objectives.gradients import gradient_peaks, reward_gradients, share_left
from anchorline.objectives.life import answer_life, pair_life
from anchorline.objectives.logps import AnswerLogps, PairLogps
from anchorline.objectives.metrics import STUCK_REWARD
from anchorline.objectives.names import DESCRIPTIONS

BETA = 0.1
KTO = {"desirable_weight": 1.5, "undesirable_weight": 0.5}


def pairs(chosen, rejected):
    """Pairs with these rewards, of 5 and 4 tokens."""
    w, x = (torch.tensor(r, dtype=torch.float64) / BETA for r in (chosen, rejected))
    base = torch.full_like(w, -100.0)
    return PairLogps(base + w, base + x, base, base, torch.full(w.shape, 5), torch.full(w.shape, 4))


def slope(r):
    s = 1 / (1 + math.exp(-r))
    return s * (1 - s)


def test_the_slopes_of_the_paper_at_a_point():
    """arXiv 2408.06266: -d(r_w), +d(r_l) for apo_zero; d(r_w) - d(m), +d(m) for apo_down."""
    r_w, r_l = 0.7, -1.2
    at = pairs([r_w], [r_l])
    found = [tuple(g.item() for g in reward_gradients(name, at, beta=BETA)) for name in ("apo_zero", "apo_down", "dpo")]
    s = 1 / (1 + math.exp(r_w - r_l))
    assert found[0] == pytest.approx((-slope(r_w), slope(r_l)))
    assert found[1] == pytest.approx((slope(r_w) - slope(r_w - r_l), slope(r_w - r_l)))
    assert found[2] == pytest.approx((-s, s))
    assert [g.item() for g in reward_gradients("sft", at, beta=BETA)] == pytest.approx([-1 / (5 * BETA), 0])


def test_each_row_has_its_own_slope_and_nothing_reaches_the_log_probs():
    at = pairs([0.0, 3.0], [0.0, -9.0])
    policy = at.policy_chosen.requires_grad_()
    with torch.no_grad():
        chosen, _ = reward_gradients("apo_zero", at, beta=BETA)
    assert chosen.tolist() == pytest.approx([-0.25, -slope(3.0)]) and policy.grad is None


@pytest.mark.parametrize("objective", [*DESCRIPTIONS, "apo_zero=0.6,sft=1"])
def test_no_slope_on_a_wide_grid_is_over_its_peak_and_the_peak_is_reached(objective):
    ticks = torch.linspace(-14, 14, 57).tolist()
    at = pairs([w for w in ticks for _ in ticks], [x for _ in ticks for x in ticks])
    keywords = {"reference_point": torch.tensor(0.0)}
    slopes = reward_gradients(objective, at, beta=BETA, **keywords, **KTO)
    left = share_left(slopes, gradient_peaks(objective, at, beta=BETA, **KTO))
    for side, name in zip(left, ("chosen", "rejected"), strict=True):
        most = 0.0 if objective == "sft" and name == "rejected" else 1.0
        assert float(side.max()) == pytest.approx(most, abs=1e-3), name


def test_single_answers_have_one_slope_each():
    at = AnswerLogps(
        torch.tensor([-10.0, -10.0]), torch.tensor([-10.0, -10.0]), torch.tensor([True, False]), torch.tensor([5, 4])
    )
    (found,) = reward_gradients("kto", at, beta=BETA, reference_point=torch.tensor(0.0), **KTO)
    assert found.tolist() == pytest.approx([-0.375, 0.125])
    (peak,) = gradient_peaks("kto", at, beta=BETA, **KTO)
    assert share_left((found,), (peak,))[0].tolist() == pytest.approx([1, 1])
    assert share_left(*(f("sft", at, beta=BETA) for f in (reward_gradients, gradient_peaks)))[0].tolist() == [1, 0]


FAR = STUCK_REWARD + 0.01
NEAR = STUCK_REWARD - 0.01


@pytest.mark.parametrize(
    ("objective", "chosen", "rejected", "state"),
    [
        ("apo_zero", 0.0, 0.0, "live"),
        ("apo_zero", FAR, -FAR, "won"),
        ("apo_zero", FAR, -NEAR, "live"),
        ("apo_zero", -NEAR, NEAR, "live"),
        ("apo_zero", -FAR, -FAR, "stranded"),  # both fell: the chosen answer will not be raised again
        ("apo_zero", FAR, FAR, "stranded"),
        ("apo_down", -FAR, -2 * FAR - 0.01, "won"),
        ("apo_down", -FAR, -FAR, "live"),  # the gap is open
        ("apo_down", -2 * FAR, -FAR, "stranded"),
        ("apo_down", FAR, 0.0, "stranded"),  # it should have fallen
        ("apo_up", 2 * FAR + 0.01, FAR, "won"),
        ("apo_up", FAR, FAR, "live"),  # the gap is open
        ("apo_up", FAR, 2 * FAR, "stranded"),
        ("apo_up", 0.0, -FAR, "stranded"),  # it should have risen
        ("dpo", -20.0, -20.0 - math.log(9) - 0.01, "won"),
        ("dpo", -20.0, -20.0 - math.log(9) + 0.01, "live"),
        ("dpo", -50.0, 0.0, "live"),
        ("sft", 50.0, -50.0, None),
        ("apo_zero_unpaired", -FAR, 0.0, "stranded"),
    ],
)
def test_the_state_of_a_pair(objective, chosen, rejected, state):
    assert pair_life({objective: 1.0}, chosen, rejected) == state
    assert pair_life({objective: 1.0, "sft": 0.2}, chosen, rejected) == state


def test_ktos_rewards_are_seen_from_its_anchor():
    assert pair_life({"kto": 1.0}, FAR + 1, 1 - FAR, anchor=1.0) == "won"
    assert pair_life({"kto": 1.0}, FAR + 1, 1 - NEAR, anchor=1.0) == "live"
    assert answer_life({"kto": 1.0}, 1 - FAR, wanted=True, anchor=1.0) == "stranded"
    assert answer_life({"kto": 1.0}, 1 - FAR, wanted=False, anchor=1.0) == "won"
    assert answer_life({"sft": 1.0}, 9.0, wanted=True) is None


@pytest.mark.parametrize("objective", ["apo_zero", "apo_down", "apo_up", "dpo"])
def test_a_won_pair_has_under_a_tenth_of_the_pull_left_by_autograd(objective):
    """The states are made from formulas, the pull by autograd: they must agree."""
    ticks = torch.linspace(-12, 12, 41).tolist()
    points = [(w, x) for w in ticks for x in ticks]
    at = pairs([w for w, _ in points], [x for _, x in points])
    left = share_left(*(f(objective, at, beta=BETA) for f in (reward_gradients, gradient_peaks)))
    states = [pair_life({objective: 1.0}, w, x) for w, x in points]
    assert {"won", "live"} <= set(states)
    for state, chosen, rejected in zip(states, *(side.tolist() for side in left), strict=True):
        if state == "won":
            assert max(chosen, rejected) < 0.1
