"""The log-probs of given tokens: equal to log_softmax and gather, with their gradients, and never a [T, V] matrix."""

from __future__ import annotations

import math

import pytest
import torch
from test_train_toys import relative
from torch.utils._python_dispatch import TorchDispatchMode

from anchorline.train import head
from anchorline.train.head import Scores, room_bytes, token_logps
from anchorline.train.native import native


def made_up(tokens: int, *, width: int = 6, vocabulary: int = 11, dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plainly(hidden, weight, targets):
    logits = hidden @ weight.T
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def gradients(function, hidden, weight, targets):
    scale = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    out = function(hidden, weight, targets)
    return out.detach(), *torch.autograd.grad((out * scale.to(out.dtype)).sum(), [hidden, weight])


def test_by_hand():
    # scores 0, ln 2, ln 5: probabilities 1/8, 2/8, 5/8
    hidden, weight = torch.eye(2)[:1], torch.tensor([[0.0, 9.0], [math.log(2), 9.0], [math.log(5), 9.0]])
    found = [token_logps(hidden, weight, torch.tensor([y])).item() for y in range(3)]
    assert found == pytest.approx([math.log(1 / 8), math.log(2 / 8), math.log(5 / 8)], abs=1e-6)


def in_chunks(monkeypatch: pytest.MonkeyPatch, tokens: int, block: int = 1) -> None:
    """Chunks of so many tokens, and of those so many (of float64, of 11 words) widened at one time."""
    monkeypatch.setattr(head, "CHUNK_BYTES", 1)
    monkeypatch.setattr(head, "CHUNK", tokens)
    monkeypatch.setattr(head, "BLOCK_BYTES", block * 11 * 8)


@pytest.mark.parametrize("block", [1, 3, 4])
@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 5, 8, 9])
def test_values_and_gradients_are_those_of_log_softmax_at_every_chunk_boundary(tokens, block, monkeypatch):
    in_chunks(monkeypatch, 4, block)
    inputs = made_up(tokens)
    for found, expected in zip(gradients(token_logps, *inputs), gradients(plainly, *inputs), strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [head.CHUNK - 1, head.CHUNK, head.CHUNK + 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_values_and_gradients_at_the_real_chunk(tokens, dtype):
    inputs = made_up(tokens, dtype=dtype)
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    for found, expected in zip(gradients(token_logps, *inputs), gradients(plainly, *inputs), strict=True):
        assert found.dtype == expected.dtype == dtype
        assert relative(found, expected) < limit


@pytest.mark.parametrize("learns", ["hidden", "weight", "both"])
def test_gradcheck(learns, monkeypatch):
    in_chunks(monkeypatch, 2)
    hidden, weight, _ = made_up(5, width=3, vocabulary=4)
    targets = torch.tensor([0, 0, 3, 1, 0])  # the same word twice in one chunk
    functions = {
        "hidden": (lambda h: token_logps(h, weight.detach(), targets), (hidden,)),
        "weight": (lambda w: token_logps(hidden.detach(), w, targets), (weight,)),
        "both": (lambda h, w: token_logps(h, w, targets), (hidden, weight)),
    }
    assert torch.autograd.gradcheck(*functions[learns])


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("how", [Scores(), Scores(0.4), Scores(1.0, 1.5), Scores(0.7, 2.0)], ids=str)
def test_gradcheck_with_bias_adapter_factor_and_cap(how, frozen, monkeypatch):
    in_chunks(monkeypatch, 2)
    hidden, weight, _ = made_up(5, width=3, vocabulary=4)
    small, up, _ = made_up(5, width=2, vocabulary=4, seed=1)
    bias = torch.linspace(-1, 1, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 0, 3, 1, 0])
    inputs = [hidden, weight, small, up, bias]
    if frozen:
        inputs = [x if x is hidden or x is small else x.detach() for x in inputs]

    def ours(h, w, x, u, b):
        return token_logps(h, w, targets, bias=b, more=((x, u),), how=how)

    products = (hidden @ weight.T + small @ up.T + bias) * how.factor
    scores = products if how.cap is None else how.cap * torch.tanh(products / how.cap)
    expected = scores.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    assert torch.allclose(ours(*inputs), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(ours, inputs)


def test_an_adapter_is_trained_and_the_frozen_matrix_under_it_is_not():
    hidden, weight, targets = made_up(5)
    small, up, _ = made_up(5, width=2, seed=1)
    token_logps(hidden, weight.detach(), targets, more=((small, up),)).sum().backward()
    assert weight.grad is None and up.grad is not None and small.grad is not None and hidden.grad is not None


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, targets = made_up(5)
    token_logps(hidden, weight.detach(), targets).sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_large_scores_do_not_overflow():
    hidden, weight, targets = made_up(6, dtype=torch.float32)
    with torch.no_grad():
        hidden *= 1e3
    found, expected = gradients(token_logps, hidden, weight, targets), gradients(plainly, hidden, weight, targets)
    assert all(bool(x.isfinite().all()) for x in found)
    assert all(relative(x, y) < 1e-5 for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("tokens", [5, 300])
def test_under_autocast_it_multiplies_in_bfloat16_and_answers_in_float32(tokens):
    hidden, weight, targets = made_up(tokens, width=32, vocabulary=50, dtype=torch.float32)
    exact = gradients(plainly, hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(token_logps, hidden, weight, targets)
    assert all(x.dtype == torch.float32 for x in found)
    halves = (hidden.bfloat16(), weight.bfloat16())
    if native() is not None:  # whose scores are float32 sums of bfloat16 products
        halves = tuple(half.float() for half in halves)
    assert relative(found[0], plainly(*halves, targets).detach()) < 1e-6
    assert relative(found[0], exact[0]) > 1e-5, "this was not bfloat16"
    assert all(relative(x, y) < 0.03 for x, y in zip(found, exact, strict=True))


def test_half_weights_give_float32_log_probs():
    hidden, weight, targets = made_up(5, dtype=torch.bfloat16)
    found = gradients(token_logps, hidden, weight, targets)
    assert [x.dtype for x in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    expected = gradients(plainly, hidden, weight, targets)
    assert all(relative(x.float(), y.float()) < 0.03 for x, y in zip(found, expected, strict=True))


class Largest(TorchDispatchMode):
    """Watches every tensor that any operation makes, the backward's too."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, torch.Tensor):
                self.numbers = max(self.numbers, made.numel())
        return out


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_the_whole_matrix_of_scores_never_exists(trained, monkeypatch):
    in_chunks(monkeypatch, 4)
    tokens, width, vocabulary = 64, 3, 50
    hidden, weight, targets = made_up(tokens, width=width, vocabulary=vocabulary)
    weight = weight if trained else weight.detach()
    with Largest() as ours:
        token_logps(hidden, weight, targets).sum().backward()
    with Largest() as plain:
        plainly(hidden, weight, targets).sum().backward()
    assert plain.numbers == tokens * vocabulary, "the watch is blind"
    assert ours.numbers == 4 * vocabulary  # a chunk's scores; hidden and weight themselves are smaller


class Softmaxes(TorchDispatchMode):
    """Counts tokens whose softmax is made."""

    tokens = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "softmax" in str(function):
            self.tokens += len(args[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("tokens", [3, 4, 10])
def test_a_trained_head_computes_all_but_the_last_chunk_again(tokens, monkeypatch):
    in_chunks(monkeypatch, 4)
    hidden, weight, targets = made_up(tokens)
    bias = torch.zeros(11, dtype=torch.float64, requires_grad=True)
    inputs, scale = [hidden, weight, bias], torch.linspace(-1, 2, tokens, dtype=torch.float64)
    with Softmaxes() as forward:
        loss = (token_logps(hidden, weight, targets, bias=bias) * scale).sum()
    with Softmaxes() as backward:
        found = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert (forward.tokens, backward.tokens) == (tokens, {3: 0, 4: 0, 10: 6}[tokens])
    with Softmaxes() as second:  # what was kept is gone
        again = torch.autograd.grad(loss, inputs)
    assert second.tokens == tokens
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tokens", [1, 50, 5_000])
def test_what_the_head_holds_is_foretold(tokens, dtype):
    matrix = torch.empty(49_152, 1, dtype=dtype)
    room = head._Room.of(tokens, matrix)
    held = sum(x.nbytes for x in (room.products, room.scores, room.probs))
    assert room_bytes(tokens, 49_152, dtype, "cpu") == held < 1.1 * head.CHUNK_BYTES


def test_where_no_backward_comes_no_gradient_is_formed(monkeypatch):
    formed = []
    toward = head._toward
    monkeypatch.setattr(head, "_toward", lambda *given: formed.append(1) or toward(*given))
    hidden, weight, targets = made_up(5)
    with torch.no_grad():
        found = token_logps(hidden, weight, targets)
    assert not formed
    assert torch.equal(found, token_logps(hidden, weight, targets))
    assert formed


@pytest.mark.parametrize(
    ("hidden", "weight", "targets"),
    [((5, 6), (11, 7), (5,)), ((5, 6), (11, 6), (4,)), ((1, 5, 6), (11, 6), (5,)), ((5, 6), (11, 6), (5, 1))],
)
def test_shapes_that_do_not_fit_are_refused(hidden, weight, targets):
    with pytest.raises(ValueError, match=r"expected hidden .* got"):
        token_logps(torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.long))
