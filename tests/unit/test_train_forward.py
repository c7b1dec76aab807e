"""The packed two-branch forward gives the plain forward's log-probs and gradients, and no branch hears of another."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from test_train_toys import PAD, SIZES, VOCABULARY, example, llama, random_example, relative, tiny
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from anchorline.errors import ModelError
from anchorline.train import forward
from anchorline.train.attention import PACKED
from anchorline.train.forward import (
    check_forward,
    example_logps,
    packed_logps,
    packed_token_logps,
    plain_attention,
    plain_logps,
)
from anchorline.train.layout import pack
from anchorline.train.output import output_head

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
"""On the norm of the difference, as a share of the norm of what is compared."""

PROMPT = [2, 17, 30, 8, 61]
CASES = {
    "unlike": [example(PROMPT, [9, 10, 11, 12], [70, 71, 72])],
    "identical": [example(PROMPT, [9, 10, 11], [9, 10, 11])],
    "prefix": [example(PROMPT, [9, 10, 11, 12], [9, 10])],
    "prefix of rejected": [example(PROMPT, [9, 10], [9, 10, 11, 12])],
    "diverge at once": [example(PROMPT, [9, 10, 11], [50, 10, 11])],
    "one token each": [example([3], [9], [50])],
    "several pairs": [
        example(PROMPT, [9, 10, 11, 12], [9, 10]),
        example([5], [7], [8, 9, 10, 11, 12, 13]),
        example([40, 41, 42, 43, 44, 45, 46], [7, 8], [7, 9]),
    ],
    "one opening": [
        example([*PROMPT, 20, 21], [9, 10, 11, 12], [9, 10]),
        example([*PROMPT, 30], [7], [8, 9, 10]),
        example([*PROMPT, 20, 22, 23], [7, 8], [7, 9]),
    ],
    "one opening, one without": [
        example([*PROMPT, 20], [9, 10, 11], [9]),
        example([40, 41], [7], [8, 9]),
        example([*PROMPT, 30, 31], [7, 8], [7, 9]),
    ],
    "the same prompt": [example(PROMPT, [9, 10], [11]), example(PROMPT, [12], [13, 14])],
    "three branches": [example(PROMPT, [9, 10], [50, 51, 52], [80, 81]), example([4, 5], [6], [7, 8], [9])],
    "one branch": [example(PROMPT, [9, 10, 11]), example([4, 5], [6, 7])],
}


def both_ways(model: Any, examples: list[Any]) -> tuple[Any, Any]:
    """Log-probs and gradients of all trained parameters, packed and plain, under one weighting of the branches."""
    results = []
    for packed in (True, False):
        model.set_attn_implementation(PACKED if packed else "sdpa")
        model.zero_grad()
        logps = example_logps(model, examples, packed=packed, pad=PAD)
        # each branch has a weight of its own and both signs occur, as in a loss
        weights = torch.linspace(-1.0, 1.3, len(logps), dtype=logps.dtype)
        (logps * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append(SimpleNamespace(logps=logps.detach(), gradients=gradients))
    return results[0], results[1]


def check(model: Any, examples: list[Any]) -> dict[str, torch.Tensor]:
    packed, plain = both_ways(model, examples)
    limit = LIMITS[next(model.parameters()).dtype]
    assert packed.logps.dtype == plain.logps.dtype and packed.logps.shape == plain.logps.shape
    assert relative(packed.logps, plain.logps) < limit
    assert packed.gradients.keys() == plain.gradients.keys()
    # against the whole gradient: where a part of it cancels to nearly nothing, that part is rounding alone
    whole = torch.cat([g.flatten() for g in plain.gradients.values()]).norm()
    for name, gradient in plain.gradients.items():
        assert (packed.gradients[name] - gradient).norm() < limit * (gradient.norm() + 0.03 * whole) + 1e-30, name
    return packed.gradients


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_packed_is_plain_in_values_and_in_all_gradients(case, dtype, tied):
    model = tiny(llama(tie_word_embeddings=tied), dtype=dtype)
    gradients = check(model, CASES[case])
    trained = {name for name, _ in model.named_parameters()}
    assert gradients.keys() == trained and "model.embed_tokens.weight" in trained
    assert ("lm_head.weight" in trained) is not tied
    # tied, the words that occur in no example are reached through the head only; untied, not at all
    unseen = gradients["model.embed_tokens.weight"][90].abs().sum()
    assert (unseen > 0) is tied or bool(unseen > 0) is tied


examples_strategy = st.lists(
    st.builds(
        lambda prompt, responses: example(prompt, *responses),
        # few words, so that shared beginnings are common
        st.lists(st.integers(0, 2), min_size=1, max_size=12),
        st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@given(examples=examples_strategy)
@settings(max_examples=25)
def test_packed_is_plain_for_any_lengths_and_contents(examples):
    check(SHARED, examples)


SHARED = tiny(dtype=torch.float64, seed=3)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_gradient_checkpointing_recomputes_with_the_layout(adapter, monkeypatch):
    model = tiny(dtype=torch.float64)
    if adapter:
        model = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)).double()
    expected = check(model, CASES["several pairs"])
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    calls = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "anchorline.train.attention.scaled_dot_product_attention", lambda *a, **k: calls.append(1) or attend(*a, **k)
    )
    found = check(model, CASES["several pairs"])
    assert all(relative(found[name], gradient) < 1e-10 for name, gradient in expected.items())
    assert len(calls) == 2 * 2 * 6, "two layers, forward and recomputed, six branches: else nothing was checkpointed"


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("case", ["several pairs", "identical", "three branches", "one branch"])
def test_packed_is_plain_under_lora_on_all_linear_layers(case, dtype):
    torch.manual_seed(1)
    # adapters that start at zero would have half of their gradients at zero
    config = LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model: Any = get_peft_model(tiny(dtype=dtype), config).to(dtype)
    gradients = check(model, CASES[case])
    assert len(gradients) == 2 * 2 * 7 and all("lora_" in name for name in gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


WINDOWED = {
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 4}),
    "qwen2, one layer of two": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
    ),
}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("kind", WINDOWED)
def test_sliding_windows_are_honoured(kind, dtype):
    config, cls, window = WINDOWED[kind]
    examples = [*CASES["several pairs"], random_example(torch.Generator().manual_seed(5), longest=20)]
    model = tiny(config(**SIZES, **window), cls, dtype=dtype)
    check(model, examples)
    open_wide = tiny(config(**SIZES, **window | {"sliding_window": 400}), cls, dtype=dtype)
    with torch.no_grad():
        far, near = (plain_logps(m, examples, pad=PAD) for m in (open_wide, model))
    assert relative(far, near) > 0.01, "the window is too wide to show anything"


def test_scores_are_scaled_as_the_model_says():
    config = Gemma3TextConfig(**SIZES, head_dim=8, query_pre_attn_scalar=64, sliding_window=400)
    check(tiny(config, Gemma3ForCausalLM), CASES["several pairs"])


def test_a_long_window_changes_nothing():
    model = tiny(MistralConfig(**SIZES, sliding_window=64), MistralForCausalLM, dtype=torch.float64)
    check(model, CASES["several pairs"])


def test_token_logps_stand_in_the_order_of_the_row():
    model = tiny(dtype=torch.float64)
    (one,) = CASES["prefix"]
    model.set_attn_implementation(PACKED)
    found = packed_token_logps(model, pack([one, one])).detach()
    with plain_attention(model):
        expected = []
        for response in one.responses:
            logps = model(torch.tensor([[*one.prompt, *response]])).logits[0].log_softmax(-1)
            expected += [logps[len(one.prompt) - 1 + i, token] for i, token in enumerate(response)]
    assert torch.allclose(found, torch.stack([*expected, *expected]), rtol=0, atol=1e-10)


# ---- who hears of whom -------------------------------------------------------------------------------------------

PAIRS = CASES["several pairs"]


@pytest.fixture(scope="module")
def packed_model() -> Any:
    model = tiny()
    model.set_attn_implementation(PACKED)
    return model


def logps_of(model: Any, examples: list[Any]) -> torch.Tensor:
    """[pairs, 2]: chosen, rejected."""
    with torch.no_grad():
        return packed_logps(model, pack(examples)).reshape(-1, 2)


def changed(number: int, **fields: Any) -> list[Any]:
    """The three pairs, one of them with other tokens."""
    one = PAIRS[number]
    responses = tuple(tuple(fields.get(side, r)) for side, r in zip(("chosen", "rejected"), one.responses, strict=True))
    return [
        example(list(fields.get("prompt", e.prompt)), *map(list, responses if i == number else e.responses))
        if i == number
        else e
        for i, e in enumerate(PAIRS)
    ]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_another_answer_leaves_every_other_branch_exactly_as_it_was(packed_model, number, side):
    column = ("chosen", "rejected").index(side)
    before = logps_of(packed_model, PAIRS)
    other = [(token + 31) % VOCABULARY for token in PAIRS[number].responses[column]]
    after = logps_of(packed_model, changed(number, **{side: other}))
    same = before == after
    assert not same[number, column]
    same[number, column] = True
    assert bool(same.all()), "bit for bit"


def test_a_longer_answer_leaves_the_others_as_they_were(packed_model):
    # other sizes may take another kernel, so this one is not bit for bit
    before, after = logps_of(packed_model, PAIRS), logps_of(packed_model, changed(1, chosen=[7, *range(20, 40)]))
    moved = (before - after).abs() > 1e-4
    assert moved.tolist() == [[False, False], [True, False], [False, False]]


@pytest.mark.parametrize("position", [0, 4])
def test_another_prompt_changes_both_of_its_branches_and_no_other_pair(packed_model, position):
    prompt = list(PAIRS[0].prompt)
    prompt[position] = 88
    same = logps_of(packed_model, PAIRS) == logps_of(packed_model, changed(0, prompt=prompt))
    assert same.tolist() == [[False, False], [True, True], [True, True]]


@pytest.mark.parametrize("kind", ["llama", "sliding window", "lora", "checkpointing"])
@pytest.mark.parametrize("branch", range(6))
def test_a_branch_hears_its_prompt_and_itself_and_nothing_else(branch, kind):
    """d(rejected log-prob)/d(embeddings of the chosen answer) is exactly 0, the reverse too, and of every other pair."""
    model: Any = tiny()
    if kind == "sliding window":
        model = tiny(MistralConfig(**SIZES, sliding_window=4), MistralForCausalLM)
    embed = model.get_input_embeddings()
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.set_attn_implementation(PACKED)
    if kind == "checkpointing":
        model.train()
        model.activation_checkpointing_enable({"use_reentrant": False})
    row = pack(PAIRS)
    states: list[torch.Tensor] = []
    embed.register_forward_hook(lambda module, inputs, out: states.append(out.detach().requires_grad_()) or states[0])
    packed_logps(model, row)[branch].backward()
    assert states[0].grad is not None and torch.equal(states[0][0].detach(), embed.weight[row.tokens[0]].detach())
    heard = states[0].grad.abs().sum(-1)[0]
    pair, side = row.layout[branch // 2], branch % 2
    first = (pair.prompt_end, *pair.ends)[side]
    expected = {
        *range(pair.start, pair.prompt_end),
        *range(first, pair.ends[side] - 1),
    }  # the last token predicts nothing
    silent = [i for i in range(len(heard)) if i not in expected]
    assert heard[silent].tolist() == [0.0] * len(silent)
    if kind == "sliding window":  # what lies far back is not heard either
        assert heard[sorted(expected)].count_nonzero() > 0
    else:
        assert bool((heard[sorted(expected)] > 0).all())


# ---- the head is lent, not taken ---------------------------------------------------------------------------------


def test_the_model_has_its_own_head_again_after_a_call_and_after_a_failure(packed_model):
    tokens = torch.tensor([[5, 6]])
    with plain_attention(packed_model):
        before = packed_model(tokens).logits
        packed_model.set_attn_implementation(PACKED)
        packed_logps(packed_model, pack(PAIRS))
        row = pack(PAIRS)
        with pytest.raises(ValueError, match="expected hidden"):
            packed_logps(packed_model, row._replace(targets=row.targets[:-1]))
        packed_model.set_attn_implementation("sdpa")
        assert torch.equal(packed_model(tokens).logits, before)


def test_a_wrapper_is_called_and_not_passed_by(packed_model):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *args, **kwargs):
            self.calls += 1
            return self.module(*args, **kwargs)

    wrapped = Wrapper(packed_model)
    row = pack(PAIRS)
    assert torch.equal(packed_logps(wrapped, row), packed_logps(packed_model, row)) and wrapped.calls == 1


def linear_head_with_bias() -> Any:
    model = tiny(llama(tie_word_embeddings=False), dtype=torch.float64)
    model.lm_head = torch.nn.Linear(32, VOCABULARY, bias=True, dtype=torch.float64)
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def adapted_head(model: Any, **changes: Any) -> Any:
    config = {"r": 3, "target_modules": ["lm_head", "q_proj"], "init_lora_weights": False, "lora_alpha": 5.0}
    return get_peft_model(model, LoraConfig(**config | changes)).double()


HEADS = {
    "bias": linear_head_with_bias,
    "lora": lambda: adapted_head(tiny(llama(tie_word_embeddings=False), dtype=torch.float64)),
    "lora under a bias": lambda: adapted_head(linear_head_with_bias()),
    "trained whole beside an adapter": lambda: adapted_head(
        tiny(llama(tie_word_embeddings=False), dtype=torch.float64),
        target_modules=["q_proj"],
        modules_to_save=["lm_head"],
    ),
    "soft cap": lambda: tiny(
        Gemma3TextConfig(**SIZES, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=3.0), Gemma3ForCausalLM
    ),
    "factor": lambda: tiny(CohereConfig(**SIZES, logit_scale=0.3), CohereForCausalLM),
    "divisor": lambda: tiny(GraniteConfig(**SIZES, logits_scaling=7.0), GraniteForCausalLM),
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads_of_every_kind_give_the_plain_log_probs_and_gradients(kind):
    model = HEADS[kind]()
    gradients = check(model, CASES["several pairs"])
    if "lora" in kind:
        assert any("lm_head.lora_B" in name and g.abs().sum() > 0 for name, g in gradients.items())
    if kind == "trained whole beside an adapter":
        assert gradients["base_model.model.lm_head.modules_to_save.default.weight"].abs().sum() > 0
    if hasattr(model, "disable_adapter"):
        with torch.no_grad(), model.disable_adapter():
            off = {how: example_logps(model, PAIRS, packed=how, pad=PAD) for how in (False,)}
            model.set_attn_implementation(PACKED)
            assert relative(example_logps(model, PAIRS, packed=True, pad=PAD), off[False]) < 1e-10
            model.set_attn_implementation("sdpa")


def test_all_scores_of_a_head_are_the_models(packed_model):
    for kind, make in HEADS.items():
        model = make()
        tokens = torch.tensor([[5, 6, 7]])
        states = []
        head = output_head(model)
        hook = head.module.register_forward_pre_hook(lambda _, inputs, states=states: states.append(inputs[0]))
        with torch.no_grad():
            expected = model(tokens).logits[0]
            hook.remove()
            assert relative(head.logits(states[0][0]), expected.float()) < 1e-5, kind


def test_an_adapter_on_the_head_that_is_no_plain_lora_is_refused():
    adapted = adapted_head(tiny(llama(tie_word_embeddings=False)), use_dora=True, init_lora_weights=True)
    with pytest.raises(ModelError, match=r"no plain LoRA; set train\.forward to plain"):
        output_head(adapted)


# ---- the check before training -----------------------------------------------------------------------------------


def test_check_forward_passes_a_model_that_packs(packed_model):
    for one in (*PAIRS, *CASES["three branches"]):
        check_forward(packed_model, one, pad=PAD)
    assert packed_model.config._attn_implementation == PACKED


def test_check_forward_catches_branches_that_see_each_other(packed_model, monkeypatch):
    def along_the_row(module, query, key, value, mask, *, scaling=None, packed_layout=None, **_):
        key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2), None

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, PACKED, along_the_row)
    with pytest.raises(ModelError, match=r"does not run packed; set train\.forward to plain"):
        check_forward(packed_model, PAIRS[0], pad=PAD)


def test_check_forward_catches_state_that_flows_from_the_example_before(packed_model):
    """A convolution over the row. The first example would pass: before it, there is nothing."""
    layer = packed_model.model.layers[0]

    def smear(module, args, out):
        return out + 0.5 * out.roll(1, dims=1) * (torch.arange(out.shape[1]) > 0)[None, :, None]

    hook = layer.register_forward_hook(smear)
    try:
        with pytest.raises(ModelError, match="log-probs"):
            check_forward(packed_model, CASES["one branch"][0], pad=PAD)
    finally:
        hook.remove()


def test_plain_attention_gives_back_what_it_found(packed_model):
    with pytest.raises(RuntimeError), plain_attention(packed_model):
        assert packed_model.config._attn_implementation == "sdpa"
        raise RuntimeError
    assert packed_model.config._attn_implementation == PACKED
    eager = tiny()
    eager.set_attn_implementation("eager")
    with plain_attention(eager):
        assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize("autocast", [False, True])
def test_the_sums_are_float32_where_the_weights_are_half(autocast):
    model = tiny(dtype=torch.float32 if autocast else torch.bfloat16)
    model.set_attn_implementation(PACKED)
    around = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with torch.no_grad(), around:
        packed = forward.packed_logps(model, pack(PAIRS))
    with torch.no_grad(), plain_attention(exact := tiny()):
        plain = plain_logps(exact, PAIRS, pad=PAD)
    assert packed.dtype == torch.float32
    assert 0 < relative(packed, plain) < 0.1
