"""The pool of calls, in virtual time: how it grows and shrinks, waits, tries again, and gives up."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorline.errors import (
    BadReply,
    CircuitOpen,
    EndpointError,
    KeyRefused,
    RequestRefused,
    ServerError,
    Throttled,
)
from anchorline.llm.breaker import IN_A_ROW, REFUSALS, SECONDS, WINDOW, Breaker
from anchorline.llm.fake import FakeEndpoint, Slow, broken, dropped, malformed, throttled, timed_out
from anchorline.llm.fake_faults import FaultPlan
from anchorline.llm.limits import GROW_EVERY, START, Bucket, Slots
from anchorline.llm.limits import WINDOW as WINDOW_OF_CALLS
from anchorline.llm.pool import THROTTLES, Pool
from anchorline.llm.settings import EndpointSettings
from anchorline.llm.types import Reply, Request
from anchorline.types import Message


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__(_JumpingSelector(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and timeout is None:
            events = super().select(5)  # only another thread can go on
            assert events, "everybody waits for somebody else"
        elif not events and timeout:
            self._loop.now += timeout
        return events


def virtual_run(main: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


def ask(i: int = 0, **settings: Any) -> Request:
    return Request((Message("user", f"question {i}"),), **{"max_tokens": 100, **settings})


def pool_of(script: Any, *, delay: float = 0.0, luck: float = 0.5, **settings: Any) -> tuple[Pool, FakeEndpoint]:
    fake = FakeEndpoint(script, delay=delay)
    return Pool(fake, EndpointSettings(model="fake", **settings), luck=lambda: luck), fake


async def gather(pool: Pool, count: int, **settings: Any) -> list[Reply | BaseException]:
    return await asyncio.gather(*(pool.complete(ask(i, **settings)) for i in range(count)), return_exceptions=True)


def errors(results: list[Any]) -> list[EndpointError]:
    return [r for r in results if isinstance(r, EndpointError)]


# slots


def test_slots_double_until_the_most_and_no_further() -> None:
    async def main() -> float:
        pool, fake = pool_of("fine", delay=0.2, max_concurrency=64)
        results = await gather(pool, 3000)
        assert not errors(results) and fake.most == 64
        return now()

    # 3000 rows at 64 a round trip take 9.4 s; the ramp from 16 may cost a round trip and a half
    seconds = virtual_run(main())
    assert 3000 / 64 * 0.2 < seconds < 3000 / 64 * 0.2 / 0.95


def test_slots_start_moderately() -> None:
    async def main() -> None:
        pool, fake = pool_of("fine", delay=1.0, max_concurrency=500)
        tasks = [asyncio.create_task(pool.complete(ask(i))) for i in range(500)]
        await asyncio.sleep(0.9)
        assert fake.at_once == START
        await asyncio.sleep(1.0)
        assert fake.at_once == 2 * START
        await asyncio.gather(*tasks)

    virtual_run(main())


def test_a_round_trip_of_throttles_cuts_once() -> None:
    async def main() -> None:
        slots = Slots(most=64)
        starts = [await slots.acquire() for _ in range(16)]
        await asyncio.sleep(1)
        for started in starts:
            slots.throttled(started, None)
            slots.release()
        assert slots.limit == 12
        started = await slots.acquire()
        slots.throttled(started, None)
        assert slots.limit == 9

    virtual_run(main())


def test_throttles_that_come_back_at_once_cut_once_a_round_trip() -> None:
    """Successes take a second, being turned away no time at all: that is no reason for a cut each."""

    async def main() -> None:
        slots = Slots(most=64)
        for _ in range(50):
            started = await slots.acquire()
            await asyncio.sleep(1)
            slots.success(started, stage="")
            slots.release()
        for _ in range(9):
            slots.throttled(await slots.acquire(), 0.0)
            slots.release()
            await asyncio.sleep(0.1)
        assert slots.limit == 12
        await asyncio.sleep(0.2)
        slots.throttled(now(), 0.0)
        assert slots.limit == 9

    virtual_run(main())


def test_one_call_in_ten_turned_away_at_random_does_not_pin_the_slots() -> None:
    plan = FaultPlan(seed=11, throttle=0.05, throttle_silently=0.05, error=0.05, hang=0.03, drop=0.02, malformed=0.02)

    async def main() -> None:
        seen: Counter[str] = Counter()
        faults = {
            "throttle": throttled(after=0.05),
            "throttle_silently": throttled(),
            "error": broken(),
            "hang": Slow(4.0, timed_out()),
            "drop": Slow(0.2, dropped()),
            "malformed": Slow(0.2, malformed()),
        }

        def play(request: Request) -> Any:
            text = request.messages[0].content
            fault = plan.fault(text, repetition=seen[text])
            seen[text] += 1
            return faults[fault] if fault else Slow(0.2, "fine")

        pool, _ = pool_of(play, max_concurrency=64)
        results = await gather(pool, 2000)
        assert all(isinstance(r, Reply) for r in results)
        # at 64 all the time it would take about 20 s
        assert now() < 50

    virtual_run(main())


def test_after_a_cut_slots_recover_and_then_grow_by_one_per_four_successes() -> None:
    async def main() -> None:
        slots = Slots(most=64)
        slots.throttled(await slots.acquire(), 0.0)
        slots.release()
        assert slots.limit == 12
        await asyncio.sleep(1)
        limits = []
        for _ in range(15):
            while slots.in_flight < int(slots.limit):
                await slots.acquire()
            slots.success(now(), stage="")
            limits.append(slots.limit)
        # one for each success up to 0.9 of the 16 there were, then one for four
        assert limits == [13, 14, 15] + [15] * (GROW_EVERY - 1) + [16] * GROW_EVERY + [17] * GROW_EVERY + [18]

    virtual_run(main())


def test_spare_slots_do_not_grow() -> None:
    async def main() -> None:
        slots = Slots(most=64)
        for _ in range(100):
            started = await slots.acquire()
            slots.success(started, stage="")
            slots.release()
        assert slots.limit == START

    virtual_run(main())


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["success", "throttled", "trouble"]), max_size=80), st.integers(1, 40))
def test_the_limit_stays_between_one_and_the_most(events: list[str], most: int) -> None:
    async def main() -> None:
        slots = Slots(most=most)
        for event in events:
            started = await slots.acquire()
            await asyncio.sleep(0.1)
            {
                "success": lambda s: slots.success(s, stage=""),
                "throttled": lambda s: slots.throttled(s, None),
                "trouble": slots.trouble,
            }[event](started)
            slots.release()
            assert 1 <= slots.limit <= most and slots.in_flight == 0

    virtual_run(main())


def test_rising_latency_shrinks_and_a_longer_kind_of_call_does_not() -> None:
    async def main() -> None:
        slots = Slots(most=16)
        for stage, seconds in [("judge", 1.0), ("revise", 5.0), ("judge", 1.1)]:
            for _ in range(WINDOW_OF_CALLS):
                started = await slots.acquire()
                await asyncio.sleep(seconds)
                slots.success(started, stage=stage)
                slots.release()
            assert slots.limit == 16, stage
        for _ in range(WINDOW_OF_CALLS):
            started = await slots.acquire()
            await asyncio.sleep(2.5)
            slots.success(started, stage="judge")
            slots.release()
        assert slots.limit == 12

    virtual_run(main())


def test_an_overloaded_server_is_not_pressed_to_the_most() -> None:
    """40 slots, more wait in line: latency rises with the load, and the pool settles well below its most."""

    async def main() -> float:
        gate = asyncio.Semaphore(40)

        class Server:
            model = "fake"

            async def complete(self, request: Request) -> Reply:
                async with gate:
                    await asyncio.sleep(0.2)
                return Reply("fine", "stop")

        pool = Pool(Server(), EndpointSettings(model="fake", max_concurrency=400))
        await gather(pool, 3000)
        assert 36 <= pool.slots.limit < 200
        return now()

    assert virtual_run(main()) < 3000 / 40 * 0.2 / 0.95  # and the server was kept busy all the same


def test_a_server_that_is_slower_for_good_does_not_shrink_the_pool_for_good() -> None:
    """Latency that does not depend on the load: cutting does not help, so it is not gone on with."""

    async def main() -> None:
        pool, _ = pool_of(lambda _: Slow(0.1 if now() < 10 else 1.0 if now() < 50 else 5.0, "fine"), max_concurrency=32)
        await gather(pool, 3200)
        await gather(pool, 1600)
        assert now() > 100 and pool.slots.limit == 32
        lowest = 32.0
        for _ in range(8):
            await gather(pool, 32)
            lowest = min(lowest, pool.slots.limit)
        assert lowest == 32

    virtual_run(main())


def test_latencies_that_vary_much_are_no_overload() -> None:
    luck = random.Random(3)

    async def main() -> None:
        pool, _ = pool_of(lambda _: Slow(luck.lognormvariate(0, 1), "fine"), max_concurrency=32)
        lowest = 32.0
        for _ in range(40):
            await gather(pool, 64)
            lowest = min(lowest, pool.slots.limit) if now() > 20 else lowest
        assert lowest > 12 and pool.slots.limit > 20

    virtual_run(main())


def test_waiting_is_first_come_first_served_and_survives_cancelling() -> None:
    async def main() -> None:
        slots = Slots(most=1)
        await slots.acquire()
        order: list[int] = []

        async def wait(i: int) -> None:
            await slots.acquire()
            order.append(i)
            slots.release()

        tasks = [asyncio.create_task(wait(i)) for i in range(4)]
        await asyncio.sleep(0.1)
        tasks[1].cancel()
        slots.release()
        tasks[0].cancel()  # at the moment at which it is given its slot
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [2, 3] and slots.in_flight == 0

    virtual_run(main())


# waiting as told


def test_retry_after_holds_everybody_back() -> None:
    async def main() -> None:
        times: list[float] = []
        script = iter([throttled(after=30)])

        def play(_: Request) -> Any:
            times.append(now())
            return Slow(0.1, next(script, "fine"))

        pool, _ = pool_of(play, max_concurrency=4)
        results = await gather(pool, 12)
        assert not errors(results)
        assert [t for t in times if 0.1 < t < 30.1] == []
        assert len([t for t in times if t >= 30.1]) == 9  # eight that waited and the one that was turned away

    virtual_run(main())


@pytest.mark.parametrize("limit", [6, 60, 200])
def test_requests_per_minute_hold_in_every_minute(limit: int) -> None:
    async def main() -> list[float]:
        times: list[float] = []

        def play(_: Request) -> str:
            times.append(now())
            return "fine"

        pool, _ = pool_of(play, requests_per_minute=limit, max_concurrency=1000)
        await gather(pool, 3 * limit)
        return times

    times = virtual_run(main())
    allowed = limit + max(1, limit / 60)
    assert all(sum(start <= t < start + 60 for t in times) <= allowed for start in times)
    assert times[-1] < 181  # and the limit is used


def test_tokens_per_minute_are_guessed_and_put_right() -> None:
    async def main() -> float:
        def play(_: Request) -> Reply:
            return Reply("fine", "stop", prompt_tokens=20, completion_tokens=80)

        pool, _ = pool_of(play, tokens_per_minute=6000, max_concurrency=1)
        await gather(pool, 300, max_tokens=4000)  # guessed at 2000 each at first
        return now()

    # 300 calls of 100 tokens at 6000 a minute are five minutes; the first guess costs 20 s more at most
    assert 280 < virtual_run(main()) < 325


@pytest.mark.parametrize(
    "limits", [{"requests_per_minute": 60}, {"tokens_per_minute": 6000}], ids=lambda x: next(iter(x))
)
def test_who_waits_for_the_minute_waits_for_retry_after_too_and_comes_at_the_rate(limits: Any) -> None:
    async def main() -> list[float]:
        times: list[float] = []

        def play(_: Request) -> Reply | Exception:
            times.append(now())
            return throttled(30) if len(times) == 5 else Reply("fine", "stop", 10, 90)

        pool, _ = pool_of(play, **limits)
        results = await gather(pool, 40, max_tokens=180)
        assert not errors(results)
        return times

    times = virtual_run(main())
    told = times[4]
    assert times[5] == pytest.approx(told + 30, abs=0.01)  # at once when it may
    assert all(b - a > 0.9 for a, b in pairwise(times[6:]))  # a second's worth may be saved up
    assert times[-1] < told + 30 + 38


def test_nobody_who_waits_for_the_minute_asks_when_the_run_has_ended() -> None:
    async def main() -> None:
        pool, fake = pool_of(lambda _: KeyRefused("no"), requests_per_minute=60)
        await gather(pool, 20)
        assert len(fake.asked) == 1

    virtual_run(main())


def test_a_bucket_waits_once_and_in_order() -> None:
    async def main() -> None:
        bucket = Bucket(60)
        assert [bucket.take(1) for _ in range(4)] == [0, 1, 2, 3]
        await asyncio.sleep(10)
        assert bucket.take(1) == 0 and bucket.take(1) == 1  # a second's worth is all that is saved up

    virtual_run(main())


# trying again


@pytest.mark.parametrize("fault", [broken, dropped, timed_out, malformed, throttled], ids=lambda f: f.__name__)
def test_passing_trouble_is_tried_again(fault: Callable[[], EndpointError]) -> None:
    pool, fake = pool_of([fault(), fault(), "fine"])
    assert virtual_run(pool.complete(ask())).text == "fine"
    assert len(fake.asked) == 3


@pytest.mark.parametrize("attempts", [1, 3])
def test_attempts_are_limited_and_the_error_keeps_its_type(attempts: int) -> None:
    pool, fake = pool_of([broken()] * 10, attempts=attempts)
    with pytest.raises(ServerError):
        virtual_run(pool.complete(ask()))
    assert len(fake.asked) == attempts


def test_a_refused_request_is_not_asked_again() -> None:
    pool, fake = pool_of([RequestRefused("too long")])
    with pytest.raises(RequestRefused):
        virtual_run(pool.complete(ask()))
    assert len(fake.asked) == 1


def test_throttling_uses_up_no_attempt() -> None:
    pool, _ = pool_of([throttled(after=1), throttled(), throttled(after=1), "fine"], attempts=1)
    assert virtual_run(pool.complete(ask())).text == "fine"


def test_backoff_doubles_with_jitter() -> None:
    async def main(luck: float) -> list[float]:
        times: list[float] = []

        def play(request: Request) -> Any:
            if request.index:
                return "fine"  # another request that keeps the endpoint well, so that no pause is added
            times.append(now())
            return broken()

        pool, _ = pool_of(play, attempts=4, luck=luck)

        async def others() -> None:
            while True:
                await pool.complete(ask(index=1))
                await asyncio.sleep(0.05)

        beside = asyncio.create_task(others())
        with pytest.raises(ServerError):
            await pool.complete(ask())
        beside.cancel()
        return [b - a for a, b in pairwise(times)]

    assert virtual_run(main(1.0)) == pytest.approx([1, 2, 4], abs=0.1)
    assert virtual_run(main(0.0)) == pytest.approx([0.5, 1, 2], abs=0.1)


def test_nobody_holds_a_slot_while_waiting_to_try_again() -> None:
    async def main() -> None:
        pool, _ = pool_of(lambda r: broken() if r.messages[0].content == "question 0" else "fine", max_concurrency=1)
        slow = asyncio.create_task(pool.complete(ask(0)))
        await asyncio.sleep(0.01)
        await pool.complete(ask(1))
        assert not slow.done() and now() < 1
        slow.cancel()

    virtual_run(main())


# giving up


@pytest.mark.parametrize("after", [None, 5.0, 60.0])
def test_endless_throttling_ends(after: float | None) -> None:
    async def main() -> None:
        pool, fake = pool_of(lambda _: throttled(after=after), max_concurrency=8)
        results = await gather(pool, 50)
        assert {type(r) for r in results} <= {Throttled, CircuitOpen}
        assert any(isinstance(r, CircuitOpen) for r in results)
        assert 600 <= now() < 1500
        assert len(fake.asked) < 50 * 5 * THROTTLES

    virtual_run(main())


def test_a_single_request_that_is_always_throttled_ends_in_a_typed_error() -> None:
    pool, fake = pool_of(lambda r: throttled(after=0.01), attempts=2)
    with pytest.raises(Throttled):
        virtual_run(pool.complete(ask()))
    assert len(fake.asked) == 2 * THROTTLES


def test_a_dead_endpoint_stops_the_run_and_burns_few_requests() -> None:
    async def main() -> None:
        pool, _ = pool_of(lambda _: dropped(), max_concurrency=64)
        results = await gather(pool, 1000)
        assert SECONDS <= now() < 3 * SECONDS
        opened = [r for r in results if isinstance(r, CircuitOpen)]
        assert len(opened) + len(errors(results)) == 1000 and len(opened) > 950
        text = str(opened[0])
        assert "failures in a row" in text and "hung up" in text and "run the same command again" in text

    virtual_run(main())


def test_a_hiccup_of_half_a_minute_stops_nothing() -> None:
    async def main() -> None:
        pool, _ = pool_of(lambda _: broken() if 5 < now() < 35 else Slow(0.2, "fine"), attempts=10)
        results = await gather(pool, 1500)
        assert not [r for r in results if isinstance(r, BaseException)]

    virtual_run(main())


def test_a_quota_that_asks_for_an_hour_ends_the_run_at_once() -> None:
    pool, _ = pool_of([throttled(after=3600)])
    with pytest.raises(CircuitOpen, match="asks to wait 3600 s"):
        virtual_run(pool.complete(ask()))


@pytest.mark.parametrize(("of_all", "most"), [(True, IN_A_ROW), (False, REFUSALS)])
def test_a_setting_that_every_request_is_refused_for_stops_the_run(of_all: bool, most: int) -> None:
    async def main() -> None:
        pool, fake = pool_of(lambda _: RequestRefused("no such model", of_all=of_all), max_concurrency=4)
        results = await gather(pool, 500)
        assert most <= len(fake.asked) < most + 4
        assert "no such model" in str(results[-1]) and isinstance(results[-1], CircuitOpen)

    virtual_run(main())


@pytest.mark.parametrize(("of_all", "most"), [(True, IN_A_ROW), (False, REFUSALS)])
def test_refusals_without_end_stop_the_run_after_good_requests_too(of_all: bool, most: int) -> None:
    async def main() -> None:
        broke = RequestRefused("no credit left", of_all=of_all)
        pool, fake = pool_of(
            lambda r: "fine" if int(r.messages[0].content.split()[1]) < 50 else broke, max_concurrency=4
        )
        results = await gather(pool, 1000)
        assert 50 + most <= len(fake.asked) < 50 + most + 4
        assert isinstance(results[-1], CircuitOpen)
        assert f"refused {most} requests in a row; the last said: no credit left" in str(results[-1])

    virtual_run(main())


@pytest.mark.parametrize("seconds", [0.0, 3.0])
@pytest.mark.parametrize("first", [0, 50])
def test_a_block_of_requests_that_are_too_long_stops_nothing(first: int, seconds: float) -> None:
    async def main() -> None:
        def play(request: Request) -> Any:
            number = int(request.messages[0].content.split()[1])
            return Slow(seconds, RequestRefused("too long") if first <= number < first + 150 else "fine")

        pool, _ = pool_of(play, max_concurrency=4)
        results = await gather(pool, 300)
        assert len(errors(results)) == 150 and not any(isinstance(r, CircuitOpen) for r in results)

    virtual_run(main())


def test_refused_requests_beside_good_ones_stop_nothing() -> None:
    async def main() -> None:
        pool, _ = pool_of(lambda r: RequestRefused("too long") if "1" in r.messages[0].content else "fine")
        results = await gather(pool, 300)
        assert len(errors(results)) == sum("1" in f"question {i}" for i in range(300))

    virtual_run(main())


def test_a_refused_key_ends_all_who_wait() -> None:
    async def main() -> None:
        pool, fake = pool_of(lambda _: KeyRefused("who are you"), max_concurrency=2)
        results = await gather(pool, 100)
        assert {type(r) for r in results} == {KeyRefused} and len(fake.asked) == 2

    virtual_run(main())


def test_most_of_many_failing_opens_the_breaker_though_some_succeed() -> None:
    breaker = Breaker()
    opened = None
    for i in range(WINDOW):
        if i % 20 == 0:
            breaker.success(float(i))
        else:
            opened = breaker.failure(BadReply("noise"), float(i))
    assert opened is not None and "190 of the last 200" in str(opened)


def test_a_tenth_of_faults_of_every_kind_costs_time_only() -> None:
    async def main() -> None:
        kinds = [lambda: throttled(after=0.2), throttled, broken, timed_out, dropped, malformed]
        tried: dict[str, int] = {}

        def play(request: Request) -> Any:
            text = request.messages[0].content
            tried[text] = tried.get(text, 0) + 1
            number = int(text.split()[1])
            return Slow(0.2, kinds[number // 10 % 6]() if number % 10 == 0 and tried[text] == 1 else "fine")

        pool, fake = pool_of(play, max_concurrency=64)
        results = await gather(pool, 1000)
        assert not [r for r in results if isinstance(r, BaseException)]
        assert len(fake.asked) == 1100 and now() < 40

    virtual_run(main())
