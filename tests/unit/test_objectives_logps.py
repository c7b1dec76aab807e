"""Rewards, the two layouts of log-probs, and the refusal of shapes and types that torch would take in silence."""

from __future__ import annotations

import doctest
import importlib
import itertools

import pytest
import torch

from anchorline.objectives.apo import apo_down, apo_up, apo_zero, apo_zero_unpaired
from anchorline.objectives.dpo import dpo
from anchorline.objectives.kto import kto, reference_point
from anchorline.objectives.logps import AnswerLogps, PairLogps, pair_rewards, pairs_as_answers, rewards
from anchorline.objectives.metrics import pair_metrics
from anchorline.objectives.sft import sft

PAIRS = PairLogps(
    policy_chosen=torch.tensor([-10.0, -20.0]),
    policy_rejected=torch.tensor([-11.0, -21.0]),
    reference_chosen=torch.tensor([-12.0, -17.0]),
    reference_rejected=torch.tensor([-10.0, -25.0]),
    chosen_tokens=torch.tensor([5, 8]),
    rejected_tokens=torch.tensor([6, 9]),
)
ANSWERS = pairs_as_answers(PAIRS)

OF_PAIRS = {
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "apo_up": apo_up,
    "dpo": dpo,
    "sft": sft,
    "pairs_as_answers": pairs_as_answers,
    "pair_rewards": lambda logps: pair_rewards(logps, beta=0.1),
    "pair_metrics": lambda logps: pair_metrics(logps, beta=0.1),
}
OF_ANSWERS = {
    "apo_zero_unpaired": apo_zero_unpaired,
    "kto": lambda logps: kto(logps, reference_point=torch.tensor(0.0)),
    "sft": sft,
}


def test_reward_is_beta_times_the_log_ratio():
    assert rewards(PAIRS.policy_chosen, PAIRS.reference_chosen, beta=0.5).tolist() == [1.0, -1.5]
    assert [r.tolist() for r in pair_rewards(PAIRS, beta=0.5)] == [[1.0, -1.5], [-0.5, 2.0]]


def test_pairs_as_answers_is_chosen_rows_then_rejected_rows():
    assert ANSWERS.policy.tolist() == [-10, -20, -11, -21]
    assert ANSWERS.reference.tolist() == [-12, -17, -10, -25]
    assert ANSWERS.label.tolist() == [True, True, False, False]
    assert ANSWERS.label.dtype == torch.bool
    assert ANSWERS.tokens.tolist() == [5, 8, 6, 9]


@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan")])
def test_a_beta_that_turns_the_objective_round_is_refused(beta):
    with pytest.raises(ValueError, match="beta is"):
        rewards(PAIRS.policy_chosen, PAIRS.reference_chosen, beta=beta)


@pytest.mark.parametrize("field", PairLogps._fields)
@pytest.mark.parametrize("name", OF_PAIRS)
def test_one_row_too_few_in_any_field_of_pairs_raises_with_both_shapes(name, field):
    """Length 1 beside length 2 is what torch would broadcast."""
    broken = PAIRS._replace(**{field: getattr(PAIRS, field)[:1]})
    with pytest.raises(ValueError, match=r"\(1,\).*\(2,\)|\(2,\).*\(1,\)"):
        OF_PAIRS[name](broken)


@pytest.mark.parametrize("field", AnswerLogps._fields)
@pytest.mark.parametrize("name", OF_ANSWERS)
def test_one_row_too_few_in_any_field_of_answers_raises_with_both_shapes(name, field):
    broken = ANSWERS._replace(**{field: getattr(ANSWERS, field)[:1]})
    with pytest.raises(ValueError, match=r"\(1,\).*\(4,\)|\(4,\).*\(1,\)"):
        OF_ANSWERS[name](broken)


def test_a_column_beside_a_row_and_a_matrix_are_refused():
    matrix = PairLogps(*(tensor.unsqueeze(1) for tensor in PAIRS))
    for logps in (matrix, PAIRS._replace(policy_rejected=PAIRS.policy_rejected.unsqueeze(1))):
        for function in OF_PAIRS.values():
            with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
                function(logps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_sums_in_half_precision_are_refused(dtype):
    for name, function in OF_PAIRS.items():
        if name != "pairs_as_answers":
            with pytest.raises(ValueError, match="float32 or float64"):
                function(PAIRS._replace(policy_chosen=PAIRS.policy_chosen.to(dtype)))
    for function in OF_ANSWERS.values():
        with pytest.raises(ValueError, match="float32 or float64"):
            function(ANSWERS._replace(policy=ANSWERS.policy.to(dtype)))


def test_reference_point_and_its_refusals():
    policy, reference = torch.tensor([-9.0, -12.0], requires_grad=True), torch.tensor([-12.0, -11.0])
    point = reference_point(policy, reference)
    assert (point.item(), point.shape, point.requires_grad) == (1.0, (), False)
    assert reference_point(reference, policy).item() == 0.0
    with pytest.raises(ValueError, match="0 mismatched"):
        reference_point(policy[:0], reference[:0])
    with pytest.raises(ValueError, match=r"\(1,\).*\(2,\)"):
        reference_point(policy, reference[:1])
    with pytest.raises(ValueError, match=r"shape \(1,\).*expected \(\)"):
        kto(ANSWERS, reference_point=torch.tensor([0.0]))
    with pytest.raises(ValueError, match="detach"):
        kto(ANSWERS, reference_point=torch.tensor(0.0, requires_grad=True))


def test_no_rows_give_no_losses():
    for function in (apo_zero, apo_down, apo_up, dpo, sft):
        assert function(PairLogps(*(tensor[:0] for tensor in PAIRS))).shape == (0,)
    for name in ("apo_zero_unpaired", "kto", "sft"):
        assert OF_ANSWERS[name](AnswerLogps(*(tensor[:0] for tensor in ANSWERS))).shape == (0,)


@pytest.mark.parametrize("module", ["names", "logps", "apo", "dpo", "kto", "sft", "metrics", "table"])
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(f"anchorline.objectives.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_every_exchange_of_two_log_prob_fields_changes_the_rewards():
    """Guards against a check above passing because two columns of the toy data are alike."""
    fields = PairLogps._fields[:4]
    before = [r.tolist() for r in pair_rewards(PAIRS, beta=1.0)]
    for a, b in itertools.combinations(fields, 2):
        swapped = PAIRS._replace(**{a: getattr(PAIRS, b), b: getattr(PAIRS, a)})
        assert [r.tolist() for r in pair_rewards(swapped, beta=1.0)] != before
