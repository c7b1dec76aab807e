"""Answers are those of transformers' own generation, whatever the batch, and the same again after a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_toys import END, PAD, SIZES, save_tiny, tiny, tokenizer, words
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from anchorline.llm import hf_local
from anchorline.llm.cache_room import RoomyLayer, can_repeat, roomy_cache
from anchorline.llm.device import Device
from anchorline.llm.hf_local import answer_batches, prompt_tokens
from anchorline.llm.models import Loaded
from anchorline.llm.types import SampleSettings
from anchorline.types import Message, Prompt

PROMPTS = [Prompt(f"q{i}", (Message("user", words(1 + (5 * i) % 9, first=i)),)) for i in range(9)]
GREEDY = SampleSettings(max_new_tokens=16, temperature=0.0, batch_size=4)
WARM = GREEDY.model_copy(update={"temperature": 1.0})


def loaded(model: Any) -> Loaded:
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = PAD
    return Loaded(model, tokenizer(), Path("nowhere"), Device("cpu", "float32"))


@pytest.fixture(scope="module")
def llama() -> Loaded:
    model = tiny(LlamaConfig(**SIZES, tie_word_embeddings=False), dtype=torch.float64)
    with torch.no_grad():
        model.lm_head.weight[END] *= 2.2  # some answers end early, some late, some not at all
    return loaded(model)


@pytest.fixture(scope="module")
def windowed() -> Loaded:
    model = tiny(MistralConfig(**SIZES, sliding_window=5, tie_word_embeddings=False), MistralForCausalLM)
    with torch.no_grad():
        model.lm_head.weight[END] *= 1.8
    return loaded(model)


@pytest.fixture(scope="module")
def counted() -> Loaded:
    """Positions counted from 0 and learned, so that padding must not move them."""
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
    config.bos_token_id = config.eos_token_id = None
    return loaded(tiny(config, GPT2LMHeadModel))


def answers(model: Loaded, settings: SampleSettings, *, prompts=PROMPTS, seed=0, done=()) -> dict[str, tuple[str, str]]:
    """Text and finish reason by prompt."""
    batches = answer_batches(model, prompts, settings, seed=seed, done=done)
    return {a.id: (a.text, a.finish) for batch in batches for a in batch}


def generated(model: Loaded, prompt: Prompt, settings: SampleSettings) -> tuple[str, str]:
    """transformers' own greedy answer to one prompt alone."""
    tokens = torch.tensor([prompt_tokens(model, prompt)])
    out = model.model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=settings.max_new_tokens
    )[0, tokens.shape[1] :].tolist()
    return str(model.tokenizer.decode(out, skip_special_tokens=True)), "stop" if END in out else "length"


@pytest.mark.parametrize("kind", ["llama", "windowed", "counted"])
def test_greedy_answers_are_those_of_generate_prompt_by_prompt(kind, request):
    model = request.getfixturevalue(kind)
    found = answers(model, GREEDY)
    assert found == {p.id: generated(model, p, GREEDY) for p in PROMPTS}
    finishes = [finish for _, finish in found.values()]
    lengths = {len(text.split()) for text, _ in found.values()}
    assert kind == "counted" or (set(finishes) == {"stop", "length"} and len(lengths) > 2), (
        "of one length: shows little"
    )


@pytest.mark.parametrize("share", [0.0, 0.8])
def test_an_answer_ends_at_the_models_window_and_its_batch_goes_on(share, counted, monkeypatch):
    """64 positions: a prompt near them is cut there, one beyond has no room at all; the others answer as ever."""
    monkeypatch.setattr(hf_local, "SHRINK_BELOW", share)
    window, few = 64, len(prompt_tokens(counted, PROMPTS[0]))
    near = Prompt("near", (Message("user", words(1 + window - 5 - few)),))
    beyond = Prompt("beyond", (Message("user", words(window)),))
    assert len(prompt_tokens(counted, near)) == window - 5
    found = answers(counted, GREEDY, prompts=[*PROMPTS[:3], near, beyond])
    assert found.pop("beyond") == ("", "length")
    assert found.pop("near") == generated(counted, near, GREEDY.model_copy(update={"max_new_tokens": 5}))
    assert found == {p.id: generated(counted, p, GREEDY) for p in PROMPTS[:3]}
    assert answers(counted, GREEDY, prompts=[beyond]) == {"beyond": ("", "length")}


@pytest.mark.parametrize("settings", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_leaving_a_batch_early_changes_no_answer(settings, llama, monkeypatch):
    sizes: list[int] = []
    pick = hf_local._pick
    monkeypatch.setattr(hf_local, "_pick", lambda logits, *a: sizes.append(len(logits)) or pick(logits, *a))
    seen = []
    for share in (0.0, 0.5, 1.0):
        monkeypatch.setattr(hf_local, "SHRINK_BELOW", share)
        sizes.clear()
        seen.append((answers(llama, settings), set(sizes)))
    (never, full), (half, _), (always, shrunk) = seen
    assert never == half == always
    assert full == {4, 1} and {1, 2, 3, 4} >= shrunk > full, "nothing was cut down"


@pytest.mark.parametrize("settings", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_a_run_that_continues_writes_the_answers_that_it_would_have_written(settings, llama):
    whole = answers(llama, settings)
    for done in ([], ["q3"], ["q0", "q1", "q5"], [p.id for p in PROMPTS[:-1]]):
        assert answers(llama, settings, done=done) == {k: v for k, v in whole.items() if k not in done}


def test_finished_batches_are_not_computed_again(llama, monkeypatch):
    batches = [[a.id for a in batch] for batch in answer_batches(llama, PROMPTS, GREEDY, seed=0)]
    assert [len(batch) for batch in batches] == [4, 4, 1]
    calls: list[int] = []
    decode = hf_local._decode
    monkeypatch.setattr(hf_local, "_decode", lambda m, rows, *a: calls.append(len(rows)) or decode(m, rows, *a))
    assert answers(llama, GREEDY, done=batches[0]).keys() == {*batches[1], *batches[2]} and calls == [4, 1]
    assert answers(llama, GREEDY, done=[p.id for p in PROMPTS]) == {} and calls == [4, 1]


@pytest.mark.parametrize("settings", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_what_all_prompts_begin_with_is_computed_once_and_changes_no_answer(settings, llama, monkeypatch):
    system = Message("system", "the cup is here and the bag is there")
    prompts = [Prompt(p.id, (system, *p.messages)) for p in PROMPTS]
    shapes: list[tuple[int, int]] = []
    forward = llama.model.forward
    monkeypatch.setattr(
        llama.model, "forward", lambda *a, **k: shapes.append(tuple(k["input_ids"].shape)) or forward(*a, **k)
    )
    shared = answers(llama, settings, prompts=prompts)
    rows = [prompt_tokens(llama, p) for p in prompts]
    opening = next(n for n, at in enumerate(zip(*rows, strict=False)) if len(set(at)) > 1)
    assert opening > 8 and shapes[0][0] == 1 and shapes[0][1] >= opening
    assert shapes[1] == (4, max(map(len, rows)) - shapes[0][1])
    monkeypatch.setattr(hf_local, "can_repeat", lambda cache: False)
    assert answers(llama, settings, prompts=prompts) == shared


@pytest.mark.parametrize("kind", ["llama", "windowed", "counted"])
def test_a_prompt_that_is_asked_several_times_is_read_once_and_answered_as_if_each_time(kind, request, monkeypatch):
    model = request.getfixturevalue(kind)
    several = [Prompt(f"{p.id}#{n}", p.messages) for n in range(3) for p in PROMPTS]
    settings = WARM.model_copy(update={"batch_size": 7})
    shapes: list[tuple[int, int]] = []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda *a, **k: shapes.append(tuple(k["input_ids"].shape)) or forward(*a, **k)
    )
    found = answers(model, settings, prompts=several)
    read = [rows for rows, tokens in shapes if tokens > 1]
    monkeypatch.setattr(hf_local, "can_repeat", lambda cache: False)
    assert answers(model, settings, prompts=several) == found
    assert len({found[f"q1#{n}"] for n in range(3)}) > 1, "the samples of one prompt are one"
    if kind == "windowed":  # its cache holds no more than the window, which is not repeated
        assert max(read) == 7
    else:
        assert max(read) <= 4 and sum(read) < 20, "nine prompts in four batches, of which some are in two"


def test_samples_of_a_prompt_lie_together_and_prompts_of_a_length_in_their_order(llama):
    texts = {"a": words(2), "b": words(2, first=5)}
    same = [Prompt(f"{n}{name}", (Message("user", text),)) for n in range(2) for name, text in texts.items()]
    order = [a.id for batch in answer_batches(llama, same, GREEDY, seed=0) for a in batch]
    assert order == ["0a", "1a", "0b", "1b"]


def test_prompts_that_are_the_same_keep_a_token_each():
    assert hf_local._shared_opening([[1, 2, 3], [1, 2, 3]]) == 2
    assert hf_local._shared_opening([[1, 2], [1, 2, 3]]) == 1
    assert hf_local._shared_opening([[1, 2, 3]]) == hf_local._shared_opening([[1, 2], [2, 2]]) == 0


def test_longest_prompts_come_first(llama):
    order = [a.id for batch in answer_batches(llama, PROMPTS, GREEDY, seed=0) for a in batch]
    lengths = {p.id: len(prompt_tokens(llama, p)) for p in PROMPTS}
    assert [lengths[i] for i in order] == sorted(lengths.values(), reverse=True)


def test_the_same_seed_answers_the_same_and_another_seed_otherwise(llama):
    assert answers(llama, WARM, seed=3) == answers(llama, WARM, seed=3)
    first, other = answers(llama, WARM, seed=3), answers(llama, WARM, seed=4)
    assert sum(first[k] != other[k] for k in first) >= 6
    assert answers(llama, GREEDY, seed=3) == answers(llama, GREEDY, seed=4)


def test_one_prompt_asked_twice_in_a_batch_is_answered_twice_by_chance(llama):
    twins = [Prompt(name, PROMPTS[0].messages) for name in ("a", "b")]
    found = answers(llama, WARM, prompts=twins)
    assert found["a"] != found["b"]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_a_small_nucleus_is_greedy(temperature, llama):
    nucleus = GREEDY.model_copy(update={"temperature": temperature, "top_p": 1e-6})
    assert answers(llama, nucleus) == answers(llama, GREEDY)


# ---- the draw itself ------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()


def drawn(temperature=1.0, top_p=1.0, count=20_000) -> torch.Tensor:
    settings = SampleSettings(temperature=temperature, top_p=top_p)
    luck = (torch.arange(count) + 0.5) / count
    picked = hf_local._pick(LOGITS.expand(count, 4), settings, luck)
    return picked.bincount(minlength=4) / count


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, [0.1, 0.4, 0.3, 0.2]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 9 / 30, 4 / 30]),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 4 / 7, 3 / 7, 0]),  # the token that crosses top_p stays
        ({"top_p": 0.75}, [0, 4 / 9, 3 / 9, 2 / 9]),
        ({"top_p": 0.39}, [0, 1, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_they_are_likely(keywords, expected):
    assert drawn(**keywords).tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("luck", [0.0, 1 - 2**-24])
def test_a_token_of_no_probability_is_never_drawn(luck):
    logits = torch.tensor([[-1e9, 0.0, 0.0, -1e9]])
    assert hf_local._pick(logits, SampleSettings(temperature=1.0), torch.tensor([luck])).item() in (1, 2)


# ---- prompts, ends, texts -------------------------------------------------------------------------------------------


def test_the_prompt_is_the_template_up_to_where_the_assistant_starts(llama):
    said = (Message("user", "w1"), Message("assistant", "w2"), Message("user", "w3"))
    text = llama.tokenizer.decode(prompt_tokens(llama, Prompt("p", said)))
    assert text == "<user> w1 <end> <assistant> w2 <end> <user> w3 <end> <assistant>"


def test_the_end_of_turn_is_not_part_of_the_text_and_an_answer_at_the_limit_is_marked(llama):
    answer = hf_local._answer(llama, PROMPTS[0], [5, 6, END], frozenset({END}))
    assert (answer.text, answer.finish, answer.id, answer.prompt) == ("w0 w1", "stop", "q0", PROMPTS[0].messages)
    assert hf_local._answer(llama, PROMPTS[0], [5, 6], frozenset({END})).finish == "length"
    empty = hf_local._answer(llama, PROMPTS[0], [END], frozenset({END}))
    assert (empty.text, empty.finish) == ("", "stop")


# ---- the cache ------------------------------------------------------------------------------------------------------


def test_the_roomy_cache_holds_what_the_dynamic_one_holds():
    config = LlamaConfig(**SIZES)
    generator = torch.Generator().manual_seed(0)
    roomy, plain = roomy_cache(config, room=3), DynamicCache(config=config)
    for step, new in enumerate([4, 1, 1, 1, 1, 6, 1]):  # room for three runs out twice
        if step == 3:
            for cache in (roomy, plain):
                cache.batch_select_indices(torch.tensor([2, 0]))
        rows = 3 if step < 3 else 2
        for layer in range(2):
            k, v = (torch.randn(rows, 2, new, 8, generator=generator) for _ in range(2))
            for mine, theirs in zip(roomy.update(k, v, layer), plain.update(k, v, layer), strict=True):
                assert torch.equal(mine, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length()


def test_a_roomy_cache_of_one_row_becomes_that_of_many():
    config = LlamaConfig(**SIZES)
    caches = (roomy_cache(config, room=3), DynamicCache(config=config))
    generator = torch.Generator().manual_seed(0)
    for rows, new in ((1, 4), (3, 2), (3, 5)):
        for layer in range(2):
            k, v = (torch.randn(rows, 2, new, 8, generator=generator) for _ in range(2))
            mine, theirs = (cache.update(k, v, layer) for cache in caches)
            assert all(map(torch.equal, mine, theirs))
        if rows == 1:
            for cache in caches:
                cache.batch_repeat_interleave(3)
    assert can_repeat(caches[0]) and not can_repeat(roomy_cache(MistralConfig(**SIZES, sliding_window=4), room=3))


def test_a_step_within_the_room_copies_nothing():
    layer = RoomyLayer(room=4)
    layer.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8))
    keys = [layer.update(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8))[0] for _ in range(5)]
    places = [k.data_ptr() for k in keys]
    assert places[:4] == places[:1] * 4 != places[1:] and [k.shape[2] for k in keys] == [4, 5, 6, 7, 8]


def test_layers_with_a_window_keep_their_own_cache():
    cache = roomy_cache(MistralConfig(**SIZES, sliding_window=4), room=3)
    assert not any(isinstance(layer, RoomyLayer) for layer in cache.layers)


def test_a_model_on_disk_answers_as_it_did_before_it_was_saved(tmp_path):
    from anchorline.llm.models import load

    folder = save_tiny(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    fresh = loaded(tiny())
    assert isinstance(fresh.model, LlamaForCausalLM)
    assert answers(load(folder, dtype="float32"), GREEDY) == answers(fresh, GREEDY)
