"""A maker by the endpoints' batch interface: half the price, in rounds, until nothing is owed any more.

In each round the maker runs over all rows, and what the request cache does not hold is noted instead of asked. What was
noted is ordered as one batch for each model, and the next round finds it. So any maker works this way, judges and second
attempts included, and none of them knows.

>>> async def example(run, desk, rows, build):
...     return await by_batches(run, desk, rows, build, on_result=print)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from anchorline.errors import CircuitOpen, EndpointError, RecipeError
from anchorline.llm.batch import run_batch
from anchorline.llm.cache import RequestCache, is_hit, outcome_of, worth
from anchorline.llm.costs import Bill
from anchorline.llm.keys import request_key
from anchorline.llm.openai_http import OpenAIEndpoint
from anchorline.llm.settings import EndpointSettings
from anchorline.llm.types import Endpoint, Reply, Request
from anchorline.pairs import make
from anchorline.recipe.context import RunContext
from anchorline.recipe.desk import Desk, settings_of
from anchorline.types import Failure, Pair

T = TypeVar("T")
PerRow = Callable[[Any], Awaitable[Pair | Failure]]
Wrap = Callable[[str], Awaitable[Endpoint]]
"""An endpoint by its name in the recipe, as a maker is given it."""


class Owed(EndpointError):
    """The request is noted for the next batch."""

    kind = "owed"


class Noting:
    """An endpoint that answers from the cache, and notes what it lacks."""

    def __init__(
        self, model: str, settings: EndpointSettings, cache: RequestCache, bill: Bill, *, retry_failed: bool
    ) -> None:
        self._model, self._settings, self._cache, self._retry_failed = model, settings, cache, retry_failed
        self._bill = bill
        self.owed: list[Request] = []

    @property
    def model(self) -> str:
        return self._model

    async def complete(self, request: Request) -> Reply:
        stored = self._cache.get(request_key(self._model, request, self._settings.extra_body))
        if stored is None or not is_hit(stored, request.max_tokens, retry_failed=self._retry_failed):
            self.owed.append(request)
            raise Owed("noted for the next batch")
        outcome = outcome_of(stored)
        if isinstance(outcome, EndpointError):
            raise outcome
        self._bill.add(stored.key, *worth(request, stored))
        return outcome


async def by_batches(
    run: RunContext,
    desk: Desk,
    rows: Sequence[Any],
    build: Callable[[Wrap], Awaitable[Callable[[Any], Awaitable[T | Failure]]]],
    *,
    on_result: Callable[[T | Failure], None],
) -> int:
    """The rows through the maker that `build` makes of endpoints; how many pairs there were.

    Raises:
        CircuitOpen: a round's batches ended without a single reply.

    """
    retry_failed = run.calls.retry_failed
    servers: dict[str, OpenAIEndpoint] = {}
    while True:
        noting: dict[str, Noting] = {}

        async def endpoint(
            name: str, noting: dict[str, Noting] = noting, retry_failed: bool = retry_failed
        ) -> Endpoint:
            settings = settings_of(run.recipe, name)
            if settings.runs_here:
                raise RecipeError(
                    f"--batch needs an endpoint with a batch interface, and llm.{name} runs in this process"
                )
            if name not in servers:
                servers[name] = await desk.stack.enter_async_context(OpenAIEndpoint(settings))
            noting[name] = Noting(servers[name].model, settings, desk.cache, desk.bill, retry_failed=retry_failed)
            return noting[name]

        results: list[T | Failure] = []
        tally = await make(rows, await build(endpoint), on_result=results.append)
        owed = {name: noted.owed for name, noted in noting.items() if noted.owed}
        if not owed:
            for result in results:
                on_result(result)
            return tally.made
        came, said = 0, list[str]()
        for name, requests in owed.items():
            done = await run_batch(
                servers[name],
                requests,
                desk.cache,
                run=run.id,
                settings=settings_of(run.recipe, name),
                budget=desk.budget,
                retry_failed=retry_failed,
            )
            came += done.answered + done.failed + done.hits
            said += done.said
        if not came:
            raise CircuitOpen(
                f"a batch of {sum(map(len, owed.values()))} requests ended without one reply ({'; '.join(said)}); "
                "look at the endpoint's list of batches, and run the same command again to go on"
            )
        retry_failed = False  # what failed in this run's batches stays failed
