"""The page of an evaluation: what a reader sees of figures, tests and readings; model text is only text."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest

from anchorline.cli.evaluate import _beside
from anchorline.evals.figure import make_figure
from anchorline.evals.winrate import winrate_table
from anchorline.report.evaluation_page import build_evaluation_page
from anchorline.types import Verdict

WINNERS = {"a": Verdict("a"), "b": Verdict("b"), "t": Verdict("tie")}
HOSTILE = "<script>alert(1)</script>\u202e{{ 7 * 7 }}"


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", page.split("</style>")[1])).replace("\u00a0", " ").split())


def winrate(winners: str) -> dict[str, Any]:
    verdicts = [WINNERS[winner] for winner in winners]
    table = winrate_table(verdicts, [("x" * (9 + n % 3), "y" * 10) for n in range(len(verdicts))], seed=0)
    figure = make_figure("win rate", table["n"], table | {"share": table["win_rate"]})
    return {"figures": [figure], "table": table, "against": "given.jsonl", "left_out": ["a: unreadable"]}


def test_a_difference_in_points_with_its_test() -> None:
    results = {"model": [1.0] * 9 + [0.0], "against": [0.0] * 9 + [1.0]}
    part, other = {"share": 0.9, "low": 0.6, "high": 0.98}, {"share": 0.1, "low": 0.02, "high": 0.4}
    figure = make_figure("calm", 10, part, other, results)
    alone = make_figure("loss", 4, {"share": 0.25}, unit="nats")
    tasks = {"style": {"figures": [figure]}, "preference": {"figures": [alone]}}
    text = text_of(build_evaluation_page({"model": "m", "against": "n", "tasks": tasks}))
    assert "calm 10 90 % 60 % to 98 % 10 % 2 % to 40 % +80.0 points" in text
    assert text.endswith("n Model loss nats 4 0.25"), "no columns where the other model has no figure"
    assert "0.0215 McNemar, exact" in text


def test_drift_stands_by_group() -> None:
    def part(n: int, kl: float) -> dict[str, Any]:
        span = {"low": kl - 0.01, "high": kl + 0.01} if n > 1 else {"low": None, "high": None}
        return {"prompts": n, "kl_per_token": kl, "logprob_change_per_token": -kl, **span}

    groups = {"items": part(6, 0.05), HOSTILE: part(1, 0.5)}
    for shown in (groups, {"items": groups["items"]}):
        table = part(7, 0.11) | {"groups": shown}
        page = build_evaluation_page({"model": "m", "tasks": {"drift": {"figures": [], "table": table}}})
        text = text_of(page)
        assert "all prompts 7 0.110 0.100 to 0.120 −0.110" in text and "<script" not in page
        assert ("items 6 0.050 0.040 to 0.060 −0.050" in text) is (len(shown) > 1), "one group is all prompts"
    assert " 1 0.500 −0.500" in text_of(
        build_evaluation_page(
            {"model": "m", "tasks": {"drift": {"figures": [], "table": part(7, 0.11) | {"groups": groups}}}}
        )
    )


@pytest.mark.parametrize(
    ("winners", "p", "said"),
    [
        ("aaaaaaaaabtt", "0.0215", "At equal lengths better: the interval lies above 50 %."),
        ("abababababtt", "1", "At equal lengths not settled: the interval holds 50 %."),
        ("aab", "1", "Length control needs 10 results or more."),
    ],
)
def test_a_win_rate_is_read_against_a_half(winners: str, p: str, said: str) -> None:
    text = text_of(build_evaluation_page({"model": "m", "tasks": {"winrate": winrate(winners)}}))
    assert f"That neither is better: p = {p} (sign test" in text and said in text
    assert "Against given.jsonl : " in text and "1 left out a: unreadable" in text


def test_nothing_judged_is_no_p_value() -> None:
    text = text_of(build_evaluation_page({"model": "m", "tasks": {"winrate": winrate("")}}))
    assert "p =" not in text and "win rate 0 –" in text


def test_names_are_only_text() -> None:
    task = winrate("ab" * 6) | {"against": HOSTILE, "left_out": [HOSTILE]}
    task["figures"][0]["name"] = HOSTILE
    page = build_evaluation_page({"model": HOSTILE, "against": HOSTILE, "tasks": {"winrate": task, HOSTILE: task}})
    assert "<script" not in page and "\u202e" not in page and "{{ 7 * 7 }}" in page


def test_the_console_says_the_paired_difference_with_its_interval():
    def said(unit, **difference):
        found = {"mean": None, "low": None, "high": None, "p": None, "test": "t"} | difference
        return _beside({"unit": unit, "against": {"value": 0.5, "low": None, "high": None}, "difference": found})

    assert said("share", mean=0.25, low=-0.1, high=0.6, p=0.04) == (
        "; against: 50.0%; difference: +25.0 (-10.0 to +60.0) points; p = 0.04 (t)"
    )
    assert said("metric", mean=-0.5) == "; against: 0.5000; difference: -0.5000"
    assert said("share") == "; against: 50.0%"
