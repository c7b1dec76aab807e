"""Against a real server: `transformers serve` with the embedded model samples, revises and judges, over real HTTP.

A model of 135M revises badly. What is tested is that the figures say so: no reply that is cut, empty, a copy or unreadable
becomes a pair, each row ends as a pair or as a typed failure, and what is noted of a reply is what the server said.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anchorline.data import read_jsonl, write_rows
from anchorline.llm.embedded import embedded_path

pytest.importorskip("fastapi", reason="`transformers serve` needs it")
pytest.importorskip("uvicorn", reason="`transformers serve` needs it")
pytestmark = [pytest.mark.e2e, pytest.mark.model]

ENVIRON = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
QUESTIONS = {
    "tent": "When will my blue tent arrive?",
    "joy": "Say hello to a customer with much joy!",
    "rope": "Can I return a rope?",
    "boat": "Is the red boat for sale?",
    "parcel": "Who brings my parcel?",
}
TEMPLATE = """=== system ===
{{aim}}
{{conversation}}
=== user ===
Text: Your lamp left on Monday! We hope that you like it!
Edited text:
{{open}}
Your lamp left on Monday. We hope that you like it.
{{close}}

Text: Thank you! The tent is blue!
Edited text:
{{open}}
Thank you. The tent is blue.
{{close}}

Text: {{answer}}
Edited text:
"""
"""With examples: without them this model writes none of the lines that frame a revision."""
NOT_USABLE = {
    "truncated",
    "empty",
    "no_marker",
    "identical",
    "ambiguous",
    "marker_inside",
    "self_referring",
    "refused",
    "dressed",
}
GATES = {"over_edited", "length", "language", "leak", "broken"}


@pytest.fixture(scope="module")
def server(embedded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The base URL and the model's id there, which is its folder."""
    model = str(embedded_path(embedded))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("transformers"), "serve", model, "--device", "cpu", "--port", str(port)],
            stdout=out,
            stderr=out,
            env=ENVIRON,
        )
    try:
        end = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def run(server: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe whose policy, reviser and judge are the server, its clair set made in `out`."""
    url, model = server
    place = tmp_path_factory.mktemp("served")
    write_rows(place / "prompts.jsonl", [{"id": id, "prompt": text} for id, text in QUESTIONS.items()])
    write_rows(place / "heldout.jsonl", [{"prompt": "Where is my hat?"}])
    style = {"name": "calm", "guideline": "Be calm.", "rules": [{"kind": "no_exclamation"}]}
    (place / "style.yaml").write_text(json.dumps(style))
    (place / "mine.txt").write_text(TEMPLATE)
    served = {"model": model, "base_url": url, "timeout": 120}
    there = served | {"temperature": 0.0}
    recipe = {
        "style": "style.yaml",
        "prompts": {"train": "prompts.jsonl", "heldout": "heldout.jsonl"},
        "sample": {"max_new_tokens": 20, "temperature": 0.0},
        "pairs": {"reviser": "llm", "prompt": "mine.txt", "gates": {"attempts": 1}},
        "llm": {
            "policy": served,
            # a model this small goes on after the closing line until it is cut
            "reviser": there | {"max_tokens": 48, "extra_body": {"stop": ["\n\n"]}},
            "judge": there | {"max_tokens": 12},
        },
    }
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    assert anchorline(place, "pairs", "clair", "recipe.yaml", "--out", "out") == (0, "")
    return place


def anchorline(place: Path, *words: str) -> tuple[int, str]:
    """The exit code and what stood on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "anchorline", *words],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRON,
    )
    return done.returncode, done.stderr


def rows(file: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(file)] if file.exists() else []


def asked(place: Path, stage: str) -> list[dict[str, Any]]:
    """The requests of a stage, as the cache holds them."""
    with sqlite3.connect(place / "out" / "requests.sqlite") as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM requests WHERE stage = ? ORDER BY row", (stage,))]


def test_the_policy_answers(run: Path) -> None:
    found = rows(run / "out" / "answers.jsonl")
    assert [row["id"] for row in found] == list(QUESTIONS)
    noted = {row["row"]: row for row in asked(run, "sample")}
    for row in found:
        reply = noted[row["id"]]
        assert (row["text"], row["finish"]) == (reply["text"], reply["finish"]) and row["text"].strip()
        assert (reply["completion_tokens"] == 20) == (reply["finish"] == "length")


def test_each_row_is_a_pair_or_a_failure_that_says_why(run: Path) -> None:
    pairs = {row["id"]: row for row in rows(run / "out" / "sets" / "clair" / "pairs.jsonl")}
    lost = {row["id"]: row for row in rows(run / "out" / "failures.jsonl")}
    assert sorted([*pairs, *lost]) == sorted(QUESTIONS)
    assert pairs and lost  # this model does some rows, and not others
    answers = {row["id"]: row["text"] for row in rows(run / "out" / "answers.jsonl")}
    replies = {row["row"]: row for row in asked(run, "revise")}
    assert sorted(replies) == sorted(QUESTIONS)
    for id, pair in pairs.items():
        chosen, rejected = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
        assert rejected == answers[id] and chosen.strip() and chosen != rejected and "!" not in chosen
        assert replies[id]["finish"] == "stop" and chosen in replies[id]["text"] and "<<<" not in chosen
    for id, failure in lost.items():
        (attempt,) = failure["details"]["attempts"]
        assert (attempt["text"], attempt["finish"]) == (replies[id]["text"], replies[id]["finish"])
        assert failure["kind"] in NOT_USABLE | GATES and failure["kind"] in attempt["faults"]
        assert attempt["finish"] == "stop" or failure["kind"] == "truncated"
    assert len({failure["kind"] for failure in lost.values()}) > 1


def test_what_is_noted_is_what_the_server_says(run: Path, server: tuple[str, str]) -> None:
    """A greedy request asked again, by a client that is not ours."""
    url, model = server
    noted = asked(run, "revise")[0]
    messages = [{"role": role, "content": content} for role, content in json.loads(noted["messages"])]
    body = {"model": model, "messages": messages, "max_tokens": 48, "temperature": 0.0, "stop": ["\n\n"]}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        said = json.load(response)
    (choice,) = said["choices"]
    assert (noted["text"], noted["finish"]) == (choice["message"]["content"], choice["finish_reason"])
    assert noted["prompt_tokens"] == said["usage"]["prompt_tokens"]
    assert noted["completion_tokens"] == said["usage"]["completion_tokens"]


def test_again_costs_nothing_and_raising_the_limit_asks_for_cut_replies_only(run: Path) -> None:
    before = asked(run, "revise")
    cut = [row["row"] for row in before if row["finish"] == "length"]
    words = ["pairs", "clair", "recipe.yaml", "--out", "out"]
    assert anchorline(run, *words, "--set", "pairs.gates.max_change=0.95") == (0, "")
    assert asked(run, "revise") == before
    assert cut  # of 48 tokens
    assert anchorline(run, *words, "--set", "llm.reviser.max_tokens=49") == (0, "")
    after = asked(run, "revise")
    assert [new["row"] for new, old in zip(after, before, strict=True) if new["at"] != old["at"]] == cut
    still = {row["row"] for row in after if row["finish"] != "stop"}
    assert not still & {row["id"] for row in rows(run / "out" / "sets" / "clair" / "pairs.jsonl")}


def samples(model: str) -> list[str]:
    """Settings for samples of one sentence, as one that is cut is none to choose.

    This server samples only where the model's own generation config says so, whatever the temperature.
    """
    own = json.loads((Path(model) / "generation_config.json").read_text())
    body = {"stop": ["."], "generation_config": json.dumps(own | {"do_sample": True})}
    settings = ["prompts.limit=2", "sample.temperature=1.0", "sample.max_new_tokens=200"]
    settings += [f"llm.policy.extra_body={json.dumps(body)}"]
    return ["--out", "judged", *(word for setting in settings for word in ("--set", setting))]


def judged(place: Path) -> tuple[list[dict[str, Any]], set[str], list[Any]]:
    """Pairs, kinds of failures, and the judge's replies."""
    pairs = rows(place / "judged" / "sets" / "on_policy" / "pairs.jsonl")
    lost = rows(place / "judged" / "failures.jsonl")
    assert len(pairs) + len(lost) == 2
    with sqlite3.connect(place / "judged" / "requests.sqlite") as db:
        replies = db.execute("SELECT finish, completion_tokens FROM requests WHERE stage = 'judge'").fetchall()
        assert db.execute("SELECT count(*) FROM requests WHERE stage IN ('sample', 'resample')").fetchone() == (4,)
    return pairs, {failure["kind"] for failure in lost}, replies


def test_a_judge_that_cannot_be_read_chooses_nothing(run: Path, server: tuple[str, str]) -> None:
    """12 tokens hold no reasons and no verdict."""
    code, errors = anchorline(run, "pairs", "on-policy", "recipe.yaml", *samples(server[1]), "--judge", server[1])
    pairs, kinds, replies = judged(run)
    assert code == 2 and "none of 2 answers became a pair" in errors and errors.count("\n") == 1
    assert not pairs and kinds <= {"unreadable", "identical"}
    assert replies and set(replies) == {("length", 12)} and "unreadable" in kinds


def test_the_styles_checks_judge_the_same_samples(run: Path, server: tuple[str, str]) -> None:
    words = [*samples(server[1]), "--judge", "style"]
    code, errors = anchorline(run, "pairs", "on-policy", "recipe.yaml", *words)
    pairs, kinds, _ = judged(run)
    assert (code == 0) == bool(pairs) and ("none of 2" in errors) == (not pairs)
    assert kinds <= {"tie", "identical"}
    assert all("!" in pair["rejected"][0]["content"] and "!" not in pair["chosen"][0]["content"] for pair in pairs)
