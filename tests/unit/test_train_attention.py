"""The packed attention refuses what it cannot do, and the layout says where everything lies."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train_toys import SIZES, example, tiny

from anchorline.errors import ModelError
from anchorline.train.attention import packed_attention, refuse_unpackable
from anchorline.train.layout import Branching, pack


def on_paper(config: transformers.PreTrainedConfig) -> torch.nn.Module:
    """A model without weights."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


REFUSED = {
    "mamba": (transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2), "state flows along"),
    "jamba": (transformers.JambaConfig(**SIZES, num_experts=2), "state flows along"),
    "lfm2": (transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), "kind conv"),
    "qwen3_next": (
        transformers.Qwen3NextConfig(**SIZES, layer_types=["linear_attention", "full_attention"], num_experts=2),
        "kind linear_attention",
    ),
    "gemma2": (transformers.Gemma2Config(**SIZES, head_dim=8), "attention cannot be replaced"),
    "bloom": (transformers.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), "cannot be replaced"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_architecture_that_cannot_be_packed_is_refused_by_name_with_the_way_out(kind):
    config, why = REFUSED[kind]
    with pytest.raises(ModelError, match=rf"^{kind} does not run packed: .*{why}.*; set train\.forward to plain$"):
        refuse_unpackable(on_paper(config))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**SIZES),
        transformers.MistralConfig(**SIZES, sliding_window=4),
        transformers.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        transformers.Gemma3TextConfig(**SIZES, head_dim=8, final_logit_softcapping=30.0),
        transformers.CohereConfig(**SIZES),
        transformers.GraniteConfig(**SIZES, logits_scaling=8.0),
    ],
    ids=lambda config: config.model_type,
)
def test_attention_only_models_are_not_refused(config):
    refuse_unpackable(on_paper(config))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("extra", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}])
def test_what_a_layer_asks_for_at_the_call_is_refused_too(extra):
    q, k = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8)
    layout = (Branching(0, 0, 1, (2, 3)),)
    with pytest.raises(ModelError, match=r"sinks do not run packed; set train\.forward to plain"):
        packed_attention(torch.nn.Identity(), q, k, k, None, packed_layout=layout, **extra)
    out, none = packed_attention(torch.nn.Identity(), q, k, k, None, packed_layout=layout)
    assert out.shape == (1, 3, 4, 8) and none is None


def test_packed_attention_without_a_layout_is_refused_and_not_run_as_something_else():
    model = tiny()
    model.set_attn_implementation("anchorline_packed")
    with pytest.raises(ModelError, match="without a layout"):
        model(torch.tensor([[5, 6, 7]]))


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 1), min_size=1, max_size=6),
            st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=6), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_row_holds_each_conversation_at_its_own_positions(texts):
    row = pack([example(prompt, *responses) for prompt, responses in texts])
    tokens, positions = row.tokens[0].tolist(), row.positions[0].tolist()
    assert row.branches == sum(len(responses) for _, responses in texts)
    number = end = 0
    for branching, (prompt, responses) in zip(row.layout, texts, strict=True):
        opening = branching.opening
        assert tokens[:opening] + tokens[branching.start : branching.prompt_end] == prompt
        assert branching.sizes == (len(prompt) - opening, *map(len, responses))
        starts = (branching.prompt_end, *branching.ends)
        for start, end, response in zip(starts, branching.ends, responses, strict=False):
            seen = [*range(opening), *range(branching.start, branching.prompt_end), *range(start, end)]
            assert [positions[i] for i in seen] == list(range(len(seen)))
            assert [tokens[i] for i in seen] == [*prompt, *response]
            mine = (row.branch == number).nonzero().squeeze(-1)
            assert row.targets[mine].tolist() == response
            # a token is predicted by the one before it in its own conversation
            assert row.predicts[mine].tolist() == seen[len(prompt) - 1 : -1]
            number += 1
    assert end == len(tokens)
    # no other opening would leave out more
    prompts = [tuple(prompt) for prompt, _ in texts]
    whole = sum(len(prompt) + sum(map(len, responses)) for prompt, responses in texts)
    openings = {prompt[:n] for prompt in prompts for n in range(1, len(prompt))}
    savings = [len(o) * (sum(p[: len(o)] == o and len(p) > len(o) for p in prompts) - 1) for o in openings]
    assert whole - len(tokens) == max([0, *savings])
