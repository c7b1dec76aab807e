"""2,000 rows against a server that fails in every way, with a kill -9 in the middle: nothing lost, nothing paid twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from anchorline.llm.fake_server import body_key
from anchorline.llm.settings import EndpointSettings
from anchorline.llm.types import Request
from anchorline.llm.wording import request_body
from anchorline.types import Message

pytestmark = pytest.mark.e2e

ROWS = 2000
MOST = 32
SECRET = "sk-the-secret-of-this-test-0123456789"
MOST_TOKENS = 60

DRIVER = """
import asyncio, json, sys
from pathlib import Path
from anchorline.errors import BudgetReached, EndpointError
from anchorline.llm.budget import Budget
from anchorline.llm.build import build
from anchorline.llm.cache import RequestCache
from anchorline.llm.settings import BudgetSettings, EndpointSettings
from anchorline.llm.types import Request
from anchorline.types import Message

url, folder, rows, most_tokens, budget_tokens, most = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])

async def main():
    settings = EndpointSettings(
        model="fake", base_url=url, api_key_env="THE_KEY", timeout=4, attempts=4, max_concurrency=most
    )
    with RequestCache(folder / "requests.sqlite") as cache, (folder / "ends.jsonl").open("a") as out:
        budget = Budget(BudgetSettings(max_tokens=budget_tokens), spent=cache.spent("run"))
        async with build(settings, cache=cache, run="run", budget=budget) as endpoint:
            async def one(i):
                try:
                    reply = await endpoint.complete(
                        Request((Message("user", f"row {i}"),), max_tokens=most_tokens, row=str(i), stage="revise")
                    )
                    end = {"row": i, "finish": reply.finish, "text": reply.text}
                except (EndpointError, BudgetReached) as error:
                    end = {"row": i, "error": getattr(error, "kind", "budget"), "message": str(error)}
                out.write(json.dumps(end) + "\\n")
                out.flush()
            await asyncio.gather(*(one(i) for i in range(rows)))

asyncio.run(main())
"""


class Setup:
    """A fake server in a process of its own, and drivers."""

    def __init__(self, folder: Path, *faults: str) -> None:
        self.folder, self.log = folder, folder / "answered.jsonl"
        words = ["--seed", "11", "--latency", "0.02", "--retry-after", "0.05", "--key-env", "THE_KEY", *faults]
        self.environ = {**os.environ, "THE_KEY": SECRET}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "anchorline.llm.fake_server", "--log", str(self.log), *words],
            stdout=subprocess.PIPE,
            text=True,
            env=self.environ,
        )
        assert self.server.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.server.stdout.readline())}/v1"

    def drive(self, budget: int, rows: int = ROWS) -> subprocess.Popen[str]:
        words = [self.url, str(self.folder), str(rows), str(MOST_TOKENS), str(budget), str(MOST)]
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, *words], env=self.environ, stderr=subprocess.PIPE, text=True
        )

    def finish(self, budget: int, rows: int = ROWS) -> dict[int, dict[str, object]]:
        """Run a driver to its end: how each row ended."""
        (self.folder / "ends.jsonl").unlink(missing_ok=True)
        driver = self.drive(budget, rows)
        _, errors = driver.communicate(timeout=500)
        assert driver.returncode == 0, errors
        assert SECRET not in errors
        ends = [json.loads(line) for line in (self.folder / "ends.jsonl").read_text().splitlines()]
        assert len(ends) == rows
        return {end["row"]: end for end in ends}

    def kill(self, driver: subprocess.Popen[str], *, after: int) -> None:
        """kill -9 a driver when so many requests were answered."""
        deadline = time.monotonic() + 300
        while sum(self.answered().values()) < after:
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.03)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        assert driver.returncode == -9
        seen = -1
        while seen != (seen := sum(self.answered().values())):
            time.sleep(0.5)  # the server still answers, and logs, what was in flight

    def close(self) -> None:
        """Stop the server."""
        self.server.terminate()
        self.server.communicate()

    def answered(self) -> Counter[str]:
        """How often the server answered each request, by its own log."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Counter(json.loads(line)["key"] for line in lines)


def key_of(row: int) -> str:
    """The server's key of a row's request."""
    settings = EndpointSettings(model="fake", base_url="http://127.0.0.1/v1")
    return body_key(request_body(settings, Request((Message("user", f"row {row}"),), max_tokens=MOST_TOKENS)))


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Setup]:
    setup = Setup(
        tmp_path,
        *["--throttle", "0.05", "--throttle-silently", "0.05", "--error", "0.05", "--hang", "0.03"],
        *["--drop", "0.02", "--truncate", "0.03", "--malformed", "0.02"],
    )
    yield setup
    setup.close()


@pytest.fixture
def healthy(tmp_path: Path) -> Iterator[Setup]:
    setup = Setup(tmp_path)
    yield setup
    setup.close()


def test_two_thousand_rows_every_fault_and_a_kill(faulty: Setup) -> None:
    driver = faulty.drive(budget=10**9)
    faulty.kill(driver, after=ROWS // 2)
    before = faulty.answered()
    assert ROWS // 2 <= sum(before.values()) < ROWS

    ends = faulty.finish(budget=10**9)
    replies = {row: end for row, end in ends.items() if "error" not in end}
    assert {str(end["error"]) for end in ends.values() if "error" in end} <= {
        "timeout",
        "server",
        "connection",
        "bad_reply",
    }
    # the chance that all four tries of a row fail is about 0.12 ** 4
    assert len(replies) > ROWS - 10
    assert 30 < sum(end["finish"] == "length" for end in replies.values()) < 100
    assert all(str(end["text"]).startswith("You said") or end["finish"] == "length" for end in replies.values())

    after = faulty.answered()
    twice = {key: count for key, count in after.items() if count > 1}
    assert set(twice.values()) <= {2} and len(twice) <= MOST
    assert all(before[key] == 1 for key in twice)  # only what was in flight at the kill
    assert {key_of(row) for row in replies} <= set(after)

    again = faulty.finish(budget=10**9)  # everything is a hit now, the failures too
    assert again == ends and faulty.answered() == after
    for file in faulty.folder.rglob("*"):
        assert SECRET.encode() not in file.read_bytes(), file


def test_a_budget_holds_over_a_kill(healthy: Setup) -> None:
    """Each answered row costs 2 + 4 tokens, at worst some 70; the kill may hide the calls in flight and no more."""
    rows, limit = 400, 1500
    driver = healthy.drive(limit, rows)
    healthy.kill(driver, after=60)
    ends = healthy.finish(limit, rows)
    paid = 6 * sum(healthy.answered().values())
    assert paid <= limit + 6 * MOST
    assert paid > limit - 100  # and it did not stop before a worst case was left
    stopped = [end for end in ends.values() if end.get("error") == "budget"]
    assert stopped and "raise the limit and run the same command again" in str(stopped[0]["message"])
    more = healthy.finish(10**9, rows)
    assert not [end for end in more.values() if "error" in end]
    assert len(healthy.answered()) == rows
