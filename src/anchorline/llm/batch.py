"""The batch interface of OpenAI-compatible endpoints: half the price, answers within a day, resumed by batch id.

Replies land in the request cache under the keys that a direct call would have, so whatever asks afterwards finds hits.
The uploaded file's id is written down before the batch is made, and the batch's id after: a process that was killed
between the two finds its batch again in the endpoint's list, so nothing is ordered twice.

>>> async def example(endpoint, cache, requests):
...     return await run_batch(endpoint, requests, cache, run="r1", settings=settings)
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from anchorline.errors import (
    BadReply,
    BudgetReached,
    EndpointError,
    KeyRefused,
    RecipeError,
    RequestRefused,
    Throttled,
)
from anchorline.llm.budget import Amount, Budget, worst_case
from anchorline.llm.cache import RequestCache, is_hit, make_record, unread_payment
from anchorline.llm.keys import messages_json, read_messages, request_key, settings_json
from anchorline.llm.openai_http import OpenAIEndpoint, error_of_status, reply_of
from anchorline.llm.pool import BACKOFF, LONGEST_BACKOFF
from anchorline.llm.prices import BATCH_SHARE, find_price
from anchorline.llm.settings import EndpointSettings, Prices
from anchorline.llm.store import write
from anchorline.llm.types import Reply, Request
from anchorline.llm.wording import request_body, sampling_error

POLL, FIRST_POLL = 30.0, 1.0
"""A batch is looked at after a second, then ever more seldom, at last every half minute."""
MOST_REQUESTS = 50_000
MOST_BYTES = 150 << 20
"""OpenAI takes 50,000 requests and 200 MB a file."""
GONE = frozenset({404, 410})
"""Statuses of a batch or file that the endpoint does not know, or not any more."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})

T = TypeVar("T")


class BatchResult(NamedTuple):
    """What came of a batch run. `unanswered` were in a batch that ended early, without them: ask again."""

    batches: tuple[str, ...]
    hits: int
    answered: int
    failed: int
    unanswered: int
    said: tuple[str, ...] = ()
    """Why batches ended early, in the endpoint's words."""


class _Gone(RequestRefused):
    """The endpoint does not know the batch or file (any more)."""


class _Line(NamedTuple):
    key: str
    request: Request
    body: bytes
    worst: Amount


async def run_batch(
    endpoint: OpenAIEndpoint,
    requests: Sequence[Request],
    cache: RequestCache,
    *,
    run: str,
    settings: EndpointSettings,
    budget: Budget | None = None,
    retry_failed: bool = False,
    poll: float = POLL,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> BatchResult:
    """Collect what was ordered before, order the rest, and wait for it.

    A request whose line in a completed batch is missing or cannot be read is ordered again, `attempts` times in all; then
    it has failed.

    What waited for a batch that the endpoint does not know any more is ordered anew.

    Raises:
        RecipeError: nothing was answered, as the endpoint does not take such a temperature or top_p.
        BudgetReached: not even one more request's worst case fits the budget; what was ordered is collected first.
        EndpointError, KeyRefused: the endpoint did not take or give a file; running again goes on from there.

    """
    order = _Order(endpoint, cache, run, settings, budget, poll, sleep)
    await order.collect_all()
    lines, hits = order.missing(requests, retry_failed=retry_failed)
    for _ in range(settings.attempts):
        order.lost.clear()
        rest = lines
        while rest:
            chunk = order.fitting(rest)
            await order.submit(chunk)
            await order.collect_all()
            rest = rest[len(chunk) :]
        lines = [line for line in lines if line.key in order.lost]
    for line in lines:
        await order.give_up(line)
    if order.of_setting is not None and not order.answered:
        raise order.of_setting
    return BatchResult(tuple(order.ids), hits, order.answered, order.failed, order.unanswered, tuple(order.said))


class _Order:
    def __init__(
        self,
        endpoint: OpenAIEndpoint,
        cache: RequestCache,
        run: str,
        settings: EndpointSettings,
        budget: Budget | None,
        poll: float,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._endpoint, self._cache, self._run, self._settings = endpoint, cache, run, settings
        self._budget, self._poll, self._sleep = budget, poll, sleep
        full = find_price(settings)
        self._price = full and Prices(input=full.input * BATCH_SHARE, output=full.output * BATCH_SHARE)
        self.ids: list[str] = []
        self.said: list[str] = []
        self.lost: set[str] = set()
        """Keys of requests that a completed batch holds no readable line for."""
        self.answered = self.failed = self.unanswered = 0
        self.of_setting: RecipeError | None = None

    def missing(self, requests: Sequence[Request], *, retry_failed: bool) -> tuple[list[_Line], int]:
        """What the cache does not hold, each once, and how many requests it does hold."""
        lines: dict[str, _Line] = {}
        hits = 0
        for request in requests:
            key = request_key(self._endpoint.model, request, self._settings.extra_body)
            stored = self._cache.get(key)
            if stored is not None and is_hit(stored, request.max_tokens, retry_failed=retry_failed):
                hits += 1
                continue
            before = lines.get(key)
            if before is None or before.request.max_tokens < request.max_tokens:
                body = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions"}
                text = json.dumps(body | {"body": request_body(self._settings, request)}) + "\n"
                lines[key] = _Line(key, request, text.encode(), worst_case(request, self._price))
        return list(lines.values()), hits

    def fitting(self, lines: list[_Line]) -> list[_Line]:
        """As many of the first lines as one file and the budget take."""
        size, tokens, usd = 0, 0, 0.0
        for i, line in enumerate(lines[:MOST_REQUESTS]):
            size, tokens, usd = size + len(line.body), tokens + line.worst.tokens, usd + line.worst.usd
            over = self._budget is not None and not self._budget.has_room(Amount(tokens, usd))
            if over and i == 0:
                assert self._budget is not None
                raise BudgetReached(self._budget.explain(line.worst))
            if i and (over or size > MOST_BYTES):
                return lines[:i]
        return lines[:MOST_REQUESTS]

    async def submit(self, lines: list[_Line]) -> None:
        """Upload a file and make a batch of it, with a note before and after."""
        content = b"".join(line.body for line in lines)
        files = self._endpoint.client.files
        uploaded = await self._sent(lambda: files.create(file=("requests.jsonl", content), purpose="batch"))
        rows = [
            (
                line.key, uploaded.id, messages_json(line.request.messages),
                settings_json(line.request, self._settings.extra_body), line.request.max_tokens, line.request.stage,
                line.request.row.encode(errors="replace").decode(),
            )
            for line in lines
        ]  # fmt: skip

        def note(db: Any) -> None:
            values = (uploaded.id, None, self._run, self._endpoint.model, "uploaded", time.time())
            db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", values)
            db.executemany("INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

        await self._cache.on_disk(note)
        await self._create(uploaded.id)

    async def collect_all(self) -> None:
        """Wait for every batch of this run that is not collected yet; one that is gone is given up."""
        query = "SELECT file, id FROM batches WHERE run = ? AND model = ? AND state != 'collected' ORDER BY at"
        for file, known in self._cache.read(query, (self._run, self._endpoint.model)):
            batch = known
            try:
                batch = batch or await self._sent(lambda file=file: self._find(file)) or await self._create(file)
                await self._collect(file, batch)
            except RequestRefused as error:
                # of a file that is refused for itself, in whatever words, there is no batch to lose
                if not isinstance(error, _Gone) and (batch or error.of_all):
                    raise
                await self._let_go(file, error)

    async def give_up(self, line: _Line) -> None:
        """Store a request as failed that no batch brought a readable line for."""
        attempts = self._settings.attempts
        error = BadReply(f"{self._settings.urls[0]}: {attempts} batches held no line for it that could be read")
        record, _ = make_record(
            line.key, self._endpoint.model, messages_json(line.request.messages),
            settings_json(line.request, self._settings.extra_body), line.request, error,
            run=self._run, attempts=attempts, seconds=0.0, price=self._price,
        )  # fmt: skip
        await self._cache.put(record)
        self.failed += 1

    async def _create(self, file: str) -> str:
        tries = 0

        async def create() -> str:
            nonlocal tries
            tries += 1
            # a try that seems to have failed may have made the batch all the same
            found = await self._find(file) if tries > 1 else None
            if found:
                return found
            made = await self._endpoint.client.batches.create(
                input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
            )
            return made.id

        batch = await self._sent(create)
        await self._note_id(file, batch)
        return batch

    async def _find(self, file: str) -> str | None:
        """The batch that was made of a file before its id could be written down."""
        async for batch in self._endpoint.client.batches.list(limit=100):
            if batch.input_file_id == file:
                await self._note_id(file, batch.id)
                return batch.id
        return None

    async def _note_id(self, file: str, batch: str) -> None:
        values = (batch, file)
        await self._cache.on_disk(
            lambda db: db.execute("UPDATE batches SET id = ?, state = 'made' WHERE file = ?", values)
        )

    async def _collect(self, file: str, name: str) -> None:
        client = self._endpoint.client
        self.ids.append(name)
        pause = min(FIRST_POLL, self._poll)
        while True:
            batch = await self._sent(lambda: client.batches.retrieve(name))
            if batch.status in ENDED:
                break
            await self._sleep(pause)
            pause = min(pause * 1.5, self._poll)
        rows = self._cache.read("SELECT * FROM waiting WHERE file = ?", (file,))
        waiting = {row[0]: row for row in rows}
        for result in (batch.output_file_id, batch.error_file_id):
            if result:
                content = await self._sent(lambda result=result: client.files.content(result))
                for line in content.content.splitlines():
                    await self._take(line, waiting, early=batch.status != "completed")
        await self._finish(file)
        if batch.status == "completed":
            self.lost |= waiting.keys()
            return
        self.unanswered += len(waiting)
        errors = [error.message for error in (batch.errors and batch.errors.data) or [] if error.message]
        self.said.append(
            self._endpoint.hide(": ".join([batch.status, "; ".join(errors)] if errors else [batch.status]))
        )

    async def _let_go(self, file: str, error: RequestRefused) -> None:
        # a wrong URL knows no list either: then the batch may still be there, and nothing is given up
        await self._sent(lambda: self._endpoint.client.batches.list(limit=1))
        ((count,),) = self._cache.read("SELECT count(*) FROM waiting WHERE file = ?", (file,))
        await self._finish(file)
        self.unanswered += count
        self.said.append(f"the endpoint does not know a batch of {count} requests any more: {error}")

    async def _finish(self, file: str) -> None:
        def finish(db: Any) -> None:
            db.execute("DELETE FROM waiting WHERE file = ?", (file,))
            db.execute("UPDATE batches SET state = 'collected' WHERE file = ?", (file,))

        await self._cache.on_disk(finish)

    async def _take(self, line: bytes, waiting: dict[str, Any], *, early: bool) -> None:
        """Put one result into the cache. A line that names no request that waits is not ours, or was taken already, maybe by a
        process that was killed before it could finish this batch. One without a response, of a batch that ended `early`
        (expired, cancelled), says that the request's turn never came: it goes on waiting.
        """
        try:
            result = json.loads(line)
            key = result["custom_id"]
        except (ValueError, LookupError, TypeError):
            return  # its request is lost
        if not isinstance(key, str) or key not in waiting:
            return
        if early and not isinstance(result.get("response"), dict):
            return
        _, file, messages, settings, max_tokens, stage, row = waiting.pop(key)
        how = json.loads(settings)
        request = Request(
            read_messages(messages), max_tokens, how["temperature"], how["top_p"], how["index"], row=row, stage=stage
        )
        outcome = self._outcome(result, most=max_tokens)
        if isinstance(outcome, RequestRefused):
            self.of_setting = self.of_setting or sampling_error(str(outcome), request, self._settings)
        record, payment = make_record(
            key, self._endpoint.model, messages, settings, request, outcome,
            run=self._run, attempts=1, seconds=0.0, price=self._price,
        )  # fmt: skip
        if isinstance(outcome, BadReply) and outcome.used is not None:
            payment = unread_payment(
                key, self._run, self._endpoint.model, stage, outcome.used, self._price, at=record.at
            )

        known = self._cache.get(key)  # asked directly while the batch was on its way: what was made of that reply stays
        keep = known is not None and known.error is None and known.max_tokens >= max_tokens

        def take(db: Any) -> None:  # in one transaction, so that a process that is killed takes and pays nothing twice
            write(db, [*([] if keep else [record]), *([payment] if payment else [])])
            db.execute("DELETE FROM waiting WHERE key = ? AND file = ?", (key, file))

        await self._cache.on_disk(take)
        if isinstance(outcome, EndpointError):
            self.failed += 1
        else:
            self.answered += 1
        if self._budget is not None and payment is not None:
            self._budget.pay(Amount(payment.prompt_tokens + payment.completion_tokens, payment.usd or 0.0))

    def _outcome(self, result: dict[str, Any], *, most: int) -> Reply | EndpointError:
        url = self._settings.urls[0]
        response = result.get("response")
        response = response if isinstance(response, dict) else {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            try:
                return reply_of(body, most=most)
            except BadReply as error:
                return error
        said = result.get("error") or (body.get("error") if isinstance(body, dict) else None) or {}
        message = self._endpoint.hide(str(said.get("message") if isinstance(said, dict) else said))
        error = error_of_status(status if isinstance(status, int) else 500, message, url=url, settings=self._settings)
        if isinstance(error, KeyRefused):  # the key was good for the batch
            return RequestRefused(f"{url}: {message} ({status})")
        return error

    async def _sent(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call of the client gives; it is tried again where that may help. The client's errors become ours."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, EndpointError) and not isinstance(e, RequestRefused)),
            wait=_wait,
            stop=stop_after_attempt(self._settings.attempts),
            sleep=self._sleep,
            reraise=True,
        )
        return await retrying(self._once, call)

    async def _once(self, call: Callable[[], Awaitable[T]]) -> T:
        import aiohttp
        import openai

        try:
            return await call()
        except (openai.APIStatusError, openai.APIConnectionError, aiohttp.ClientError) as error:
            told = self._endpoint.told(error)
            if isinstance(error, openai.APIStatusError) and error.status_code in GONE:
                raise _Gone(str(told), of_all=True) from None
            raise told from None


def _wait(state: RetryCallState) -> float:
    """The seconds that the endpoint asked for, or ever more of them."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Throttled) and error.retry_after is not None:
        return error.retry_after
    return wait_random_exponential(multiplier=BACKOFF, max=LONGEST_BACKOFF)(state)
