"""A model in this process as an endpoint: requests that wait at the same time are answered as one batch.

Decoding runs in a thread of its own, so the event loop goes on. A request's luck comes from the request (its key), not
from its batch: the same request draws the same numbers whatever it is batched with. Its reply is then the same, too, but
for rounding: a batch of another width may round a logit differently, which can tip a near tie.

>>> async def example():
...     async with LocalEndpoint(EndpointSettings(model="embedded:smollm2-135m-instruct")) as endpoint:
...         return await endpoint.complete(Request((Message("user", "Hi"),), max_tokens=8))
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from anchorline.errors import ModelError, RequestRefused
from anchorline.llm.keys import request_key
from anchorline.llm.models import fingerprint, load, resolve
from anchorline.llm.settings import EMBEDDED, EndpointSettings
from anchorline.llm.types import Reply, Request, SampleSettings
from anchorline.types import Message

if TYPE_CHECKING:
    from anchorline.llm.models import Loaded

__all__ = ["LocalEndpoint", "Message"]

GATHER = 0.02
"""Seconds that the first request of an idle endpoint waits for company."""
MOST_TOKENS = 32768


class _Waiting(NamedTuple):
    request: Request
    tokens: list[int]
    done: asyncio.Future[Reply]


class LocalEndpoint:
    """See the module. The batch size is `settings.max_concurrency`; the model is loaded with the first request."""

    def __init__(self, settings: EndpointSettings, *, loader: Callable[[str], Loaded] = load) -> None:
        self._settings, self._loader = settings, loader
        path = resolve(settings.model)
        name = settings.model if settings.model.startswith(EMBEDDED) else Path(settings.model).name
        # the weights decide, not where they lie
        self._model = f"{name}@{fingerprint(path)[:16]}"
        self._loaded: Loaded | None = None
        self._waiting: list[_Waiting] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local-endpoint")
        self._working: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        return self._model

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for the batch that is being decoded, and let the model go."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        self._loaded = None

    async def complete(self, request: Request) -> Reply:
        from anchorline.llm.hf_local import message_tokens, window_of

        loop = asyncio.get_running_loop()
        if self._loaded is None:
            await loop.run_in_executor(self._thread, self._load)
        assert self._loaded is not None
        try:
            tokens = message_tokens(self._loaded, request.messages)
        except ModelError as error:
            raise RequestRefused(str(error)) from error
        window = window_of(self._loaded)
        if len(tokens) >= window:
            raise RequestRefused(f"the messages have {len(tokens)} tokens, and {self._model} reads less than {window}")
        done: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append(_Waiting(request, tokens, done))
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work())
        return await done

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(GATHER)
        while batch := self._next_batch():
            try:
                replies = await loop.run_in_executor(self._thread, self._answer, batch)
            except Exception as error:
                for waiting in batch:
                    if not waiting.done.done():
                        waiting.done.set_exception(error)
                continue
            for waiting, reply in zip(batch, replies, strict=True):
                if not waiting.done.done():
                    waiting.done.set_result(reply)

    def _next_batch(self) -> list[_Waiting]:
        """Those like the one that waits longest, with prompts of similar length."""
        self._waiting = [w for w in self._waiting if not w.done.done()]
        if not self._waiting:
            return []
        kind = _kind(self._waiting[0].request)
        alike = sorted((w for w in self._waiting if _kind(w.request) == kind), key=lambda w: len(w.tokens))
        first = next(i for i, w in enumerate(alike) if w is self._waiting[0])
        start = max(0, min(first, len(alike) - self._settings.max_concurrency))
        batch = alike[start : start + self._settings.max_concurrency]
        taken = {id(w) for w in batch}
        self._waiting = [w for w in self._waiting if id(w) not in taken]
        return batch

    def _load(self) -> None:
        if self._loaded is None:
            self._loaded = self._loader(self._settings.model)

    def _answer(self, batch: list[_Waiting]) -> list[Reply]:
        from anchorline.llm.hf_local import reply_batch

        assert self._loaded is not None
        most, temperature, top_p = _kind(batch[0].request)
        settings = SampleSettings(max_new_tokens=most, temperature=temperature, top_p=top_p)
        # 63 bits of the key: the sample's index is in it, so each sample has luck of its own
        seeds = [int(request_key(self._model, w.request)[:16], 16) >> 1 for w in batch]
        replies = reply_batch(self._loaded, [w.tokens for w in batch], settings, seeds)
        return [
            Reply(text, "stop" if ended else "length", len(w.tokens), count, self._model)
            for w, (text, ended, count) in zip(batch, replies, strict=True)
        ]


def _kind(request: Request) -> tuple[int, float, float]:
    return min(request.max_tokens, MOST_TOKENS), request.temperature, request.top_p
