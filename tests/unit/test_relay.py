"""Calls that are decided at one desk and made by workers: the same replies, cache, budget and limits as in one process."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from anchorline.errors import AnchorlineError, BudgetReached, KeyRefused, RequestRefused, Throttled, UserError
from anchorline.llm.budget import Budget
from anchorline.llm.build import around
from anchorline.llm.cache import RequestCache
from anchorline.llm.settings import BudgetSettings, EndpointSettings
from anchorline.llm.types import Endpoint, Reply, Request
from anchorline.recipe.relay import STARTS, ByShard, Relay, Relayed
from anchorline.types import Message

SETTINGS = EndpointSettings(model="m", base_url="http://127.0.0.1:1/v1", attempts=2, max_concurrency=4)


def ask(i: int) -> Request:
    return Request((Message("user", f"row {i}"),), max_tokens=8, row=str(i), stage="revise")


class Model:
    """A worker's model: it counts what it is asked, and answers as `say` does."""

    model = "m"

    def __init__(self, say: Callable[[Request], Reply] | None = None) -> None:
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self._say = say or (lambda request: Reply(f"to {request.messages[0].content}", "stop", 2, 4))

    async def complete(self, request: Request) -> Reply:
        self.asked.append(request.messages[0].content)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        return self._say(request)


class Wire:
    """The way to the desk; what goes over it is pickled, as between processes."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def ask(self, *words: Any) -> Any:
        return _sent(await self._relay.ask(*_sent(words)))

    async def report(self, *words: Any) -> Any:
        return _sent(await self._relay.report(*_sent(words)))


def _sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def desk(cache: RequestCache, most_tokens: int | None = None) -> Relay:
    budget = Budget(BudgetSettings(max_tokens=most_tokens), spent=cache.spent("r"))

    def build(name: str, inner: Endpoint) -> Endpoint:
        return around(inner, SETTINGS, cache=cache, run="r", bill=bills, budget=budget)

    bills = ByShard()
    return Relay(build, bills)


def worker(relay: Relay, model: Model, shard: str = "0") -> Relayed:
    return Relayed(model, name="reviser", shard=shard, line=Wire(relay))


def test_two_workers_ask_what_one_process_would() -> None:
    async def main() -> None:
        with RequestCache(":memory:") as alone, RequestCache(":memory:") as shared:
            one = around(Model(), SETTINGS, cache=alone, run="r")
            expected = await asyncio.gather(*(one.complete(ask(i)) for i in range(40)))
            relay, models = desk(shared), (Model(), Model())
            ends = [worker(relay, model, str(n)) for n, model in enumerate(models)]
            found = await asyncio.gather(*(ends[i % 2].complete(ask(i)) for i in range(40)))
            assert found == expected
            assert [len(model.asked) for model in models] == [20, 20]
            # the slots are the desk's: so many over both workers together
            assert models[0].most_at_once + models[1].most_at_once <= 2 * SETTINGS.max_concurrency
            query = (
                "SELECT key, text, finish, attempts, prompt_tokens, completion_tokens, run, stage, row FROM requests"
            )
            assert sorted(shared.read(query)) == sorted(alone.read(query)) and shared.spent("r") == alone.spent("r")

    asyncio.run(main())


def test_each_shard_has_its_own_bill_the_same_when_it_is_begun_again() -> None:
    async def main() -> None:
        with RequestCache(":memory:") as cache:
            relay, model = desk(cache), Model()
            shards = {"0": [0, 1, 2], "3": [2, 3, 3, 4]}  # 2 is asked for in both, 3 twice at once

            async def make(shard: str) -> None:
                await relay.begin(shard)
                await asyncio.gather(*(worker(relay, model, shard).complete(ask(i)) for i in shards[shard]))

            await asyncio.gather(*map(make, shards))
            await make("0")  # its worker died: all comes from the cache
            bills = [relay.bill(shard) for shard in shards]
            assert [(len(bill.replies), bill.tokens, bill.usd) for bill in bills] == [(3, 18, None), (3, 18, None)]
            assert len(bills[0].replies.keys() | bills[1].replies.keys()) == len(model.asked) == 5
            assert not relay.bill("0").replies  # it was taken
            await make("0")  # and its worker died then
            assert relay.bill("0") == bills[0]

    asyncio.run(main())


def test_slots_hold_over_all_workers() -> None:
    model = Model()

    async def main() -> None:
        with RequestCache(":memory:") as cache:
            relay = desk(cache)
            ends = [worker(relay, model, str(n)) for n in range(5)]  # the model counts them all
            await asyncio.gather(*(ends[i % 5].complete(ask(i)) for i in range(60)))

    asyncio.run(main())
    assert model.most_at_once == SETTINGS.max_concurrency


def test_equal_requests_of_two_workers_are_asked_once_and_stay() -> None:
    async def main() -> None:
        with RequestCache(":memory:") as cache:
            relay, models = desk(cache), (Model(), Model())
            ends = [worker(relay, model, str(n)) for n, model in enumerate(models)]
            both = await asyncio.gather(ends[0].complete(ask(1)), ends[1].complete(ask(1)))
            assert [reply.cached for reply in both] == [False, True]
            third = Model()
            assert (await worker(desk(cache), third).complete(ask(1))).cached
            assert len(models[0].asked) + len(models[1].asked) == 1 and not third.asked

    asyncio.run(main())


def test_the_budget_holds_over_all_workers() -> None:
    async def main() -> None:
        with RequestCache(":memory:") as cache:
            relay = desk(cache, most_tokens=100)
            ends = [worker(relay, Model(), str(n)) for n in range(3)]
            calls = (ends[i % 3].complete(ask(i)) for i in range(60))
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {Reply, BudgetReached}
            assert 80 < cache.spent("r").tokens <= 100

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "count"), [(RequestRefused("too long"), 1), (Throttled("slow down", retry_after=0.01), 20)]
)
def test_a_requests_error_is_typed_cached_and_tried_as_in_one_process(error: Exception, count: int) -> None:
    def say(request: Request) -> Reply:
        raise error

    async def main() -> None:
        with RequestCache(":memory:") as cache:
            model = Model(say)
            for _ in range(2):
                with pytest.raises(type(error), match=str(error)):
                    await worker(desk(cache), model).complete(ask(1))
            assert len(model.asked) == count  # and the second time it came from the cache
            assert cache.read("SELECT error, attempts FROM requests") == [(error.kind, count)]  # type: ignore[attr-defined]

    asyncio.run(main())


def test_a_refused_key_at_one_worker_stops_all() -> None:
    def say(request: Request) -> Reply:
        raise KeyRefused("the key was refused")

    async def main() -> None:
        with RequestCache(":memory:") as cache:
            relay, good = desk(cache), Model()
            with pytest.raises(KeyRefused):
                await worker(relay, Model(say), "1").complete(ask(1))
            with pytest.raises(KeyRefused):
                await worker(relay, good, "2").complete(ask(2))
            assert not good.asked

    asyncio.run(main())


def test_a_bug_at_a_worker_is_told_and_frees_the_slot() -> None:
    def say(request: Request) -> Reply:
        raise LookupError("oh")

    async def main() -> None:
        with RequestCache(":memory:") as cache:
            relay = desk(cache)
            for i in range(2 * SETTINGS.max_concurrency):
                with pytest.raises(RuntimeError, match="LookupError: oh"):
                    await asyncio.wait_for(worker(relay, Model(say)).complete(ask(i)), 5)
            assert not cache.read("SELECT * FROM requests")

    asyncio.run(main())


def test_the_calls_of_a_dead_worker_are_free_again() -> None:
    """Its slots, its share of the budget, and the requests that another worker waits for with it."""

    async def main() -> None:
        with RequestCache(":memory:") as cache:
            relay = desk(cache, most_tokens=200)
            dead = [asyncio.ensure_future(relay.ask("7", "reviser", "m", ask(i))) for i in range(4)]
            calls = await asyncio.gather(*dead)  # handed out, and nobody will report them
            model = Model()
            waiting = [asyncio.create_task(worker(relay, model, "8").complete(ask(i))) for i in range(6)]
            await asyncio.sleep(0.02)
            assert not model.asked
            assert await relay.begin("7") is None
            replies = await asyncio.wait_for(asyncio.gather(*waiting), 5)
            assert [reply.text for reply in replies] == [f"to row {i}" for i in range(6)]
            assert len(model.asked) == 6 and cache.spent("r").tokens == 36
            late = await relay.report(calls[0].ticket, Reply("too late", "stop"))
            assert isinstance(late, AnchorlineError)

    asyncio.run(main())


def test_a_shard_that_kills_every_worker_ends_the_run() -> None:
    async def main() -> None:
        with RequestCache(":memory:") as cache:
            relay = desk(cache)
            ends = [await relay.begin("7") for _ in range(STARTS + 1)]
            assert ends[:-1] == [None] * STARTS and "have died over the rows from 7 on" in str(ends[-1])
            assert await relay.begin("8") is None

    asyncio.run(main())


def test_a_run_that_ends_asks_nothing_more_and_keeps_what_is_in_flight() -> None:
    async def main() -> None:
        with RequestCache(":memory:") as cache:
            relay, model = desk(cache), Model()
            call = await relay.ask("1", "reviser", "m", ask(1))
            await relay.stop(UserError("a worker has no key"))
            with pytest.raises(UserError, match="a worker has no key"):
                await worker(relay, model, "2").complete(ask(2))
            assert await relay.report(call.ticket, Reply("fine", "stop", 2, 4)) == Reply("fine", "stop", 2, 4)
            assert not model.asked and cache.spent("r").tokens == 6

    asyncio.run(main())


def test_workers_with_other_weights_are_told_apart() -> None:
    async def main() -> None:
        with RequestCache(":memory:") as cache:
            relay, other = desk(cache), Model()
            await worker(relay, Model()).complete(ask(1))
            other.model = "m@other"
            with pytest.raises(UserError, match=r"llm\.reviser is m@other on one machine and m on another"):
                await worker(relay, other).complete(ask(2))

    asyncio.run(main())
