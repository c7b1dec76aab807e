"""Many rows through a maker: a bounded window of them at a time, results handed over in the order of the rows.

A bad row is a failure and never stops the others. What concerns all rows (a refused key, a spent budget, an endpoint that
is down, Ctrl-C) ends the run: calls in flight are cancelled and awaited, and what was handed over stays.

>>> import asyncio
>>> from anchorline.types import Pair, Prompt
>>> async def maker(row):
...     return Pair(row.id, row.messages, chosen="yes", rejected="no")
>>> made = []
>>> asyncio.run(make([Prompt("p1", ()), Prompt("p2", ())], maker, on_result=made.append)).made
2
>>> [pair.id for pair in made]
['p1', 'p2']
"""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from anchorline.errors import AnchorlineError, DataError, EndpointError
from anchorline.types import Failure

STAGE = "pairs"
AHEAD = 8
"""Finished rows that wait for an earlier one, for each row of the window: what a slow row may hold up."""


class Row(Protocol):
    """What a maker takes: an answer, a prompt, candidates."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Row)
T = TypeVar("T")
"""What a maker makes of a row: a pair, mostly; also an answer."""


@dataclass(slots=True)
class Tally:
    """What became of the rows."""

    made: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """By kind."""

    @property
    def rows(self) -> int:
        return self.made + self.failures.total()


async def make(
    rows: Iterable[R],
    maker: Callable[[R], Awaitable[T | Failure]],
    *,
    on_result: Callable[[T | Failure], None],
    window: int = 64,
) -> Tally:
    """Make all rows; `on_result` gets each result, in the order of the rows, as soon as those before it are there.

    At most `window` rows are being made and AHEAD × `window` results wait, so memory does not grow with the rows.
    Raises what ends the run: every AnchorlineError but those of one row (EndpointError, DataError), errors of `rows` and
    of `on_result`, cancellation.
    """
    numbered = enumerate(rows)
    tally = Tally()
    waiting: dict[int, T | Failure] = {}
    room = asyncio.Semaphore(window * AHEAD)  # a row takes a place when it starts and leaves it when it is handed over
    next_out = 0

    def hand_over() -> None:
        nonlocal next_out
        while next_out in waiting:
            result = waiting.pop(next_out)
            next_out += 1
            room.release()
            if isinstance(result, Failure):
                tally.failures[result.kind] += 1
            else:
                tally.made += 1
            on_result(result)

    async def work() -> None:
        while True:
            await room.acquire()
            number, row = next(numbered, (-1, None))
            if row is None:
                room.release()  # for the others who wait to see that there are no more
                return
            waiting[number] = await _made(row, maker)
            hand_over()
            await asyncio.sleep(0)  # a maker that never waits would leave no turn to the others, nor to Ctrl-C

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(window):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        # which worker met it says nothing to a reader, nor do the others that met the same
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return tally


async def _made(row: R, maker: Callable[[R], Awaitable[T | Failure]]) -> T | Failure:
    """The row's result; an error that is the row's own is a failure."""
    try:
        return await maker(row)
    except EndpointError as error:
        return Failure(row.id, STAGE, error.kind, str(error))
    except DataError as error:
        return Failure(row.id, STAGE, "data", str(error))
    except AnchorlineError:
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return _internal(row, error)  # something in the maker was cancelled, the run was not
    except Exception as error:
        return _internal(row, error)


def _internal(row: Row, error: BaseException) -> Failure:
    details = {"error": type(error).__name__, "traceback": "".join(traceback.format_exception(error))}
    return Failure(row.id, STAGE, "internal", f"{type(error).__name__}: {error}", details)
