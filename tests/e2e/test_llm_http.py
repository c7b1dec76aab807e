"""The HTTP endpoint against a real loopback server: what comes back, what goes wrong, several URLs, batches, keys."""

from __future__ import annotations

import asyncio
import email.utils
import html
import json
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from anchorline.errors import (
    BadReply,
    BudgetReached,
    ConnectionLost,
    EndpointError,
    EndpointTimeout,
    KeyRefused,
    RecipeError,
    RequestRefused,
    ServerError,
    Throttled,
)
from anchorline.llm.batch import run_batch
from anchorline.llm.budget import Budget
from anchorline.llm.build import around, build
from anchorline.llm.cache import RequestCache
from anchorline.llm.fake_faults import FaultPlan
from anchorline.llm.fake_server import Answer, FakeServer
from anchorline.llm.keys import request_key
from anchorline.llm.openai_http import OpenAIEndpoint, reply_of
from anchorline.llm.pool import Pool
from anchorline.llm.settings import BudgetSettings, EndpointSettings, Prices
from anchorline.llm.types import Reply, Request
from anchorline.types import Message

pytestmark = pytest.mark.e2e
SECRET = "sk-very-secret-0123456789"


def ask(i: int = 0, **settings: Any) -> Request:
    return Request((Message("user", f"question {i}"),), **{"max_tokens": 50, **settings})


def settings_for(*servers: FakeServer, **settings: Any) -> EndpointSettings:
    urls = tuple(server.url for server in servers)
    return EndpointSettings(model="fake", base_url=urls if len(urls) > 1 else urls[0], **settings)


def against(server: FakeServer, use: Callable[[OpenAIEndpoint], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
    async def main() -> Any:
        async with server, OpenAIEndpoint(settings_for(server, **settings), environ={"MINE": SECRET}) as endpoint:
            return await use(endpoint)

    return asyncio.run(main())


def fails(server: FakeServer, **settings: Any) -> BaseException:
    async def use(endpoint: OpenAIEndpoint) -> BaseException:
        with pytest.raises(Exception) as caught:
            await endpoint.complete(ask())
        return caught.value

    return against(server, use, **settings)


class Saying(FakeServer):
    """A server that gives this answer to everything."""

    def __init__(self, status: int, content: Any, headers: str = "") -> None:
        super().__init__()
        self._answer = Answer(status, content if isinstance(content, bytes) else json.dumps(content).encode(), headers)

    async def _route(self, *_: Any) -> Answer:
        return self._answer


def test_a_reply() -> None:
    server = FakeServer(reply=lambda body: "one two three")

    async def use(endpoint: OpenAIEndpoint) -> None:
        assert await endpoint.complete(ask()) == Reply("one two three", "stop", 2, 3, "fake")
        assert await endpoint.complete(ask(max_tokens=2)) == Reply("one two", "length", 2, 2, "fake")
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        await endpoint.complete(ask(schema=schema, temperature=0.25, top_p=0.5))
        last = server.bodies[-1]
        assert last["response_format"]["json_schema"]["schema"] == schema
        assert (last["temperature"], last["top_p"], last["max_tokens"], last["top_k"]) == (0.25, 0.5, 50, 7)

    against(server, use, extra_body={"top_k": 7})


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        ("throttle", Throttled, "slow down"),
        ("throttle_silently", Throttled, "slow down"),
        ("error", ServerError, "bad day"),
        ("hang", EndpointTimeout, "no answer within 0.3 s"),
        ("drop", ConnectionLost, "127.0.0.1"),
        ("malformed", BadReply, "no chat completion"),
    ],
)
def test_faults_have_types(script: Any, error: type[Exception], says: str) -> None:
    found = fails(FakeServer(plan=FaultPlan(script=(script,))), timeout=0.3 if script == "hang" else 30)
    assert type(found) is error and says in str(found) and "\n" not in str(found)
    if isinstance(found, Throttled):
        assert found.retry_after == (0.2 if script == "throttle" else None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "no choices"),
        ({"choices": []}, "no choices"),
        ({"choices": [{}]}, "no choices"),
        ([], "no choices"),
        ("text", "no choices"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}, "no text"),
        ({"choices": [{"message": {"content": [1]}}]}, "no text"),
        (b"", "Expecting value"),
        (b"<html>busy</html>", "Expecting value"),
        (b'{"choices": [{"mess', "Unterminated"),
        (b"\xff\xfe\x00garbage", "127.0.0.1"),
    ],
    ids=str,
)
def test_what_is_no_chat_completion_is_a_bad_reply(content: Any, says: str) -> None:
    found = fails(Saying(200, content))
    assert isinstance(found, BadReply) and says in str(found)


def test_a_model_that_only_thought_was_cut() -> None:
    choice = {"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}
    said = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 50}}

    async def use(endpoint: OpenAIEndpoint) -> Reply:
        return await endpoint.complete(ask())

    assert against(Saying(200, said), use) == Reply("", "length", 3, 50)


@pytest.mark.parametrize("choices", [[{"message": {"content": None}, "finish_reason": "stop"}], [], None])
def test_a_bad_reply_says_what_it_used_up(choices: Any) -> None:
    found = fails(Saying(200, {"choices": choices, "usage": {"completion_tokens": 50}}))
    assert isinstance(found, BadReply) and found.used == (0, 50)


def test_a_limit_that_is_wanted_under_its_newer_name_is_sent_so() -> None:
    class Newer(FakeServer):
        refused = 0

        async def _chat(self, content: bytes) -> Answer:
            if "max_tokens" in json.loads(content):
                self.refused += 1
                said = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
                return Answer(400, json.dumps({"error": {"message": said}}).encode())
            return await super()._chat(content)

    server = Newer(reply=lambda body: "one two three", latency=0.01)

    async def use(endpoint: OpenAIEndpoint) -> None:
        replies = await asyncio.gather(*(endpoint.complete(ask(i, max_tokens=2)) for i in range(3)))
        assert {reply.finish for reply in replies} == {"length"} and server.refused == 3
        await asyncio.gather(*(endpoint.complete(ask(i)) for i in range(9)))
        assert server.refused == 3 and all("max_tokens" not in body for body in server.bodies)

    against(server, use)


class Choosy(FakeServer):
    """A model that takes no setting of sampling but these."""

    def __init__(self, says: str, *taken: str) -> None:
        super().__init__(latency=0.01)
        self._says, self._taken, self.refused = says, taken, 0

    async def _chat(self, content: bytes) -> Answer:
        return self._refusal(json.loads(content)) or await super()._chat(content)

    def _batch_line(self, body: Any) -> tuple[int, Any]:
        refusal = self._refusal(body)
        return (400, json.loads(refusal.content)) if refusal else super()._batch_line(body)

    def _refusal(self, body: Any) -> Answer | None:
        for name in ("temperature", "top_p"):
            if name in body and name not in self._taken:
                self.refused += 1
                return Answer(400, json.dumps({"error": {"message": self._says.format(name)}}).encode())
        return None


@pytest.mark.parametrize(
    ("says", "taken"),
    [
        ("Unsupported parameter: '{}' is not supported with this model.", ()),
        ("Unsupported value: '{}' does not support 1.0 with this model.", ()),
        ("invalid {}: only 0.6 is allowed for this model", ()),
        ("`temperature` and `top_p` cannot both be specified for this model. Please use only one.", ("temperature",)),
    ],
)
def test_a_setting_of_sampling_that_is_1_is_left_out_where_it_is_refused(says: str, taken: tuple[str, ...]) -> None:
    server = Choosy(says, *taken)
    temperature = 0.3 if taken else 1.0

    async def use(endpoint: OpenAIEndpoint) -> None:
        await endpoint.complete(ask(temperature=temperature))
        before = server.refused
        assert before <= 2
        await asyncio.gather(*(endpoint.complete(ask(i, temperature=temperature)) for i in range(9)))
        assert server.refused == before
        assert server.bodies[-1].get("temperature") == (0.3 if taken else None) and "top_p" not in server.bodies[-1]

    against(server, use)


def test_a_setting_of_sampling_that_is_refused_is_one_error_for_all() -> None:
    server = Choosy("Unsupported value: '{}' does not support 0.7 with this model. Only the default (1) is supported.")

    async def use(endpoint: OpenAIEndpoint) -> None:
        pool = Pool(endpoint, EndpointSettings(model="fake", max_concurrency=4))
        errors = await asyncio.gather(*(pool.complete(ask(i)) for i in range(50)), return_exceptions=True)
        assert {type(error) for error in errors} == {RecipeError} and server.refused <= 4
        said = str(errors[0])
        assert "does not take temperature 0.7" in said and "set the temperature of this model to" in said

    against(server, use)


def test_a_row_that_speaks_of_temperature_is_refused_alone() -> None:
    """Where the model has answered at this temperature, it is not the setting."""

    class Moderated(FakeServer):
        async def _chat(self, content: bytes) -> Answer:
            if b"question 5" in content:
                return Answer(400, b'{"error": {"message": "invalid input: question 5 about temperature"}}')
            return await super()._chat(content)

    async def use(endpoint: OpenAIEndpoint) -> None:
        await endpoint.complete(ask(1))
        with pytest.raises(RequestRefused):
            await endpoint.complete(ask(5))

    against(Moderated(), use)


def test_a_batch_whose_rows_are_all_refused_for_a_setting_says_which(tmp_path: Path) -> None:
    server = Choosy("Unsupported value: '{}' does not support 0.7 with this model.")
    with pytest.raises(RecipeError, match=r"does not take temperature 0\.7"):
        batch(tmp_path / "c", server, [ask(i) for i in range(3)])


def test_a_filtered_reply_is_marked() -> None:
    async def use(endpoint: OpenAIEndpoint) -> Reply:
        return await endpoint.complete(ask())

    for text in (None, "half an answer"):
        choice = {"message": {"content": text}, "finish_reason": "content_filter"}
        assert against(Saying(200, {"choices": [choice]}), use) == Reply(text or "", "filter")


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *(
            (reason, "stop")
            for reason in ("STOP", "COMPLETE", "eos", "eos_token", "end_turn", "stop_sequence", "", None)
        ),
        *((reason, "length") for reason in ("model_length", "MAX_TOKENS", "max_output_tokens", "token_limit")),
        ("CONTENT_FILTER", "filter"),
    ],
)
def test_every_server_has_its_own_words_for_the_end_of_a_reply(reason: str | None, finish: str) -> None:
    choice = {"message": {"content": "an answer"}, "finish_reason": reason}
    assert reply_of({"choices": [choice]}, most=9).finish == finish


@pytest.mark.parametrize("reason", [{}, {"finish_reason": None}, {"finish_reason": ""}, {"finish_reason": "stop"}])
@pytest.mark.parametrize("said", [8, 9, 10])
def test_a_reply_of_all_tokens_that_does_not_say_how_it_ended_was_cut(reason: Any, said: int) -> None:
    completion = {"choices": [{"message": {"content": "a"}} | reason], "usage": {"completion_tokens": said}}
    cut = said >= 9 and not reason.get("finish_reason")
    assert reply_of(completion, most=9).finish == ("length" if cut else "stop")


@pytest.mark.parametrize(
    ("message", "text", "finish"),
    [
        ({"content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}, "one two", "stop"),
        ({"content": [{"type": "thinking", "thinking": [1]}, {"type": "text", "text": "two"}]}, "two", "stop"),
        ({"content": [{"text": "untyped"}], "refusal": None}, "untyped", "stop"),
        ({"content": None, "refusal": "I cannot."}, "I cannot.", "refusal"),
        ({"content": "", "refusal": "I cannot."}, "I cannot.", "refusal"),
        ({"content": [{"type": "refusal", "refusal": "I cannot."}]}, "I cannot.", "refusal"),
        ({"content": "an answer", "refusal": ""}, "an answer", "stop"),
    ],
)
def test_parts_of_a_message_are_joined_and_a_refusal_is_one(message: Any, text: str, finish: str) -> None:
    reply = reply_of({"choices": [{"message": message, "finish_reason": "stop"}]}, most=9)
    assert (reply.text, reply.finish) == (text, finish)


@pytest.mark.parametrize(
    "content", [[], [{"type": "image_url", "image_url": {}}], [{"type": "text", "text": 1}], {}, 3]
)
def test_parts_without_text_are_a_bad_reply(content: Any) -> None:
    with pytest.raises(BadReply, match="no text"):
        reply_of({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}, most=9)


@pytest.mark.parametrize("count", [10**30, 2**63, -1, "12", 1.5, float("nan"), True, [1], None])
def test_a_count_of_tokens_that_cannot_be_is_none(count: Any, tmp_path: Path) -> None:
    """It would not fit the cache's file, or spend the whole budget."""
    usage = {"prompt_tokens": count, "completion_tokens": count}
    said = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "usage": usage, "model": "\ud800"}

    async def use(endpoint: OpenAIEndpoint) -> None:
        with RequestCache(tmp_path / "c") as cache:
            budget = Budget(BudgetSettings(max_tokens=1000))
            whole = around(endpoint, settings_for(server), cache=cache, run="r", budget=budget)
            assert await whole.complete(ask()) == Reply("fine", "stop", None, None, "?")
            assert 0 < cache.spent("r").tokens == budget.tokens < 50

    against(server := Saying(200, said), use)


@pytest.mark.parametrize("reason", ["error", "tool_calls", "abort", 3, ["stop"]])
def test_a_reply_that_ended_in_no_known_way_is_no_answer(reason: Any) -> None:
    choice = {"message": {"content": "half an ans"}, "finish_reason": reason}
    found = fails(Saying(200, {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}))
    assert isinstance(found, BadReply) and found.used == (3, 5) and f"finish_reason is {str(reason)!r}" in str(found)


def test_half_a_surrogate_pair_in_a_reply_is_replaced() -> None:
    async def use(endpoint: OpenAIEndpoint) -> Reply:
        return await endpoint.complete(ask())

    content = (
        b'{"choices": [{"message": {"content": "a\\ud800b"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": -1}}'
    )
    assert against(Saying(200, content), use) == Reply("a?b", "stop")


@pytest.mark.parametrize(
    ("status", "headers", "error", "wait"),
    [
        (400, "", RequestRefused, None),
        (404, "", RequestRefused, None),
        (422, "", RequestRefused, None),
        (408, "", EndpointTimeout, None),
        (409, "", ServerError, None),
        (500, "", ServerError, None),
        (503, "", Throttled, None),
        (503, "retry-after: 4\r\n", Throttled, 4.0),
        (504, "", EndpointTimeout, None),
        (429, "retry-after: 7\r\n", Throttled, 7.0),
        (429, "retry-after: 9\r\nretry-after-ms: 1500\r\n", Throttled, 1.5),
        (429, "retry-after: soon\r\n", Throttled, None),
        (429, "retry-after: nan\r\n", Throttled, None),
        (429, "retry-after: -5\r\n", Throttled, 0.0),
    ],
)
def test_statuses(status: int, headers: str, error: type[Exception], wait: float | None) -> None:
    found = fails(Saying(status, {"error": {"message": "so it is"}}, headers))
    assert type(found) is error and "so it is" in str(found)
    assert getattr(found, "retry_after", None) == wait


@pytest.mark.parametrize(
    "content",
    [
        {"error": {"message": "pinned to another model"}},
        {"error": "pinned to another model"},
        {"detail": "pinned to another model"},
        {"detail": [{"loc": ["body", "model"], "msg": "pinned to another model"}]},
        {"errors": [{"title": "pinned to another model"}]},
        {"object": "error", "message": "pinned to another model"},
        b"pinned to another model",
    ],
    ids=str,
)
def test_the_reason_is_told_in_whatever_format_it_comes(content: Any) -> None:
    found = fails(Saying(400, content))
    assert isinstance(found, RequestRefused) and "pinned to another model" in str(found)


@pytest.mark.parametrize("write", [str, json.dumps, quote, quote_plus, html.escape])
@pytest.mark.parametrize("wrap", ['{"detail": %s}', '{"errors": [%s]}', "<html>%s</html>"])
def test_a_key_that_is_repeated_in_another_spelling_is_hidden(write: Callable[[str], str], wrap: str) -> None:
    key = "sk-a/b+c&\"d'e=0123"
    text = write(key) if write is json.dumps or "html" in wrap else json.dumps(write(key))
    server = Saying(400, (wrap % text).encode())

    async def main() -> BaseException:
        async with server, OpenAIEndpoint(settings_for(server, api_key_env="MINE"), environ={"MINE": key}) as endpoint:
            with pytest.raises(RequestRefused) as caught:
                await endpoint.complete(ask())
            return caught.value

    said = str(asyncio.run(main()))
    assert "0123" not in said and "…" in said


def test_which_refusals_are_about_every_request() -> None:
    about_all = {status for status in range(400, 500) if getattr(fails(Saying(status, {})), "of_all", False)}
    assert about_all == {402, 404, 405, 410}


def test_retry_after_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    found = fails(Saying(429, {}, f"retry-after: {date}\r\n"))
    assert isinstance(found, Throttled) and found.retry_after is not None and 30 < found.retry_after <= 61


def test_nobody_listens() -> None:
    async def main() -> None:
        async with FakeServer() as server:
            settings = settings_for(server)
        async with OpenAIEndpoint(settings, environ={}) as endpoint:
            with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1"):
                await endpoint.complete(ask())

    asyncio.run(main())


@pytest.mark.parametrize("says", [b"", b"this is no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"])
def test_a_server_that_hangs_up_or_speaks_no_http_is_a_lost_connection(says: bytes) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(says)
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with server, OpenAIEndpoint(EndpointSettings(model="fake", base_url=url), environ={}) as endpoint:
            with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1"):
                await endpoint.complete(ask())

    asyncio.run(main())


def test_only_the_pool_bounds_the_calls() -> None:
    server = FakeServer(latency=1.0, slots=300)

    async def use(endpoint: OpenAIEndpoint) -> None:
        await asyncio.gather(*(endpoint.complete(ask(i)) for i in range(300)))
        assert len(server._connections) == 300

    against(server, use)


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
def test_a_key_that_the_server_repeats_is_in_no_message_and_no_log(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    found = fails(Saying(status, {"error": {"message": f"what is {SECRET}?"}}), api_key_env="MINE")
    assert isinstance(found, KeyRefused) == (status in {401, 403})
    chain: BaseException | None = found
    while chain is not None:
        assert SECRET not in str(chain) and SECRET not in repr(chain)
        chain = chain.__cause__
    assert SECRET not in caplog.text
    if isinstance(found, KeyRefused):
        assert "MINE" in str(found)


def test_the_key_is_sent_and_shown_nowhere() -> None:
    async def use(endpoint: OpenAIEndpoint) -> None:
        assert (await endpoint.complete(ask())).finish == "stop"
        assert SECRET not in repr(endpoint) and SECRET not in repr(vars(endpoint)["_settings"])

    against(FakeServer(key=SECRET), use, api_key_env="MINE")


def test_a_wrong_key_ends_the_run_after_the_calls_in_flight() -> None:
    async def main() -> None:
        async with FakeServer(key="another") as server:
            settings = settings_for(server, api_key_env="MINE", max_concurrency=4)
            async with build(settings, environ={"MINE": SECRET}) as endpoint:
                results = await asyncio.gather(*(endpoint.complete(ask(i)) for i in range(50)), return_exceptions=True)
            assert {type(r) for r in results} == {KeyRefused} and not server.bodies

    asyncio.run(main())


class Moderating(FakeServer):
    """A server that refuses some questions with 403, at once, while its answers take a while."""

    def __init__(self, *refused: int) -> None:
        super().__init__(latency=0.05)
        self._refused = {f"question {i}" for i in refused}

    async def _chat(self, content: bytes) -> Answer:
        if json.loads(content)["messages"][-1]["content"] in self._refused:
            return Answer(403, b'{"error": {"message": "flagged by moderation"}}')
        return await super()._chat(content)


@pytest.mark.parametrize("refused", [(0,), (25,), (0, 3, 7)])
def test_a_prompt_that_moderation_refuses_is_one_failed_row(tmp_path: Path, refused: tuple[int, ...]) -> None:
    async def main() -> None:
        for _ in range(2):  # the second time only the refused rows are asked
            server = Moderating(*refused)
            async with server:
                settings = settings_for(server, api_key_env="MINE")
                with RequestCache(tmp_path / "requests.sqlite") as cache:
                    built = build(settings, cache=cache, retry_failed=True, environ={"MINE": SECRET})
                    async with built as endpoint:
                        calls = (endpoint.complete(ask(i)) for i in range(30))
                        results = await asyncio.gather(*calls, return_exceptions=True)
            failed = {i: r for i, r in enumerate(results) if not isinstance(r, Reply)}
            assert set(failed) == set(refused) and {type(r) for r in failed.values()} == {RequestRefused}
            assert "flagged by moderation" in str(failed[refused[0]])

    asyncio.run(main())


def test_a_403_before_any_answer_is_about_the_key() -> None:
    async def main() -> None:
        server = Moderating(*range(50))
        async with server:
            settings = settings_for(server, api_key_env="MINE", max_concurrency=4)
            async with build(settings, environ={"MINE": SECRET}) as endpoint:
                results = await asyncio.gather(*(endpoint.complete(ask(i)) for i in range(50)), return_exceptions=True)
        assert {type(r) for r in results} == {KeyRefused} and "MINE" in str(results[0])

    asyncio.run(main())


@pytest.mark.parametrize("status", [401, 403])
def test_no_variable_is_named_where_no_key_was_sent(status: int) -> None:
    found = fails(Saying(status, {"error": {"message": "who are you?"}}))
    assert isinstance(found, KeyRefused) and "OPENAI_API_KEY" not in str(found)
    assert "who are you?" in str(found) and "no API key was sent" in str(found)


def test_the_load_is_shared_and_a_dead_server_is_left_out() -> None:
    async def main() -> None:
        async with FakeServer(latency=0.02) as one, FakeServer(latency=0.02) as two:
            async with FakeServer() as three:
                settings = settings_for(one, two, three, max_concurrency=16)
            async with build(settings, environ={}) as endpoint:  # the third is gone
                replies = await asyncio.gather(*(endpoint.complete(ask(i)) for i in range(120)))
            assert len(replies) == 120
            counts = [sum(server.answered.values()) for server in (one, two)]
            assert sum(counts) == 120 and min(counts) > 40

    asyncio.run(main())


def test_a_throttled_server_does_not_hold_the_others_back() -> None:
    async def main() -> None:
        async with FakeServer(plan=FaultPlan(throttle=1.0), retry_after=600) as busy, FakeServer() as idle:
            async with build(settings_for(busy, idle), environ={}) as endpoint:
                await asyncio.wait_for(asyncio.gather(*(endpoint.complete(ask(i)) for i in range(40))), 30)
            assert sum(idle.answered.values()) == 40

    asyncio.run(main())


@pytest.mark.parametrize("status", [429, 503])
def test_no_row_is_lost_to_a_server_that_turns_away_what_it_has_no_room_for(status: int) -> None:
    """Cap 2, no Retry-After: the pool shrinks to what the server takes."""

    class Busy(FakeServer):
        async def _chat(self, content: bytes) -> Answer:
            answer = await super()._chat(content)
            return answer._replace(status=status, headers="") if answer.status == 429 else answer

    async def main() -> None:
        async with Busy(most=2, latency=0.02) as server, OpenAIEndpoint(settings_for(server), environ={}) as endpoint:
            pool = Pool(endpoint, settings_for(server), backoff=0.05)
            results = await asyncio.gather(*(pool.complete(ask(i)) for i in range(60)), return_exceptions=True)
            assert {type(r) for r in results} == {Reply} and pool.slots.limit < 8

    asyncio.run(main())


def test_a_whole_endpoint_caches_counts_and_stops_at_its_budget(tmp_path: Path) -> None:
    price = Prices(input=1e6, output=1e6)

    async def main(most: float, rows: int) -> tuple[int, float, int]:
        async with FakeServer(reply=lambda body: "one two three") as server:
            settings = EndpointSettings(model="fake", base_url=server.url, prices=price)
            with RequestCache(tmp_path / "requests.sqlite") as cache:
                budget = Budget(BudgetSettings(max_usd=most), spent=cache.spent("r"))
                async with build(settings, cache=cache, run="r", budget=budget) as endpoint:
                    calls = (endpoint.complete(ask(i, stage="s")) for i in range(rows))
                    results = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(r) for r in results} <= {Reply, BudgetReached}
                assert cache.spent("r").usd <= most
                return sum(isinstance(r, Reply) for r in results), cache.spent("r").usd, len(server.bodies)

    # five dollars a row (two words asked, three said), at worst 62 (a guess of 12, and 50 said)
    assert asyncio.run(main(100, 30)) == (8, 40, 8)
    assert asyncio.run(main(100, 30)) == (8, 40, 0)
    assert asyncio.run(main(1000, 30)) == (30, 150, 22)


def test_a_connection_is_used_again_and_closed_at_the_end() -> None:
    async def main() -> None:
        async with FakeServer() as server:
            async with OpenAIEndpoint(settings_for(server, max_concurrency=4), environ={}) as endpoint:
                for i in range(20):
                    await endpoint.complete(ask(i))
                assert len(server._connections) == 1
            await asyncio.sleep(0.1)
            assert len(server._connections) == 0

    asyncio.run(main())


# batches


def batch(file: Path, server: FakeServer, requests: list[Request], **settings: Any) -> Any:
    async def main() -> Any:
        async with server:
            chosen = settings_for(server, prices=Prices(input=1e6, output=1e6))
            with RequestCache(file) as cache:
                async with OpenAIEndpoint(chosen, environ={}) as endpoint:
                    return await run_batch(endpoint, requests, cache, run="r", settings=chosen, poll=0.01, **settings)

    return asyncio.run(main())


def direct(file: Path, requests: list[Request]) -> list[Any]:
    async def main() -> list[Any]:
        async with FakeServer(plan=FaultPlan(error=1.0)) as server:  # nothing may be asked
            with RequestCache(file) as cache:
                async with build(settings_for(server), cache=cache, run="r", environ={}) as endpoint:
                    calls = (endpoint.complete(request) for request in requests)
                    results = await asyncio.gather(*calls, return_exceptions=True)
            assert not server.bodies
            return results

    return asyncio.run(main())


def test_a_batch_fills_the_cache_at_half_the_price(tmp_path: Path) -> None:
    requests = [ask(i, stage="s") for i in range(30)]
    plan = FaultPlan(error=0.2, truncate=0.2, seed=3)
    found = batch(tmp_path / "c", FakeServer(plan=plan), [*requests, requests[0]])
    assert found.answered + found.failed == 30 and found.failed > 1 and found.unanswered == found.hits == 0
    results = direct(tmp_path / "c", requests)
    assert sum(isinstance(r, ServerError) for r in results) == found.failed
    replies = [r for r in results if isinstance(r, Reply)]
    assert all(r.cached and "said: question" in (r.text + " said: question") for r in replies)
    assert {r.finish for r in replies} == {"stop", "length"}
    tokens = sum((r.prompt_tokens or 0) + (r.completion_tokens or 0) for r in replies)
    with RequestCache(tmp_path / "c") as cache:
        assert cache.spent("r").usd == tokens / 2


def test_a_batch_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    batch(tmp_path / "c", FakeServer(), [ask(i) for i in range(5)])
    server = FakeServer()
    found = batch(tmp_path / "c", server, [ask(i) for i in range(8)])
    assert (found.hits, found.answered) == (5, 3) and sum(server.answered.values()) == 3
    server = FakeServer()
    assert batch(tmp_path / "c", server, [ask(i) for i in range(8)]).batches == ()


@pytest.mark.parametrize("killed_at", ["uploaded", "made, but not noted", "waiting", "half collected"])
def test_a_batch_run_that_was_killed_goes_on(tmp_path: Path, killed_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is killed at each point between upload and result; the next one orders and pays nothing twice."""
    requests = [ask(i) for i in range(10)]
    server = FakeServer()

    class Killed(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> Any:
        raise Killed

    import anchorline.llm.batch as module

    async def run(cache: RequestCache) -> Any:
        chosen = settings_for(server)
        async with OpenAIEndpoint(chosen, environ={}) as endpoint:
            return await run_batch(endpoint, requests, cache, run="r", settings=chosen, poll=0.01)

    async def main() -> None:
        async with server:
            with RequestCache(tmp_path / "c") as cache, monkeypatch.context() as patch:
                if killed_at == "uploaded":
                    patch.setattr(module._Order, "_create", kill)
                elif killed_at == "made, but not noted":
                    patch.setattr(module._Order, "_note_id", kill)
                elif killed_at == "waiting":
                    patch.setattr(module._Order, "_collect", kill)
                else:
                    take, count = module._Order._take, iter(range(100))

                    async def some(self: Any, line: bytes, waiting: Any, **early: Any) -> None:
                        if next(count) == 4:
                            raise Killed
                        await take(self, line, waiting, **early)

                    patch.setattr(module._Order, "_take", some)
                with pytest.raises(Killed):
                    await run(cache)
            with RequestCache(tmp_path / "c") as cache:
                found = await run(cache)
                assert found.unanswered == 0
                assert cache.read("SELECT count(*) FROM requests") == [(10,)]
                assert cache.read("SELECT count(*), count(DISTINCT key) FROM payments") == [(10, 10)]
        assert set(server.answered.values()) == {1} and len(server._batches._batches) == 1

    asyncio.run(main())


class Changing(FakeServer):
    """A server whose answers at paths that end so are changed before they go out."""

    def __init__(self, end: str, change: Callable[[Answer], Answer]) -> None:
        super().__init__()
        self._end, self._change = end, change

    async def _route(self, method: str, path: str, *rest: Any, **named: Any) -> Answer:
        answer = await super()._route(method, path, *rest, **named)
        return self._change(answer) if f"{method} {path}".endswith(self._end) else answer


def line_instead(request: Request, line: bytes) -> Changing:
    """A server whose batches hold this line for a request."""
    key = request_key("fake", request).encode()

    def change(answer: Answer) -> Answer:
        return Answer(200, b"\n".join(line if key in row else row for row in answer.content.split(b"\n")))

    return Changing("-out/content", change)


@pytest.mark.parametrize("line", [b"", b'{"custom_id": ', b'"text"', b'{"custom_id": ["key"]}'])
def test_a_line_of_a_batch_that_cannot_be_read_is_ordered_a_few_times_and_fails(tmp_path: Path, line: bytes) -> None:
    requests = [ask(i) for i in range(5)]
    server = line_instead(requests[2], line)
    found = batch(tmp_path / "c", server, requests)
    assert (found.answered, found.failed, found.unanswered) == (4, 1, 0)
    tries = settings_for(server).attempts
    assert len(found.batches) == tries and sorted(server.answered.values()) == [1, 1, 1, 1, tries]
    outcomes = direct(tmp_path / "c", requests)
    assert isinstance(outcomes[2], BadReply) and sum(isinstance(outcome, Reply) for outcome in outcomes) == 4
    assert batch(tmp_path / "c", FakeServer(), requests).batches == (), "what failed stays failed"
    assert batch(tmp_path / "c", FakeServer(), requests, retry_failed=True).answered == 1


def test_what_an_unreadable_reply_of_a_batch_used_is_paid(tmp_path: Path) -> None:
    requests = [ask(0)]
    body = {"choices": [{"message": {"content": None}}], "usage": {"prompt_tokens": 30, "completion_tokens": 10}}
    line = {"custom_id": request_key("fake", requests[0]), "response": {"status_code": 200, "body": body}}
    server = line_instead(requests[0], json.dumps(line).encode())
    budget = Budget(BudgetSettings(max_usd=1000))
    assert batch(tmp_path / "c", server, requests, budget=budget).failed == 1
    with RequestCache(tmp_path / "c") as cache:
        assert cache.spent("r").tokens == budget.tokens == 40 and cache.spent("r").usd == budget.usd == 20


@pytest.mark.parametrize("fault", [{}, {"error": 1.0}])
def test_a_batch_leaves_what_was_answered_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, float]
) -> None:
    """A process is killed while it waits for its batch, its user asks directly, and the batch is collected after that."""
    import anchorline.llm.batch as module

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    async def main() -> None:
        async with FakeServer(reply=lambda body: "by batch", plan=FaultPlan(**fault)) as server:
            chosen = settings_for(server)
            with RequestCache(tmp_path / "c") as cache:
                async with OpenAIEndpoint(chosen, environ={}) as endpoint:
                    with monkeypatch.context() as patch:
                        patch.setattr(module._Order, "_collect", killed)
                        with pytest.raises(KeyboardInterrupt):
                            await run_batch(endpoint, [ask(0)], cache, run="r", settings=chosen, poll=0.01)
                    async with (
                        FakeServer(reply=lambda body: "directly") as other,
                        build(settings_for(other), cache=cache, run="r", environ={}) as direct,
                    ):
                        await direct.complete(ask(0))
                    await run_batch(endpoint, [ask(0)], cache, run="r", settings=chosen, poll=0.01)
                stored = cache.get(request_key("fake", ask(0)))
                assert stored is not None and (stored.text, stored.error) == ("directly", None)
                paid = cache.read("SELECT count(*) FROM payments")[0][0]
                assert paid == (1 if fault else 2), "both replies were made, and both are paid for"

    asyncio.run(main())


def test_two_runs_whose_batches_hold_the_same_request_each_take_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are paid for, also where the other run's order came between a batch and its collection."""
    import anchorline.llm.batch as module

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    async def main() -> None:
        async with FakeServer() as server:
            chosen = settings_for(server)
            with RequestCache(tmp_path / "c") as cache:
                async with OpenAIEndpoint(chosen, environ={}) as endpoint:

                    async def run(name: str) -> Any:
                        return await run_batch(endpoint, [ask(0)], cache, run=name, settings=chosen, poll=0.01)

                    with monkeypatch.context() as patch:
                        patch.setattr(module._Order, "_collect", killed)
                        for name in ("first", "second"):
                            with pytest.raises(KeyboardInterrupt):
                                await run(name)
                    for name in ("first", "second"):
                        found = await run(name)
                        assert (found.answered, found.unanswered, len(found.batches)) == (1, 0, 1)
                        assert cache.spent(name).tokens > 0
                assert cache.read("SELECT count(*) FROM waiting") == [(0,)]
            assert len(server._batches._batches) == 2

    asyncio.run(main())


def test_an_unreadable_reply_of_a_batch_is_paid_once_though_the_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anchorline.llm.batch as module

    body = {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 10}}
    line = {"custom_id": request_key("fake", ask(0)), "response": {"status_code": 200, "body": body}}
    server = line_instead(ask(0), json.dumps(line).encode())
    take = module._Order._take

    async def take_and_die(self: Any, line: bytes, waiting: Any, **early: Any) -> None:
        await take(self, line, waiting, **early)
        raise KeyboardInterrupt

    async def main() -> None:
        async with server:
            chosen = settings_for(server)
            with RequestCache(tmp_path / "c") as cache:
                async with OpenAIEndpoint(chosen, environ={}) as endpoint:
                    await run_batch(endpoint, [ask(0)], cache, run="r", settings=chosen, poll=0.01)

        assert len(server._batches._batches) == 1

    with monkeypatch.context() as patch:
        patch.setattr(module._Order, "_take", take_and_die)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
    asyncio.run(main())
    with RequestCache(tmp_path / "c") as cache:
        assert cache.spent("r").tokens == 40


@pytest.mark.parametrize("status", [401, 403])
def test_a_row_of_a_batch_that_was_refused_is_a_failed_row(tmp_path: Path, status: int) -> None:
    requests = [ask(i) for i in range(3)]
    response = {"status_code": status, "body": {"error": {"message": "not for you"}}}
    refused = {"custom_id": request_key("fake", requests[1]), "response": response}
    found = batch(tmp_path / "c", line_instead(requests[1], json.dumps(refused).encode()), requests)
    assert (found.answered, found.failed) == (2, 1)
    outcome = direct(tmp_path / "c", requests)[1]
    assert isinstance(outcome, RequestRefused) and f"not for you ({status})" in str(outcome)


PLACES = ["POST /v1/files", "POST /v1/batches", "GET /v1/batches/", "-out/content"]


@pytest.mark.parametrize(
    "trouble", [Answer(429, b"{}"), Answer(500, b"{}"), Answer(503, b"{}"), Answer(200, b"{}" * 9, "", True)]
)
@pytest.mark.parametrize("place", PLACES)
def test_a_hiccup_on_the_way_of_a_batch_is_passed_over(tmp_path: Path, place: str, trouble: Answer) -> None:
    class Stumbling(FakeServer):
        times = 0

        async def _route(self, method: str, path: str, *rest: Any, **named: Any) -> Answer:
            answer = await super()._route(
                method, path, *rest, **named
            )  # a batch is made, but the client does not hear of it
            if place not in f"{method} {path}" or self.times == self.most_times:
                return answer
            self.times += 1
            return trouble

        most_times = 2

    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    server = Stumbling()
    found = batch(tmp_path / "c", server, [ask(i) for i in range(3)], sleep=sleep)
    made = place == "POST /v1/batches"  # it is found in the list instead
    assert (found.answered, found.failed, server.times) == (3, 0, 1 if made else 2)
    assert len(server._batches._batches) == 1 and set(server.answered.values()) == {1}
    if made:
        return
    server = Stumbling()
    server.most_times = 100
    with pytest.raises(EndpointError):
        batch(tmp_path / "d", server, [ask()], sleep=sleep)
    assert server.times == settings_for(server).attempts and max(waits) <= 60


def test_a_batch_that_failed_says_why(tmp_path: Path) -> None:
    errors = {"object": "list", "data": [{"code": "invalid", "message": "line 1: bad model", "line": 1}]}

    class Refusing(FakeServer):
        async def _route(self, method: str, path: str, *rest: Any, **named: Any) -> Answer:
            answer = await super()._route(method, path, *rest, **named)
            if not path.startswith("/v1/batches/"):
                return answer
            ended = {"status": "failed", "errors": errors, "output_file_id": None}
            return Answer(200, json.dumps(json.loads(answer.content) | ended).encode())

    found = batch(tmp_path / "c", Refusing(), [ask(0)])
    assert (found.unanswered, found.said) == (1, ("failed: line 1: bad model",)) and len(found.batches) == 1


def test_what_an_expired_batch_leaves_unanswered_is_asked_again(tmp_path: Path) -> None:
    requests = [ask(i) for i in range(5)]
    server = FakeServer(batch_lines=3)
    found = batch(tmp_path / "c", server, requests)
    assert (found.answered, found.failed, found.unanswered, found.said) == (3, 0, 2, ("expired",))
    with RequestCache(tmp_path / "c") as cache:
        assert cache.read("SELECT count(*), count(error) FROM requests") == [(3, 0)]
    found = batch(tmp_path / "c", server, requests)
    assert (found.hits, found.answered, found.unanswered) == (3, 2, 0)
    assert set(server.answered.values()) == {1}


@pytest.mark.parametrize("gone", ["file", "batch", "output", "refused file"])
def test_what_waits_for_a_batch_that_is_gone_is_ordered_anew(
    tmp_path: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ask(i) for i in range(3)]

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"anchorline.llm.batch._Order.{'_create' if 'file' in gone else '_collect'}", killed)
        server = FakeServer()
        batch(tmp_path / "c", server, requests)

    class Forgetful(FakeServer):
        refused = 0

        async def _route(self, method: str, path: str, *rest: Any, **named: Any) -> Answer:
            first = not self.refused
            if gone == "output" and first and path.endswith("/content"):
                self.refused = 404
            if gone == "refused file" and first and (method, path) == ("POST", "/v1/batches"):
                self.refused = 400
            if first and self.refused:
                return Answer(self.refused, b'{"error": {"message": "no such file"}}')
            return await super()._route(method, path, *rest, **named)

    other = Forgetful()
    if gone == "output":
        other._batches = server._batches
    found = batch(tmp_path / "c", other, requests)
    assert (found.answered, found.failed, found.unanswered) == (3, 0, 3)
    (said,) = found.said
    assert said.startswith("the endpoint does not know a batch of 3 requests any more: http://127.0.0.1:")
    assert batch(tmp_path / "c", other, requests) == ((), 3, 0, 0, 0, ())


def test_a_server_without_a_list_of_batches_knows_of_none_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong URL, say: with the right one again the batch is collected, and nothing is ordered twice."""
    server = FakeServer()

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("anchorline.llm.batch._Order._collect", killed)
        batch(tmp_path / "c", server, [ask()])
    with pytest.raises(RequestRefused):
        batch(tmp_path / "c", Changing("", lambda _: Answer(404, b"{}")), [ask()])
    assert batch(tmp_path / "c", server, [ask()]).hits == 1
    assert set(server.answered.values()) == {1} and len(server._batches._batches) == 1


def test_a_batch_stays_in_its_budget(tmp_path: Path) -> None:
    requests = [ask(i) for i in range(40)]
    budget = Budget(BudgetSettings(max_usd=200))  # 31 a request at worst (half of 62), about 4 in truth
    server = FakeServer()
    found = batch(tmp_path / "c", server, requests, budget=budget)
    assert found.answered == 40 and budget.usd <= 200
    assert len(found.batches) > 2  # several files, each as large as its worst case allows
    with pytest.raises(BudgetReached, match="max_usd is 10"):
        batch(tmp_path / "d", FakeServer(), requests, budget=Budget(BudgetSettings(max_usd=10)))
