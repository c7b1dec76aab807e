"""Branches reach the objective in the right places, with the gradients that are theirs and no others."""

from __future__ import annotations

import pytest
import torch
from test_train_toys import example

from anchorline.objectives.logps import AnswerLogps, PairLogps
from anchorline.objectives.table import loss
from anchorline.train.tokenise import with_mismatched
from anchorline.train.trainer import batch_logps

PAIRS = [example([1], [10], [20, 21]), example([2], [11, 12, 13], [22])]


def counted(examples, *, start=0.0):
    """Log-probs -1, -2, … in the order of the branches, so that each number names its branch."""
    count = sum(len(e.responses) for e in examples)
    return start - torch.arange(1.0, count + 1)


def test_pairs_are_sorted_into_chosen_and_rejected():
    rows, point = batch_logps(PAIRS, counted(PAIRS), counted(PAIRS, start=-10))
    assert isinstance(rows, PairLogps) and point is None
    assert [column.tolist() for column in rows] == [[-1, -3], [-2, -4], [-11, -13], [-12, -14], [1, 3], [2, 1]]


def test_single_answers_keep_their_labels():
    answers = [example([1], [10]), example([2], [11, 12])]
    answers[1] = type(answers[1])("u", answers[1].prompt, answers[1].responses, (False,))
    rows, point = batch_logps(answers, counted(answers), counted(answers, start=-10))
    assert isinstance(rows, AnswerLogps) and point is None
    assert [column.tolist() for column in rows] == [[-1, -2], [-11, -12], [True, False], [1, 2]]


@pytest.mark.parametrize("paired", [True, False])
def test_mismatched_branches_go_into_the_reference_point_and_nowhere_else(paired):
    rows = PAIRS if paired else [example([1], [10]), example([2], [11, 12])]
    mixed = with_mismatched(rows)
    policy = counted(mixed)
    reference = policy.clone()
    borrowed = torch.tensor([label is None for e in mixed for label in e.labels])
    reference[borrowed] -= torch.tensor([1.0, 4.0])
    found, point = batch_logps(mixed, policy, reference)
    assert point is not None and point.item() == 2.5
    same, _ = batch_logps(rows, policy[~borrowed], reference[~borrowed])
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))


@pytest.mark.parametrize("paired", [True, False])
def test_kto_sends_no_gradient_into_the_mismatched_branch(paired):
    mixed = with_mismatched(PAIRS if paired else [example([1], [10]), example([2], [11, 12])])
    policy = counted(mixed).requires_grad_()
    reference = policy.detach() - torch.linspace(0.3, 1.0, len(policy))
    rows, point = batch_logps(mixed, policy, reference)
    loss("kto", rows, reference_point=point).sum().backward()
    borrowed = [label is None for e in mixed for label in e.labels]
    assert policy.grad is not None
    assert [g == 0 for g in policy.grad.tolist()] == borrowed
