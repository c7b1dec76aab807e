"""One bounded pool of calls around an endpoint: slots that adapt, limits per minute, retries with backoff, a breaker.

Overload is told to the whole endpoint, not to one request: a Retry-After holds every call back. Being throttled uses up
no attempt, but not for ever: a request that was turned away `THROTTLES` times per attempt fails, and an endpoint that
answers nothing for long opens the breaker.

>>> import asyncio
>>> from anchorline.llm.fake import FakeEndpoint, broken
>>> pool = Pool(FakeEndpoint([broken(), "fine"]), EndpointSettings(model="fake"), backoff=0)
>>> asyncio.run(pool.complete(Request((), max_tokens=8))).text
'fine'
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from anchorline.errors import AnchorlineError, BadReply, EndpointError, EndpointTimeout, RequestRefused, Throttled
from anchorline.llm.breaker import Breaker
from anchorline.llm.guess import guess_prompt_tokens
from anchorline.llm.limits import Bucket, Slots
from anchorline.llm.settings import EndpointSettings
from anchorline.llm.types import Endpoint, Reply, Request

THROTTLES = 10
BACKOFF = 1.0
LONGEST_BACKOFF = 60.0


@dataclass(slots=True)
class Attempts:
    """How often a request was really asked; whoever wants to know puts one into `ATTEMPTS`."""

    count: int = 0
    unread: list[tuple[int, int]] = field(default_factory=list)
    """Tokens of prompt and reply of each reply that could not be read and is to be paid for."""
    timed_out: int = 0
    """Calls without an answer in time: the endpoint may want them paid, too, and does not tell how much."""


ATTEMPTS: ContextVar[Attempts | None] = ContextVar("attempts", default=None)


class Pool:
    """See the module. Times are the running event loop's, so that tests can run in virtual time."""

    def __init__(
        self,
        endpoint: Endpoint,
        settings: EndpointSettings,
        *,
        backoff: float = BACKOFF,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._endpoint, self._settings, self._backoff, self._luck = endpoint, settings, backoff, luck
        self.slots = Slots(most=settings.max_concurrency)
        self._breaker = Breaker()
        self._requests = Bucket(settings.requests_per_minute) if settings.requests_per_minute else None
        self._tokens = Bucket(settings.tokens_per_minute) if settings.tokens_per_minute else None
        self._lengths: dict[str, float] = {}
        self._turn = asyncio.Lock()

    @property
    def model(self) -> str:
        return self._endpoint.model

    async def complete(self, request: Request) -> Reply:
        try:
            return await self._once(request)  # nearly all end here, without the cost of what may come after
        except EndpointError as error:
            return await self._again(request, error)

    async def _again(self, request: Request, first: EndpointError) -> Reply:
        """All tries after one that failed with `first`, which counts."""
        failed: list[EndpointError] = [first]

        async def attempt() -> Reply:
            if failed:
                raise failed.pop()
            return await self._once(request)

        tries = _Tries(self._settings.attempts, self._backoff, self._luck)
        retrying = AsyncRetrying(
            retry=retry_if_exception(tries.mends),
            wait=tries.wait,
            stop=tries.is_last,
            sleep=asyncio.sleep,
            reraise=True,
        )
        return await retrying(attempt)

    async def _once(self, request: Request) -> Reply:
        await self.slots.acquire()
        try:
            guess = await self._within_limits(request) if self._requests or self._tokens else 0.0
            attempts = ATTEMPTS.get()
            if attempts is not None:
                attempts.count += 1
            loop = asyncio.get_running_loop()
            started = loop.time()
            try:
                reply = await self._endpoint.complete(request)
            except EndpointError as error:
                if attempts is not None and isinstance(error, BadReply) and error.used is not None:
                    attempts.unread.append(error.used)
                if attempts is not None and isinstance(error, EndpointTimeout):
                    attempts.timed_out += 1
                self._failed(error, started, loop.time())
                raise
            except AnchorlineError as error:  # the key was refused: it would be for everybody
                self.slots.close(error)
                raise
            self._breaker.success(loop.time())
            self.slots.success(started, stage=request.stage)
            self._correct(request, reply, guess)
            return reply
        finally:
            self.slots.release()

    def _failed(self, error: EndpointError, started: float, now: float) -> None:
        if isinstance(error, Throttled):
            self.slots.throttled(started, error.retry_after)
        elif not isinstance(error, RequestRefused):  # an endpoint that refuses a request is well
            self.slots.trouble(started)
        opened = self._breaker.failure(error, now)
        if opened is not None:
            self.slots.close(opened)
            raise opened from error

    async def _within_limits(self, request: Request) -> float:
        """Wait until the minute has room. Gives the tokens that were taken for the call.

        One after the other: where the endpoint asks for a pause meanwhile, those behind come after it at the same rate.
        """
        async with self._turn:
            wait = self._requests.take(1) if self._requests else 0.0
            guess = 0.0
            if self._tokens:
                guess = guess_prompt_tokens(request) + self._lengths.get(request.stage, request.max_tokens / 2)
                wait = max(wait, self._tokens.take(guess))
            if wait:
                await asyncio.sleep(wait)
            await self.slots.resumed()
        return guess

    def _correct(self, request: Request, reply: Reply, guess: float) -> None:
        if self._tokens and reply.completion_tokens is not None:
            before = self._lengths.get(request.stage, float(reply.completion_tokens))
            self._lengths[request.stage] = 0.9 * before + 0.1 * reply.completion_tokens
            self._tokens.take((reply.prompt_tokens or 0) + reply.completion_tokens - guess)


class _Tries:
    """One request's tries: whether to go on, and how long to wait. The endpoint's own wait is kept by the slots."""

    def __init__(self, attempts: int, backoff: float, luck: Callable[[], float]) -> None:
        self._attempts, self._backoff, self._luck = attempts, backoff, luck
        self._throttles = self._failures = 0

    def mends(self, error: BaseException) -> bool:
        """Count an error, and tell whether asking again may help."""
        if isinstance(error, Throttled):
            self._throttles += 1
        else:
            self._failures += 1
        return isinstance(error, EndpointError) and not isinstance(error, RequestRefused)

    def is_last(self, _: RetryCallState) -> bool:
        return self._failures >= self._attempts or self._throttles >= THROTTLES * self._attempts

    def wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Throttled) and error.retry_after is not None:
            return self._backoff * self._luck()  # everybody waits for the endpoint; this only spreads the return
        tries = self._throttles if isinstance(error, Throttled) else self._failures
        longest = min(LONGEST_BACKOFF, self._backoff * 2 ** min(tries - 1, 16))
        return longest * (0.5 + 0.5 * self._luck())
