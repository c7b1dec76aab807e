"""What is held in place: the estimate is of the divergence that it names, and it reaches the weights as it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_train_run import LORA, ROWS, metrics, same, settings
from test_train_toys import PAD, exact_norms, save_tiny, template, words
from transformers import AutoModelForCausalLM, TrainerCallback

from anchorline.errors import DataError
from anchorline.objectives.retain import kept_terms
from anchorline.train.batches import Beside, Share, StepSampler
from anchorline.train.config import RetainSettings
from anchorline.train.forward import by_branch, plain_token_logps
from anchorline.train.retain import Retained, own_answer, tokenise_retained
from anchorline.train.run import train
from anchorline.train.tokenise import BoundaryError, tokenise
from anchorline.train.trainer import batch_logps, batch_losses
from anchorline.types import Answer, Message


def own(number: int, *, text: str = "", finish: Any = "stop") -> Answer:
    question = (Message("user", words(3 + number % 4, first=number + 5)),)
    return Answer(f"own{number}", question, text or words(3 + 2 * number, first=number + 60), finish)


def kept(weight: float = 2.0, **changes: Any) -> Retained:
    answers = [own(0), own(1, finish="length"), own(2)]
    return Retained(answers, RetainSettings(prompts="-", weight=weight, per_step=2).model_copy(update=changes))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


# ---- the estimate --------------------------------------------------------------------------------------------------


def both(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of a policy, and the log-probs of a reference, over 7 words."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    return scores, torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize("seed", range(4))
def test_over_the_references_draws_the_mean_is_the_divergence_and_so_is_its_gradient(seed):
    scores, reference = both(seed)
    policy = scores.log_softmax(-1)
    expected = (reference.exp() * (reference - policy)).sum()
    found = (reference.exp() * kept_terms(policy, reference)).sum()
    torch.testing.assert_close(found, expected)
    (of_found,) = torch.autograd.grad(found, scores, retain_graph=True)
    (of_expected,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(of_found, of_expected)
    torch.testing.assert_close(of_expected, policy.exp() - reference.exp())


def test_every_single_term_rests_at_the_reference():
    _, reference = both()
    policy = reference.clone().requires_grad_()
    terms = kept_terms(policy, reference)
    terms.sum().backward()
    assert terms.tolist() == [0.0] * 7
    assert policy.grad is not None and policy.grad.tolist() == [0.0] * 7


def test_a_token_is_pulled_back_from_either_side():
    policy = torch.tensor([-3.0, -1.0], requires_grad=True)
    terms = kept_terms(policy, torch.tensor([-2.0, -2.0]))
    assert terms.tolist() == pytest.approx([0.36788, 0.71828], abs=1e-5)
    terms.sum().backward()
    assert policy.grad is not None and policy.grad[0] < 0 < policy.grad[1]


def test_shapes_and_kinds_are_looked_at():
    with pytest.raises(ValueError, match="same shape"):
        kept_terms(torch.zeros(2), torch.zeros(1))
    with pytest.raises(ValueError, match="float32 or float64"):
        kept_terms(torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16))


# ---- the answers ---------------------------------------------------------------------------------------------------


def test_a_cut_answer_is_held_without_the_end_that_it_does_not_have():
    whole, cut = (own_answer(own(1, finish=finish), template()) for finish in ("stop", "length"))
    assert whole.responses[0][:-1] == cut.responses[0] and whole.prompt == cut.prompt


def test_what_cannot_be_held_is_said():
    rows = [own(0), own(1, text=words(40)), own(2, text="<end>")]
    found = tokenise_retained(rows, template(), max_tokens=24)
    assert [e.id for e in found.examples] == ["own0"]
    assert [(f.id, f.kind) for f in found.failures] == [("own1", "overlong"), ("own2", "boundary")]
    with pytest.raises(BoundaryError):
        own_answer(rows[2], template())


# ---- the steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_they_come_in_rows_of_their_own_and_in_turn(processes):
    pairs, share = [9] * 10, Share(4, 20, processes)
    beside = Beside([5, 6, 7, 8, 9], 2)
    mine = [
        [list(StepSampler(pairs, share, process=p, seed=1, beside=b)) for p in range(processes)]
        for b in (Beside(), beside)
    ]
    seen: list[int] = []
    for step in range(3):
        plain, held = ([rows[step] for rows in which] for which in mine)
        assert len({len(rows) for rows in held}) == 1, "equally many rows, so equally many collective calls"
        assert [rows[: len(alone)] for rows, alone in zip(held, plain, strict=True)] == plain
        own_rows = [row for rows, alone in zip(held, plain, strict=True) for row in rows[len(alone) :]]
        numbers = [i - 10 for row in own_rows for i in row]
        assert len(numbers) == 2 and all(n >= 0 for n in numbers)
        seen += sorted(numbers)
    assert len(set(seen)) == 5, "one round before the next begins"


# ---- the training --------------------------------------------------------------------------------------------------


class Look(TrainerCallback):
    """Weights and gradients as they are before a step of the optimizer."""

    def __init__(self, step: int) -> None:
        self.step, self.weights, self.gradients = step, {}, {}

    def on_pre_optimizer_step(self, args, state, control, model: Any = None, **_: Any) -> None:  # pyright: ignore
        if state.global_step + 1 == self.step:
            for name, parameter in model.named_parameters():
                self.weights[name] = parameter.detach().double().clone()
                self.gradients[name] = parameter.grad.detach().double().clone()


WHOLE: dict[str, Any] = {"lora": None, "pairs_per_step": 6, "max_grad_norm": 0, "learning_rate": 5e-3, "epochs": 2}


@pytest.mark.parametrize("tokens_per_row", [2048, 1], ids=["together", "one by one"])
@pytest.mark.parametrize("objective", ["apo_zero", "sft"])
def test_the_gradient_is_that_of_a_plain_forward_in_float64(model, tmp_path, objective, tokens_per_row):
    asked = settings(objective, **WHOLE, tokens_per_row=tokens_per_row)
    look = Look(2)
    train(ROWS, model, asked, tmp_path, retain=kept(3.0, per_step=9), callbacks=[look])
    policy, reference = (AutoModelForCausalLM.from_pretrained(model) for _ in range(2))
    for one in (policy, reference):
        exact_norms(one)
        one.double().eval()
    policy.load_state_dict(look.weights, strict=False)
    pairs = tokenise(ROWS, template(), max_tokens=999, overlong="drop").examples
    held = tokenise_retained(kept().answers, template(), max_tokens=999).examples
    ours, theirs = (plain_token_logps(one, pairs, pad=PAD) for one in (policy, reference))
    sums = [torch.stack([t.sum() for t in by_branch(tokens, pairs)]) for tokens in (ours, theirs.detach())]
    loss = batch_losses(batch_logps(pairs, *sums), asked).mean()
    change = [by_branch(plain_token_logps(one, held, pad=PAD), held) for one in (policy, reference)]
    kl = torch.stack([((p - q.detach()).exp() - 1 - (p - q.detach())).mean() for p, q in zip(*change, strict=True)])
    (loss + 3.0 * kl.mean()).backward()
    found = torch.cat([g.flatten() for g in look.gradients.values()])
    expected = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    row = metrics(tmp_path)[1]
    assert row["retain_kl"] == pytest.approx(kl.mean().item(), rel=1e-3) and row["retain_kl"] > 1e-4
    assert row["loss"] == pytest.approx((loss + 3.0 * kl.mean()).item(), rel=1e-4)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_a_weight_of_0_changes_nothing_bit_for_bit(model, tmp_path, lora):
    asked = settings(lora=lora)
    train(ROWS, model, asked, tmp_path / "without")
    train(ROWS, model, asked, tmp_path / "zero", retain=kept(0.0))
    same(tmp_path / "zero", tmp_path / "without")
    assert "retain_kl" not in metrics(tmp_path / "zero")[0]


@pytest.mark.parametrize("objective", ["apo_zero", "kto", "dpo"])
def test_a_larger_weight_holds_it_nearer_and_leaves_the_first_step_alone(model, tmp_path, objective):
    found = {}
    for weight in (1e-6, 50.0):
        folder = tmp_path / str(weight)
        train(ROWS, model, settings(objective, epochs=4), folder, retain=kept(weight))
        found[weight] = metrics(folder)
    loose, tight = found[1e-6], found[50.0]
    assert loose[0]["retain_kl"] == tight[0]["retain_kl"] == pytest.approx(0, abs=1e-9)
    assert loose[0]["loss"] == pytest.approx(tight[0]["loss"], abs=1e-6)
    assert loose[1]["chosen_reward"] == pytest.approx(tight[1]["chosen_reward"], abs=1e-4)
    assert tight[-1]["retain_kl"] < 0.5 * loose[-1]["retain_kl"]


def test_nothing_left_to_hold_ends_it(model, tmp_path):
    with pytest.raises(DataError, match="no answer is left to retain"):
        train(ROWS, model, settings(max_tokens=20), tmp_path, retain=Retained([own(9)], kept().settings))
