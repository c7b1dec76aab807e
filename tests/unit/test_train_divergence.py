"""The divergence of several texts at once is that of each alone, and what the full logits say."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from test_train_toys import VOCABULARY, example, llama, tiny

from anchorline.train import divergence
from anchorline.train.attention import PACKED
from anchorline.train.divergence import token_divergences

EXAMPLES = [example([3, 4, 5, 6], [9, 10, 11]), example([3, 4, 7], [12]), example([3, 4, 5, 8, 9], [13, 14])]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    torch.manual_seed(1)
    reference, policy = tiny(dtype=torch.float64), tiny(dtype=torch.float64)
    with torch.no_grad():
        for mine, theirs in zip(policy.parameters(), reference.parameters(), strict=True):
            mine.copy_(theirs + 0.02 * torch.randn_like(theirs))
    return policy, reference


def by_hand(policy: Any, reference: Any, one: Any) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor([[*one.prompt, *one.responses[0]]])
    at = slice(len(one.prompt) - 1, tokens.shape[1] - 1)
    with torch.no_grad():
        p, q = (model(tokens).logits[0, at].float().softmax(-1) for model in (policy, reference))
    index = torch.tensor(one.responses[0])[:, None]
    return (p * (p / q).log()).sum(-1), (p.gather(-1, index) / q.gather(-1, index)).log()[:, 0]


@pytest.mark.parametrize("packed", [True, False])
def test_heads_that_are_filled_up_differently_are_compared_over_the_tokens_that_both_have(models, packed):
    policy, reference = models
    wider = tiny(llama(vocab_size=VOCABULARY + 8), dtype=torch.float64)
    state = {name: weight.clone() for name, weight in policy.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.full((8, state[name].shape[1]), 9.0, dtype=torch.float64)])
    wider.load_state_dict(state)
    found = []
    for one in (policy, wider):
        for model in (one, reference):
            model.set_attn_implementation(PACKED if packed else "sdpa")
        found += token_divergences(one, reference, nullcontext, EXAMPLES, packed=packed)
        found += token_divergences(reference, one, nullcontext, EXAMPLES, packed=packed)
    for model in models:
        model.set_attn_implementation("sdpa")
    for same, other in zip(found[:6], found[6:], strict=True):
        assert torch.allclose(same.kl, other.kl) and torch.allclose(same.change, other.change)


@pytest.mark.parametrize("packed", [True, False])
def test_kl_and_change_are_those_of_the_full_distributions(models, packed, monkeypatch):
    policy, reference = models
    states = divergence._states
    expected = [by_hand(policy, reference, one) for one in EXAMPLES]
    for model in models:
        model.set_attn_implementation(PACKED if packed else "sdpa")
    try:
        theirs: list[torch.Tensor] = []
        found = token_divergences(policy, reference, nullcontext, EXAMPLES, packed=packed, theirs=theirs)
        calls: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(divergence, "_states", lambda *a, **k: calls.append(1) or states(*a, **k))
            again = token_divergences(policy, reference, nullcontext, EXAMPLES, packed=packed, theirs=theirs)
        other = token_divergences(reference, reference, nullcontext, EXAMPLES, packed=packed, theirs=theirs)
    finally:
        for model in models:
            model.set_attn_implementation("sdpa")
    for both, (kl, change) in zip(found, expected, strict=True):
        assert torch.allclose(both.kl, kl, atol=1e-5) and torch.allclose(both.change, change, atol=1e-5)
        assert float(kl.min()) > 1e-4, "too near to show anything"
    # what the reference computed serves other policies, and spares its forward
    assert calls == [1]
    for one, two in zip(found, again, strict=True):
        assert torch.equal(one.kl, two.kl) and torch.equal(one.change, two.change)
    assert all(float(same.kl.abs().max()) < 1e-6 for same in other)
