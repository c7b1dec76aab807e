"""A scripted model in this process, for tests of whatever takes an `Endpoint`: it can be slow, throttle, break, cut.

A script is a function of the request, or a list that is played in the order of the calls. Each entry is a text, a whole
`Reply`, an error to raise, or `Slow` around one of these. Words count as tokens, and a text is cut at `max_tokens`.

>>> import asyncio
>>> from anchorline.types import Message
>>> fake = FakeEndpoint(["one two three", throttled(after=2)])
>>> asyncio.run(fake.complete(Request((Message("user", "Count."),), max_tokens=2)))
Reply(text='one two', finish='length', prompt_tokens=1, completion_tokens=2, model='fake', cached=False)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from anchorline.errors import BadReply, ConnectionLost, EndpointTimeout, ServerError, Throttled
from anchorline.llm.types import Reply, Request


@dataclass(frozen=True, slots=True)
class Slow:
    """A delay in seconds before what comes then."""

    seconds: float
    then: str | Reply | Exception


Scripted = str | Reply | Exception | Slow


class FakeEndpoint:
    """See the module. `asked` holds every request, `answered` each one that got a reply, `most` the most at once."""

    def __init__(
        self,
        script: str | Callable[[Request], Scripted] | Iterable[Scripted] = "fine",
        *,
        model: str = "fake",
        delay: float = 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._script: Callable[[Request], Scripted]
        if isinstance(script, str):
            self._script = lambda _: script
        elif callable(script):
            self._script = script
        else:
            entries = iter(script)
            self._script = lambda request: next(entries, _ended(request))
        self._model, self._delay, self._sleep = model, delay, sleep
        self.asked: list[Request] = []
        self.answered: list[tuple[Request, Reply]] = []
        self.at_once = self.most = 0

    @property
    def model(self) -> str:
        return self._model

    async def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        entry = self._script(request)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            seconds = self._delay
            if isinstance(entry, Slow):
                seconds, entry = entry.seconds, entry.then
            if seconds:
                await self._sleep(seconds)
            else:
                await asyncio.sleep(0)  # a call is never over at once, so callers do overlap
        finally:
            self.at_once -= 1
        if isinstance(entry, Exception):
            raise entry
        reply = _cut(entry, request) if isinstance(entry, str) else entry
        reply = replace(reply, model=reply.model or self._model)
        self.answered.append((request, reply))
        return reply


def throttled(after: float | None = None) -> Throttled:
    """429, with or without the time to wait."""
    return Throttled("the fake throttles", retry_after=after)


def broken() -> ServerError:
    """500."""
    return ServerError("the fake is broken")


def timed_out() -> EndpointTimeout:
    """No answer in time."""
    return EndpointTimeout("the fake is asleep")


def dropped() -> ConnectionLost:
    """A connection that broke."""
    return ConnectionLost("the fake hung up")


def malformed() -> BadReply:
    """An answer that is not JSON."""
    return BadReply("the fake stammers")


def truncated(text: str) -> Reply:
    """A reply that the token limit cut."""
    return Reply(text, "length", 1, len(text.split()))


def _cut(text: str, request: Request) -> Reply:
    words = text.split()
    asked = sum(len(m.content.split()) for m in request.messages)
    if len(words) <= request.max_tokens:
        return Reply(text, "stop", asked, len(words))
    return Reply(" ".join(words[: request.max_tokens]), "length", asked, request.max_tokens)


def _ended(request: Request) -> Exception:
    return AssertionError(f"the fake's script has ended, but it is asked once more: {request}")
