"""Losses and gradients against the paper's table, by formulas in plain Python; extremes; numeric differentiation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchorline.objectives.apo import apo_down, apo_up, apo_zero, apo_zero_unpaired
from anchorline.objectives.dpo import dpo
from anchorline.objectives.kto import kto
from anchorline.objectives.logps import AnswerLogps, PairLogps
from anchorline.objectives.sft import sft


def s(r):
    return 1 / (1 + math.exp(-r))


def d(r):
    return s(r) * (1 - s(r))


# (loss, gradient on r_w, gradient on r_l) of one pair, as the paper's table has them; apo_up's from docs/objectives.md
PAIR_TABLE = {
    apo_zero: lambda r_w, r_l: (1 - s(r_w) + s(r_l), -d(r_w), d(r_l)),
    apo_down: lambda r_w, r_l: (s(r_w) + 1 - s(r_w - r_l), d(r_w) - d(r_w - r_l), d(r_w - r_l)),
    apo_up: lambda r_w, r_l: (2 - s(r_l) - s(r_w - r_l), -d(r_w - r_l), d(r_w - r_l) - d(r_l)),
    dpo: lambda r_w, r_l: (-math.log(s(r_w - r_l)), -s(r_l - r_w), s(r_l - r_w)),
}
BOUNDS = {apo_zero: (0, 2), apo_down: (0, 2), apo_up: (0, 2), dpo: (0, math.inf)}
REWARD = st.floats(-30, 30)
BETA = st.floats(0.01, 2)


def pair(chosen, rejected, *, beta, dtype=torch.float64):
    """One pair with those rewards; policy log-probs are leaves."""
    tokens = torch.tensor([4])
    policy_chosen, policy_rejected = (
        torch.tensor([-50 + reward / beta], dtype=dtype, requires_grad=True) for reward in (chosen, rejected)
    )
    reference = torch.tensor([-50.0], dtype=dtype)
    return PairLogps(policy_chosen, policy_rejected, reference, reference.clone(), tokens, tokens)


def answer(reward, *, label, beta):
    policy = torch.tensor([-50 + reward / beta], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-50.0], dtype=torch.float64)
    return AnswerLogps(policy, reference, torch.tensor([label]), torch.tensor([4]))


def slopes(loss, logps, *, beta):
    """Gradients on the rewards: those on the log-probs, over beta."""
    leaves = [logps.policy_chosen, logps.policy_rejected] if isinstance(logps, PairLogps) else [logps.policy]
    return [float(g) / beta for g in torch.autograd.grad(loss.sum(), leaves)]


@pytest.mark.parametrize("objective", PAIR_TABLE)
@given(chosen=REWARD, rejected=REWARD, beta=BETA)
def test_loss_and_gradients_are_the_tables(objective, chosen, rejected, beta):
    logps = pair(chosen, rejected, beta=beta)
    loss = objective(logps, beta=beta)
    expected, on_chosen, on_rejected = PAIR_TABLE[objective](chosen, rejected)
    assert loss.item() == pytest.approx(expected, rel=1e-7, abs=1e-9)
    assert slopes(loss, logps, beta=beta) == pytest.approx([on_chosen, on_rejected], rel=1e-7, abs=1e-9)
    low, high = BOUNDS[objective]
    assert low <= loss.item() <= high


@given(reward=REWARD, beta=BETA, label=st.booleans())
def test_apo_zero_unpaired_is_the_tables(reward, beta, label):
    logps = answer(reward, label=label, beta=beta)
    loss = apo_zero_unpaired(logps, beta=beta)
    assert loss.item() == pytest.approx(1 - s(reward) if label else s(reward), abs=1e-9)
    assert slopes(loss, logps, beta=beta) == pytest.approx([-d(reward) if label else d(reward)], abs=1e-9)


@given(reward=REWARD, beta=BETA, label=st.booleans(), point=st.floats(0, 40), weight=st.floats(0.5, 3))
def test_kto_is_the_papers(reward, beta, label, point, weight):
    logps = answer(reward, label=label, beta=beta)
    weights = {"desirable_weight" if label else "undesirable_weight": weight}
    loss = kto(logps, reference_point=torch.tensor(point, dtype=torch.float64), beta=beta, **weights)
    advantage = reward - beta * point
    expected = weight * (1 - s(advantage) if label else 1 - s(-advantage))
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert slopes(loss, logps, beta=beta) == pytest.approx([(-1 if label else 1) * weight * d(advantage)], abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("objective", "loss", "on_chosen", "on_rejected"),
    [(apo_zero, 1, -0.25, 0.25), (apo_down, 1, 0, 0.25), (apo_up, 1, -0.25, 0), (dpo, math.log(2), -0.5, 0.5)],
)
def test_where_policy_is_reference(objective, loss, on_chosen, on_rejected, dtype):
    logps = pair(0, 0, beta=0.1, dtype=dtype)
    value = objective(logps, beta=0.1)
    assert value.item() == pytest.approx(loss, abs=1e-7)
    chosen, rejected = slopes(value, logps, beta=0.1)
    assert (chosen, rejected) == pytest.approx((on_chosen, on_rejected), abs=1e-7)
    if objective is apo_down:
        assert chosen == 0  # exactly: the two slopes are the same number
    if objective is apo_up:
        assert rejected == 0


def test_unpaired_where_policy_is_reference():
    zero = torch.tensor(0.0, dtype=torch.float64)
    for label in (True, False):
        logps = answer(0, label=label, beta=0.1)
        assert apo_zero_unpaired(logps).item() == 0.5
        assert kto(logps, reference_point=zero, desirable_weight=3.0, undesirable_weight=5.0).item() == (
            1.5 if label else 2.5
        )


def test_apo_down_pushes_chosen_up_where_the_margin_is_nearer_to_zero():
    """At r = (-2, -3): the slope is d(-2) - d(1) = 0.1050 - 0.1966 on chosen, d(1) on rejected."""
    logps = pair(-2, -3, beta=0.1)
    on_chosen, on_rejected = slopes(apo_down(logps, beta=0.1), logps, beta=0.1)
    assert on_chosen == pytest.approx(-0.0916182, abs=1e-6)
    assert on_rejected == pytest.approx(0.1966119, abs=1e-6)


def test_apo_up_pushes_rejected_down_where_the_margin_is_nearer_to_zero():
    """At r = (2, 3): the slope is -d(-1) = -0.1966 on chosen, d(-1) - d(3) = 0.1966 - 0.0452 on rejected."""
    logps = pair(2, 3, beta=0.1)
    on_chosen, on_rejected = slopes(apo_up(logps, beta=0.1), logps, beta=0.1)
    assert on_chosen == pytest.approx(-0.1966119, abs=1e-6)
    assert on_rejected == pytest.approx(0.1514353, abs=1e-6)


@given(chosen=REWARD, rejected=REWARD)
def test_apo_up_is_apo_down_seen_in_a_mirror(chosen, rejected):
    """apo_up(r_w, r_l) = apo_down(-r_l, -r_w): raising is lowering of the negative, and the margin stays."""
    up, down = pair(chosen, rejected, beta=0.5), pair(-rejected, -chosen, beta=0.5)
    assert apo_up(up, beta=0.5).item() == pytest.approx(apo_down(down, beta=0.5).item(), abs=1e-9)


def test_sft_is_per_token_of_the_wanted_answers():
    chosen, rejected = torch.tensor([-10.0, -9.0]), torch.tensor([-70.0, -80.0])
    tokens = torch.tensor([4, 0]), torch.tensor([5, 6])
    assert sft(PairLogps(chosen, rejected, rejected, chosen, *tokens)).tolist() == [2.5, 9.0]
    policy = torch.tensor([-10.0, -30.0], requires_grad=True)
    loss = sft(AnswerLogps(policy, policy.detach() - 7, torch.tensor([True, False]), torch.tensor([4, 5])))
    assert loss.tolist() == [2.5, 0.0]
    assert torch.autograd.grad(loss.sum(), policy)[0].tolist() == [-0.25, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e4, 1e6])
def test_extreme_log_probs_give_finite_losses_and_gradients(size, dtype):
    ends = [-size, 0.0, size]
    grid = torch.cartesian_prod(*(torch.tensor(ends, dtype=dtype) for _ in range(2)))
    tokens = torch.full((9,), 7)
    for objective in PAIR_TABLE:
        policy = [grid[:, i].clone().requires_grad_() for i in (0, 1)]
        loss = objective(PairLogps(*policy, grid[:, 1], grid[:, 0], tokens, tokens), beta=1.0)
        assert loss.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), policy))
    for label in (True, False):
        policy = grid[:, 0].clone().requires_grad_()
        logps = AnswerLogps(policy, grid[:, 1], torch.full((9,), label), tokens)
        point = torch.tensor(size, dtype=dtype)
        for loss in (apo_zero_unpaired(logps, beta=1.0), kto(logps, reference_point=point, beta=1.0), sft(logps)):
            assert loss.isfinite().all()
            assert torch.autograd.grad(loss.sum(), policy)[0].isfinite().all()


def test_a_well_learnt_row_keeps_its_small_loss_in_float32():
    """1 - s(20) is 0 in float32; s(-20) is not."""
    logps = pair(20, -20, beta=0.1, dtype=torch.float32)
    assert apo_zero(logps, beta=0.1).item() == pytest.approx(2 * s(-20), rel=1e-3)


@pytest.mark.parametrize("objective", [*PAIR_TABLE, sft])
def test_gradcheck_pairs(objective):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    tokens = torch.tensor([1, 2, 3, 4, 5])
    assert torch.autograd.gradcheck(lambda *v: objective(PairLogps(*v, tokens, tokens)), values)


@pytest.mark.parametrize(
    "objective",
    [apo_zero_unpaired, sft, lambda logps: kto(logps, reference_point=torch.tensor(0.3, dtype=torch.float64))],
    ids=["apo_zero_unpaired", "sft", "kto"],
)
def test_gradcheck_answers(objective):
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    label, tokens = torch.tensor([True, False, True, False]), torch.tensor([1, 2, 3, 4])
    assert torch.autograd.gradcheck(lambda *v: objective(AnswerLogps(*v, label, tokens)), values)
