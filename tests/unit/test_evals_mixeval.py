"""MixEval-Hard: its files, its prompts, its rule parsers pattern by pattern, and its judge's replies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from anchorline.errors import DataError, EndpointError
from anchorline.evals.mixeval_hard import Item, Score, load_items, mixeval_table, question, score_by_rules
from anchorline.evals.mixeval_judge import ATTEMPTS, read_option, read_score, score_by_judge
from anchorline.evals.mixeval_rules import SHAPES, is_right, parse_choice, predictions
from anchorline.llm.fake import FakeEndpoint

REAL = Path(__file__).parents[3] / "shared" / "data" / "mixeval_hard"
FRUIT = ["red apple", "green pear", "blue plum"]
CHOICE = Item("choice-0", "MMLU", "choice", "Which?", None, tuple(FRUIT), (), 1)
FREE = Item("free-0", "DROP", "free", "How many?", "Ten left.", (), ("10", "ten"), -1)


@pytest.mark.skipif(not (REAL / "free-form.json").is_file(), reason="shared/data/mixeval_hard is not there")
def test_a_thousand_items_load() -> None:
    items = load_items(REAL)
    assert len(items) == len({item.id for item in items}) == 1000
    assert sum(item.kind == "choice" for item in items) == 500
    assert {question(item).messages[0].role for item in items} == {"user"}
    table = mixeval_table([score_by_rules(item, "A", seed=0) for item in items], seed=0)
    assert table["overall"]["n"] == 1000 and table["choice"]["by_lot"] == 0
    assert table["benchmarks"]["free"]["TriviaQA"]["n"] == 267 and table["benchmarks"]["choice"]["MMLU"]["n"] == 231


def test_a_small_release_of_our_own(tmp_path: Path) -> None:
    free = {"7": {"prompt": "Why?", "target": ["x"], "benchmark_name": "BBH", "context": None}}
    choice = {"a": {"prompt": "Q", "options": ["n", "y"], "target": [1], "benchmark_name": "B", "context": " null "}}
    (tmp_path / "free-form.json").write_text(json.dumps(free))
    (tmp_path / "multiple-choice.json").write_text(json.dumps(choice))
    first, second = (question(item).messages[0].content for item in load_items(tmp_path))
    assert first == "Question: Why?\nAnswer the question. \nLet's think step by step."
    assert second == "Q\nA. n\nB. y\nAnswer with the option letter from the given choices directly."
    assert question(FREE).messages[0].content == "Question: Ten left.\nHow many?\nAnswer the question shortly."
    choice["a"]["target"] = [2]
    (tmp_path / "multiple-choice.json").write_text(json.dumps(choice))
    with pytest.raises(DataError, match=r"item a: expected the place of one option"):
        load_items(tmp_path)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_of_a_letter_is_read(shape: str) -> None:
    assert parse_choice("x" + shape.format("B") + "x", FRUIT) == "B"
    assert parse_choice("x" + shape.format("D") + "x", FRUIT) is None, "no such option"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("'B'", "B"),
        ("b", None),  # letters are capitals
        ("B) green", None),  # a bracket on one side only is none of the shapes
        ("It is (C), not (A)", "C"),  # the first one counts
        ("A pear would be C.", "A"),  # the article is taken for the option, as in the benchmark
        ("I would say it is the Green Pear here", "B"),  # more than five words: the options' texts
        ("it is the green pear", None),  # five words or fewer: their texts do not count
        ("Both blue plum and red apple are fine with me", "C"),
        ("", None),
    ],
)
def test_answers_as_the_benchmark_reads_them(answer: str, letter: str | None) -> None:
    assert parse_choice(answer, FRUIT) == letter


def test_a_choice_that_cannot_be_read_is_drawn_by_lot_and_counted() -> None:
    items = [CHOICE._replace(id=f"choice-{n}") for n in range(600)]
    scores = [score_by_rules(item, "hm", seed=0) for item in items]
    table = mixeval_table(scores, seed=0)["choice"]
    assert table["by_lot"] == table["n"] == 600 and table["low"] < 1 / 3 < table["high"]
    assert scores == [score_by_rules(item, "hm", seed=0) for item in items]
    assert scores != [score_by_rules(item, "hm", seed=1) for item in items]
    assert score_by_rules(FREE, "hm", seed=0) == Score(FREE, 0.0, False), "a free-form answer is wrong, never drawn"


@pytest.mark.parametrize(
    ("answer", "targets", "right"),
    [
        ("Paris", ["paris"], True),
        ("The capital is Paris.", ["Paris"], True),
        ("Paris is a city", ["Paris"], False),  # only what follows the mark counts
        ("So there were 1,250 left", ["1250"], True),
        ("x = 0.333", ["0.33"], True),  # two decimals
        ("it is 12", ["1"], False),  # a number is compared as a number
        ("the answer is b c", ["b"], True),  # one character needs a space beside it
        ("abc", ["b"], False),
        ("first = 3\nsecond: nothing", ["3"], True),  # no mark anywhere: the whole answer, with its numbers
        ("a = 3\nthe answer is 4", ["3"], False),  # "=" is a mark in the last line only
        ("", ["x"], False),
    ],
)
def test_free_form_as_the_benchmark_reads_it(answer: str, targets: list[str], right: bool) -> None:
    assert is_right(answer, targets) is right


def test_numbers_of_all_forms() -> None:
    assert predictions("it is 1,250 or 3e5 or .5")[1:] == ["1,250", "3e5", "250", "5", ".5"]


def test_brackets_of_a_judges_reply() -> None:
    assert (read_option("[A] or [[B]]"), read_option("[C]"), read_option("[[b]]")) == ("B", "C", None)
    assert (read_score("[[0.8]]"), read_score("[1]"), read_score("[[7]]"), read_score("none")) == (0.8, 1.0, None, None)


def test_a_judge_is_asked_ten_times_and_then_it_is_a_lot() -> None:
    silent, late = FakeEndpoint("no idea"), FakeEndpoint(["hm", "hm", "the second: [[B]]"])
    drawn = asyncio.run(score_by_judge(CHOICE, "pear", judge=silent, seed=0))
    assert drawn.by_lot and len(silent.asked) == ATTEMPTS == len({request.index for request in silent.asked})
    assert asyncio.run(score_by_judge(CHOICE, "pear", judge=late, seed=0)) == Score(CHOICE, 1.0, False)
    tenth = asyncio.run(score_by_judge(FREE, "about ten", judge=FakeEndpoint("[[0.7]]"), seed=0))
    assert tenth == Score(FREE, 0.7, False)
    mean = mixeval_table([tenth, tenth._replace(score=0.3)], seed=0)["free"]
    assert mean["score"] == pytest.approx(0.5) and mean["n"] == 2


def test_where_no_request_was_answered_there_is_no_score() -> None:
    away = FakeEndpoint(lambda request: EndpointError("away"))
    found = asyncio.run(score_by_judge(CHOICE, "pear", judge=away, seed=0))
    assert found.error == "away" and not found.by_lot and len(away.asked) == ATTEMPTS


def test_the_page_escapes_says_n_and_counts_what_went_by_lot() -> None:
    from anchorline.report.evaluation_page import build_evaluation_page
    from anchorline.report.figures import percent

    figure = {"name": "<b>x</b>", "unit": "share", "n": 37, "value": 0.5, "low": 0.25, "high": 0.75}
    other = {"n": 37, "value": 0.125, "low": None, "high": None}
    difference = {"n": 37, "mean": 0.375, "low": None, "high": None, "p": 0.0625, "test": "McNemar, exact"}
    task = {
        "figures": [figure | {"against": other, "difference": difference}],
        "parser": "rules",
        "tables": {"model": {"overall": {"n": 37, "by_lot": 4}}},
        "left_out": ["<script>"],
    }
    page = build_evaluation_page({"model": "m", "against": "base", "tasks": {"mixeval_hard": task}})
    assert "&lt;b&gt;x" in page and "<b>x" not in page and "<script" not in page
    for text in (
        '<td class="n">37</td>',
        "4 of 37 (model)",
        f"{percent(0.25)} to {percent(0.75)}",
        percent(0.125),
        "0.0625",
        "McNemar, exact",
    ):
        assert text in page, text
