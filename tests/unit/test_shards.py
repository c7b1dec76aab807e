"""Rows cut into shards, and shards put together again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.data import answer_to_row, pair_to_row, read_jsonl, write_jsonl
from anchorline.data.candidates import Candidate, Candidates
from anchorline.llm.costs import Bill
from anchorline.recipe.config import Recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.making import make_set
from anchorline.recipe.shards import (
    clear,
    collect,
    cut,
    finished,
    input_from_row,
    input_to_row,
    keep,
    result_to_row,
)
from anchorline.types import Answer, Failure, Message, Pair, Prompt, Provenance

ASKED = (Message("system", "Be kind."), Message("user", "Where?"))


@given(st.integers(0, 40), st.integers(1, 9), st.data())
def test_every_row_is_in_one_shard(rows: int, size: int, data: st.DataObject) -> None:
    done: dict[int, int] = {}
    at = 0
    while at < rows:  # finished shards of some earlier run, of other sizes
        length = min(data.draw(st.integers(1, 7)), rows - at)
        if data.draw(st.booleans()):
            done[at] = length
        at += length
    shards = list(cut(range(rows), size=size, done=done))
    assert all(0 < len(shard.rows) <= size and shard.rows[0] == shard.start for shard in shards)
    seen = [row for shard in shards for row in shard.rows] + [s + i for s, n in done.items() for i in range(n)]
    assert sorted(seen) == list(range(rows))


@pytest.mark.parametrize(
    "row",
    [
        Answer("a1", ASKED, "", "length"),
        Prompt("p1", ASKED),
        Candidates("c1", ASKED, (Candidate("one", "m", 0.1), Candidate("two"))),
        Candidates("c2", ASKED, (Candidate("the other sample failed", "m"),)),
        Candidates("c3", ASKED, ()),
    ],
)
def test_a_row_travels_as_it_is(row: Answer | Prompt | Candidates) -> None:
    assert input_from_row(json.loads(json.dumps(input_to_row(row)))) == row


def test_results_come_back_in_the_order_of_the_rows(tmp_path: Path) -> None:
    results = [Pair(f"r{i}", ASKED, f"good {i}", "bad") for i in range(12)]
    bills = [Bill({"aa": (9, 0.5), "bb": (1, 0.0)}), Bill(), Bill({"cc": (3, None)})]
    lost = Failure("r12", "pairs", "server", "500", {"answer": "é"})
    keep(tmp_path, 10, [result_to_row(result) for result in (*results[10:], lost)], bills[2])
    keep(tmp_path, 0, [result_to_row(result) for result in results[:9]], bills[0])
    keep(tmp_path, 9, [result_to_row(results[9])], bills[1])
    assert finished(tmp_path) == {0: 9, 9: 1, 10: 3}
    rows = list(map(pair_to_row, results))
    assert list(collect(tmp_path)) == [*rows[:9], bills[0], rows[9], bills[1], *rows[10:], lost, bills[2]]


def test_what_an_engine_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    keep(tmp_path / "folder", 0, [], Bill())
    (tmp_path / "file").touch()
    for name in ("folder", "file", "nothing"):
        clear(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_set_of_finished_shards_has_their_counts_and_the_cost_of_each_reply_once(tmp_path: Path) -> None:
    """All shards are there, so no Ray is needed: what the manifest says comes of their files alone."""
    out = tmp_path
    rows = [Answer(f"r{i}", ASKED, f"bad {i}", "stop") for i in range(5)]
    write_jsonl(out / "answers.jsonl", map(answer_to_row, rows))

    def attempt(status: str, *faults: str) -> dict[str, Any]:
        return {"status": status, "faults": list(faults)}

    def pair(i: int, *attempts: dict[str, Any], winner: str = "chosen") -> Pair:
        details = {"attempts": list(attempts), "verdict": {"winner": winner, "flip": winner == "tie"}}
        return Pair(f"r{i}", ASKED, f"good {i}", f"bad {i}", Provenance("clair", details=details))

    lost = Failure(
        "r3", "pairs", "broken", "a rule", {"attempts": [attempt("clean", "broken"), attempt("clean", "broken")]}
    )
    results = [
        pair(0, attempt("clean")),
        pair(1, attempt("truncated", "truncated"), attempt("clean")),
        pair(2, attempt("tolerated:fence"), winner="tie"),
        lost,
        Failure("r4", "pairs", "server", "500"),
    ]
    folder = out / "sets/clair/pairs.jsonl.partial"
    folder.mkdir(parents=True)
    bills = [Bill({"aa": (10, 0.5), "shared": (3, 0.25)}), Bill({"bb": (7, 0.125), "shared": (3, 0.25)})]
    keep(folder, 0, [result_to_row(result) for result in results[:2]], bills[0])
    keep(folder, 2, [result_to_row(result) for result in results[2:]], bills[1])
    run = RunContext(Recipe.model_validate({"pairs": {"reviser": "llm", "engine": "ray"}}), out)
    made = make_set(run, "clair", stage="pairs:clair", target="sets/clair/pairs.jsonl")
    assert made.pairs == 3 and made.failures == [replace(failure, stage="pairs:clair") for failure in results[3:]]
    assert [row["id"] for _, row in read_jsonl(out / "sets/clair/pairs.jsonl")] == ["r0", "r1", "r2"]
    assert not folder.exists()
    assert made.counts == {
        "maker": "clair",
        "rows": 5,
        "pairs": 3,
        "failures": {"broken": 1, "server": 1},
        "reasons": {"server": "500"},
        "replies": {"clean": 4, "truncated": 1, "tolerated:fence": 1},
        "gates": {"broken": 2},
        "asked_again": 2,
        "judge": {"judged": 3, "ties": 1, "flips": 1},
        "costs": {"calls": 3, "tokens": 20, "usd": 0.875},
    }
