"""Branches reach the objective in the right places, with the gradients that are theirs and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_train_toys import example

from anchorline.objectives.logps import AnswerLogps, PairLogps
from anchorline.objectives.table import loss
from anchorline.train.config import TrainSettings
from anchorline.train.tokenise import with_mismatched
from anchorline.train.trainer import batch_logps, batch_losses

PAIRS = [example([1], [10], [20, 21]), example([2], [11, 12, 13], [22])]


def counted(examples, *, start=0.0):
    """Log-probs -1, -2, … in the order of the branches, so that each number names its branch."""
    count = sum(len(e.responses) for e in examples)
    return start - torch.arange(1.0, count + 1)


def test_pairs_are_sorted_into_chosen_and_rejected():
    rows, point, _ = batch_logps(PAIRS, counted(PAIRS), counted(PAIRS, start=-10))
    assert isinstance(rows, PairLogps) and point is None
    assert [column.tolist() for column in rows] == [[-1, -3], [-2, -4], [-11, -13], [-12, -14], [1, 3], [2, 1]]


def test_single_answers_keep_their_labels():
    answers = [example([1], [10]), example([2], [11, 12])]
    answers[1] = type(answers[1])("u", answers[1].prompt, answers[1].responses, (False,))
    rows, point, _ = batch_logps(answers, counted(answers), counted(answers, start=-10))
    assert isinstance(rows, AnswerLogps) and point is None
    assert [column.tolist() for column in rows] == [[-1, -2], [-11, -12], [True, False], [1, 2]]


@pytest.mark.parametrize("paired", [True, False])
def test_mismatched_branches_go_into_the_reference_point_and_nowhere_else(paired):
    rows = PAIRS if paired else [example([1], [10]), example([2], [11, 12])]
    mixed = with_mismatched(rows, max_tokens=9)
    policy = counted(mixed)
    reference = policy.clone()
    borrowed = torch.tensor([label is None for e in mixed for label in e.labels])
    reference[borrowed] -= torch.tensor([1.0, 4.0])
    found, point, _ = batch_logps(mixed, policy, reference)
    assert point is not None and point.item() == 2.5
    same, *_ = batch_logps(rows, policy[~borrowed], reference[~borrowed])
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))


@pytest.mark.parametrize("paired", [True, False])
def test_kto_sends_no_gradient_into_the_mismatched_branch(paired):
    mixed = with_mismatched(PAIRS if paired else [example([1], [10]), example([2], [11, 12])], max_tokens=9)
    policy = counted(mixed).requires_grad_()
    reference = policy.detach() - torch.linspace(0.3, 1.0, len(policy))
    rows, point, _ = batch_logps(mixed, policy, reference)
    loss("kto", rows, reference_point=point).sum().backward()
    borrowed = [label is None for e in mixed for label in e.labels]
    assert policy.grad is not None
    assert [g == 0 for g in policy.grad.tolist()] == borrowed


OWN = [None, "apo_up", "dpo", None, "kto", "apo_up", "sft", "apo_down"]


def test_a_mixed_batchs_gradient_is_the_sum_of_its_objectives_gradients():
    plain = [example([n], [10, 11 + n], [20, 21, 22 + n]) for n in range(len(OWN))]
    mixed = with_mismatched([replace(e, objective=own) for e, own in zip(plain, OWN, strict=True)], max_tokens=9)
    settings = TrainSettings(objective="apo_zero=1,sft=0.2")
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(3 * len(OWN), generator=generator, dtype=torch.float64) * 9 - 40
    reference = torch.randn(3 * len(OWN), generator=generator, dtype=torch.float64) * 9 - 40

    def pull(examples, settings, wanted):
        policy = start.clone().requires_grad_()
        rows = batch_losses(batch_logps(examples, policy, reference), settings)
        chosen = rows[torch.tensor(wanted)]
        return chosen.detach(), torch.autograd.grad(chosen.sum(), policy)[0]

    losses, whole = pull(mixed, settings, [True] * len(OWN))
    total, expected = torch.zeros_like(whole), torch.zeros_like(losses)
    for name in dict.fromkeys(OWN):
        alone = [replace(e, objective=None) for e in mixed]
        one = settings if name is None else TrainSettings(objective=name)
        wanted = [own == name for own in OWN]
        part, gradient = pull(alone, one, wanted)
        total += gradient
        expected[torch.tensor(wanted)] = part
    assert torch.equal(losses, expected)
    assert torch.allclose(whole, total, rtol=0, atol=1e-15) and float(whole.abs().sum()) > 0.1
