"""The CPU's bfloat16 attention is torch's attention: the same outputs, the same gradients, whatever the blocks."""

from __future__ import annotations

import pytest
import torch
from test_train_toys import SIZES, example, tiny
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import MistralConfig, MistralForCausalLM

from anchorline.train import cpu_attention
from anchorline.train.cpu_attention import causal_attention
from anchorline.train.forward import example_logps


def random(queries: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries * keys)
    shapes = ((1, 6, queries, 8), (1, 2, keys, 8), (1, 2, keys, 8))
    q, k, v = (torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def by_torch(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None) -> Tensor:
    place = torch.arange(k.shape[2])
    distance = place[-q.shape[2] :, None] - place
    seen = (distance >= 0) & (distance < (window or k.shape[2] + 1))
    k, v = k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1)
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)


SHAPES = [
    (7, 7, None, None),
    (5, 11, None, None),
    (9, 9, None, 3),
    (4, 10, 0.3, 3),
    (1, 6, None, None),
    (6, 6, 2.0, 99),
]


@pytest.mark.parametrize("block", [1, 40, 10_000])
@pytest.mark.parametrize(("queries", "keys", "scale", "window"), SHAPES)
def test_outputs_and_gradients_are_torchs(queries, keys, scale, window, block, monkeypatch):
    monkeypatch.setattr(cpu_attention, "SCORES", block)
    monkeypatch.setattr(cpu_attention, "QUERIES", 1)
    inputs = random(queries, keys, torch.float64)
    ours, theirs = causal_attention(*inputs, scale=scale, window=window), by_torch(*inputs, scale, window)
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)
    toward = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for own, other in zip(*(torch.autograd.grad(x, inputs, toward) for x in (ours, theirs)), strict=True):
        assert torch.allclose(own, other, atol=1e-12, rtol=0)


def test_in_bfloat16_its_gradients_are_as_near_to_the_truth_as_the_format_allows():
    inputs = random(60, 90, torch.bfloat16)
    q, k, v = (x.detach().double().requires_grad_() for x in inputs)
    toward = torch.ones(1, 6, 60, 8, dtype=torch.bfloat16)
    truth = torch.autograd.grad(by_torch(q, k, v, None, None), (q, k, v), toward.double())
    for true, own in zip(truth, torch.autograd.grad(causal_attention(*inputs), inputs, toward), strict=True):
        assert (own - true).norm() < 2**-7 * true.norm()


@pytest.mark.parametrize("window", [None, 4])
def test_a_packed_row_in_bfloat16_goes_this_way_and_gives_the_log_probs_of_float32(window, monkeypatch):
    model = tiny(MistralConfig(**SIZES, sliding_window=window), MistralForCausalLM)
    model.set_attn_implementation("anchorline_packed")
    examples = [
        example([5, 6, 7, 8, 9], [10, 11, 12, 13], [14, 15, 16]),
        example([5, 6, 7], [20, 21], [22, 23, 24, 25, 26, 27]),
    ]
    exact = example_logps(model, examples, packed=True, pad=0)
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs["window"])
        return causal_attention(*args, **kwargs)

    monkeypatch.setattr("anchorline.train.attention.causal_attention", counted)
    monkeypatch.setattr("anchorline.train.attention.native", lambda: None)
    with torch.autocast("cpu", torch.bfloat16):
        rough = example_logps(model, examples, packed=True, pad=0)
    assert len(calls) >= 4 * SIZES["num_hidden_layers"] and set(calls) == {window}
    assert torch.allclose(rough, exact, rtol=0.03, atol=0.1)
    rough.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
