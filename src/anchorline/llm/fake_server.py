"""A chat endpoint on loopback over real HTTP, for tests and benchmarks: fixed latency, so many slots, faults by plan.

It speaks `/v1/chat/completions`, `/v1/models`, `/v1/files` and `/v1/batches`. Requests beyond the slots wait in line.
Every answered request is logged as one line of JSON (`key`: a hash of its body), before the answer is sent.

    python -m anchorline.llm.fake_server --port 0 --latency 0.2 --slots 64 --error 0.05 --log answered.jsonl

prints the port that it listens on. In a test:

>>> async def example():
...     async with FakeServer(reply=lambda body: "fine") as server:
...         return server.url
>>> asyncio.run(example())  # doctest: +SKIP
'http://127.0.0.1:40321/v1'
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import heapq
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from anchorline.llm.fake_batches import FakeBatches
from anchorline.llm.fake_faults import FAULTS, Fault, FaultPlan

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests", 500: "Error"}
MAX_BODY = 256 << 20

Body = dict[str, Any]


class Answer(NamedTuple):
    """What goes back: a status, a body, further headers, and whether the connection breaks in the middle of it."""

    status: int
    content: bytes
    headers: str = ""
    breaks: bool = False


class Arrival(NamedTuple):
    """A chat request as it came: when (by the clock `time.monotonic`), with how many open, and whether it was turned away."""

    at: float
    open: int
    turned_away: bool


class FakeServer:
    """See the module. Enter it to listen; `url` is the base URL. `key` is the only API key that it takes; "" takes any.

    A batch of more than `batch_lines` lines expires after so many.
    """

    def __init__(
        self,
        *,
        reply: Callable[[Body], str] | None = None,
        plan: FaultPlan | None = None,
        latency: float = 0.0,
        slots: int = 1024,
        most: int | None = None,
        retry_after: float = 0.2,
        hang: float = 3600.0,
        batch_lines: int | None = None,
        log: str | Path | None = None,
        port: int = 0,
        key: str = "",
    ) -> None:
        self._reply, self._plan = reply or echo, plan or FaultPlan()
        self._latency, self._retry_after, self._hang = latency, retry_after, hang
        self._most, self._open = most, 0
        """Requests that may be open at the same time (more are turned away with 429), and those that are."""
        self.arrivals: deque[Arrival] = deque(maxlen=10_000)
        """The last chat requests that came, whatever became of them."""
        self._free_at = [0.0] * slots
        """A heap: when each slot has finished what was given to it."""
        self._log = Path(log).open("a", encoding="utf-8") if log else None  # noqa: SIM115  (closed on exit)
        self._port, self._key = port, key
        self._seen: Counter[str] = Counter()
        self._connections: set[asyncio.Task[None]] = set()
        self._batches = FakeBatches(self._batch_line, lines=batch_lines)
        self.answered: Counter[str] = Counter()
        """How often each body (by its key) was answered."""
        self.bodies: deque[Body] = deque(maxlen=1000)
        """The last requests' bodies."""
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self._port, limit=1 << 20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        if self._log:
            self._log.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client went away
        except asyncio.CancelledError:
            pass  # the server closes
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; false where the connection ends with it."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length") or 0)
        if size > MAX_BODY:
            return False
        content = await reader.readexactly(size) if size else b""
        answer = await self._route(method, target.partition("?")[0], headers, content)
        start = (
            f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Other')}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(answer.content)}\r\n{answer.headers}\r\n"
        )
        whole = start.encode() + answer.content
        writer.write(whole[: len(start) + len(answer.content) // 2] if answer.breaks else whole)
        await writer.drain()
        return not answer.breaks and headers.get("connection", "").lower() != "close"

    async def _route(self, method: str, path: str, headers: dict[str, str], content: bytes) -> Answer:
        if self._key and headers.get("authorization") != f"Bearer {self._key}":
            # like some real servers, it repeats what it was given
            return _error(401, f"Incorrect API key provided: {headers.get('authorization', 'none')}")
        if (method, path) == ("POST", "/v1/chat/completions"):
            self._open += 1
            try:
                return await self._chat(content)
            finally:
                self._open -= 1
        if (method, path) == ("GET", "/v1/models"):
            return Answer(200, _json({"object": "list", "data": [{"id": "fake", "object": "model"}]}))
        found = self._batches.route(method, path, headers, content)
        return Answer(200, found) if found is not None else _error(404, f"nothing is at {method} {path}")

    async def _chat(self, content: bytes) -> Answer:
        try:
            body = json.loads(content)
            key = body_key(body)
            messages = body["messages"]
            assert isinstance(messages, list) and messages
        except (ValueError, KeyError, TypeError, AssertionError):
            return _error(400, "the body is no chat request: JSON with model and messages was expected")
        fault = self._plan.fault(key, repetition=self._seen[key])
        self._seen[key] += 1
        self.bodies.append(body)
        if self._most is not None and self._open > self._most:
            fault = "throttle"
        self.arrivals.append(Arrival(time.monotonic(), self._open, fault in {"throttle", "throttle_silently"}))
        if fault in {"throttle", "throttle_silently"}:
            wait = f"retry-after: {self._retry_after:g}\r\n" if fault == "throttle" else ""
            return Answer(429, _json({"error": {"message": "slow down"}}), wait)
        if fault == "hang":
            await asyncio.sleep(self._hang)
        if fault == "error":
            return _error(500, "this server is having a bad day")
        if self._latency:
            await asyncio.sleep(self._turn())
        completion = self._completion(body, cut=fault == "truncate")
        if fault == "malformed":
            return Answer(200, completion[: len(completion) * 2 // 3])
        if fault == "drop":
            return Answer(200, completion, breaks=True)
        self._note(key, body, fault)
        return Answer(200, completion)

    def _turn(self) -> float:
        """Take the slot that is free first. Gives the seconds until it is done.

        Slots go by the clock, so that what this process does besides takes nothing from what they could do.
        """
        now = time.monotonic()
        done = max(now, self._free_at[0]) + self._latency
        heapq.heapreplace(self._free_at, done)
        return done - now

    def _completion(self, body: Body, *, cut: bool = False) -> bytes:
        words = self._reply(body).split(" ")
        most = body.get("max_tokens") or body.get("max_completion_tokens") or len(words)
        most = min(most, max(1, len(words) // 2)) if cut else most
        text = " ".join(words[:most])
        asked = sum(len(str(m.get("content") or "").split()) for m in body["messages"])
        replied = min(len(words), most)
        return _json(
            {
                "id": "chatcmpl-fake",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body.get("model", "fake"),
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": text},
                        "finish_reason": "length" if cut or len(words) > most else "stop",
                    }
                ],
                "usage": {"prompt_tokens": asked, "completion_tokens": replied, "total_tokens": asked + replied},
            }
        )

    def _batch_line(self, body: Body) -> tuple[int, Any]:
        """Status and body of one line of a batch; a planned error stays one."""
        key = body_key(body)
        fault = self._plan.fault(key, repetition=self._seen[key])
        self._seen[key] += 1
        if fault == "error":
            return 500, {"error": {"message": "this server is having a bad day"}}
        self._note(key, body, fault)
        return 200, json.loads(self._completion(body, cut=fault == "truncate"))

    def _note(self, key: str, body: Body, fault: Fault | None) -> None:
        self.answered[key] += 1
        if self._log:
            last = str(body["messages"][-1].get("content") or "")[:200]
            line = {"key": key, "at": time.time(), "fault": fault, "last": last}
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()


def echo(body: Body) -> str:
    """The reply where none was given."""
    return f"You said: {body['messages'][-1].get('content')}"


def body_key(body: Body) -> str:
    """16 hex digits for a request's body."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _error(status: int, message: str) -> Answer:
    return Answer(status, _json({"error": {"message": message, "type": "fake", "code": None, "param": None}}))


async def _serve(arguments: argparse.Namespace) -> None:
    template = Path(arguments.reply_file).read_text(encoding="utf-8") if arguments.reply_file else None

    def filled(body: Body) -> str:
        return str(template).replace("{last}", str(body["messages"][-1].get("content")))

    shares = {name: share for name, share in vars(arguments).items() if name in FAULTS}
    server = FakeServer(
        reply=filled if template is not None else None,
        plan=FaultPlan(seed=arguments.seed, **shares),
        latency=arguments.latency,
        slots=arguments.slots,
        most=arguments.most,
        retry_after=arguments.retry_after,
        log=arguments.log,
        port=arguments.port,
        key=os.environ.get(arguments.key_env, "") if arguments.key_env else "",
    )
    async with server:
        sys.stdout.write(f"{server.url.removesuffix('/v1').rpartition(':')[2]}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main() -> None:
    """Run until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m anchorline.llm.fake_server", description=FakeServer.__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one; it is printed")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that an answer takes")
    parser.add_argument("--slots", type=int, default=1024, help="answers at the same time; more wait in line")
    parser.add_argument("--most", type=int, help="requests open at the same time; more are turned away with 429")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--retry-after", type=float, default=0.2, help="seconds that a throttled request is told")
    parser.add_argument("--log", help="a file for one line of JSON for each answered request")
    parser.add_argument("--reply-file", help="a text file with the reply; {last} is the last message")
    parser.add_argument("--key-env", help="the variable with the only API key that is taken")
    for name in FAULTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=0.0, help="share of requests")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
