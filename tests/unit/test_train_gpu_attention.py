"""The GPU's one call a row is the call a branch, whatever the layout. Its gradients only a GPU can show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_train_toys import SIZES, random_example, tiny
from transformers import MistralConfig, MistralForCausalLM

from anchorline.train import attention
from anchorline.train.attention import PACKED, packed_attention
from anchorline.train.forward import example_logps
from anchorline.train.gpu_attention import row_attention, row_mask
from anchorline.train.layout import Row, pack
from anchorline.train.tokenise import Example

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

OPENED = Example("a", (3, 4, 5), ((6, 7), (8,)), (True, False))
ALONE = Example("b", (9, 4), ((5,), (6, 6, 6)), (True, False))
ROWS = {
    "one pair": [OPENED],
    "without an opening": [ALONE, OPENED],
    "with an opening": [OPENED, replace(OPENED, id="c", prompt=(3, 4, 9))],
    "an opening that one does not share": [OPENED, ALONE, replace(OPENED, id="c", prompt=(3, 4, 9))],
    "many": [random_example(torch.Generator().manual_seed(n), longest=40) for n in range(5)],
}


def inputs(row: Row) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = row.tokens.shape[1]
    shapes = ((1, 4, tokens, 8), (1, 2, tokens, 8), (1, 2, tokens, 8))
    return [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", ROWS)
def test_outputs_are_those_of_a_call_a_branch(name, window):
    row = pack(ROWS[name])
    q, k, v = inputs(row)
    # torch has no backward of FlexAttention on a CPU
    ours = row_attention(q.detach(), k.detach(), v.detach(), row.layout, window=window).transpose(1, 2)
    theirs, _ = packed_attention(torch.nn.Identity(), q, k, v, None, packed_layout=row.layout, sliding_window=window)
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)


def test_a_model_that_attends_by_the_row_has_the_same_log_probs_and_makes_a_mask_only_once(monkeypatch):
    model = tiny(MistralConfig(**SIZES, sliding_window=4), MistralForCausalLM, dtype=torch.float64)
    model.set_attn_implementation(PACKED)
    with torch.no_grad():
        by_branch = example_logps(model, ROWS["many"], packed=True, pad=0)
        monkeypatch.setattr(attention, "BY_ROW", {"cpu"})
        row_mask.cache_clear()
        by_row = example_logps(model, ROWS["many"], packed=True, pad=0)
    assert torch.allclose(by_row, by_branch, atol=1e-10, rtol=0)
    assert row_mask.cache_info().misses == 1 and row_mask.cache_info().hits == SIZES["num_hidden_layers"] - 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ROWS)
def test_compiled_on_a_gpu_it_is_the_call_a_branch_on_the_cpu(name):
    row = pack(ROWS[name])
    q, k, v = (x.detach().float().cuda().requires_grad_() for x in inputs(row))
    ours = row_attention(q, k, v, row.layout).transpose(1, 2)
    here = q1, k1, v1 = [x.detach().cpu().requires_grad_() for x in (q, k, v)]
    theirs, _ = packed_attention(torch.nn.Identity(), q1, k1, v1, None, packed_layout=row.layout)
    assert torch.allclose(ours.cpu(), theirs, atol=1e-4)
    for own, other in zip(
        torch.autograd.grad(ours.sum(), (q, k, v)), torch.autograd.grad(theirs.sum(), here), strict=True
    ):
        assert torch.allclose(own.cpu(), other, atol=1e-3)
