"""Overlaps, edit distances and ratios: worked values, and equality with plain Python versions on random texts."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.measure import (
    character_levenshtein,
    jaccard,
    length_ratio,
    normalised_distance,
    shared_prefix,
    token_levenshtein,
    words,
)

SHORT = st.text("ab é\n", max_size=12)
IDS = st.lists(st.integers(0, 3), max_size=10)


def plain_levenshtein(a, b):
    """The textbook table, one row at a time."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        above, row = row, [i]
        for j, right in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def test_words_are_cut_at_any_whitespace():
    assert words("  Order 7,\n\tplease.  ") == ["Order", "7,", "please."]
    assert words(" \n") == []


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([], [], 1.0),
        (["a"], [], 0.0),
        (["a", "b"], ["b", "c"], 1 / 3),
        (["a", "a", "b"], ["b", "a"], 1.0),
        ([1, 2, 3, 4], [3, 4, 5, 6, 7, 8], 0.25),
    ],
)
def test_jaccard(a, b, expected):
    assert jaccard(a, b) == jaccard(b, a) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("naïve 🙂", "naive 🙃", 2)],
)
def test_character_levenshtein(a, b, distance):
    assert character_levenshtein(a, b) == character_levenshtein(b, a) == distance


def test_token_levenshtein_counts_tokens_not_characters():
    assert token_levenshtein(words("we ship it today"), words("we shipped it")) == 2
    assert token_levenshtein([5, 6, 7], [5, 7]) == 1


@given(a=SHORT, b=SHORT)
def test_character_levenshtein_is_the_textbooks(a, b):
    assert character_levenshtein(a, b) == plain_levenshtein(a, b)


@given(a=IDS, b=IDS)
def test_token_levenshtein_is_the_textbooks(a, b):
    expected = plain_levenshtein(a, b)
    assert token_levenshtein(a, b) == expected
    assert token_levenshtein([f"w{i}" for i in a], [f"w{i}" for i in b]) == expected


def test_long_answers_are_exact_too():
    """Past 64 characters the fast count takes another path."""
    a, b = "the parcel left on monday " * 9, "a parcel leaves on friday, " * 8
    assert character_levenshtein(a, b) == plain_levenshtein(a, b)
    assert token_levenshtein(words(a), words(b)) == plain_levenshtein(words(a), words(b))


def test_normalised_distance():
    assert normalised_distance("kitten", "sitting") == pytest.approx(3 / 7)
    assert normalised_distance("", "") == 0.0
    assert normalised_distance("", "abc") == 1.0


def test_length_ratio_is_chosen_over_rejected_in_words():
    assert length_ratio("one two three", "a-very-long-word") == 3.0
    assert length_ratio("one", "one two") == 0.5
    assert length_ratio("", "one two") == 0.0
    assert length_ratio("one", " \n") is None


@pytest.mark.parametrize(
    ("a", "b", "expected"), [("abcd", "abxyzw", 0.5), ("abc", "abcdef", 1.0), ("", "abc", 1.0), ("xabc", "yabc", 0.0)]
)
def test_shared_prefix(a, b, expected):
    assert shared_prefix(a, b) == shared_prefix(b, a) == expected


@given(a=SHORT, b=SHORT)
def test_shares_stay_between_0_and_1_and_agree_on_equal_texts(a, b):
    same = a == b
    assert 0 <= normalised_distance(a, b) <= 1
    assert (normalised_distance(a, b) == 0) == same
    assert 0 <= shared_prefix(a, b) <= 1
    assert 0 <= jaccard(a, b) <= 1
    assert normalised_distance(a, a) == 0
    assert shared_prefix(a, a) == jaccard(a, a) == 1


@pytest.mark.parametrize("module", ["measure", "measure.text", "measure.summary"])
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(f"anchorline.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_measure_does_not_import_torch():
    code = "import sys, anchorline.measure; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
