"""One pair's measures, the spread over a set against the standard library, and the set's speed."""

from __future__ import annotations

import json
import random
import statistics
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.measure import PairMeasures, measure_pair, summarise

CHOSEN, REJECTED = "Hello there. It left today.", "Hello! Sorry. It left."


def lengths(text):
    """A stand-in for a tokenizer: each word's length is its token id."""
    return [len(word) for word in text.split()]


def rows_with(**columns):
    """Rows with those values and harmless ones elsewhere."""
    filler = PairMeasures(0.5, None, 10, None, 0.5, 1.0, 0.0)
    return [
        filler._replace(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)
    ]


def test_one_pair_by_hand():
    assert measure_pair(CHOSEN, REJECTED, tokenize=lengths) == PairMeasures(
        word_jaccard=1 / 8,  # It; of Hello there. It left today. Hello! Sorry. left.
        token_jaccard=3 / 4,  # 2, 5 and 6 of 2, 4, 5, 6 ...
        character_levenshtein=11,  # insert "!", 4 letters of "there" to "Sorry", drop 6 of " today."
        token_levenshtein=3,  # 5 6 2 4 6 and 6 6 2 5
        normalised_distance=11 / 27,
        length_ratio=5 / 4,
        shared_prefix=5 / 22,
    )


def test_which_side_is_which():
    there, back = measure_pair("a b c", "a"), measure_pair("a", "a b c")
    assert (there.length_ratio, back.length_ratio) == (3.0, pytest.approx(1 / 3))


def test_without_a_tokenizer_token_measures_are_none_and_left_out():
    row = measure_pair(CHOSEN, REJECTED)
    assert row.token_jaccard is None
    assert row.token_levenshtein is None
    assert set(summarise([row])["metrics"]) == set(PairMeasures._fields) - {"token_jaccard", "token_levenshtein"}


def test_spread_by_hand():
    summary = summarise(rows_with(character_levenshtein=[40, 0, 10, 20, 30], length_ratio=[2.0, None, 1.0, None, 1.5]))
    assert summary["pairs"] == 5
    spread = summary["metrics"]["character_levenshtein"]
    assert {key: value for key, value in spread.items() if key != "histogram"} == {
        "count": 5,
        "mean": 20.0,
        "min": 0,
        "p5": 2.0,
        "p25": 10.0,
        "p50": 20.0,
        "p75": 30.0,
        "p95": 38.0,
        "max": 40,
    }
    assert spread["histogram"]["edges"] == [2.0 * i for i in range(21)]
    assert [i for i, count in enumerate(spread["histogram"]["counts"]) if count] == [0, 5, 10, 15, 19]
    ratio = summary["metrics"]["length_ratio"]
    assert (ratio["count"], ratio["mean"], ratio["p50"]) == (3, 1.5, 1.5)


def test_shares_have_the_same_bars_in_every_set():
    for values in ([0.5, 0.5], [0.0, 1.0], [0.31, 0.32]):
        histogram = summarise(rows_with(shared_prefix=values))["metrics"]["shared_prefix"]["histogram"]
        assert histogram["edges"] == pytest.approx([i / 20 for i in range(21)])
        assert sum(histogram["counts"]) == 2


def test_a_set_of_equal_values_is_one_bar():
    histogram = summarise(rows_with(character_levenshtein=[7, 7, 7]))["metrics"]["character_levenshtein"]["histogram"]
    ((place, count),) = [(i, count) for i, count in enumerate(histogram["counts"]) if count]
    assert count == 3 and histogram["edges"][place : place + 2] == pytest.approx([7.0, 7.05]), "narrow, where they lie"
    assert (histogram["edges"][0], histogram["edges"][-1]) == (6.5, 7.5)


@given(values=st.lists(st.floats(0, 50), min_size=2, max_size=60))
def test_spread_is_the_standard_librarys(values):
    spread = summarise(rows_with(length_ratio=values))["metrics"]["length_ratio"]
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    for name, place in (("p5", 0), ("p25", 4), ("p50", 9), ("p75", 14), ("p95", 18)):
        assert spread[name] == pytest.approx(cuts[place], abs=1e-9)
    assert spread["mean"] == pytest.approx(statistics.fmean(values))
    assert (spread["min"], spread["max"]) == (min(values), max(values))
    edges, counts = spread["histogram"]["edges"], spread["histogram"]["counts"]
    assert len(edges) == len(counts) + 1
    assert edges == sorted(edges)
    last = len(counts) - 1
    for i, count in enumerate(counts):
        inside = [v for v in values if edges[i] <= v and (v < edges[i + 1] or i == last)]
        assert count == len(inside)


def test_rules_count_pairs_most_frequent_first():
    touched = [["b", "a"], ["b", "b"], [], ["c"], ("a", "d", "b")]
    rules = summarise(rows_with(length_ratio=[1.0] * 5), touched=touched)["rules"]
    foreign = [None, "ab", 7, {"a": 1}, ["e", 7, None, ["a"]]]
    assert summarise(rows_with(length_ratio=[1.0] * 5), touched=foreign)["rules"] == {"e": 1}
    assert list(rules.items()) == [("b", 3), ("a", 2), ("c", 1), ("d", 1)]


def test_an_empty_set_and_an_empty_answer():
    assert summarise([]) == {"pairs": 0, "metrics": {}, "rules": {}}
    row = measure_pair("Hello there.", "", tokenize=lengths)
    assert row == PairMeasures(0.0, 0.0, 12, 2, 1.0, None, 1.0)
    assert "length_ratio" not in summarise([row])["metrics"]


def test_ready_for_json_and_from_an_iterator():
    rows = [measure_pair(CHOSEN, REJECTED, tokenize=lengths), measure_pair("Yes.", "", tokenize=lengths)]
    summary = summarise(iter(rows), touched=iter([["greeting"], None]))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["pairs"] == 2


def test_measuring_is_fast_enough_for_32000_pairs_a_minute():
    """Unrelated answers are the slowest. 1.9 ms a pair is a minute for 32,000 on one core; the best of three counts."""
    generator = random.Random(0)
    vocabulary = ["".join(generator.choices("abcdefghijklmnop", k=generator.randint(2, 9))) for _ in range(5000)]
    texts = [" ".join(generator.choices(vocabulary, k=400)) for _ in range(80)]
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for chosen, rejected in zip(texts[:40], texts[40:], strict=True):
            measure_pair(chosen, rejected, tokenize=lengths)
        best = min(best, time.process_time() - start)
    assert best / 40 < 1.9e-3
