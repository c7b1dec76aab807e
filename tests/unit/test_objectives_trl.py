"""Our objectives give the same loss as TRL 1.16's own trainers, whose `_compute_loss` runs here on chosen log-probs."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from anchorline.objectives.apo import apo_down, apo_zero, apo_zero_unpaired
from anchorline.objectives.dpo import dpo
from anchorline.objectives.kto import kto, reference_point
from anchorline.objectives.logps import AnswerLogps, PairLogps

pytestmark = pytest.mark.model

TOLERANCE = 1e-6
TOKENS = 3
BETAS = [0.01, 0.1, 1.0]


@pytest.fixture(scope="module")
def trl():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's imports, not ours
        from trl.trainer.dpo_trainer import DPOTrainer
        from trl.trainer.kto_trainer import KTOTrainer
    return SimpleNamespace(dpo=DPOTrainer, kto=KTOTrainer)


def spread_over_tokens(sums):
    """[rows] summed log-probs as [rows, TOKENS] log-probs of single tokens with those sums."""
    return sums.unsqueeze(1) * torch.tensor([0.5, 0.25, 0.25], dtype=sums.dtype)


def fused_outputs(log_probs):
    """What TRL's trainers read from a model called with `fused_lm_head=True`."""
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def stub_model(*calls):
    """A model that answers its calls in turn with those log-probs."""
    return MagicMock(side_effect=[fused_outputs(log_probs) for log_probs in calls], training=False)


def stub_trainer(**attributes):
    """The attributes of a trainer that `_compute_loss` reads, on one process and without a reference forward."""
    alone = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x)
    return SimpleNamespace(
        accelerator=alone,
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        **attributes,
    )


def trl_pair_loss(trl, logps, *, loss_type, beta):
    """The mean loss over the pairs, by `DPOTrainer._compute_loss`."""
    policy = torch.cat([logps.policy_chosen, logps.policy_rejected])
    ids = torch.ones(len(policy), TOKENS + 1, dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": torch.tensor([[0] + [1] * TOKENS] * len(policy)),
        "ref_chosen_logps": logps.reference_chosen,
        "ref_rejected_logps": logps.reference_rejected,
    }
    trainer = stub_trainer(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        beta=beta,
        loss_types=[loss_type],
        loss_weights=[1.0],
        use_weighting=False,
    )
    return trl.dpo._compute_loss(trainer, stub_model(spread_over_tokens(policy)), inputs, False)


def trl_answer_loss(trl, logps, *, loss_type, beta, mismatched=None, weights=(1.0, 1.0)):
    """The mean loss over the answers, by `KTOTrainer._compute_loss`; `mismatched` is (policy, reference) log-probs."""
    ids = torch.ones(len(logps.policy), TOKENS + 1, dtype=torch.long)
    mask = torch.tensor([[0] + [1] * TOKENS] * len(logps.policy))
    inputs = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": mask,
        "label": logps.label,
        "ref_logps": logps.reference,
    }
    trainer = stub_trainer(
        beta=beta,
        loss_type=loss_type,
        calculate_KL=mismatched is not None,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    calls = [spread_over_tokens(logps.policy)]
    if mismatched is not None:
        inputs |= {"KL_input_ids": ids, "KL_attention_mask": ids, "KL_completion_mask": mask}
        inputs["ref_KL_logps"] = mismatched[1]
        calls.insert(0, spread_over_tokens(mismatched[0]))
    model = stub_model(*calls)
    trainer._compute_kl_logps = lambda model, batch: trl.kto._compute_kl_logps(trainer, model, batch)
    return trl.kto._compute_loss(trainer, model, inputs, False)


def random_pairs(seed, pairs=8):
    generator = torch.Generator().manual_seed(seed)
    reference = -300 * torch.rand(2, pairs, generator=generator, dtype=torch.float64)
    policy = reference + 30 * torch.randn(2, pairs, generator=generator, dtype=torch.float64)
    tokens = torch.full((pairs,), TOKENS)
    return PairLogps(*policy, *reference, tokens, tokens)


def random_answers(seed, answers=9):
    generator = torch.Generator().manual_seed(seed)
    reference = -300 * torch.rand(answers, generator=generator, dtype=torch.float64)
    policy = reference + 30 * torch.randn(answers, generator=generator, dtype=torch.float64)
    label = torch.arange(answers) % 3 != 0
    return AnswerLogps(policy, reference, label, torch.full((answers,), TOKENS))


def gradients(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(
    ("objective", "loss_type"),
    [(apo_zero, "apo_zero"), (apo_down, "apo_down"), (dpo, "sigmoid")],
    ids=["apo_zero", "apo_down", "dpo"],
)
def test_pair_objectives_equal_trl(trl, objective, loss_type, beta):
    for seed in range(5):
        logps = random_pairs(seed)
        leaves = [tensor.requires_grad_() for tensor in (logps.policy_chosen, logps.policy_rejected)]
        ours, theirs = objective(logps, beta=beta).mean(), trl_pair_loss(trl, logps, loss_type=loss_type, beta=beta)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(gradients(ours, *leaves), gradients(theirs, *leaves), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("objective", [apo_zero, apo_down, dpo])
def test_each_pair_equals_trl_alone(trl, objective):
    """One pair at a time: a mean over the batch could hide rows that are exchanged."""
    logps, loss_type = random_pairs(seed=7, pairs=4), "sigmoid" if objective is dpo else objective.__name__
    rows = objective(logps, beta=0.1)
    for i, row in enumerate(rows):
        alone = PairLogps(*(tensor[i : i + 1] for tensor in logps))
        assert float(row) == pytest.approx(
            float(trl_pair_loss(trl, alone, loss_type=loss_type, beta=0.1)), abs=TOLERANCE
        )


@pytest.mark.parametrize("beta", BETAS)
def test_apo_zero_unpaired_equals_trl(trl, beta):
    for seed in range(5):
        logps = random_answers(seed)
        leaf = logps.policy.requires_grad_()
        ours = apo_zero_unpaired(logps, beta=beta).mean()
        theirs = trl_answer_loss(trl, logps, loss_type="apo_zero_unpaired", beta=beta)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(gradients(ours, leaf), gradients(theirs, leaf), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("drift", [4.0, -4.0], ids=["point above 0", "point clamped at 0"])
def test_kto_equals_trl(trl, beta, drift):
    for seed in range(5):
        logps, other = random_answers(seed), random_answers(100 + seed)
        mismatched = (other.reference + drift, other.reference)
        leaf = logps.policy.requires_grad_()
        point = reference_point(*mismatched)
        assert float(point) == pytest.approx(max(drift, 0.0))
        ours = kto(logps, reference_point=point, beta=beta, desirable_weight=1.3, undesirable_weight=0.7).mean()
        theirs = trl_answer_loss(trl, logps, loss_type="kto", beta=beta, mismatched=mismatched, weights=(1.3, 0.7))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(gradients(ours, leaf), gradients(theirs, leaf), rtol=0, atol=TOLERANCE)
