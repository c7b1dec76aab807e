"""The scripted fakes do what their scripts say: otherwise what is tested with them proves little."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_llm_pool import ask, now, virtual_run

from anchorline.errors import ServerError
from anchorline.llm.fake import FakeEndpoint, Slow, broken, truncated
from anchorline.llm.fake_faults import FAULTS, FaultPlan
from anchorline.llm.fake_server import FakeServer
from anchorline.llm.types import Reply


def test_a_list_is_played_in_order_and_its_end_is_an_error() -> None:
    fake = FakeEndpoint(["one", broken(), truncated("two")])

    async def main() -> None:
        assert (await fake.complete(ask())).text == "one"
        with pytest.raises(ServerError):
            await fake.complete(ask())
        assert (await fake.complete(ask())).finish == "length"
        with pytest.raises(AssertionError, match="asked once more"):
            await fake.complete(ask())

    asyncio.run(main())
    assert len(fake.asked) == 4 and [reply.text for _, reply in fake.answered] == ["one", "two"]


def test_words_are_tokens_and_the_limit_cuts() -> None:
    fake = FakeEndpoint(lambda r: r.messages[0].content + " indeed", model="m")
    assert asyncio.run(fake.complete(ask(max_tokens=2))) == Reply("question 0", "length", 2, 2, "m")
    assert asyncio.run(fake.complete(ask(max_tokens=3))) == Reply("question 0 indeed", "stop", 2, 3, "m")


def test_delays_and_the_most_at_once() -> None:
    async def main() -> None:
        fake = FakeEndpoint(lambda r: Slow(3, "late") if r.index else "soon", delay=1)
        await asyncio.gather(*(fake.complete(ask(index=i)) for i in (0, 0, 1)))
        assert now() == 3 and fake.most == 3 and fake.at_once == 0

    virtual_run(main())


def test_shares_of_faults_are_as_planned_and_do_not_depend_on_order() -> None:
    plan = FaultPlan(seed=4, throttle=0.05, throttle_silently=0.05, error=0.05, hang=0.03, drop=0.02, truncate=0.03)
    bodies = [f"body {i}" for i in range(20_000)]
    drawn = {body: plan.fault(body, repetition=0) for body in bodies}
    assert {body: plan.fault(body, repetition=0) for body in reversed(bodies)} == drawn
    counts = Counter(drawn.values())
    for fault in FAULTS:
        expected = {"hang": 600, "drop": 400, "truncate": 600, "malformed": 0}.get(fault, 1000)
        assert abs(counts[fault] - expected) <= 4 * expected**0.5
    again = {body: plan.fault(body, repetition=1) for body in bodies}
    assert again != drawn and {body: FaultPlan(seed=5, error=0.5).fault(body, repetition=0) for body in bodies} != drawn


@given(st.lists(st.sampled_from(["", *FAULTS]), max_size=5))
def test_a_script_goes_first(script: list[str]) -> None:
    plan = FaultPlan(script=tuple(script), error=1.0)  # pyright: ignore[reportArgumentType]
    assert [plan.fault("b", repetition=i) or "" for i in range(len(script) + 1)] == [*script, "error"]


def test_the_slots_of_the_server_go_by_the_clock() -> None:
    server = FakeServer(latency=100.0, slots=2)
    assert [round(server._turn()) for _ in range(5)] == [100, 100, 200, 200, 300]
