"""Rows of a token budget: every example once, no row over the budget that could be under it, and few rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from test_train_toys import example

from anchorline.train.layout import rows_of

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12)


def size(one) -> int:
    return len(one.prompt) + sum(map(len, one.responses))


@given(lengths=LENGTHS, budget=st.integers(1, 150))
def test_every_example_once_and_no_row_over_the_budget_but_a_single_one(lengths, budget):
    examples = [example([1] * p, [2] * c, [3] * r) for p, c, r in lengths]
    rows = rows_of(examples, budget)
    assert sorted(map(id, (e for row in rows for e in row))) == sorted(map(id, examples))
    assert all(row and (sum(map(size, row)) <= budget or len(row) == 1) for row in rows)
    assert rows_of(examples, budget) == rows
    # of two neighbours in an order by size, one could take the other in: then one row would have been enough
    if sum(map(size, examples)) <= budget:
        assert len(rows) == 1


def test_rows_are_of_about_one_size_and_keep_the_order_inside():
    examples = [example([1], [2] * n, [3]) for n in (8, 1, 7, 2, 6, 3)]  # 10, 3, 9, 4, 8, 5 tokens
    rows = rows_of(examples, 20)
    assert [sorted(map(size, row)) for row in rows] == [[4, 5, 10], [3, 8, 9]]
    places = [[examples.index(e) for e in row] for row in rows]
    assert all(row == sorted(row) for row in places)
