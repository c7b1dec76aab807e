"""One desk for workers elsewhere: what is asked is decided here, and the calls are made where the workers are.

Cache, budget, slots, limits per minute, retries and circuit breaker stand at the desk, the same as in one process, so they
hold over all workers together. A worker asks the desk (`Relayed`); the desk has the reply, or hands back a call to make
and is told its outcome, until there is a reply or an error. A key never comes here: calls are made with the worker's own.

>>> async def example(relay: Relay, request: Request):
...     step = await relay.ask("shard 7", "reviser", "gpt-4o-mini", request)
...     return await relay.report(step.ticket, Reply("fine", "stop")) if isinstance(step, Call) else step
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from anchorline.errors import AnchorlineError, UserError
from anchorline.llm.costs import Bill
from anchorline.llm.types import Endpoint, Reply, Request

STARTS = 4
"""How often a shard is begun: a worker that dies is replaced, a row that kills its worker each time is not waited for."""


class Call(NamedTuple):
    """A call for the worker to make; `ticket` goes back with its outcome."""

    ticket: int
    request: Request


Outcome = Reply | Exception
"""How a call, or a request, ended."""
Step = Call | Outcome


class Line(Protocol):
    """The way from a worker to its desk."""

    async def ask(self, shard: str, name: str, model: str, request: Request) -> Step: ...

    async def report(self, ticket: int, outcome: Outcome) -> Step: ...


@dataclass(slots=True, eq=False)
class _Work:
    """A request that a worker waits for."""

    shard: str
    steps: asyncio.Queue[Step] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] | None = None


_WORK: ContextVar[_Work] = ContextVar("work")


class ByShard(Bill):
    """A bill that is one for each shard: a reply that is used stands on that of the shard whose request it was."""

    def __init__(self) -> None:
        super().__init__()
        self._bills: defaultdict[str, Bill] = defaultdict(Bill)

    def add(self, key: str, tokens: int, usd: float | None) -> None:
        self._bills[_WORK.get().shard].add(key, tokens, usd)

    def take(self, shard: str) -> Bill:
        """The bill of a shard that is done; the desk forgets it."""
        return self._bills.pop(shard, Bill())


class Relay:
    """The desk's side. `build` puts cache, budget and pool around the endpoint that it is given, by the model's name.

    `bills` is the one that `build` uses.
    """

    def __init__(self, build: Callable[[str, Endpoint], Endpoint], bills: ByShard | None = None) -> None:
        self._build = build
        self._bills = bills or ByShard()
        self._endpoints: dict[str, Endpoint] = {}
        self._open: set[_Work] = set()
        self._calls: dict[int, tuple[_Work, asyncio.Future[Reply]]] = {}
        self._tickets = itertools.count(1)
        self._begun: Counter[str] = Counter()
        self._stopped: AnchorlineError | None = None

    async def ask(self, shard: str, name: str, model: str, request: Request) -> Step:
        """The first step towards the reply of the endpoint `name`, whose model the worker knows as `model`."""
        if self._stopped is not None:
            return self._stopped
        if name not in self._endpoints:
            self._endpoints[name] = self._build(name, _Handed(model, self._hand_out))
        endpoint = self._endpoints[name]
        if endpoint.model != model:  # weights in the worker's own process, say
            return UserError(
                f"the workers' models differ: llm.{name} is {model} on one machine and {endpoint.model} on another; "
                "put the same files on all of them"
            )
        work = _Work(shard)
        self._open.add(work)
        work.task = asyncio.create_task(self._complete(endpoint, request, work))
        return await work.steps.get()

    async def report(self, ticket: int, outcome: Outcome) -> Step:
        """Take a call's outcome; the next step."""
        found = self._calls.get(ticket)
        if found is None:
            return AnchorlineError("the desk does not know this call any more: its shard was given to another worker")
        work, call = found
        if isinstance(outcome, Reply):
            call.set_result(outcome)
        else:
            call.set_exception(outcome)
        return await work.steps.get()

    async def begin(self, shard: str) -> AnchorlineError | None:
        """A worker starts a shard. What an earlier worker, which has died over it, had asked is forgotten, so that its
        slots and its share of the budget are free; an error where too many have died.
        """
        tasks = [work.task for work in self._open if work.shard == shard and work.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._begun[shard] += 1
        if self._begun[shard] > STARTS:
            return AnchorlineError(
                f"{STARTS} workers have died over the rows from {shard} on (out of memory, perhaps: see Ray's logs); what "
                "was answered is kept"
            )
        return None

    def bill(self, shard: str) -> Bill:
        """The replies that a shard, which is done, uses."""
        return self._bills.take(shard)

    async def stop(self, error: AnchorlineError) -> None:
        """The run ends with this error: nothing new is asked, and calls in flight are still taken."""
        self._stopped = error

    async def _complete(self, endpoint: Endpoint, request: Request, work: _Work) -> None:
        _WORK.set(work)
        step: Step
        try:
            step = await endpoint.complete(request)
        except AnchorlineError as error:
            step = error.with_traceback(None)
        except Exception as error:  # a bug of ours, told as one
            step = RuntimeError(f"{type(error).__name__}: {error}")
        finally:
            self._open.discard(work)
        work.steps.put_nowait(step)

    async def _hand_out(self, request: Request) -> Reply:
        ticket, work = next(self._tickets), _WORK.get()
        call: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._calls[ticket] = work, call
        work.steps.put_nowait(Call(ticket, request))
        try:
            return await call
        finally:
            del self._calls[ticket]


class _Handed:
    """An endpoint whose calls are handed out."""

    def __init__(self, model: str, hand_out: Callable[[Request], Awaitable[Reply]]) -> None:
        self.model, self._hand_out = model, hand_out

    async def complete(self, request: Request) -> Reply:
        return await self._hand_out(request)


class Relayed:
    """The worker's side: an endpoint that asks the desk, and makes the calls that it hands back with `inner`."""

    def __init__(self, inner: Endpoint, *, name: str, shard: str, line: Line) -> None:
        self._inner, self._name, self._shard, self._line = inner, name, shard, line

    @property
    def model(self) -> str:
        return self._inner.model

    async def complete(self, request: Request) -> Reply:
        step = await self._line.ask(self._shard, self._name, self.model, request)
        while isinstance(step, Call):
            outcome: Outcome
            try:
                outcome = await self._inner.complete(step.request)
            except AnchorlineError as error:
                outcome = error.with_traceback(None)
            except Exception as error:
                outcome = RuntimeError(f"{type(error).__name__}: {error}")  # of any kind, so it may not travel
            step = await self._line.report(step.ticket, outcome)
        if isinstance(step, Exception):
            raise step
        return step
