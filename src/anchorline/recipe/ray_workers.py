"""What runs in Ray's processes: a worker, which makes rows and calls, and the desk, which decides what is asked.

>>> Kit(Recipe(), "clair", {}, "0.1.0").maker
'clair'
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import anchorline
from anchorline.errors import AnchorlineError, UserError
from anchorline.llm.budget import Budget
from anchorline.llm.build import around, model_of
from anchorline.llm.cache import RequestCache
from anchorline.llm.costs import Bill
from anchorline.llm.types import Endpoint, Request
from anchorline.pairs import make
from anchorline.recipe.config import Recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.desk import settings_of
from anchorline.recipe.making import per_row
from anchorline.recipe.relay import ByShard, Outcome, Relay, Relayed, Step
from anchorline.recipe.shards import input_from_row, result_to_row
from anchorline.types import Failure, Pair

NAMED_FILES = ("prompt", "judge_prompt")


class Kit(NamedTuple):
    """What a worker needs besides its rows: no key, and no file of this machine."""

    recipe: Recipe
    maker: str
    files: Mapping[str, bytes]
    """Contents of the style and of prompt templates, by their setting."""
    version: str


def pack(recipe: Recipe, maker: str) -> Kit:
    """The kit of a recipe of this machine."""
    named = {name: getattr(recipe.pairs, name) for name in NAMED_FILES} | {"style": recipe.style}
    files = {name: Path(path).read_bytes() for name, path in named.items() if path}
    return Kit(recipe, maker, files, anchorline.__version__)


def _unpacked(kit: Kit, folder: Path) -> Recipe:
    """The recipe with its files in `folder`."""
    for name, content in kit.files.items():
        (folder / name).write_bytes(content)
    here = {name: str(folder / name) for name in kit.files}
    pairs = kit.recipe.pairs.model_copy(update={name: path for name, path in here.items() if name in NAMED_FILES})
    return kit.recipe.model_copy(update={"pairs": pairs, "style": here.get("style")})


class Worker:
    """A Ray Data actor: rows in, results out. What ends the run is a result, too, as Ray would try it again."""

    def __init__(self, kit: Kit, desk: Any) -> None:
        hush()
        self._kit, self._line = kit, _RayLine(desk)
        self._models: dict[str, asyncio.Task[Endpoint]] = {}
        self._stack = AsyncExitStack()

    async def __call__(self, batch: Any) -> AsyncIterator[dict[str, list[Any]]]:
        start, rows = batch["start"][0].as_py(), json.loads(batch["rows"][0].as_py())
        results: list[dict[str, Any]] = []
        bill = Bill()
        ended = ""
        try:
            await self._make(f"{start}", rows, lambda result: results.append(result_to_row(result)))
            bill = await self._line.bill(f"{start}")
        except AnchorlineError as error:
            ended = json.dumps([type(error).__name__, str(error), error.exit_code])
        yield {"start": [start], "results": [json.dumps(results)], "bill": [json.dumps(bill.replies)], "ended": [ended]}

    async def _make(self, shard: str, rows: list[Any], on_result: Callable[[Pair | Failure], None]) -> None:
        if self._kit.version != anchorline.__version__:
            raise UserError(
                f"a worker has anchorline {anchorline.__version__}, and the run {self._kit.version}; install the same "
                "version on all machines"
            )
        await self._line.begin(shard)

        async def endpoint(name: str) -> Endpoint:
            if name not in self._models:
                self._models[name] = asyncio.create_task(self._model(name))
            return Relayed(await self._models[name], name=name, shard=shard, line=self._line)

        # read, and gone again: nobody would delete the files of an actor that Ray has ended
        with TemporaryDirectory(prefix="anchorline-worker-") as place:
            folder = Path(place)
            one = await per_row(RunContext(_unpacked(self._kit, folder), folder), self._kit.maker, endpoint)
        await make(map(input_from_row, rows), one, on_result=on_result, window=len(rows))

    async def _model(self, name: str) -> Endpoint:
        try:
            return await self._stack.enter_async_context(model_of(settings_of(self._kit.recipe, name)))
        except UserError as error:
            raise UserError(
                f"a worker on {socket.gethostname()} (its environment is that of `ray start` there): {error}"
            ) from error


class Desk:
    """The actor that decides: the run's cache, budget and limits."""

    def __init__(self, recipe: Recipe, file: Path, run_id: str, *, retry_failed: bool) -> None:
        """`file` holds the cache."""
        hush()
        cache = self._cache = RequestCache(file)
        bills = ByShard()
        budget = Budget(recipe.llm.budget, spent=cache.spent(run_id))

        def build(name: str, inner: Endpoint) -> Endpoint:
            settings = settings_of(recipe, name)
            return around(
                inner, settings, cache=cache, run=run_id, bill=bills, budget=budget, retry_failed=retry_failed
            )

        self._relay = Relay(build, bills)

    async def ask(self, shard: str, name: str, model: str, request: Request) -> Step:
        return await self._relay.ask(shard, name, model, request)

    async def report(self, ticket: int, outcome: Outcome) -> Step:
        return await self._relay.report(ticket, outcome)

    async def begin(self, shard: str) -> AnchorlineError | None:
        return await self._relay.begin(shard)

    async def bill(self, shard: str) -> Bill:
        return self._relay.bill(shard)

    async def stop(self, error: AnchorlineError) -> None:
        await self._relay.stop(error)

    async def close(self) -> None:
        self._cache.close()


class _RayLine:
    """The way to the desk. A desk that has died ends the run: it is no row's fault."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk

    async def ask(self, shard: str, name: str, model: str, request: Request) -> Step:
        return await self._sent(self._desk.ask.remote(shard, name, model, request))

    async def report(self, ticket: int, outcome: Outcome) -> Step:
        return await self._sent(self._desk.report.remote(ticket, outcome))

    async def begin(self, shard: str) -> None:
        error = await self._sent(self._desk.begin.remote(shard))
        if error is not None:
            raise error

    async def bill(self, shard: str) -> Bill:
        return await self._sent(self._desk.bill.remote(shard))

    async def _sent(self, answer: Any) -> Any:
        from ray.exceptions import RayError

        try:
            return await answer
        except RayError as error:
            raise AnchorlineError(f"the desk of the run does not answer ({last_line(error)})") from None


def hush() -> None:
    """Errors only, of Ray's own messages."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def last_line(error: BaseException) -> str:
    """What an error of Ray's comes to, after the tracebacks that it brings along."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
