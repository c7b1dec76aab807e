"""The request cache: what was answered is never asked, nor paid for, again. One SQLite file, shared by processes.

A stored reply is used unless it was cut at fewer tokens than are allowed now. So raising `max_tokens` asks again only
what was cut; lowering it asks nothing again, and a longer reply that is there already stays as it is. A request that
failed stays failed, as the same error, until `retry_failed`. A reply is on disk before `complete` gives it out: kill -9
loses calls in flight only. Equal requests at the same time are asked once.

>>> import asyncio
>>> from anchorline.llm.fake import FakeEndpoint
>>> with RequestCache(":memory:") as cache:
...     endpoint = CachedEndpoint(FakeEndpoint(["fine"]), cache, run="r1")
...     [asyncio.run(endpoint.complete(Request((), max_tokens=8))).cached for _ in range(2)]
[False, True]
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from anchorline.errors import (
    BadReply,
    CacheError,
    ConnectionLost,
    EndpointError,
    EndpointTimeout,
    RequestRefused,
    ServerError,
    Throttled,
)
from anchorline.llm.budget import Amount
from anchorline.llm.costs import Bill
from anchorline.llm.guess import used_tokens
from anchorline.llm.keys import messages_json, request_key, settings_json
from anchorline.llm.pool import ATTEMPTS, Attempts
from anchorline.llm.settings import Prices
from anchorline.llm.store import Payment, Record, Row, TimedOut, connect, readable, transaction, write
from anchorline.llm.types import Endpoint, Finish, Reply, Request

KINDS: dict[str, Callable[[str], EndpointError]] = {
    ServerError.kind: ServerError,
    EndpointTimeout.kind: EndpointTimeout,
    ConnectionLost.kind: ConnectionLost,
    BadReply.kind: BadReply,
    RequestRefused.kind: RequestRefused,
}


_Waiting = tuple[tuple[Row, ...], asyncio.Future[None]]
"""Rows to be written together, and who waits for them."""


class RequestCache:
    """An open cache file. Reads are at once; writes are gathered into one transaction while the one before is written.

    After a write that failed nothing is given out any more: what is asked next would be paid, and lost.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        if str(path) != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._reader = connect(path)
        self._writer = self._reader if str(path) == ":memory:" else connect(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="request-cache")
        self._pending: list[_Waiting] = []
        self._writing: asyncio.Task[None] | None = None
        self._broken: CacheError | None = None
        try:
            self._transaction(lambda _: None)  # a file that takes no writes is told before the first reply is paid
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, after what is being written and what waits for its turn.

        A run that stops (a spent budget, Ctrl-C) cancels whoever waits for a row to be on disk, but the reply is paid for.
        """
        self._thread.shutdown()
        left, self._pending = self._pending, []
        try:
            if left:
                self._write_group(left)
        finally:
            self._reader.close()
            self._writer.close()

    def get(self, key: str) -> Record | None:
        """The row with this key."""
        if self._broken is not None:
            raise self._broken.with_traceback(None)
        with readable(self.path):
            row = self._reader.execute("SELECT * FROM requests WHERE key = ?", (key,)).fetchone()
        return Record(*row) if row else None

    def has_reply_of(self, model: str) -> bool:
        """Whether a model has ever answered."""
        return bool(self.read("SELECT 1 FROM requests WHERE model = ? AND error IS NULL LIMIT 1", (model,)))

    async def put(self, *rows: Row) -> None:
        """Write rows together; returns when they are on disk."""
        await self.note(*rows)

    def note(self, *rows: Row) -> asyncio.Future[None]:
        """Write rows together, without waiting for it: at the latest, `close` writes them."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        done.add_done_callback(lambda d: d.cancelled() or d.exception())  # nobody has to wait for it
        self._pending.append((rows, done))
        if self._writing is None or self._writing.done():
            self._writing = loop.create_task(self._write_pending())
        return done

    def spent(self, run: str) -> Amount:
        """What a run has paid so far, in all its processes."""
        with readable(self.path):
            tokens, usd = self._reader.execute(
                "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0), coalesce(sum(usd), 0.0)"
                " FROM payments WHERE run = ?",
                (run,),
            ).fetchone()
        return Amount(tokens, usd)

    def timed_out(self, run: str) -> int:
        """How many calls of a run got no answer in time, in all its processes."""
        return self.read("SELECT coalesce(sum(calls), 0) FROM timeouts WHERE run = ?", (run,))[0][0]

    async def on_disk(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Run other statements in one transaction, in the writing thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work)

    def read(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """All rows of a query."""
        with readable(self.path):
            return self._reader.execute(query, values).fetchall()

    async def _write_pending(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            group, self._pending = self._pending, []
            try:
                await loop.run_in_executor(self._thread, self._write_group, group)
            except Exception as error:
                if isinstance(error, CacheError):  # anything else is about these rows
                    self._broken = error
                _confirm(group, error)
            else:
                _confirm(group, None)

    def _write_group(self, group: list[_Waiting]) -> None:
        self._transaction(lambda db: write(db, (row for rows, _ in group for row in rows)))

    def _transaction(self, work: Callable[[sqlite3.Connection], object]) -> None:
        with readable(self.path), transaction(self._writer):
            work(self._writer)


def _confirm(group: list[_Waiting], error: BaseException | None) -> None:
    for _, done in group:
        if not done.done():
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)


class CachedEndpoint:
    """An endpoint that asks the one behind it only for what is not in the cache."""

    def __init__(
        self,
        endpoint: Endpoint,
        cache: RequestCache,
        *,
        run: str,
        retry_failed: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        price: Prices | None = None,
        bill: Bill | None = None,
    ) -> None:
        self._endpoint, self._cache, self._run, self._retry_failed = endpoint, cache, run, retry_failed
        self._extra_body, self._price, self._bill = extra_body, price, bill
        self._in_flight: dict[tuple[str, int], asyncio.Future[Reply | EndpointError | None]] = {}

    @property
    def model(self) -> str:
        return self._endpoint.model

    async def complete(self, request: Request) -> Reply:
        key = request_key(self.model, request, self._extra_body)
        same = key, request.max_tokens
        while (leader := self._in_flight.get(same)) is not None:
            outcome = await asyncio.shield(leader)
            if outcome is not None:
                return self._hit(request, outcome, self._cache.get(key))
            # whoever asked was told to stop, so somebody else asks
        stored = self._cache.get(key)
        if stored is not None and is_hit(stored, request.max_tokens, retry_failed=self._retry_failed):
            return self._hit(request, outcome_of(stored), stored)
        leader = self._in_flight[same] = asyncio.get_running_loop().create_future()
        outcome = None
        try:
            outcome = await self._ask(key, request)
            if isinstance(outcome, EndpointError):
                raise outcome
            return outcome
        finally:
            del self._in_flight[same]
            leader.set_result(outcome)

    def _hit(self, request: Request, outcome: Reply | EndpointError, stored: Record | None) -> Reply:
        if isinstance(outcome, EndpointError):
            raise outcome.with_traceback(None)
        if self._bill is not None and stored is not None:
            self._bill.add(stored.key, *worth(request, stored))
        return Reply(
            outcome.text, outcome.finish, outcome.prompt_tokens, outcome.completion_tokens, outcome.model, cached=True
        )

    async def _ask(self, key: str, request: Request) -> Reply | EndpointError:
        attempts = Attempts()
        counting = ATTEMPTS.set(attempts)
        started, at = time.monotonic(), time.time()
        outcome: Reply | EndpointError
        try:
            outcome = await self._endpoint.complete(request)
        except EndpointError as error:
            outcome = error
        except BaseException:  # the run ends; what its calls took stays known
            if lost := self._lost(key, request, attempts, at):
                self._cache.note(*lost)
            raise
        finally:
            ATTEMPTS.reset(counting)
        record, payment = make_record(
            key,
            self.model,
            messages_json(request.messages),
            settings_json(request, self._extra_body),
            request,
            outcome,
            run=self._run,
            attempts=attempts.count or 1,
            seconds=time.monotonic() - started,
            price=self._price,
        )
        lost = self._lost(key, request, attempts, at)
        await self._cache.put(record, *lost, *([payment] if payment else []))
        if self._bill is not None and payment is not None:
            self._bill.add(key, payment.prompt_tokens + payment.completion_tokens, payment.usd)
        return outcome

    def _lost(self, key: str, request: Request, attempts: Attempts, at: float) -> list[Row]:
        """What was taken for no reply: paid for what could not be read, or for all one knows, where none came in time."""
        run, model, stage = self._run, self.model, request.stage
        # `at` is not the record's own time, by which `price_later` finds the payment of its reply
        unread = [unread_payment(key, run, model, stage, used, self._price, at=at) for used in attempts.unread]
        timed_out = [TimedOut(run, model, stage, attempts.timed_out, at)] if attempts.timed_out else []
        return [*unread, *timed_out]


def is_hit(stored: Record, max_tokens: int, *, retry_failed: bool) -> bool:
    """Whether a stored row answers a request with this limit."""
    if stored.error is not None:
        return not retry_failed
    return stored.finish != "length" or stored.max_tokens >= max_tokens


def outcome_of(stored: Record) -> Reply | EndpointError:
    """The reply, or the error, that a row holds."""
    if stored.error is None:
        finish = cast(Finish, stored.finish)
        return Reply(stored.text, finish, stored.prompt_tokens, stored.completion_tokens, stored.reply_model)
    if stored.error == Throttled.kind:
        return Throttled(stored.text, retry_after=stored.retry_after)
    return KINDS.get(stored.error, EndpointError)(stored.text)


def worth(request: Request, stored: Record) -> tuple[int, float | None]:
    """Tokens and dollars of a stored reply; an error cost nothing."""
    if stored.error is not None:
        return 0, 0.0
    prompt, completion, _ = used_tokens(request, cast(Reply, outcome_of(stored)))
    return prompt + completion, stored.usd


def make_record(
    key: str,
    model: str,
    messages: str,
    settings: str,
    request: Request,
    outcome: Reply | EndpointError,
    *,
    run: str,
    attempts: int,
    seconds: float,
    price: Prices | None,
) -> tuple[Record, Payment | None]:
    """The row of a finished request, and what was paid for its reply (nothing, where it failed)."""
    at = time.time()
    row = request.row.encode(errors="replace").decode()  # SQLite keeps no half surrogate pairs
    if isinstance(outcome, EndpointError):
        retry_after = outcome.retry_after if isinstance(outcome, Throttled) else None
        failed = Record(
            key, model, messages, settings, request.max_tokens, outcome.kind, retry_after, str(outcome), None, None,
            None, "", attempts, run, request.stage, row, None, seconds, at,
        )  # fmt: skip
        return failed, None
    prompt, completion, guessed = used_tokens(request, outcome)
    usd = price.cost(prompt, completion) if price else None
    record = Record(
        key, model, messages, settings, request.max_tokens, None, None, outcome.text, outcome.finish,
        outcome.prompt_tokens, outcome.completion_tokens, outcome.model, attempts, run, request.stage, row,
        usd, seconds, at,
    )  # fmt: skip
    return record, Payment(key, run, model, request.stage, prompt, completion, guessed, usd, at)


def unread_payment(
    key: str, run: str, model: str, stage: str, used: tuple[int, int], price: Prices | None, *, at: float
) -> Payment:
    """What was paid for a reply that could not be read."""
    usd = price.cost(*used) if price else None
    return Payment(key, run, model, stage, *used, False, usd, at)
