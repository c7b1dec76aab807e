"""The per-pair metrics, and the reward beyond which an anchored gradient is as good as gone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchorline.objectives.apo import apo_down, apo_zero
from anchorline.objectives.logps import PairLogps
from anchorline.objectives.metrics import STUCK_REWARD, PairMetrics, gradient_weight, pair_metrics


def pairs(chosen_rewards, rejected_rewards, *, beta=0.5):
    """Pairs with those rewards; policy log-probs are leaves."""
    reference = torch.full((len(chosen_rewards),), -40.0, dtype=torch.float64)
    policy = [
        (reference + torch.tensor(r, dtype=torch.float64) / beta).requires_grad_()
        for r in (chosen_rewards, rejected_rewards)
    ]
    tokens = torch.full((len(chosen_rewards),), 3)
    return PairLogps(*policy, reference, reference, tokens, tokens)


def test_hand_worked():
    metrics = pair_metrics(pairs([1.0, -1.0, -4.0, 0.0, 2.0], [-2.0, -3.0, 0.5, 0.0, 4.0]), beta=0.5)
    assert metrics.chosen_reward.tolist() == [1, -1, -4, 0, 2]
    assert metrics.rejected_reward.tolist() == [-2, -3, 0.5, 0, 4]
    assert metrics.margin.tolist() == [3, 2, -4.5, 0, -2]
    assert metrics.correct.tolist() == [True, True, False, False, False]
    assert metrics.both_fell.tolist() == [False, True, False, False, False]
    assert metrics.chosen_stuck.tolist() == [False, False, True, False, False]
    assert metrics.rejected_stuck.tolist() == [False, False, False, False, True]
    assert metrics.margin_stuck.tolist() == [False, False, True, False, False]


def test_far_on_the_right_side_is_not_stuck():
    metrics = pair_metrics(pairs([9.0], [-9.0]), beta=0.5)
    assert not (metrics.chosen_stuck | metrics.rejected_stuck | metrics.margin_stuck).any()


def test_metrics_carry_no_gradient():
    metrics = pair_metrics(pairs([1.0], [2.0]), beta=0.5)
    assert not any(tensor.requires_grad for tensor in metrics)
    assert {len(tensor) for tensor in metrics} == {1}
    assert len(PairMetrics._fields) == len(metrics)


def test_a_tenth_of_the_peak_is_left_at_the_stuck_reward_not_at_3_6():
    assert pytest.approx(3.6369, abs=1e-4) == STUCK_REWARD
    weights = gradient_weight(torch.tensor([0.0, 3.6, STUCK_REWARD, 3.65, -3.65], dtype=torch.float64)).tolist()
    assert weights[0] == 1
    assert weights[1] == pytest.approx(0.103558, abs=1e-6)
    assert weights[2] == pytest.approx(0.1, abs=1e-12)
    assert weights[3] < 0.1
    assert weights[4] == weights[3]


@given(reward=st.floats(-700, 700))
def test_gradient_weight_is_the_objectives_gradient_over_its_peak(reward):
    """The anchored losses themselves, differentiated: -d on chosen under apo_zero, +d on the margin under apo_down."""
    beta = 0.5
    weight = float(gradient_weight(torch.tensor([reward], dtype=torch.float64)))
    for objective, leaf, logps in (
        (apo_zero, "policy_chosen", pairs([reward], [0.0], beta=beta)),
        (apo_zero, "policy_rejected", pairs([0.0], [reward], beta=beta)),
        (apo_down, "policy_rejected", pairs([0.0], [-reward], beta=beta)),
    ):
        (gradient,) = torch.autograd.grad(objective(logps, beta=beta).sum(), getattr(logps, leaf))
        assert abs(float(gradient)) == pytest.approx(weight * beta / 4, abs=1e-12)


@given(reward=st.floats(-20, 20).filter(lambda r: not math.isclose(abs(r), STUCK_REWARD)))
def test_stuck_is_under_a_tenth_on_the_wrong_side(reward):
    metrics = pair_metrics(pairs([reward], [-reward], beta=1.0), beta=1.0)
    dead = bool(gradient_weight(metrics.chosen_reward) < 0.1)
    assert bool(metrics.chosen_stuck) == bool(metrics.rejected_stuck) == (dead and reward < 0)
