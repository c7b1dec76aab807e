"""Products in tiles are the products; their rows do not hang on how many there are; gradients are those of the whole."""

from __future__ import annotations

import pytest
import torch
from test_train_toys import PAD, example, tiny
from torch.nn.functional import linear

from anchorline.train import steady
from anchorline.train.arithmetic import multiplying_in
from anchorline.train.attention import PACKED
from anchorline.train.forward import example_logps
from anchorline.train.steady import TILE, format_of, steady_rows, sways, tiled


@pytest.mark.parametrize("rows", [1, TILE - 1, TILE, TILE + 1, 3 * TILE])
@pytest.mark.parametrize("biased", [False, True])
def test_tiles_are_the_whole_product(rows, biased):
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, 24), torch.randn(40, 24), torch.randn(40) if biased else None
    assert torch.allclose(tiled(x, weight, bias), linear(x, weight, bias), atol=1e-5)
    out = torch.full((rows, 40), torch.nan)
    assert tiled(x, weight, bias, out=out) is out and not out.isnan().any()


@pytest.mark.parametrize("compiled", [True, False])
def test_a_row_is_the_same_to_the_last_bit_whatever_follows(compiled, monkeypatch):
    """Where processors do it otherwise: more rows, another order of the sum."""
    if not compiled:
        monkeypatch.setattr(steady, "native", lambda: None)
    torch.manual_seed(0)
    x, weight = torch.randn(3000, 576).bfloat16(), torch.randn(576, 576).bfloat16()
    whole = tiled(x, weight)
    assert all(torch.equal(tiled(x[:rows], weight), whole[:rows]) for rows in (1, 100, 300, 700, 2000))
    assert torch.equal(tiled(x[500:900], weight), whole[500:900])


def test_inside_the_layers_of_a_model_are_tiled_with_the_gradients_of_the_whole(monkeypatch):
    model = tiny()
    tokens = torch.arange(60)[None] % 90
    model(input_ids=tokens).logits.logsumexp(-1).sum().backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    seen = []
    monkeypatch.setattr(steady, "sways", lambda weight, dtype: True)
    monkeypatch.setattr(steady, "tiled", lambda *given, **more: seen.append(given) or tiled(*given, **more))
    monkeypatch.setattr(steady, "TILE", 16)
    with steady_rows(model.modules()):
        out = model(input_ids=tokens).logits
    out.logsumexp(-1).sum().backward()
    assert len(seen) == 2 * 7 + 1, "seven maps a layer, and the head"
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, whole[name], rtol=1e-4, atol=1e-5), name
    assert not any("forward" in vars(module) for module in model.modules()), "nothing stays changed"


def test_a_checkpointed_layer_is_computed_again_in_tiles_and_the_heads_place_is_given_back(monkeypatch):
    examples = [example([2, 17, 30], [9, 10, 11, 12], [70, 71, 72])]
    monkeypatch.setattr(steady, "sways", lambda weight, dtype: True)
    found = []
    for checkpointed in (False, True):
        model = tiny().train()
        model.set_attn_implementation(PACKED)
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        with multiplying_in(model, torch.bfloat16):
            example_logps(model, examples, packed=True, pad=PAD).sum().backward()
            assert "forward" in vars(model.lm_head), "as it was around the call"
        assert not any("forward" in vars(module) for module in model.modules()), "nothing stays changed"
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(found[1][name], grad) for name, grad in found[0].items())


def test_only_half_precision_on_a_cpu_is_tried(monkeypatch):
    weight = torch.randn(32, 32)
    monkeypatch.setattr(steady, "_tried", lambda *shape: True)
    assert not sways(weight, format_of(weight)) and sways(weight, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert format_of(weight) == torch.bfloat16
    assert not sways(weight.to("meta"), torch.bfloat16)
