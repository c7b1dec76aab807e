"""The endpoint in this process: batches of those who wait, and the same reply for the same request."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from test_llm_generate import loaded
from test_train_toys import END, SIZES, tiny, words

torch = pytest.importorskip("torch")
from transformers import LlamaConfig  # noqa: E402

from anchorline.errors import ModelError, RequestRefused  # noqa: E402
from anchorline.llm import hf_local  # noqa: E402
from anchorline.llm.build import build  # noqa: E402
from anchorline.llm.cache import RequestCache  # noqa: E402
from anchorline.llm.hf_local import answer_batches, message_tokens  # noqa: E402
from anchorline.llm.local_endpoint import LocalEndpoint  # noqa: E402
from anchorline.llm.models import Loaded  # noqa: E402
from anchorline.llm.settings import EndpointSettings  # noqa: E402
from anchorline.llm.types import Reply, Request, SampleSettings  # noqa: E402
from anchorline.types import Message, Prompt  # noqa: E402

REQUESTS = [
    Request((Message("user", words(1 + (5 * i) % 9, first=i)),), max_tokens=12, temperature=1.0, index=i % 2)
    for i in range(11)
]


@pytest.fixture(scope="module")
def model() -> Loaded:
    network = tiny(LlamaConfig(**SIZES, tie_word_embeddings=False), dtype=torch.float64)
    with torch.no_grad():
        network.lm_head.weight[END] *= 2.2
    return loaded(network)


@pytest.fixture
def settings(tmp_path: Path) -> EndpointSettings:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return EndpointSettings(model=str(tmp_path / "model"), engine="transformers", max_concurrency=4)


def run(model: Loaded, settings: EndpointSettings, use: Any) -> Any:
    async def main() -> Any:
        async with LocalEndpoint(settings, loader=lambda _: model) as endpoint:
            return await use(endpoint)

    return asyncio.run(main())


async def together(endpoint: LocalEndpoint, requests: list[Request] = REQUESTS) -> list[Reply]:
    return await asyncio.gather(*(endpoint.complete(r) for r in requests))


def test_those_who_wait_are_one_batch(
    model: Loaded, settings: EndpointSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = hf_local.reply_batch
    monkeypatch.setattr(
        hf_local, "reply_batch", lambda m, rows, s, seeds: sizes.append(len(rows)) or real(m, rows, s, seeds)
    )
    replies = run(model, settings, together)
    assert sorted(sizes) == [3, 4, 4]
    assert all(reply.completion_tokens and reply.prompt_tokens for reply in replies)
    assert {reply.finish for reply in replies} == {"stop", "length"}


def test_the_same_request_has_the_same_reply_whatever_it_is_batched_with(
    model: Loaded, settings: EndpointSettings
) -> None:
    batched = run(model, settings, together)
    alone = [run(model, settings, lambda e, r=r: e.complete(r)) for r in REQUESTS]
    backwards = run(model, settings, lambda e: together(e, REQUESTS[::-1]))[::-1]
    assert batched == alone == backwards


def test_samples_of_one_prompt_differ_and_greedy_ones_do_not(model: Loaded, settings: EndpointSettings) -> None:
    def samples(temperature: float) -> set[str]:
        requests = [Request(REQUESTS[3].messages, 12, temperature=temperature, index=k) for k in range(6)]
        return {reply.text for reply in run(model, settings, lambda e: together(e, requests))}

    assert len(samples(1.0)) > 1 and len(samples(0.0)) == 1


def test_greedy_replies_are_those_of_sampling_in_bulk(model: Loaded, settings: EndpointSettings) -> None:
    requests = [Request(r.messages, 12, temperature=0.0) for r in REQUESTS]
    replies = run(model, settings, lambda e: together(e, requests))
    prompts = [Prompt(str(i), r.messages) for i, r in enumerate(requests)]
    bulk = SampleSettings(max_new_tokens=12, temperature=0.0)
    answers = {a.id: a for batch in answer_batches(model, prompts, bulk, seed=0) for a in batch}
    assert [(r.text, r.finish) for r in replies] == [(answers[str(i)].text, answers[str(i)].finish) for i in range(11)]


def test_requests_with_other_settings_wait_for_their_own_batch(model: Loaded, settings: EndpointSettings) -> None:
    requests = [Request(REQUESTS[0].messages, most, temperature=0.0) for most in (1, 12, 1, 12)]
    one, twelve, *again = run(model, settings, lambda e: together(e, requests))
    assert one.completion_tokens == 1 and (twelve.completion_tokens or 0) > 1 and again == [one, twelve]


def test_a_prompt_longer_than_the_window_is_refused_alone(model: Loaded, settings: EndpointSettings) -> None:
    long = Request((Message("user", words(4000)),), max_tokens=4)

    async def use(endpoint: LocalEndpoint) -> list[Any]:
        calls = (endpoint.complete(r) for r in (long, REQUESTS[0]))
        return await asyncio.gather(*calls, return_exceptions=True)

    refused, fine = run(model, settings, use)
    assert isinstance(refused, RequestRefused) and isinstance(fine, Reply)


def test_a_reply_ends_at_the_models_window(model: Loaded, settings: EndpointSettings) -> None:
    near = Request((Message("user", words(SIZES["max_position_embeddings"] - 10)),), max_tokens=4000, temperature=0.0)
    room = SIZES["max_position_embeddings"] - len(message_tokens(model, near.messages))
    reply, fine = run(model, settings, lambda e: together(e, [near, Request(REQUESTS[0].messages, 4000)]))
    assert 0 < room < 10 and reply.finish == "length" and reply.completion_tokens == room
    assert (fine.completion_tokens or 0) > room


def test_an_error_of_the_model_reaches_those_of_its_batch_only(
    model: Loaded, settings: EndpointSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = hf_local.reply_batch, iter([RuntimeError("out of memory")])

    def flaky(*given: Any) -> Any:
        for failure in failures:
            raise failure
        return real(*given)

    monkeypatch.setattr(hf_local, "reply_batch", flaky)

    async def use(endpoint: LocalEndpoint) -> list[Any]:
        return await asyncio.gather(*(endpoint.complete(r) for r in REQUESTS), return_exceptions=True)

    results = run(model, settings, use)
    assert sum(isinstance(r, RuntimeError) for r in results) == 4 and sum(isinstance(r, Reply) for r in results) == 7


def test_whoever_stops_waiting_is_left_out(model: Loaded, settings: EndpointSettings) -> None:
    async def use(endpoint: LocalEndpoint) -> list[Any]:
        tasks = [asyncio.create_task(endpoint.complete(r)) for r in REQUESTS]
        await asyncio.sleep(0)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = run(model, settings, use)
    assert isinstance(first, asyncio.CancelledError) and all(isinstance(r, Reply) for r in others)


def test_the_weights_name_the_model_not_their_place(settings: EndpointSettings, tmp_path: Path) -> None:
    def name(folder: Path) -> str:
        return LocalEndpoint(settings.model_copy(update={"model": str(folder)})).model

    here = Path(settings.model)
    there = tmp_path / "elsewhere" / "model"
    there.mkdir(parents=True)
    (there / "config.json").write_text("{}")
    assert name(here) == name(there)
    (there / "config.json").write_text("{ }")
    assert name(here) != name(there)
    with pytest.raises(ModelError):
        name(tmp_path / "nowhere")


def test_build_makes_a_local_endpoint_with_a_cache(
    model: Loaded, settings: EndpointSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    monkeypatch.setattr(
        LocalEndpoint, "_load", lambda self: loads.append("") or setattr(self, "_loaded", self._loaded or model)
    )

    async def main(cache: RequestCache) -> list[Reply]:
        async with build(settings, cache=cache, run="r") as endpoint:
            return [await endpoint.complete(REQUESTS[0]) for _ in range(2)]

    def use(main: Coroutine[Any, Any, list[Reply]]) -> list[Reply]:
        return asyncio.run(main)

    with RequestCache(tmp_path / "c.sqlite") as cache:
        assert [r.cached for r in use(main(cache))] == [False, True]
        before = len(loads)
        assert [r.cached for r in use(main(cache))] == [True, True]
        assert len(loads) == before  # a run of hits only loads no model
        assert cache.read("SELECT sum(usd) FROM payments") == [(0.0,)]
