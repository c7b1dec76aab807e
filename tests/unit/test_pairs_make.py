"""Many rows: a bounded window, results in order, one bad row never stops the others, what ends a run ends it cleanly."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorline.errors import BudgetReached, CircuitOpen, DataError, KeyRefused, ModelError, ServerError
from anchorline.pairs.make import AHEAD, make
from anchorline.types import Failure, Pair, Prompt


def rows(count: int) -> list[Prompt]:
    return [Prompt(str(i), ()) for i in range(count)]


def pair(row: Prompt) -> Pair:
    return Pair(row.id, row.messages, "c", "r")


@settings(max_examples=40)
@given(st.integers(0, 60), st.integers(1, 9), st.integers(0, 99))
def test_every_row_has_its_result_in_the_order_of_the_rows(count: int, window: int, seed: int) -> None:
    luck = random.Random(seed)
    out: list[Pair | Failure] = []
    now = most = 0

    async def maker(row: Prompt) -> Pair | Failure:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(luck.randrange(6)):
            await asyncio.sleep(0)
        now -= 1
        if int(row.id) % 5 == 3:
            raise ServerError("broken")
        return pair(row)

    tally = asyncio.run(make(rows(count), maker, on_result=out.append, window=window))
    assert [result.id for result in out] == [str(i) for i in range(count)]
    assert tally.rows == count == tally.made + tally.failures["server"]
    assert tally.failures["server"] == sum(i % 5 == 3 for i in range(count))
    assert most <= window


def test_the_window_is_filled() -> None:
    now = most = 0

    async def maker(row: Prompt) -> Pair:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return pair(row)

    asyncio.run(make(rows(50), maker, on_result=lambda _: None, window=7))
    assert most == 7


def test_a_slow_row_holds_up_a_bounded_number_of_others() -> None:
    window, read = 4, 0
    gate = asyncio.Event()
    out: list[str] = []

    def source():
        nonlocal read
        for row in rows(1000):
            read += 1
            yield row

    async def maker(row: Prompt) -> Pair:
        if row.id == "0":
            await gate.wait()
        return pair(row)

    async def run() -> None:
        running = asyncio.create_task(make(source(), maker, on_result=lambda r: out.append(r.id), window=window))
        for _ in range(500):
            await asyncio.sleep(0)
        assert read == window * AHEAD and out == []  # neither more rows nor more results are held
        gate.set()
        await running

    asyncio.run(run())
    assert out == [row.id for row in rows(1000)]


def test_an_unexpected_error_is_a_failure_with_its_traceback() -> None:
    async def maker(row: Prompt) -> Pair:
        if row.id == "1":
            raise ZeroDivisionError("by nought")
        if row.id == "2":
            raise DataError("is too long", field="answer")
        if row.id == "3":
            raise asyncio.CancelledError("not the run")
        return pair(row)

    out: list[Pair | Failure] = []
    tally = asyncio.run(make(rows(5), maker, on_result=out.append, window=2))
    assert tally.made == 2 and tally.failures == {"internal": 2, "data": 1}
    broken = out[1]
    assert isinstance(broken, Failure)
    assert (broken.stage, broken.kind, broken.reason) == ("pairs", "internal", "ZeroDivisionError: by nought")
    assert broken.details["error"] == "ZeroDivisionError"
    assert 'raise ZeroDivisionError("by nought")' in broken.details["traceback"]


@pytest.mark.parametrize(
    "error", [KeyRefused("no"), BudgetReached("spent"), CircuitOpen("down"), ModelError("none"), KeyboardInterrupt()]
)
def test_what_concerns_all_rows_ends_the_run_with_nothing_left_running(error: BaseException) -> None:
    started: set[str] = set()
    ended: set[str] = set()
    out: list[str] = []

    async def maker(row: Prompt) -> Pair:
        started.add(row.id)
        try:
            if row.id == "6":
                raise error
            if int(row.id) > 3:
                await asyncio.sleep(0.2)
            return pair(row)
        finally:
            ended.add(row.id)

    with pytest.raises(type(error)):
        asyncio.run(make(rows(100), maker, on_result=lambda r: out.append(r.id), window=4))
    assert out == ["0", "1", "2", "3"]
    assert started == ended and len(started) < 12


def test_cancelling_ends_the_run_with_nothing_left_running() -> None:
    ended: list[str] = []

    async def maker(row: Prompt) -> Pair:
        try:
            await asyncio.sleep(0.2)
        finally:
            ended.append(row.id)
        return pair(row)

    async def run() -> None:
        running = asyncio.create_task(make(rows(100), maker, on_result=lambda _: None, window=3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert sorted(ended) == ["0", "1", "2"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_errors_of_the_rows_and_of_the_taker_come_through() -> None:
    async def maker(row: Prompt) -> Pair:
        return pair(row)

    def torn():
        yield rows(1)[0]
        raise DataError("is torn", line=2)

    def full(_: object) -> None:
        raise OSError("disk full")

    with pytest.raises(DataError, match="is torn"):
        asyncio.run(make(torn(), maker, on_result=lambda _: None))
    with pytest.raises(OSError, match="disk full"):
        asyncio.run(make(rows(3), maker, on_result=full))


def test_a_maker_that_never_waits_leaves_turns_to_others() -> None:
    async def maker(row: Prompt) -> Pair:
        return pair(row)

    async def run() -> int:
        turns = 0
        running = asyncio.create_task(make(rows(200), maker, on_result=lambda _: None, window=2))
        while not running.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(run()) > 50
