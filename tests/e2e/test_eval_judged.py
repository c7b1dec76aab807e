"""`anchorline eval` with a judge over real HTTP: a judge that always says "first", and what is asked twice."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anchorline.cli.main import app
from anchorline.llm.fake_server import Body, FakeServer
from tiny_chat import save_tiny_chat, write_rows

pytestmark = pytest.mark.e2e


class Serving:
    """The fake server in a thread of its own, as the command has the main thread's loop."""

    def __enter__(self) -> Serving:
        self.ready, self.stop = threading.Event(), asyncio.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))
        self.thread.start()
        self.ready.wait(10)
        return self

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        async with FakeServer(reply=self.reply) as self.server:
            self.ready.set()
            await self.stop.wait()

    def reply(self, body: Body) -> str:
        text = body["messages"][-1]["content"]
        return "[[0.5]]" if "[[0.5]]" in text else "[[B]]" if "[[A]]" in text else "VERDICT: A"

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()


def test_a_judge_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KEY", "none")
    model = save_tiny_chat(tmp_path / "model")
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"where is my {w}"} for w in ("tent", "boat", "lamp")])
    given = write_rows(tmp_path / "a.jsonl", [{"prompt": f"where is my {w}", "text": "gone"} for w in ("tent", "boat")])
    item = {"prompt": "Q", "benchmark_name": "B", "context": None}
    (tmp_path / "free-form.json").write_text(json.dumps({"0": item | {"target": ["x"]}}))
    choice = {"0": item | {"options": ["n", "y"], "target": [1]}}
    (tmp_path / "multiple-choice.json").write_text(json.dumps(choice))
    with Serving() as serving:
        words = ["eval", "--model", model, "--tasks", "winrate,mixeval_hard", "--prompts", prompts, "--answers", given]
        words += ["--data", tmp_path, "--parser", "judge", "--judge", "fake", "--judge-url", serving.server.url]
        words += ["--set", "judge.api_key_env=LOCAL_KEY", "--set", "eval.max_new_tokens=6", "--json"]
        words += ["--out", tmp_path / "out"]
        found = [CliRunner().invoke(app, [str(word) for word in words]) for _ in range(2)]
        asked = sum(serving.server.answered.values())
    assert [done.exit_code for done in found] == [0, 0], found[0].output
    assert found[0].stdout == found[1].stdout and asked == 2 * 2 + 2, "the second time nothing is asked"
    tasks = json.loads(found[0].stdout)["tasks"]
    table = tasks["winrate"]["table"]
    assert (table["n"], table["win_rate"], table["flip_rate"]) == (2, 0.5, 1.0)
    assert len(tasks["winrate"]["left_out"]) == 1, "the prompt without a given answer"
    values = {figure["name"]: figure["value"] for figure in tasks["mixeval_hard"]["figures"]}
    assert (values["free-form"], values["multiple choice"], values["overall"]) == (0.5, 1.0, 0.75)
