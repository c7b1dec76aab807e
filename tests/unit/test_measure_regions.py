"""Where the tokens of two answers are the same, worked out by hand, and what holds for any two answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.measure.regions import REGIONS, align, by_region

END = 2
TOKENS = st.lists(st.integers(3, 6), max_size=12)


def letters(regions):
    return ["".join(region[0] for region in side) for side in regions]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([5, 6, 7, 8, END], [5, 9, 7, 8, END], ["pecce", "pecce"]),
        ([5, 6, END], [5, 6, END], ["ppe", "ppe"]),
        ([5, 6, 7, END], [8, 9, END], ["eeee", "eee"]),
        ([5, 6, 7, 9, END], [5, 7, END], ["pecee", "pce"]),  # an insertion before and after what is common
        ([5, 6], [5, 7, END], ["pe", "pee"]),  # a cut answer has no end
        ([END], [5, END], ["e", "ee"]),
    ],
)
def test_regions_by_hand(chosen, rejected, expected):
    assert letters(align(chosen, rejected, ends={END})) == expected
    assert [side[-1] == "end" for side in align(chosen, rejected, ends={END})] == [
        chosen[-1] == END,
        rejected[-1] == END,
    ]


def longest_common(a, b):
    """The textbook's table."""
    row = [0] * (len(b) + 1)
    for x in a:
        previous = 0
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], previous + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


@given(TOKENS, TOKENS)
def test_what_is_common_is_the_same_tokens_in_both_and_as_many_as_there_can_be(a, b):
    sides = align([*a, END], [*b, END], ends={END})
    kept = [
        [t for t, region in zip([*answer, END], side, strict=True) if region != "edited"]
        for answer, side in zip((a, b), sides, strict=True)
    ]
    assert kept[0] == kept[1] and len(kept[0]) == longest_common(a, b) + 1
    openings = [[region == "prefix" for region in side] for side in sides]
    count = sum(openings[0])
    assert openings[0] == [True] * count + [False] * (len(a) + 1 - count) and sum(openings[1]) == count
    assert count == min(len(a), len(b)) or a[count] != b[count]


@given(TOKENS, TOKENS)
def test_exchanging_the_answers_exchanges_the_sizes_of_their_regions(a, b):
    one, other = align(a, b), align(b, a)
    assert [sorted(side) for side in one] == [sorted(side) for side in other[::-1]]


def test_regions_add_up_to_the_whole():
    parts = by_region([1.0, -2.0, 4.0, 0.5], ["prefix", "edited", "edited", "end"])
    assert list(parts) == list(REGIONS)
    assert [(part.change, part.tokens) for part in parts.values()] == [(1.0, 1), (2.0, 2), (0, 0), (0.5, 1)]
    with pytest.raises(ValueError, match="3 values for 2 tokens"):
        by_region([1, 2, 3], ["end", "end"])
