"""native.cpp gives what torch gives: to the format's precision, for any threads, neighbours and sizes; or it is left out."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from test_train_toys import PAD, SIZES, example, llama, tiny
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral

from anchorline.train import attention, lean, rotation, steady
from anchorline.train import native as native_module
from anchorline.train.arithmetic import multiplying_in
from anchorline.train.attention import PACKED, packed_attention
from anchorline.train.cpu_attention import row_attention, sequences_of
from anchorline.train.forward import example_logps, example_token_logps
from anchorline.train.layout import Branching, pack
from anchorline.train.native import LISTED, WITHOUT_TILES, Native, _compiled, _processor, native, unchanging
from anchorline.train.profile import time_shares

TILES = Path(__file__).with_name("tiles.h")
BY_TILES = ("g++", "-D__AMX_BF16__", "-include", str(TILES), f"-DOF={hashlib.sha256(TILES.read_bytes()).hexdigest()}")
"""Compiles the form for AMX with tiles in plain C++, for any processor; another header makes another library."""
FORMAT = 2**-8
"""What a figure in bfloat16 may be off by its rounding alone."""


def native_here() -> Native:
    """The functions. Skips where they cannot be; a source that does not compile fails, where a run would do without."""
    if "avx512_bf16" not in _processor().split() or not shutil.which("g++"):
        pytest.skip("no AVX512 with bfloat16, or no g++")
    _compiled(["g++"])
    return native() or pytest.skip("the system does not let programs use AMX, or CXX is no compiler")


@pytest.fixture(scope="module", params=["as the processor is", "AVX512", "AMX"])
def compiled(request: pytest.FixtureRequest) -> Native:
    found = native_here()
    if request.param != "as the processor is":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CXX", shlex.join({"AVX512": ("g++", *WITHOUT_TILES), "AMX": BY_TILES}[request.param]))
            found = native.__wrapped__()
        assert found is not None and found.name.startswith(request.param)
    return found


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the compiled functions, as they are called; skips where there are none."""
    native_here()
    names: list[str] = []
    call = Native._call
    monkeypatch.setattr(Native, "_call", lambda self, name, *given: names.append(name) or call(self, name, *given))
    return names


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def off(found: Tensor, truth: Tensor) -> float:
    return float((found.detach().double() - truth.detach()).norm() / truth.detach().norm())


def layout_of(opening: int, *examples: tuple[int, list[int]]) -> tuple[Branching, ...]:
    """Of examples (prompt, branches), each behind the opening."""
    made, at = [], opening
    for prompt, branches in examples:
        ends = [at + prompt]
        for size in branches:
            ends.append(ends[-1] + size)
        made.append(Branching(opening, at, ends[0], tuple(ends[1:])))
        at = ends[-1]
    return tuple(made)


def by_the_book(
    q: Tensor, k: Tensor, v: Tensor, layout: tuple[Branching, ...], scale: float, window: int | None
) -> Tensor:
    """[heads, tokens, width] in float64, a run at a time, from what the layout says."""
    groups = len(q) // len(k)
    out = torch.zeros_like(q)
    opening = layout[0].opening
    runs = [(list(range(opening)), opening)] if opening else []
    for at in layout:
        for number, (first, last) in enumerate(pairwise((at.prompt_end, *at.ends))):
            seen = [*range(at.opening), *range(at.start, at.prompt_end), *range(first, last)]
            runs.append((seen, last - first if number else last - at.start))
    for seen, asking in runs:
        places = torch.arange(len(seen))
        distance = places[len(seen) - asking :, None] - places
        mask = (distance >= 0) & (distance < (window or len(seen) + 1))
        keys, values = (x[:, seen].repeat_interleave(groups, 0) for x in (k, v))
        asks = seen[len(seen) - asking :]
        scores = (q[:, asks] @ keys.transpose(1, 2) * scale).masked_fill(~mask, -torch.inf)
        out = out.index_add(1, torch.tensor(asks, dtype=torch.int64), scores.softmax(-1) @ values)
    return out


LAYOUTS = {
    "two pairs": layout_of(0, (30, [200, 150]), (7, [5, 9])),
    "behind an opening": layout_of(33, (64, [64, 64]), (1, [1, 3])),
    "single tokens": layout_of(0, (1, [1, 1])),
    "three branches": layout_of(5, (100, [70, 130, 3])),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("heads", "key_heads", "width", "window", "scale"),
    [(9, 3, 64, None, None), (4, 2, 80, 17, 0.3), (2, 2, 16, 100, None), (2, 1, 128, 1, None)],
)
def test_attention_and_its_gradients_are_the_books(compiled, threads, layout, heads, key_heads, width, window, scale):
    tokens = layout[-1].ends[-1]
    # token by token, as a layer makes them, so that heads are strided
    shapes = enumerate((heads, key_heads, key_heads))
    q, k, v = (draw(1, tokens, n, width, seed=i).transpose(1, 2).requires_grad_() for i, n in shapes)
    toward = draw(tokens, heads, width, seed=7)
    exact = [x.detach()[0].double().requires_grad_() for x in (q, k, v)]
    truth = by_the_book(*exact, layout, scale or width**-0.5, window)
    (truth.transpose(0, 1) * toward.double()).sum().backward()
    found = []
    for count in (1, 2):
        threads(count)
        out = row_attention(compiled, q, k, v, layout, scale=scale, window=window)
        found.append([out, *torch.autograd.grad(out, (q, k, v), toward[None])])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True)), "threads change nothing"
    out, *slopes = found[0]
    assert off(out[0].transpose(0, 1), truth) < FORMAT
    for slope, wanted in zip(slopes, exact, strict=True):
        # with one key in sight nothing hangs on the scores: what is left is rounding
        rounding = 0.1 * float(truth.detach().norm())
        assert float((slope[0].double() - wanted.grad).norm()) < 2 * FORMAT * max(float(wanted.grad.norm()), rounding)


def test_what_a_branch_computes_does_not_hang_on_the_other(compiled):
    layout = layout_of(0, (70, [90, 40]))
    q, k, v = (draw(1, n, 200, 64, seed=n).requires_grad_() for n in (4, 2, 2))
    out = row_attention(compiled, q, k, v, layout)
    of_rejected = torch.autograd.grad(out[:, 160:].float().sum(), (q, k, v), retain_graph=True)
    of_chosen = torch.autograd.grad(out[:, 70:160].float().sum(), (q, k, v))
    for rejected, chosen in zip(of_rejected, of_chosen, strict=True):
        assert not rejected[:, :, 70:160].any() and rejected[:, :, 160:].any()
        assert not chosen[:, :, 160:].any() and chosen[:, :, 70:160].any()
    broken = v.detach().clone()
    broken[:, :, 100] = torch.nan
    out = row_attention(compiled, q, k, broken, layout)
    assert out[:, 100:160].isnan().all() and not out[:, 160:].isnan().any()
    broken = q.detach().clone()
    broken[:, :, 100] = torch.nan
    lost = row_attention(compiled, broken, k, v, layout).isnan().flatten(2).all(-1)[0]
    assert lost.nonzero().flatten().tolist() == [100], "a NaN is not taken for a small number"


def test_scores_far_apart_neither_overflow_nor_vanish(compiled):
    q, k, v = (draw(1, 1, 80, 32, seed=n) * 40 for n in range(3))
    layout = layout_of(0, (40, [40]))
    out = row_attention(compiled, q, k, v, layout, scale=3.0)
    truth = by_the_book(*(x[0].double() for x in (q, k, v)), layout, 3.0, None)
    assert out.isfinite().all() and off(out[0].transpose(0, 1), truth) < FORMAT


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "biased"),
    [
        (700, 96, 160, True),
        (100, 64, 773, False),
        (7, 16, 576, True),
        (300, 20, 10, True),
        (1, 1, 1, False),
        (9, 2000, 70, True),
        (270, 1600, 70, True),
    ],
)
def test_a_linear_layer_and_a_transposition_are_torchs(compiled, rows, inputs, outputs, biased):
    x, weight = draw(rows, inputs), draw(outputs, inputs, seed=1)
    bias = draw(outputs, seed=2) if biased else None
    truth = linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = compiled.linear(x, weight, bias)
    assert off(found, truth) < FORMAT
    assert torch.equal(compiled.linear(x[-3:], weight, bias), found[-3:]), "a row hangs on no other"
    wide = torch.full((rows, outputs + 5), 7.0).bfloat16()
    compiled.linear(draw(rows, inputs + 3)[:, :inputs], weight, bias, out=wide[:, :outputs])
    assert bool((wide[:, outputs:] == 7).all()), "nothing beside is written"
    grad = draw(rows, outputs, seed=5)
    truth = grad.double() @ weight.double()
    found = compiled.linear_backward(grad, weight)
    assert off(found, truth) < FORMAT and torch.equal(compiled.linear_backward(grad[-3:], weight), found[-3:])
    assert torch.equal(compiled.transposed(x), x.T) and compiled.transposed(x).is_contiguous()
    assert torch.equal(compiled.transposed(draw(inputs, rows).T), draw(inputs, rows).T.T)


def test_a_weight_of_another_width_is_refused(compiled):
    x, narrow, wide = draw(8, 64), draw(32, 32), draw(32, 64)
    up = draw(32, 16)
    with pytest.raises(ValueError, match=r"expected a weight \[outputs, 64\] for inputs \[8, 64\], got \[32, 32\]"):
        compiled.linear(x, narrow)
    for weight, down in ((narrow, draw(16, 64)), (wide, draw(16, 32))):
        with pytest.raises(ValueError, match="expected a weight"):
            compiled.adapted(x, weight, None, down, up, 1.0)
    with pytest.raises(ValueError, match="expected a weight"):
        compiled.token_logps(x, narrow, torch.zeros(8, dtype=torch.int64), torch.zeros(8))


def test_a_weight_that_does_not_change_is_packed_once(compiled, calls):
    x, weight, other = draw(300, 96), draw(160, 96, seed=1), draw(40, 96, seed=2)
    truth = [compiled.linear(x, w) for w in (weight, other)]
    calls.clear()
    with unchanging([weight]):
        with unchanging([weight]):  # as where a scope lies in another
            first = compiled.linear(x, weight)
        assert all(torch.equal(compiled.linear(x[:rows], weight), truth[0][:rows]) for rows in (1, 32, 299))
        assert torch.equal(first, truth[0]) and calls.count("pack") == 1
        back = [compiled.linear_backward(first, weight) for _ in range(2)]
        assert off(back[0], first.double() @ weight.double()) < FORMAT and torch.equal(*back)
        assert calls.count("pack") == 2, "the other way about it is another copy"
        assert all(torch.equal(compiled.linear(x, other), truth[1]) for _ in range(2)) and calls.count("pack") == 4
    weight.mul_(2)
    assert torch.equal(compiled.linear(x, weight), truth[0] * 2), "outside nothing is kept"


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(700, 576, 200), (1, 3, 1), (64, 40, 33), (0, 4, 8), (90, 20, 9000)]
)
def test_a_weights_gradient_is_the_product_in_float32(compiled, threads, rows, inputs, outputs):
    grad, x = draw(rows, outputs + 1)[:, :outputs], draw(rows, inputs + 2, seed=1)[:, :inputs]
    truth = grad.double().T @ x.double()
    found = []
    for count in (1, 2):
        threads(count)
        found.append(compiled.weight_gradient(grad, x))
    assert torch.equal(*found) and found[0].dtype == torch.float32 and found[0].shape == truth.shape
    assert float((found[0] - truth).norm()) <= 1e-5 * float(truth.norm())
    there = torch.ones_like(found[0])
    assert compiled.weight_gradient(grad, x, there) is there and torch.equal(there, found[0] + 1)


@pytest.mark.parametrize(("rows", "rank", "width"), [(700, 16, 576), (1, 3, 1), (64, 40, 33), (65, 32, 64), (0, 4, 8)])
def test_a_layer_with_an_adapter_is_its_products(compiled, threads, rows, rank, width):
    x, weight, bias = draw(rows, width + 1)[:, :width], draw(50, width, seed=1), draw(50, seed=2)
    down, up, factor = draw(rank, width, seed=3), draw(50, rank, seed=4), 0.3
    grad = draw(rows, 53, seed=5)[:, :50]
    found = []
    for count in (1, 2):
        threads(count)
        out, inner = compiled.adapted(x, weight, bias, down, up, factor)
        back = compiled.adapted_backward(grad, x, inner, weight, down, up, factor)
        found.append((out, inner, *back))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    out, inner, of_inner, of_x, of_down, of_up = (one.double() for one in found[0])
    wide = [part.double() for part in (x, weight, bias, down, up, grad)]
    truth = linear(wide[0], wide[1], wide[2]) + factor * inner @ wide[4].T
    expected = {
        "inner": (inner, wide[0] @ wide[3].T),
        "out": (out, truth),
        "of inner": (of_inner, wide[5] @ wide[4]),
        "of x": (of_x, wide[5] @ wide[1] + factor * of_inner @ wide[3]),
        "of down": (of_down, factor * of_inner.T @ wide[0]),
        "of up": (of_up, factor * wide[5].T @ inner),
    }
    for name, (one, other) in expected.items():
        assert float((one - other).norm()) <= FORMAT * float(other.norm()), name
    assert back[2].dtype == back[3].dtype == torch.float32
    into = tuple(torch.ones_like(part) for part in back[2:])
    again = compiled.adapted_backward(grad, x, found[0][1], None, down, up, factor, into)
    assert again[1] is None and again[2] is into[0] and again[3] is into[1], "no weight, no gradient in x"
    assert all(torch.allclose(now, before + 1, atol=1e-5) for now, before in zip(into, back[2:], strict=True))


@pytest.mark.parametrize("factor", [1.0, 0.3, -2.0])
@pytest.mark.parametrize(
    ("rows", "inputs", "words"),
    [(9, 96, 4999), (300, 40, 2080), (3, 32, 16), (1, 7, 5), (0, 32, 40), (4, 2100, 70), (2, 9, 1)],
)
def test_a_tokens_log_prob_and_its_gradient_are_softmaxs_of_scores_that_are_not_rounded(
    compiled, threads, rows, inputs, words, factor
):
    x, weight, targets = (
        draw(rows, inputs),
        3 / inputs**0.5 * draw(words, inputs, seed=1),
        torch.arange(rows) * 7 % words,
    )
    wide = (x.double() @ weight.double().T).requires_grad_()
    truth = (factor * wide).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    truth.sum().backward()
    assert wide.grad is not None
    found = []
    for count in (1, 2, 3):
        threads(count)
        for grad in (None, torch.full((rows, words), torch.nan, dtype=torch.bfloat16)):
            logps = torch.full((rows,), torch.nan)
            compiled.token_logps(x, weight, targets, logps, factor, grad=grad)
            assert torch.allclose(logps.double(), truth, rtol=1e-5, atol=2e-5), "with scores in bfloat16: to 1e-2"
            assert bool((logps <= 0).all())
            found.append((logps, grad))
    assert all(torch.equal(logps, found[0][0]) for logps, _ in found)
    assert all(torch.equal(grad, found[1][1]) for _, grad in found[1::2])
    if found[1][1].numel():  # the scores that share out what the target lacks are kept in bfloat16, less the target's
        grad, place = found[1][1].double(), targets[:, None]
        assert float(((grad - wide.grad).norm(dim=-1) / (wide.grad.norm(dim=-1) + 1e-6)).max()) < 0.05
        assert torch.allclose(grad.gather(-1, place), wide.grad.gather(-1, place), rtol=2**-8)


@pytest.mark.parametrize("away", [50.0, 90.0, 1e3, -1e3])
def test_scores_far_from_the_targets_neither_overflow_nor_vanish(compiled, away):
    weight = torch.zeros(3000, 32)
    weight[:, 0] = torch.linspace(0, 1, 3000)
    weight[7, 0], weight[2999, 0] = 0.0, 1.0
    x, targets = torch.zeros(2, 32).bfloat16(), torch.tensor([7, 2999])
    x[:, 0] = away
    logps, grad = torch.zeros(2), torch.zeros(2, 3000).bfloat16()
    compiled.token_logps(x, weight.bfloat16(), targets, logps, grad=grad)
    scores = x.double() @ weight.bfloat16().double().T
    truth = scores.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    assert torch.allclose(logps.double(), truth, rtol=0, atol=2e-7 * abs(away))
    assert torch.allclose(grad.double().sum(-1), torch.zeros(2).double(), atol=2**-8), (
        "what the target gains the others lose"
    )
    expected = -torch.expm1(truth)
    assert torch.allclose(grad.double().gather(-1, targets[:, None])[:, 0], expected, rtol=2**-8)


@pytest.mark.parametrize("above", [4.0, 12.0, 20.0, 60.0])
def test_a_token_that_is_all_but_certain_keeps_what_it_lacks(compiled, above):
    weight, targets = 0.01 * draw(3000, 64, seed=1), torch.tensor([5, 2999])
    x = torch.zeros(2, 64).bfloat16()
    for row, target in enumerate(targets):
        own = slice(32 * row, 32 * row + 32)
        weight[target, own], x[row, own] = 1.0, above / 32
    logps, grad = torch.zeros(2), torch.zeros(2, 3000).bfloat16()
    compiled.token_logps(x, weight, targets, logps, grad=grad)
    scores = x.double() @ weight.double().T
    others = (scores - scores.gather(-1, targets[:, None])).exp().scatter(-1, targets[:, None], 0.0)
    truth = -others.sum(-1).log1p()  # a log-softmax in float64 would lose it among the sum's 1
    assert bool((logps <= 0).all()) and torch.allclose(logps.double(), truth, rtol=1e-4, atol=1e-30)
    lacks = grad.double().gather(-1, targets[:, None])[:, 0]
    assert torch.allclose(lacks, -torch.expm1(truth), rtol=2**-8, atol=1e-30)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_score_that_is_no_number_shows(compiled, bad):
    x, weight, logps = draw(3, 32), draw(40, 32, seed=1), torch.zeros(3)
    x[1, 31] = bad
    compiled.token_logps(x, weight, torch.tensor([3, 4, 5]), logps, grad=torch.zeros(3, 40).bfloat16())
    assert logps.isnan().tolist() == [False, True, False]
    weight[39, 31] = torch.nan  # of one word that is nobody's target
    compiled.token_logps(draw(3, 32), weight, torch.tensor([3, 4, 5]), logps)
    assert not logps.isfinite().any()


@pytest.mark.parametrize("threads_", [1, 2, 3])
@pytest.mark.parametrize("rows", [0, 5, 256, 257, 1100])
def test_a_product_is_the_same_however_it_is_shared_out(compiled, threads, threads_, rows):
    x, weight = draw(1100, 96), draw(773, 96, seed=1)
    threads(1)
    whole = compiled.linear(x, weight)
    threads(threads_)
    assert torch.equal(compiled.linear(x[:rows], weight), whole[:rows])


@pytest.mark.parametrize(("heads", "tokens", "width"), [(3, 50, 64), (1, 1, 32), (2, 7, 96)])
def test_a_rotation_and_its_gradient_are_transformers(compiled, heads, tokens, width):
    rotate = modeling_llama.apply_rotary_pos_emb
    x, toward = draw(tokens, heads, width).transpose(0, 1), draw(heads, tokens, width, seed=1)
    # halves with factors of their own, as no embedding has them: each has to meet its own
    cos, sin = (torch.randn(tokens, width, generator=torch.Generator().manual_seed(n)) for n in (2, 3))
    exact = x.double().requires_grad_()
    truth, _ = rotate(exact[None], exact[None], cos[None].double(), sin[None].double())
    (truth[0] * toward.double()).sum().backward()
    assert off(compiled.rotated(x, cos, sin), truth[0]) < FORMAT
    assert off(compiled.rotated(toward, cos, sin, back=True), exact.grad) < FORMAT


@pytest.mark.parametrize(("heads", "key_heads", "width", "keys"), [(9, 3, 64, 37), (4, 4, 32, 1), (2, 1, 96, 200)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_one_token_is_the_books(compiled, threads, heads, key_heads, width, keys, masked):
    q = draw(5, 1, heads, width).transpose(1, 2)
    k, v = (draw(5, key_heads, keys + 3, width, seed=n)[:, :, :keys] for n in (1, 2))  # of a cache with room
    seen = None
    if masked:
        seen = torch.rand(5, 1, 1, keys, generator=torch.Generator().manual_seed(3)) < 0.6
        seen[..., -1] = True
        v[~seen[:, 0, 0].unsqueeze(1).expand(-1, key_heads, -1)] = torch.nan  # what is not seen does not count at all
    wide = (x.double().nan_to_num().repeat_interleave(heads // key_heads, 1) for x in (k, v))
    truth = scaled_dot_product_attention(q.double(), *wide, attn_mask=seen, scale=0.2)
    found = []
    for count in (1, 2):
        threads(count)
        found.append(compiled.answer(q, k, v, seen, 0.2))
    assert torch.equal(*found) and off(found[0].transpose(1, 2), truth) < FORMAT


def test_a_token_that_sees_nothing_gets_zeros(compiled):
    q, k = draw(1, 2, 1, 32), draw(1, 1, 4, 32)
    assert not compiled.answer(q, k, k, torch.zeros(1, 1, 1, 4, dtype=torch.bool), 1.0).any()


def test_a_products_memory_may_have_held_nan(compiled):
    for rows in range(1, 60):
        x, y = draw(rows, 80), draw(rows, 24, seed=1)
        for _ in range(3):
            left = [torch.full((size,), torch.nan).bfloat16() for size in (80 * 64, 80 * rows, 64 * 64)]
            del left
            assert (compiled.transposed(x) @ y).isfinite().all()


@pytest.mark.parametrize("width", [32, 576])
def test_norms_and_gates_are_torchs(compiled, width):
    norm = tiny(llama(hidden_size=width), LlamaForCausalLM).model.norm
    x, toward = draw(3, 50, width), draw(3, 50, width, seed=1)
    norm.weight.data = draw(width, seed=2).float()
    exact = x.double().requires_grad_()
    weight = norm.weight.detach().double().requires_grad_()
    truth = weight * exact * (exact.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    (truth * toward.double()).sum().backward()
    given = norm.weight.detach()
    for wide in (x, x.float()):
        out, inverse = compiled.norm(wide, given, norm.variance_epsilon)
        assert off(out, truth) < FORMAT and out.dtype == torch.bfloat16
        of_x, of_weight, _ = compiled.norm_backward(out, given, inverse, toward, wide.dtype)
        assert of_x.dtype == wide.dtype and off(of_x, exact.grad) < FORMAT and off(of_weight, weight.grad) < FORMAT
    gate, up = (draw(3, 50, width, seed=n).double().requires_grad_() for n in (3, 4))
    truth = silu(gate) * up
    (truth * toward.double()).sum().backward()
    halves = gate.detach().bfloat16(), up.detach().bfloat16()
    assert off(compiled.gated(*halves), truth) < FORMAT
    for found, leaf in zip(compiled.gated_backward(*halves, toward), (gate, up), strict=True):
        assert off(found, leaf.grad) < FORMAT


@pytest.mark.parametrize("width", [32, 576])
def test_a_norm_of_a_sum_is_that_of_torchs_sum_and_gives_back_what_else_came(compiled, width):
    x, beside = (torch.randn(3, 50, width, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    more, toward, weight = draw(3, 50, width), draw(3, 50, width, seed=1), draw(width, seed=2).float()
    total, out, inverse = compiled.norm_of_sum(x, more, weight, 1e-6)
    assert torch.equal(total, x + more) and torch.equal(compiled.added(x, more), x + more)
    assert all(map(torch.equal, (out, inverse), compiled.norm(x + more, weight, 1e-6)))
    alone, of_weight, none = compiled.norm_backward(out, weight, inverse, toward, torch.float32)
    of_x, again, narrow = compiled.norm_backward(
        out,
        weight,
        inverse,
        toward,
        torch.float32,
        beside=beside.transpose(0, 1).contiguous().transpose(0, 1),
        narrow=True,
    )
    assert none is None and torch.equal(again, of_weight)
    assert torch.equal(of_x, alone + beside) and torch.equal(narrow, of_x.bfloat16())


def test_gates_are_torchs_for_every_number_that_there_is(compiled):
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    gate = numbers[numbers.isfinite()].double()
    gate = gate[: len(gate) // 16 * 16].requires_grad_()
    truth = silu(gate)
    truth.sum().backward()
    one = torch.ones_like(gate).bfloat16()
    of_gate, of_up = compiled.gated_backward(gate.detach().bfloat16(), one, one)
    found = compiled.gated(gate.detach().bfloat16(), one)
    for ours, exact in ((found, truth.detach()), (of_gate, gate.grad), (of_up, truth.detach())):
        assert ((ours.double() - exact).abs() <= 2 * FORMAT * exact.abs() + 1e-30).all()


def test_what_is_computed_in_float32_is_float32_whatever_the_default_is(compiled):
    x, weight = draw(4, 32), torch.ones(32)
    torch.set_default_dtype(torch.bfloat16)
    try:
        out, inverse = compiled.norm(x, weight, 1e-6)
        q, k = draw(2, 9, 32), draw(1, 9, 32)
        attended = compiled.attention(q, k, k, torch.tensor([[0, 9, 9, 9, 9, 9, 9, 0]]), 0.2, None)
    finally:
        torch.set_default_dtype(torch.float32)
    assert inverse.dtype == attended[1].dtype == torch.float32
    assert off(out, x.double() * (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()) < FORMAT


def test_values_of_another_width_than_queries_go_another_way():
    layout = layout_of(2, (5, [4, 6]))
    q, k, v = draw(1, 4, 17, 32), draw(1, 2, 17, 32, seed=1), draw(1, 2, 17, 16, seed=2)
    found, _ = packed_attention(torch.nn.Identity(), q, k, v, None, packed_layout=layout)
    truth, _ = packed_attention(torch.nn.Identity(), q.double(), k.double(), v.double(), None, packed_layout=layout)
    assert found.shape == (1, 17, 4, 16) and off(found, truth) < FORMAT


EXAMPLES = [
    example([5, 6, 7, 8, 9], [10, 11, 12, 13], [14, 15, 16]),
    example([5, 6, 7], [20, 21], [22, 23, 24, 25, 26, 27]),
]


@pytest.mark.parametrize("window", [None, 4])
def test_a_training_step_goes_this_way_and_is_the_one_without(compiled, calls, window, monkeypatch):
    model = tiny(MistralConfig(**SIZES, head_dim=32, sliding_window=window), MistralForCausalLM).train()
    model.set_attn_implementation(PACKED)
    exact = example_logps(model, EXAMPLES, packed=True, pad=PAD)
    exact.sum().backward()
    truth = {name: p.grad.double() for name, p in model.named_parameters()}
    found = []
    for way in (lambda: compiled, lambda: None):
        for part in (attention, lean, rotation, steady):
            monkeypatch.setattr(part, "native", way)
        model.zero_grad()
        with multiplying_in(model, torch.bfloat16):
            logps = example_logps(model, EXAMPLES, packed=True, pad=PAD)
            logps.sum().backward()
        assert torch.allclose(logps, exact, rtol=0.03, atol=0.1)
        found.append({name: off(p.grad, truth[name]) for name, p in model.named_parameters()})
    layers = SIZES["num_hidden_layers"]
    for part, again in (("attention", 1), ("gated", 2)):  # the latter for the layer behind, in the backward
        assert calls.count(f"{part}_forward") == again * calls.count(f"{part}_backward") == again * layers
    # a layer's first norm and the last one take what is there, its second adds to it; its own end is a sum
    norms = [calls.count(name) for name in ("norm_forward", "norm_of_sum", "added", "norm_backward")]
    assert norms == [layers + 1, layers, layers, 2 * layers + 1]
    assert calls.count("rotate") == 2 * 2 * layers, "queries and keys, there and back"
    assert modeling_mistral.apply_rotary_pos_emb.__code__, "nothing stays changed"
    for name, without in found[1].items():
        assert found[0][name] < max(2 * without, 4 * FORMAT), name


def test_norms_of_another_formula_and_other_gates_are_left_to_torch(compiled, calls, monkeypatch):
    config = transformers.Gemma3TextConfig(**SIZES, head_dim=8)  # (1 + weight) · x / rms(x), and a tanh gate
    model = tiny(config, transformers.Gemma3ForCausalLM).train()
    model.set_attn_implementation(PACKED)
    monkeypatch.setattr(lean, "native", lambda: compiled)
    with multiplying_in(model, torch.bfloat16):
        example_logps(model, EXAMPLES, packed=True, pad=PAD).sum().backward()
    assert "attention_forward" in calls and not {"norm_forward", "gated_forward"} & set(calls)


def test_an_examples_log_probs_do_not_hang_on_its_neighbours(compiled, monkeypatch):
    monkeypatch.setattr(steady, "sways", lambda weight, dtype: True)
    for part in (attention, lean, steady):
        monkeypatch.setattr(part, "native", lambda: compiled)
    model = tiny(llama(hidden_size=64), LlamaForCausalLM).train()
    model.set_attn_implementation(PACKED)
    with torch.no_grad(), multiplying_in(model, torch.bfloat16):
        alone = [example_token_logps(model, [one], packed=True, pad=PAD) for one in EXAMPLES]
        together = example_token_logps(model, EXAMPLES, packed=True, pad=PAD)
    assert torch.equal(torch.cat(alone), together)


def test_each_token_of_a_row_asks_once():
    row = pack([*EXAMPLES, example([5, 6], [7], [8, 9])])
    asking: list[int] = []
    for *cuts, queries, _ in sequences_of(row.layout).tolist():
        seen = [i for first, last in zip(cuts[::2], cuts[1::2], strict=True) for i in range(first, last)]
        asking += seen[len(seen) - queries :]
    assert sorted(asking) == list(range(row.tokens.shape[1]))


RUN = "from anchorline.train.native import native; n = native(); print(None if n is None else n.name)"


def name_in_a_process(cache, **variables: str) -> str:
    env = {**os.environ, "ANCHORLINE_CACHE": str(cache), **variables}
    done = subprocess.run([sys.executable, "-c", RUN], env=env, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def test_what_hangs_on_the_instructions_holds_with_amx():
    native_here()
    files = [str(TILES.with_name(f"test_train_{name}.py")) for name in ("steady", "adapted", "head")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    env = os.environ | {"CXX": shlex.join(BY_TILES)}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_where_the_system_keeps_the_tiles_from_programs_it_does_without(tmp_path, monkeypatch):
    native_here()
    (tmp_path / "refused.cpp").write_text('extern "C" int ready() { return 0; }')
    command = ["g++", "-shared", "-fPIC", "-o", str(tmp_path / "refused.so"), str(tmp_path / "refused.cpp")]
    subprocess.run(command, check=True)
    compiled = lambda command: _compiled(command) if set(WITHOUT_TILES) <= set(command) else tmp_path / "refused.so"  # noqa: E731
    monkeypatch.setattr(native_module, "_compiled", compiled)
    found = native.__wrapped__()
    assert found is not None and found.name.startswith("AVX512") and not found.tiles


def test_it_is_compiled_once_and_again_where_the_file_is_spoilt(tmp_path):
    usual = native_here()
    first = name_in_a_process(tmp_path)
    (file,) = (tmp_path / "native").iterdir()
    assert first == usual.name and file.stem.startswith(first.split()[1])
    made = file.stat().st_mtime_ns
    assert name_in_a_process(tmp_path) == first and file.stat().st_mtime_ns == made
    file.write_bytes(file.read_bytes()[:1000])
    assert name_in_a_process(tmp_path) == first and file.stat().st_size > 1000


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", '"'])
def test_without_a_compiler_that_works_torch_does_it(tmp_path, compiler):
    assert name_in_a_process(tmp_path, CXX=compiler) == "None"


SHORT_OF_MEMORY = """
import resource
import torch
from anchorline.train.native import native
torch.set_num_threads(1)
tokens, runs = 4096, 400  # each run's keys have a gradient of their own: 800 MB
x = torch.zeros(1, tokens, 64, dtype=torch.bfloat16)
out = x.transpose(0, 1)
sequences = torch.tensor([[0, tokens, 0, 0, 0, 0, 1, 0]] * runs)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, -1))
native().attention_backward(x, x, x, out, torch.zeros(1, tokens), out, sequences, 0.1, None)
"""


def test_short_of_memory_it_ends_in_one_line_that_says_what_to_do():
    native_here()
    found = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, check=False)
    assert found.returncode == -signal.SIGABRT, found.stderr
    assert found.stderr.splitlines() == ["anchorline: out of memory; lower train.tokens_per_row"]


def test_the_profiler_sees_its_products_and_its_attention(compiled):
    x, weight = draw(64, 96), draw(160, 96, seed=1)
    q, k, v = (draw(1, 2, 64, 32, seed=seed) for seed in range(3))
    with profile(activities=[ProfilerActivity.CPU]) as listened:
        compiled.linear(x, weight)
        compiled.transposed(x)
        row_attention(compiled, q, k, v, layout_of(0, (30, [20, 14])))
    found = {event.key for event in listened.key_averages() if event.key.startswith(LISTED)}
    assert found == {f"{LISTED}{name}" for name in ("pack", "linear", "transposed", "attention_forward")}
    shares = time_shares(listened.key_averages(), 1e-6, cuda=False)
    assert shares["matmul_share"] > 0 and shares["attention_share"] > 0
