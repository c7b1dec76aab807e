"""`anchorline eval` with a judge over real HTTP: a judge that always says "first", what is asked twice, and kill -9."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anchorline.cli.main import app
from anchorline.evals.runner import Evaluation
from anchorline.evals.settings import EvaluationSettings
from anchorline.llm.fake_faults import FaultPlan
from anchorline.llm.fake_server import Body, FakeServer
from tiny_chat import save_tiny_chat, write_rows

pytestmark = pytest.mark.e2e


class Serving:
    """The fake server in a thread of its own, as the command has the main thread's loop."""

    def __init__(self, before: Callable[[Body], None] = lambda body: None, plan: FaultPlan | None = None) -> None:
        self.before, self.plan = before, plan
        """Called with each request before it is answered."""

    def __enter__(self) -> Serving:
        self.ready, self.stop = threading.Event(), asyncio.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))
        self.thread.start()
        self.ready.wait(10)
        return self

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        async with FakeServer(reply=self.reply, plan=self.plan) as self.server:
            self.ready.set()
            await self.stop.wait()

    def reply(self, body: Body) -> str:
        self.before(body)
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "winrate,mixeval_hard", "--parser", "judge", "--style", "{style}"], "--judge is lacking"),
        (["--tasks", "winrate"], "--judge (a model) or --style (its checks) is lacking"),
        (["--tasks", "winrate", "--judge", "x", "--set", "judge.api_key_env=NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--tasks", "style,lm_eval", "--style", "{style}"], "--lm-task is lacking"),
        (["--tasks", "style,lm_eval", "--style", "{style}", "--lm-task", "no_such"], "has no task 'no_such'"),
        (["--tasks", "winrate", "--style", "{style}", "--against", "{model}"], "--against and --answers both say"),
        (["--tasks", "style,drift", "--style", "{style}", "--against", "{other}"], "have different tokenizers"),
        (["--tasks", "style,mixeval_hard", "--style", "{style}", "--data", "{empty}"], "hold no items"),
        (["--tasks", "style", "--set", "judge=sk-a-key"], "judge: got a value that is not shown"),
        (["--tasks", "style", "--judge", "x", "--set", "judge.temperature=sk-a-key"], "got a value that is not shown"),
        (["--tasks", ""], "--tasks: got ''"),
    ],
)
def test_what_is_lacking_is_said_before_the_model_answers(words: list[str], said: str, tmp_path: Path) -> None:
    model = save_tiny_chat(tmp_path / "model")
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "where is my tent"}])
    given = write_rows(tmp_path / "a.jsonl", [{"prompt": "where is my tent", "text": "gone"}])
    style = tmp_path / "s.yaml"
    style.write_text("name: s\nrules: [{kind: no_exclamation}]\n")
    (tmp_path / "empty").mkdir()
    for name in ("free-form.json", "multiple-choice.json"):
        (tmp_path / "empty" / name).write_text("{}")
    named = {"style": style, "model": model, "other": other_tokens(tmp_path / "other"), "empty": tmp_path / "empty"}
    common = ["eval", "--model", model, "--prompts", prompts, "--answers", given, "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, [str(word).format(**named) for word in [*common, *words]])
    assert done.exit_code and said in " ".join(done.output.split()), done.output
    assert not (tmp_path / "out" / "answers").exists() and "sk-a-key" not in done.output


def test_a_package_that_is_lacking_is_said_before_the_model_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "anchorline.evals.tasks_answers.find_spec", lambda name: None if name == "sklearn" else found(name)
    )
    model = save_tiny_chat(tmp_path / "model")
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "where is my tent"}])
    (tmp_path / "s.yaml").write_text("name: s\nrules: [{kind: no_exclamation}]\n")
    words = ["eval", "--model", model, "--against", model, "--tasks", "winrate", "--prompts", prompts]
    done = CliRunner().invoke(
        app, [str(w) for w in [*words, "--style", tmp_path / "s.yaml", "--out", tmp_path / "out"]]
    )
    assert done.exit_code == 2 and "'.[eval]'" in done.output, done.output
    assert not (tmp_path / "out" / "answers").exists()


def other_tokens(folder: Path) -> Path:
    """A model whose tokenizer gives two words each other's number."""
    model = save_tiny_chat(folder)
    file = model / "tokenizer.json"
    tokens = json.loads(file.read_text())
    vocabulary = tokens["model"]["vocab"]
    (a, b) = [word for word in vocabulary if word.isalpha()][:2]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(tokens))
    return model


def test_a_judge_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    model = save_tiny_chat(tmp_path / "model")
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "where is my tent"}])
    given = write_rows(tmp_path / "a.jsonl", [{"prompt": "where is my tent", "text": "gone"}])
    (tmp_path / "s.yaml").write_text("name: s\nrules: [{kind: no_exclamation}]\n")
    words = ["eval", "--model", model, "--tasks", "style,winrate", "--prompts", prompts, "--answers", given]
    words += ["--style", tmp_path / "s.yaml", "--judge", "x", "--judge-url", "http://127.0.0.1:1/v1"]
    words += ["--set", "judge.attempts=1", "--set", "eval.max_new_tokens=6", "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code and "x judged none of 1 pairs: " in " ".join(done.output.split()), done.output
    table = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(table["tasks"]) == ["style"] and (tmp_path / "out" / "evaluation.html").is_file(), (
        "what was found stays"
    )
    (row,) = map(json.loads, (tmp_path / "out" / "style-model.jsonl").read_text().splitlines())
    assert row["rules"] == {"no_exclamation": True} and row["answer"]


def test_what_a_judge_does_not_answer_is_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One item of two is refused each time it is asked about: it is left out and named, and is no lot."""
    monkeypatch.setenv("LOCAL_KEY", "none")
    model = save_tiny_chat(tmp_path / "model")
    item = {"benchmark_name": "B", "context": None, "target": ["x"]}
    free = {"0": item | {"prompt": "where is my tent"}, "1": item | {"prompt": "refused"}}
    (tmp_path / "free-form.json").write_text(json.dumps(free))
    (tmp_path / "multiple-choice.json").write_text("{}")

    def refuse(body: Body) -> None:
        assert "refused" not in body["messages"][-1]["content"]

    with Serving(refuse) as serving:
        words = ["eval", "--model", model, "--tasks", "mixeval_hard", "--data", tmp_path, "--parser", "judge"]
        words += ["--judge", "fake", "--judge-url", serving.server.url, "--set", "judge.api_key_env=LOCAL_KEY"]
        words += ["--set", "judge.attempts=1", "--set", "eval.max_new_tokens=6", "--json", "--out", tmp_path / "out"]
        done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["tasks"]["mixeval_hard"]
    overall = found["tables"]["model"]["overall"]
    assert (overall["n"], overall["score"], overall["by_lot"]) == (1, 0.5, 0)
    assert (overall["low"], overall["high"]) == (None, None), "one score has no spread"
    (left,) = found["left_out"]
    assert left.startswith("free-1 (model): ")
    rows = [json.loads(line) for line in (tmp_path / "out" / "mixeval_hard-model.jsonl").read_text().splitlines()]
    assert [(row["id"], row["score"], bool(row["error"])) for row in rows] == [
        ("free-0", 0.5, False),
        ("free-1", None, True),
    ]


def test_a_judge_that_has_recovered_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KEY", "none")
    model = save_tiny_chat(tmp_path / "model")
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "where is my tent"}])
    given = write_rows(tmp_path / "a.jsonl", [{"prompt": "where is my tent", "text": "gone"}])
    words = [
        "eval",
        "--model",
        model,
        "--tasks",
        "winrate",
        "--prompts",
        prompts,
        "--answers",
        given,
        "--judge",
        "fake",
    ]
    words += [
        "--set",
        "judge.api_key_env=LOCAL_KEY",
        "--set",
        "eval.max_new_tokens=6",
        "--json",
        "--out",
        tmp_path / "out",
    ]
    words += ["--set", "judge.attempts=1"]

    def judged(url: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(word) for word in [*words, "--judge-url", url]])
        return done.exit_code, done.output

    with Serving(plan=FaultPlan(script=("malformed", "malformed"))) as serving:
        code, said = judged(serving.server.url)
        assert code and "fake judged none of 1 pairs" in " ".join(said.split()), said
        serving.server._plan = FaultPlan()
        code, said = judged(serving.server.url)
        assert code == 0 and json.loads(said)["tasks"]["winrate"]["table"]["n"] == 1, said


def test_files_that_number_their_prompts_alike_keep_them_all(tmp_path: Path) -> None:
    rows = {"a": ["where is my tent"], "b": ["when", "where is my tent"], "more/b": ["which boat"]}
    for name, prompts in rows.items():
        write_rows(tmp_path / f"{name}.jsonl", [{"id": str(n), "prompt": p} for n, p in enumerate(prompts)])
    settings = EvaluationSettings(
        model="m",
        tasks=("drift",),
        prompts=tuple(str(tmp_path / f"{name}.jsonl") for name in ("a", "b", "a", "more/b")),
    )
    asked = Evaluation(settings, tmp_path).asked
    assert asked.groups == {"0": "a", "b/0": "b", "b/0-2": "b"}
    assert [prompt.id for prompt in asked.prompts] == ["0", "b/0", "b/0-2"]
    assert [problem.partition(".jsonl: ")[2] for problem in asked.problems] == [
        "1 prompts stand in an earlier file, too, and count there"
    ] * 2


def command(folder: Path, *words: object) -> subprocess.Popen[str]:
    """`anchorline eval` as a user starts it."""
    words = ("--model", folder / "model", "--prompts", folder / "p.jsonl", "--out", folder / "out", "--json", *words)
    return subprocess.Popen(
        [sys.executable, "-m", "anchorline", "eval", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_KEY": "none"},
    )


def tasks_of(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)["tasks"]


def test_killed_while_a_model_answers(tmp_path: Path) -> None:
    save_tiny_chat(tmp_path / "model")
    (tmp_path / "s.yaml").write_text("name: s\nrules:\n  - {kind: ends_with, name: kept, text: was kept}\n")
    write_rows(tmp_path / "p.jsonl", [{"id": str(n), "prompt": "where is my tent " * n} for n in range(1, 41)])
    words = ["--tasks", "style", "--style", tmp_path / "s.yaml"]
    words += ["--set", "eval.batch_size=1", "--set", "eval.max_new_tokens=60"]
    process, end = command(tmp_path, *words), time.monotonic() + 60
    partial: list[Path] = []
    while not partial or partial[0].read_bytes().count(b"\n") < 3:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        partial = list((tmp_path / "out" / "answers").glob("*.partial"))
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lines = partial[0].read_bytes().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
    assert 3 <= len(whole) < 40 and not (tmp_path / "out" / "evaluation.json").exists()
    # what is there is marked: an answer that is asked again would lose the mark
    partial[0].write_text("".join(json.dumps(row | {"text": "this was kept"}) + "\n" for row in whole) + '{"id": "torn')
    figure = tasks_of(command(tmp_path, *words))["style"]["figures"][0]
    assert (figure["n"], figure["value"]) == (40, pytest.approx(len(whole) / 40))


def test_killed_while_a_judge_is_asked(tmp_path: Path) -> None:
    save_tiny_chat(tmp_path / "model")
    prompts = [f"where is my {word}" for word in ("tent", "boat", "lamp", "rope")]
    write_rows(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in prompts])
    given = write_rows(tmp_path / "a.jsonl", [{"prompt": prompt, "text": "gone"} for prompt in prompts])
    asked: list[str] = []

    def before(body: Body) -> None:
        asked.append(json.dumps(body["messages"]))
        time.sleep(0.2)  # longer than a slow disk takes to hold the reply before
        if len(asked) == 4:
            process.send_signal(signal.SIGKILL)
            process.wait()

    with Serving(before) as serving:
        words = ["--tasks", "winrate", "--answers", given, "--judge", "fake", "--judge-url", serving.server.url]
        words += ["--set", "judge.api_key_env=LOCAL_KEY", "--set", "judge.max_concurrency=1"]
        words += ["--set", "eval.max_new_tokens=6"]
        process = command(tmp_path, *words)
        assert process.wait(60) == -signal.SIGKILL and len(asked) == 4
        process.communicate()
        table = tasks_of(command(tmp_path, *words))["winrate"]["table"]
    assert (table["n"], table["flips"]) == (4, 4)
    times = sorted(asked.count(one) for one in set(asked))
    # the last one had no answer; the one before it may have been on its way to the disk when the process was killed
    assert times in ([1] * 7 + [2], [1] * 6 + [2, 2]), "of both orders of four pairs only those are asked again"
