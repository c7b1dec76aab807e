"""A model behind HTTP, at any endpoint that speaks OpenAI's chat interface. One call is one call: retries are the pool's.

Several base URLs of one model share the load: the one with the fewest calls in flight goes first, and one that fails a few
times in a row is left out for a while. The API key is read from the environment once, and stands in no message.

openai's client sends through aiohttp, whose HTTP is written in C: a call takes half the CPU that it takes through httpcore.

>>> async def example():
...     async with OpenAIEndpoint(EndpointSettings(model="m", base_url="http://127.0.0.1:8000/v1")) as endpoint:
...         return await endpoint.complete(Request((Message("user", "Hi"),), max_tokens=8))
"""

from __future__ import annotations

import asyncio
import email.utils
import html
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, quote_plus

from anchorline.errors import (
    BadReply,
    ConnectionLost,
    EndpointError,
    EndpointTimeout,
    KeyRefused,
    RequestRefused,
    ServerError,
    Throttled,
    UserError,
)
from anchorline.llm.settings import OPENAI_KEY, OPENAI_URL, EndpointSettings
from anchorline.llm.types import Finish, Reply, Request
from anchorline.llm.wording import Wording, request_body, sampling_error, wording_of
from anchorline.types import Message

if TYPE_CHECKING:
    import openai

__all__ = ["Message", "OpenAIEndpoint", "error_of_status", "key_for", "reply_of"]

NO_KEY = "none"
"""The client wants some key, also for a server that wants none."""
FAILURES = 3
LEFT_OUT = 15.0
LONGEST_OUT = 300.0
ENDS: dict[Finish, tuple[str, ...]] = {
    "stop": ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", ""),
    "length": ("length", "model_length", "max_tokens", "max_output_tokens", "token_limit"),
    "filter": ("content_filter",),
}
"""What endpoints call the end of a reply, in any case of letters. Some servers name none for a whole reply."""
FINISH: dict[str, Finish] = {name: finish for finish, names in ENDS.items() for name in names}
OF_ALL = frozenset({402, 404, 405, 410})
"""Statuses of refusals that are about the account, the model or the URL: the next request would be refused, too."""
SHOWN = 300
MOST_TOKENS = 10**8
"""More than the window of any model."""


class _Server:
    """One base URL: its client, its load, until when it is left out, and whether calls with its key were answered."""

    def __init__(self, url: str, client: openai.AsyncOpenAI, *, has_key: bool) -> None:
        self.url, self.client, self.has_key = url, client, has_key
        self.in_flight = self.forbidden = self.failures = self.times_out = 0
        self.out_until = 0.0
        self.key_taken = False
        self.wording = wording_of(url)
        self._settled = asyncio.Event()

    def settle(self, *, answered: bool = False) -> None:
        """Note a call's end. Whether the key is taken is settled by an answer, or when all calls in flight got a 403."""
        self.key_taken = self.key_taken or answered
        if self.key_taken or self.in_flight == self.forbidden:
            self._settled.set()

    async def takes_key(self) -> bool:
        """After a 403, which may be about the key or about this request (moderation): what the others are told decides."""
        self.forbidden += 1
        try:
            self.settle()
            await self._settled.wait()
        finally:
            self.forbidden -= 1
        return self.key_taken


class OpenAIEndpoint:
    """See the module. `environ` is where the key is looked up, `known` whether the endpoint has answered in earlier runs."""

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        environ: Mapping[str, str] = os.environ,
        known: Callable[[], bool] = lambda: False,
    ) -> None:
        import httpx2
        import openai  # takes a second, and nothing but calls needs it

        self._settings, self._known = settings, known
        self._keys: list[str] = []
        self._servers: list[_Server] = []
        trusted = httpx2.create_ssl_context()  # reading the certificates is slow: once for all
        for url in settings.urls:
            key = key_for(settings, url, environ)
            self._keys += spellings(key) if key else []
            # the pool bounds the calls: aiohttp takes 0 for no bound of its own, and None for its default of 100
            limits = httpx2.Limits(max_connections=0)
            client = openai.AsyncOpenAI(
                api_key=key or NO_KEY, base_url=url, timeout=settings.timeout, max_retries=0,
                http_client=openai.DefaultAioHttpClient(verify=trusted, limits=limits),
            )  # fmt: skip
            self._servers.append(_Server(url, client, has_key=bool(key)))

    def __repr__(self) -> str:
        return f"OpenAIEndpoint({self.model!r}, {list(self._settings.urls)!r})"

    @property
    def model(self) -> str:
        return self._settings.model

    @property
    def client(self) -> openai.AsyncOpenAI:
        """The client of the first URL, for the batch interface."""
        return self._servers[0].client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for server in self._servers:
            await server.client.close()

    async def complete(self, request: Request) -> Reply:
        server = self._pick()
        server.in_flight += 1
        try:
            reply = await self._in_its_words(server, request)
        except EndpointError as error:
            self._note(server, error)
            raise
        finally:
            server.in_flight -= 1
            server.settle()
        server.settle(answered=True)
        server.failures = server.times_out = 0
        return reply

    def hide(self, text: str) -> str:
        """The text without any of the keys, on one line, bounded."""
        for key in self._keys:
            text = text.replace(key, "…")
        return readable_text(" ".join(text.split()))[:SHOWN]

    async def _in_its_words(self, server: _Server, request: Request) -> Reply:
        """Ask; where the endpoint says that it wants a request in other words, ask so, now and from now on.

        Raises:
            RecipeError: it takes no such temperature or top_p, and has answered nothing with it.

        """
        while True:
            wording = server.wording
            try:
                return await self._ask(server, request, wording)
            except RequestRefused as error:
                mended = wording.mended(str(error), request)
                if mended is None:
                    of_setting = None if server.key_taken else sampling_error(str(error), request, self._settings)
                    raise of_setting or error from None
                server.wording = server.wording.both(mended)

    async def _ask(self, server: _Server, request: Request, wording: Wording) -> Reply:
        import aiohttp
        import httpx2
        import openai

        body = request_body(self._settings, request, wording)
        try:
            # the client's timeout is for each read; this one is for the whole call
            async with asyncio.timeout(self._settings.timeout):
                response = await server.client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except (TimeoutError, openai.APIStatusError, openai.APIConnectionError, aiohttp.ClientError) as error:
            forbidden = isinstance(error, openai.APIStatusError) and error.status_code == 403
            taken = forbidden and (self._known() or await server.takes_key())
            raise self.told(error, server, key_taken=taken) from None
        except UnicodeEncodeError:
            raise RequestRefused("the messages hold half a surrogate pair, which is no text that can be sent") from None
        try:
            return reply_of(json.loads(response.content), most=request.max_tokens)
        except ValueError as error:  # a BadReply is one
            used = error.used if isinstance(error, BadReply) else None
            raise BadReply(
                f"{server.url} answered with what is no chat completion ({self.hide(str(error))})", used=used
            ) from None

    def told(self, error: Exception, server: _Server | None = None, *, key_taken: bool = False) -> Exception:
        """An error of the client in our words; of the first server, unless another is given."""
        import openai

        server = server or self._servers[0]
        if isinstance(error, openai.APIStatusError):
            return error_of_status(
                error.status_code, self.hide(said_by(error)), url=server.url, settings=self._settings,
                retry_after=retry_after(error.response.headers), key_sent=server.has_key, key_taken=key_taken,
            )  # fmt: skip
        if isinstance(error, TimeoutError) or _timed_out(error):
            return EndpointTimeout(
                f"{server.url} gave no answer within {self._settings.timeout:g} s; raise `timeout` if it is that slow"
            )
        return ConnectionLost(f"{server.url}: {self.hide(str(error.__cause__ or error))}")

    def _pick(self) -> _Server:
        now = asyncio.get_running_loop().time()
        there = [server for server in self._servers if server.out_until <= now]
        # with none left, the one that comes back first is as good as any
        return min(there, key=lambda s: s.in_flight) if there else min(self._servers, key=lambda s: s.out_until)

    def _note(self, server: _Server, error: EndpointError) -> None:
        if len(self._servers) == 1:
            return
        now = asyncio.get_running_loop().time()
        if isinstance(error, Throttled):
            if error.retry_after is not None:
                server.out_until = max(server.out_until, now + error.retry_after)
                if any(other.out_until <= now for other in self._servers):
                    error.retry_after = None  # the others need not wait for this one
        elif not isinstance(error, RequestRefused):
            server.failures += 1
            if server.failures >= FAILURES:
                server.failures = 0
                server.out_until = now + min(LONGEST_OUT, LEFT_OUT * 2**server.times_out)
                server.times_out += 1


def key_for(settings: EndpointSettings, url: str, environ: Mapping[str, str]) -> str:
    """The API key for a URL, or "" where none is set and none is needed.

    Raises:
        UserError: a key is needed and there is none, or it holds what no HTTP header can.

    """
    if settings.api_key_env == OPENAI_KEY and url.startswith("http://"):
        return ""  # it is of no use there, and anybody on the way could read it
    key = environ.get(settings.api_key_env, "").strip()
    if not key and (url == OPENAI_URL or settings.api_key_env != OPENAI_KEY):
        raise UserError(
            f"the environment variable {settings.api_key_env} is not set; {url} needs an API key in it for the model "
            f"{settings.model}"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the environment variable {settings.api_key_env} holds what is no API key: a line break, or a character that is "
            "not plain ASCII (curly quotation marks, say); put the bare key in it"
        )
    return key


def reply_of(completion: Any, *, most: int) -> Reply:
    """The reply in a chat completion. Where it does not say how it ended, all of the `most` tokens allowed is a cut.

    Raises:
        BadReply: it has no choice or no text, or ended in another way than by a stop, the token limit or a filter; with what
            it used up, where it says so.

    """
    usage = completion.get("usage") if isinstance(completion, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    prompt, said = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    used = None if said is None else (prompt or 0, said)
    try:
        choice = completion["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, refusal = _parts(message.get("content"), "text"), _parts(message.get("refusal"), "refusal")
        refusal = refusal or _parts(message.get("content"), "refusal")
    except (TypeError, LookupError, AttributeError):
        raise BadReply("it has no choices", used=used) from None
    finish = FINISH.get(str(reason or "").lower())
    if not reason and said is not None and said >= most:
        finish = "length"
    if refusal and not text:
        text, finish = refusal, "refusal"
    if text is None and finish in {"length", "filter"}:
        text = ""  # withheld, or cut while the model was still thinking
    if not isinstance(text, str):
        raise BadReply("its message has no text", used=used)
    if finish is None:  # an error on the server's side, a tool that it wants to call: half an answer, for all one knows
        raise BadReply(f"finish_reason is {str(reason)[:40]!r}: no stop, nor a cut by a limit or a filter", used=used)
    model = completion.get("model")
    return Reply(readable_text(text), finish, prompt, said, readable_text(model) if isinstance(model, str) else "")


def _parts(content: Any, kind: str) -> str | None:
    """A message's text (or refusal), which may come whole or as a list of parts; None where there is none."""
    if isinstance(content, list):
        found = [part.get(kind) for part in content if isinstance(part, dict) and part.get("type", kind) == kind]
        texts = [text for text in found if isinstance(text, str)]
        return "".join(texts) if texts else None
    return content if isinstance(content, str) else None


def error_of_status(
    status: int,
    message: str,
    *,
    url: str,
    settings: EndpointSettings,
    retry_after: float | None = None,
    key_sent: bool = True,
    key_taken: bool = False,
) -> EndpointError | KeyRefused:
    """The error for an HTTP status; `message` holds no key. A 403 is about the request where the key is known to be taken."""
    text = f"{url}: {message}"
    if status == 401 or (status == 403 and not key_taken):
        if not key_sent:
            return KeyRefused(
                f"{text} ({status}); no API key was sent: if the endpoint wants one, put it in an environment variable and "
                "name that in api_key_env"
            )
        return KeyRefused(  # some servers repeat the key in what they say, so none of it is repeated here
            f"{url} refused the API key ({status}); it was taken from the environment variable {settings.api_key_env}: "
            "check it there, or name another in api_key_env"
        )
    if status in {429, 503}:  # many servers say 503 where they have no room for one more request
        return Throttled(text, retry_after=retry_after)
    if status in {408, 504}:
        return EndpointTimeout(text)
    if status >= 500 or status in {409, 425}:
        return ServerError(text)
    return RequestRefused(text, of_all=status in OF_ALL)


def said_by(error: openai.APIStatusError) -> str:
    """What the endpoint says of an error. openai's client reads one format; of any other the whole body is told."""
    if error.message != f"Error code: {error.status_code}" or not error.body:
        return error.message
    body = error.body if isinstance(error.body, str) else json.dumps(error.body, ensure_ascii=False)
    return f"{error.message} - {body}"


def spellings(key: str) -> list[str]:
    """A key as it stands in plain text, JSON, URLs and HTML, the longest first."""
    found = {key, json.dumps(key)[1:-1], quote(key), quote(key, safe=""), quote_plus(key), html.escape(key)}
    return sorted(found, key=len, reverse=True)


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """The seconds to wait that a response names, in any of the ways in use."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now)
            except (ValueError, OverflowError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def readable_text(text: str) -> str:
    """The text, with half surrogate pairs (which JSON may hold and no file can) replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _timed_out(error: BaseException) -> bool:
    """Whether time ran out at the bottom of it: openai calls all that aiohttp meets before an answer a timeout."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, TimeoutError):
        cause = cause.__cause__
    return cause is not None


def _count(value: Any) -> int | None:
    """Tokens that an endpoint counted; None for what no call can have used."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None
