"""The request cache: nothing is asked twice, what changes the answer is in the key, and files that are not ours are refused."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.errors import (
    BadReply,
    BudgetReached,
    CacheError,
    CircuitOpen,
    ConnectionLost,
    DataError,
    EndpointError,
    EndpointTimeout,
    KeyRefused,
    RequestRefused,
    ServerError,
    Throttled,
)
from anchorline.llm.budget import Amount, Budget, Metered
from anchorline.llm.cache import CachedEndpoint, RequestCache, make_record
from anchorline.llm.costs import Bill
from anchorline.llm.explain import explain
from anchorline.llm.fake import FakeEndpoint, Slow, broken, throttled, timed_out, truncated
from anchorline.llm.guess import used_tokens
from anchorline.llm.keys import messages_json, read_messages, request_key
from anchorline.llm.pool import Pool
from anchorline.llm.settings import BudgetSettings, EndpointSettings, Prices
from anchorline.llm.store import Payment, Record
from anchorline.llm.types import Reply, Request
from anchorline.llm.upkeep import price_later, prune, stats
from anchorline.pairs.make import make
from anchorline.recipe.desk import costs
from anchorline.types import Answer, Message, Prompt

HELLO = Request((Message("system", "Be kind."), Message("user", "Hello there")), max_tokens=100)


def ask(file: Path, fake: Any, *requests: Request, **settings: Any) -> list[Any]:
    """What the requests come to, one after the other, in a run of its own."""

    async def main(endpoint: CachedEndpoint) -> list[Any]:
        results: list[Any] = []
        for request in requests:
            try:
                results.append(await endpoint.complete(request))
            except EndpointError as error:
                results.append(error)
        return results

    with RequestCache(file) as cache:
        return asyncio.run(main(CachedEndpoint(fake, cache, **{"run": "r1", **settings})))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "requests.sqlite"


def test_an_answer_is_not_asked_again_also_by_another_process(file: Path) -> None:
    fake = FakeEndpoint("fine")
    first, second = ask(file, fake, HELLO, HELLO)
    (third,) = ask(file, fake, HELLO, run="another")
    assert len(fake.asked) == 1
    assert (first.cached, second.cached, third.cached) == (False, True, True)
    assert replace(third, cached=False) == first == Reply("fine", "stop", 4, 1, "fake")


@pytest.mark.parametrize(
    "change",
    [
        {"messages": HELLO.messages[1:]},
        {"messages": (Message("user", "Be kind."), HELLO.messages[1])},
        {"temperature": 0.71},
        {"top_p": 0.9},
        {"index": 1},
        {"schema": {"type": "object"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_answer_is_asked(file: Path, change: dict[str, Any]) -> None:
    fake = FakeEndpoint("fine")
    ask(file, fake, HELLO, replace(HELLO, **change))
    assert len(fake.asked) == 2


def test_model_and_extra_body_change_the_answer(file: Path) -> None:
    fake, other = FakeEndpoint("fine"), FakeEndpoint("fine", model="other")
    ask(file, fake, HELLO)
    ask(file, other, HELLO)
    ask(file, fake, HELLO, extra_body={"top_k": 5})
    ask(file, fake, HELLO, extra_body={"top_k": 5})
    assert (len(fake.asked), len(other.asked)) == (2, 1)


def test_row_stage_and_number_type_do_not(file: Path) -> None:
    fake = FakeEndpoint("fine")
    cold = replace(HELLO, temperature=1.0, schema={"a": 1, "b": 2})
    ask(file, fake, cold, replace(cold, row="7", stage="judge", temperature=1, schema={"b": 2, "a": 1}))
    assert len(fake.asked) == 1


def test_raising_max_tokens_asks_again_only_what_was_cut(file: Path) -> None:
    long, short = HELLO, replace(HELLO, index=1)
    fake = FakeEndpoint(lambda r: "one two three" if r.index else "word " * 150)
    cut, whole = ask(file, fake, long, short)
    assert (cut.finish, whole.finish) == ("length", "stop")
    again = ask(file, fake, *(replace(r, max_tokens=200) for r in (long, short)))
    assert [r.finish for r in again] == ["stop", "stop"] and [r.cached for r in again] == [False, True]
    assert len(fake.asked) == 3
    # the same again, and lower, costs nothing; what is there stays as it is
    for most in (200, 100, 1):
        lower = ask(file, fake, *(replace(r, max_tokens=most) for r in (long, short)))
        assert [r.text for r in lower] == [r.text for r in again]
    assert len(fake.asked) == 3


def test_a_cut_reply_is_a_hit_up_to_its_own_limit(file: Path) -> None:
    fake = FakeEndpoint([truncated("one two"), "three"])
    for most, asked in ((100, 1), (100, 1), (50, 1), (101, 2)):
        ask(file, fake, replace(HELLO, max_tokens=most))
        assert len(fake.asked) == asked


FAILURES = [
    Throttled("slow down", retry_after=3.5),
    Throttled("slow down"),
    ServerError("500"),
    EndpointTimeout("too slow"),
    ConnectionLost("gone"),
    BadReply("noise"),
    RequestRefused("too long"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda e: e.kind)
def test_a_failure_stays_until_it_is_to_be_tried_again(file: Path, failure: EndpointError) -> None:
    fake = FakeEndpoint([failure, "fine"])
    (first,) = ask(file, fake, HELLO)
    (second,) = ask(file, fake, HELLO, run="another")
    assert len(fake.asked) == 1
    assert type(second) is type(first) is type(failure) and str(second) == str(failure)
    assert second.kind == failure.kind and getattr(second, "retry_after", 0) == getattr(failure, "retry_after", 0)
    (third,) = ask(file, fake, HELLO, retry_failed=True)
    assert third.text == "fine" and len(fake.asked) == 2
    ask(file, fake, HELLO, retry_failed=True)
    assert len(fake.asked) == 2


@pytest.mark.parametrize("end", [KeyRefused("no"), BudgetReached("no"), CircuitOpen("no"), RuntimeError("a bug")])
def test_what_ends_the_run_is_not_kept(file: Path, end: Exception) -> None:
    fake = FakeEndpoint([end, "fine"])
    with pytest.raises(type(end)):
        ask(file, fake, HELLO)
    assert ask(file, fake, HELLO)[0].text == "fine"


def test_the_same_at_once_is_asked_once(file: Path) -> None:
    fake = FakeEndpoint(lambda r: throttled() if r.index else Slow(0.01, "fine"))

    async def main(endpoint: CachedEndpoint) -> None:
        replies = await asyncio.gather(*(endpoint.complete(HELLO) for _ in range(50)))
        assert sum(r.cached for r in replies) == 49 and {r.text for r in replies} == {"fine"}
        failed = [endpoint.complete(replace(HELLO, index=1)) for _ in range(5)]
        assert {type(r) for r in await asyncio.gather(*failed, return_exceptions=True)} == {Throttled}

    with RequestCache(file) as cache:
        asyncio.run(main(CachedEndpoint(fake, cache, run="r")))
    assert len(fake.asked) == 2


@pytest.mark.parametrize("price", [Prices(input=1.0, output=1.0), None])
def test_the_bill_is_the_same_however_the_replies_came(file: Path, price: Prices | None) -> None:
    """Asked, shared in flight, all from the cache, or half and half: each reply that is used counts once; errors do not."""
    script = {"0": "one", "1": throttled(), "2": "one two", "3": truncated("one two three")}
    fake = FakeEndpoint(lambda request: script[str(request.index)])
    requests = [replace(HELLO, index=i) for i in (0, 0, 1, 2, 2, 2, 1, 3)]

    def bill(requests: list[Request], path: Path) -> Bill:
        async def main() -> None:
            await asyncio.gather(*(endpoint.complete(request) for request in requests), return_exceptions=True)

        with RequestCache(path) as cache:
            endpoint = CachedEndpoint(fake, cache, run="r", bill=(used := Bill()), price=price)
            asyncio.run(main())
            return used

    whole = bill(requests, file)
    paid = sum(used_tokens(request, reply)[0] + used_tokens(request, reply)[1] for request, reply in fake.answered)
    assert (len(whole.replies), whole.tokens) == (3, paid)
    assert whole.usd == (pytest.approx(paid / 1e6) if price else None)
    assert bill(requests, file) == whole  # all from the cache
    half = file.with_name("half.sqlite")
    bill(requests[:4], half)
    assert bill(requests, half) == whole


def test_when_the_first_of_the_same_is_told_to_stop_another_asks(file: Path) -> None:
    fake = FakeEndpoint([Slow(5, "late"), "fine"])

    async def main(endpoint: CachedEndpoint) -> None:
        tasks = [asyncio.create_task(endpoint.complete(HELLO)) for _ in range(3)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        first, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, asyncio.CancelledError)
        assert [r.text for r in others] == ["fine", "fine"]

    with RequestCache(file) as cache:
        asyncio.run(main(CachedEndpoint(fake, cache, run="r")))
    assert len(fake.asked) == 2


def test_a_reply_is_on_disk_before_it_is_given_out(file: Path) -> None:
    async def main(endpoint: CachedEndpoint) -> None:
        async def one(i: int) -> None:
            await endpoint.complete(replace(HELLO, index=i))
            with sqlite3.connect(file) as other:  # as another process sees it
                assert other.execute(
                    "SELECT count(*) FROM requests WHERE settings LIKE ?", (f'%"index":{i},%',)
                ).fetchone()[0]
            other.close()

        await asyncio.gather(*(one(i) for i in range(40)))

    with RequestCache(file) as cache:
        asyncio.run(main(CachedEndpoint(FakeEndpoint("fine"), cache, run="r")))


KILLED = """
import asyncio, os, signal, sys
from anchorline.llm.cache import CachedEndpoint, RequestCache, make_record
from anchorline.llm.fake import FakeEndpoint
from anchorline.llm.types import Request
from anchorline.types import Message

async def main():
    endpoint = CachedEndpoint(FakeEndpoint("fine"), RequestCache(sys.argv[1]), run="r")
    async def one(i):
        await endpoint.complete(Request((Message("user", "Hi"),), 8, index=i))
        print(i, flush=True)
        if i == 17:
            os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.gather(*(one(i) for i in range(30)))
asyncio.run(main())
"""


def test_kill_nine_loses_no_reply_that_was_given_out(file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    given = [int(line) for line in done.stdout.split()]
    assert 17 in given
    fake = FakeEndpoint("again")
    ask(file, fake, *(Request((Message("user", "Hi"),), 8, index=i) for i in given))
    assert fake.asked == []


def test_two_processes_write_one_file(file: Path) -> None:
    with RequestCache(file) as one, RequestCache(file) as other:

        async def main() -> None:
            ends = [CachedEndpoint(FakeEndpoint("fine"), cache, run="r") for cache in (one, other)]
            await asyncio.gather(*(ends[i % 2].complete(replace(HELLO, index=i)) for i in range(60)))

        asyncio.run(main())
        assert one.read("SELECT count(*) FROM requests") == [(60,)]


def test_what_was_paid_stays_known_after_asking_again_and_pruning(file: Path) -> None:
    price = Prices(input=1e6, output=2e6)  # a dollar and two a token
    fake = FakeEndpoint([Reply("a", "length", 10, 5), Reply("b", "stop", 10, 7), broken()])
    ask(file, fake, HELLO, replace(HELLO, max_tokens=200), replace(HELLO, index=1), price=price)
    ask(file, FakeEndpoint([Reply("c", "stop", 1, 1)]), replace(HELLO, index=2), run="r2", price=price)
    assert prune(file, model="fake") == 3
    with RequestCache(file) as cache:
        assert cache.spent("r1") == Amount(32, 44.0)
        assert cache.spent("r2") == Amount(2, 3.0)
        assert cache.spent("r3") == Amount(0, 0.0)


def test_missing_token_counts_are_guessed_for_the_payment_only(file: Path) -> None:
    (reply,) = ask(file, FakeEndpoint([Reply("x" * 30, "stop")]), HELLO)
    assert reply.prompt_tokens is None
    with RequestCache(file) as cache:
        assert cache.read("SELECT completion_tokens, guessed FROM payments") == [(11, 1)]
        assert cache.read("SELECT completion_tokens FROM requests") == [(None,)]


def test_attempts_are_kept(file: Path) -> None:
    pool = Pool(FakeEndpoint([broken(), broken(), "fine"]), EndpointSettings(model="m"), backoff=0)
    ask(file, pool, HELLO)
    with RequestCache(file) as cache:
        assert cache.read("SELECT attempts, run, stage FROM requests") == [(3, "r1", "")]


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), max_size=4))
def test_messages_come_back(turns: list[tuple[Any, str]]) -> None:
    messages = tuple(Message(role, text) for role, text in turns)
    assert read_messages(messages_json(messages)) == messages


@given(st.text(), st.text(), st.text(), st.text())
def test_keys_differ_where_texts_do(a: str, b: str, c: str, d: str) -> None:
    one, other = (Request((Message("user", x), Message("user", y)), 1) for x, y in ((a, b), (c, d)))
    assert (request_key("m", one) == request_key("m", other)) == ((a, b) == (c, d))


def test_half_a_surrogate_pair_breaks_nothing(file: Path) -> None:
    odd = Request((Message("user", "\ud800"),), 8, row="\ud800")
    fake = FakeEndpoint("fine")
    assert [r.cached for r in ask(file, fake, odd, odd)] == [False, True]


# files


@pytest.mark.parametrize(
    "content", [b"not a database, but text that is long enough" * 40, b"SQLite format 3\x00" + b"\xff" * 2000]
)
def test_a_damaged_file_is_one_line(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(CacheError, match="the request cache cannot be used") as caught:
        RequestCache(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert file.read_bytes() == content


def test_damage_that_shows_later_is_one_line_too(file: Path) -> None:
    ask(file, FakeEndpoint("fine"), *(replace(HELLO, index=i) for i in range(200)))
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(CacheError, match="cannot be used"):
        ask(file, FakeEndpoint("fine"), HELLO)


def test_a_newer_file_and_another_programs_file_are_refused(file: Path) -> None:
    ask(file, FakeEndpoint("fine"), HELLO)
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(DataError, match="newer anchorline"):
        RequestCache(file)
    foreign = file.with_name("foreign.sqlite")
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    before = foreign.read_bytes()
    with pytest.raises(DataError, match="another program"):
        RequestCache(foreign)
    assert foreign.read_bytes() == before  # not even its journal mode


def test_a_file_of_the_format_before_keeps_what_it_holds(file: Path) -> None:
    ask(file, FakeEndpoint("fine"), HELLO)
    with closing(sqlite3.connect(file)) as db:
        db.executescript(
            "DROP TABLE timeouts; DROP TABLE waiting;"
            "CREATE TABLE waiting (key TEXT PRIMARY KEY, file TEXT NOT NULL, messages TEXT NOT NULL,"
            " settings TEXT NOT NULL, max_tokens INTEGER NOT NULL, stage TEXT NOT NULL, row TEXT NOT NULL) WITHOUT ROWID;"
            "INSERT INTO waiting VALUES ('k', 'f', '[]', '{}', 8, 's', 'r'); PRAGMA user_version = 1"
        )
    for _ in range(2):
        with RequestCache(file) as cache:
            assert cache.read("SELECT * FROM waiting") == [("k", "f", "[]", "{}", 8, "s", "r")]
            assert cache.read("SELECT count(*) FROM requests") == [(1,)]
            cache._writer.execute("INSERT OR REPLACE INTO waiting VALUES ('k', 'g', '[]', '{}', 8, 's', 'r')")
            assert cache.read("SELECT file FROM waiting ORDER BY file") == [("f",), ("g",)]
            cache._writer.execute("DELETE FROM waiting WHERE file = 'g'")


def test_a_disk_that_gets_full_ends_the_run_before_more_is_paid(file: Path) -> None:
    fake = FakeEndpoint(lambda _: Slow(0.001, "fine"))
    with RequestCache(file) as cache:
        cache._writer.execute("PRAGMA max_page_count = 40")
        endpoint = CachedEndpoint(fake, cache, run="r")

        async def maker(row: Prompt) -> Answer:
            reply = await endpoint.complete(Request((Message("user", row.id * 4000),), 8))
            return Answer(row.id, (), reply.text, "stop")

        rows = [Prompt(f"{i:03}", ()) for i in range(200)]
        with pytest.raises(CacheError, match=r"disk is full.*make room") as caught:
            asyncio.run(make(rows, maker, on_result=lambda _: None, window=8))
        assert str(file) in str(caught.value) and len(fake.asked) <= 24
        # nor is anything asked by whoever has not heard of it
        asked = len(fake.asked)
        with pytest.raises(CacheError, match="disk is full"):
            asyncio.run(endpoint.complete(HELLO))
        assert len(fake.asked) == asked


def test_a_row_that_the_file_cannot_hold_does_not_end_the_run(file: Path) -> None:
    fake = FakeEndpoint([Reply("fine", "stop", 2**70, 1), "fine"])  # a bug of ours: counts of HTTP are bounded

    async def main(endpoint: CachedEndpoint) -> None:
        with pytest.raises(OverflowError):
            await endpoint.complete(HELLO)
        assert (await endpoint.complete(replace(HELLO, index=1))).text == "fine"

    with RequestCache(file) as cache:
        asyncio.run(main(CachedEndpoint(fake, cache, run="r")))


def test_a_file_that_takes_no_writes_is_told_before_anything_is_asked(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchorline.llm.store.BUSY_MS", 50)
    RequestCache(file).close()
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CacheError, match=r"locked\); another process holds it"):
            RequestCache(file)


# stats, prune, explain


def test_stats(file: Path) -> None:
    price = Prices(input=1e6, output=1e6)
    fake = FakeEndpoint([Reply("a", "stop", 3, 2), truncated("b"), broken()])
    ask(file, fake, *(replace(HELLO, index=i, stage="revise") for i in range(3)), price=price)
    ask(file, FakeEndpoint([Reply("a", "stop", 1, 1)], model="other"), replace(HELLO, stage="judge"))
    found = stats(file)
    assert (found.rows, found.answered, found.cut, found.failed) == (4, 3, 1, {"server": 1})
    assert found.rows_by_model == {"fake": 3, "other": 1} and found.rows_by_stage == {"judge": 1, "revise": 3}
    assert found.paid_by_stage["revise"] == (2, 4, 3, 7.0)
    assert found.paid_by_model["other"] == (1, 1, 1, None)  # unknown stays unknown
    assert found.bytes > 4096


def test_prune_by_age_model_and_failure(file: Path) -> None:
    fake = FakeEndpoint(lambda r: broken() if r.index % 2 else "fine")
    ask(file, fake, *(replace(HELLO, index=i) for i in range(6)))
    with sqlite3.connect(file) as db:
        db.execute("UPDATE requests SET at = ? WHERE settings LIKE '%\"index\":0,%'", (time.time() - 86400 * 10,))
    db.close()
    with pytest.raises(DataError, match="nothing says which"):
        prune(file)
    assert prune(file, older_than=timedelta(days=9)) == 1
    assert prune(file, older_than=timedelta(days=9)) == 0
    assert prune(file, model="other") == 0
    assert prune(file, model="fake", failed=True) == 3
    assert stats(file).rows == 2
    with pytest.raises(DataError, match="no such request cache"):
        prune(file.with_name("nothing"), failed=True)


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"temperature": 0.2}, "temperature", "asked 0.2, stored 0.7"),
        ({"top_p": 0.5}, "top_p", "asked 0.5, stored 1.0"),
        ({"index": 3}, "index", "asked 3, stored 0"),
        ({"schema": {"type": "object"}}, "schema", "stored null"),
        (
            {"messages": (HELLO.messages[0], Message("user", "Hello where"))},
            "messages",
            'message 2 (user), character 7): asked "where", stored "there"',
        ),
        ({"messages": HELLO.messages[:1]}, "messages", "their number): asked 1, stored 2"),
        ({"messages": (Message("user", "Be kind."), HELLO.messages[1])}, "messages", "message 1, its role"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_explain_names_the_field_that_differs(file: Path, change: dict[str, Any], field: str, says: str) -> None:
    decoys = [replace(HELLO, messages=(Message("user", f"Quite another {i}"),), temperature=0.1) for i in range(5)]
    ask(file, FakeEndpoint("fine"), *decoys, HELLO)
    told = explain(file, replace(HELLO, **change), model="fake")
    assert not told.hit and [d.field for d in told.nearest[0].differences] == [field]
    assert says in told.text and "of 6 stored requests" in told.text


def test_explain_model_extra_body_limit_failure_and_hit(file: Path) -> None:
    fake = FakeEndpoint(lambda r: [truncated("cut"), broken(), "fine"][r.index])
    ask(file, fake, *(replace(HELLO, index=i) for i in range(3)))
    assert 'model: asked "other", stored "fake"' in explain(file, HELLO, model="other").text
    assert "extra_body: asked" in explain(file, HELLO, model="fake", extra_body={"top_k": 1}).text
    raised = explain(file, replace(HELLO, max_tokens=200), model="fake")
    assert not raised.hit and "cut at 100 tokens, and 200 are allowed" in raised.text
    assert explain(file, HELLO, model="fake").hit
    failed = explain(file, replace(HELLO, index=1), model="fake")
    assert failed.hit and "--retry-failed" in failed.text
    assert not explain(file, replace(HELLO, index=1), model="fake", retry_failed=True).hit
    key = request_key("fake", replace(HELLO, index=2))
    assert explain(file, key[:10]).key == key and explain(file, key).hit
    assert "no request with the key" in explain(file, "0" * 64).text
    with pytest.raises(DataError, match="no key of a request"):
        explain(file, "hello")


def test_explain_an_empty_cache(file: Path) -> None:
    RequestCache(file).close()
    assert explain(file, HELLO, model="m").text == "no hit: the cache holds no requests"


def test_the_file_names_its_settings_as_json(file: Path) -> None:
    ask(file, FakeEndpoint("fine"), HELLO)
    with RequestCache(file) as cache:
        ((settings,),) = cache.read("SELECT settings FROM requests")
    assert json.loads(settings) == {"temperature": 0.7, "top_p": 1.0, "schema": None, "extra_body": {}, "index": 0}


def test_a_reply_whose_asker_was_told_to_stop_is_written_all_the_same(tmp_path: Path) -> None:
    """A spent budget cancels rows whose replies are paid for and on their way to the disk."""

    async def main() -> None:
        with RequestCache(tmp_path / "c") as cache:
            endpoint = CachedEndpoint(FakeEndpoint("paid for"), cache, run="r")
            cache._writing = asyncio.create_task(asyncio.sleep(3600))  # the disk is slow
            asked = [
                asyncio.create_task(endpoint.complete(Request((Message("user", str(i)),), max_tokens=8)))
                for i in range(5)
            ]
            while len(cache._pending) < 5:
                await asyncio.sleep(0)
            for task in (*asked, cache._writing):
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(main())
    with RequestCache(tmp_path / "c") as cache:
        assert cache.read("SELECT count(*), count(DISTINCT text) FROM requests") == [(5, 1)]
        assert cache.read("SELECT count(*) FROM payments") == [(5,)]


@pytest.mark.parametrize("last", ["fine", BadReply("noise", used=(4, 100))], ids=["then a reply", "never one"])
def test_replies_that_cannot_be_read_are_paid_each_time(file: Path, last: Any) -> None:
    price = Prices(input=1e6, output=1e6)
    budget = Budget(BudgetSettings(max_usd=1000))
    fake = FakeEndpoint([BadReply("noise", used=(4, 100)), BadReply("noise"), last])
    pool = Pool(fake, EndpointSettings(model="fake", attempts=3), backoff=0)
    bill = Bill()
    with RequestCache(file) as cache:
        endpoint = CachedEndpoint(Metered(pool, budget=budget, price=price), cache, run="r", price=price, bill=bill)
        asyncio.run(asyncio.wait_for(_outcome(endpoint, HELLO), 5))
        whole = 104 + (5 if last == "fine" else 104)
        assert cache.spent("r") == Amount(whole, whole) == Amount(budget.tokens, budget.usd)
        assert sum(entry["calls"] for entry in costs(cache, "r").values()) == 2
        assert bill.tokens == (5 if last == "fine" else 0)  # the bill is of replies that are used


@pytest.mark.parametrize("last", ["fine", timed_out(), KeyRefused("no"), asyncio.CancelledError()], ids=repr)
def test_calls_that_timed_out_are_counted_as_of_unknown_cost(file: Path, last: Any) -> None:
    """Also where the run ends over it: the endpoint may want them paid."""
    fake = FakeEndpoint([timed_out(), BadReply("noise", used=(4, 100)), timed_out(), last])
    pool = Pool(fake, EndpointSettings(model="fake", attempts=4), backoff=0)

    async def main(endpoint: CachedEndpoint) -> None:
        await asyncio.gather(endpoint.complete(HELLO), return_exceptions=True)

    for _ in range(2):  # what is stored is not counted again
        with RequestCache(file) as cache:
            asyncio.run(main(CachedEndpoint(Metered(pool), cache, run="r")))
            if isinstance(last, KeyRefused | asyncio.CancelledError):
                break
    with RequestCache(file) as cache:
        assert cache.timed_out("r") == (3 if isinstance(last, EndpointTimeout) else 2)
        assert cache.spent("r").tokens == 104 + (5 if last == "fine" else 0)
        assert cache.timed_out("another") == 0 < stats(file).timed_out == cache.timed_out("r")


async def _outcome(endpoint: CachedEndpoint, request: Request) -> Reply | EndpointError:
    try:
        return await endpoint.complete(request)
    except EndpointError as error:
        return error


def test_a_late_price_counts_batches_at_half(file: Path) -> None:
    def paid(index: int, seconds: float) -> tuple[Record, Payment]:
        record, payment = make_record(
            f"key {index}", "m", "[]", "{}", HELLO, Reply("x", "stop", 10, 20),
            run="r", attempts=1, seconds=seconds, price=None,
        )  # fmt: skip
        assert payment is not None
        return record, payment

    async def main(cache: RequestCache) -> None:
        for index, seconds in enumerate((0.0, 0.0, 0.3)):  # two of a batch, one that was waited for
            await cache.put(*paid(index, seconds))
        await price_later(cache, "r", {"m": Prices(input=1e6, output=2e6)})

    with RequestCache(file) as cache:
        asyncio.run(main(cache))
        assert cache.spent("r").usd == 25 + 25 + 50
        assert [usd for (usd,) in cache.read("SELECT usd FROM requests ORDER BY key", ())] == [25, 25, 50]
