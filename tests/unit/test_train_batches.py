"""Every pair once an epoch in every step's right place, and equally many rows in all processes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorline.errors import EndedElsewhere, UserError
from anchorline.train.batches import RowLoader, RowSampler, Share
from anchorline.train.processes import count, gathered, joined, led, rank


def rows_of(pairs: int, share: Share, *, epoch: int = 0) -> list[list[list[int]]]:
    """The rows of each process."""
    samplers = [RowSampler(pairs, share, process=number, seed=3) for number in range(share.processes)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    rows = [list(sampler) for sampler in samplers]
    assert [len(mine) for mine in rows] == [len(sampler) for sampler in samplers]
    return rows


@settings(max_examples=200)
@given(
    pairs=st.integers(1, 40),
    step=st.integers(1, 17),
    row=st.integers(1, 9),
    processes=st.integers(1, 5),
    epoch=st.integers(0, 2),
)
def test_a_step_holds_the_same_pairs_whatever_the_number_of_processes(pairs, step, row, processes, epoch):
    share = Share(step, row, processes)
    together, (alone,) = rows_of(pairs, share, epoch=epoch), rows_of(pairs, Share(step, row, 1), epoch=epoch)
    assert len({len(mine) for mine in together}) == 1, "equally many rows, so equally many collective calls"
    order = [pair for mine in alone for pair in mine]
    assert sorted(order) == list(range(pairs))
    first = 0
    for start in range(0, pairs, step):
        expected = order[start : start + step]
        size = share.rows_of(len(expected))
        found = [pair for mine in together for part in mine[first : first + size] for pair in part]
        assert sorted(found) == sorted(expected)
        first += size
    assert all(len(part) <= row for mine in together for part in mine)
    # the Trainer takes so many rows for each step, and what is left for the last
    assert share.rows == share.rows_of(step) and first == len(together[0])
    assert math.ceil(len(together[0]) / share.rows) == math.ceil(pairs / step)


def test_whole_steps_are_divided_evenly():
    assert [len(part) for mine in rows_of(8, Share(8, 8, 2)) for part in mine] == [4, 4]
    assert [len(part) for mine in rows_of(8, Share(8, 3, 1)) for part in mine] == [3, 3, 2]
    assert [len(part) for mine in rows_of(9, Share(9, 2, 2)) for part in mine] == [2, 2, 1, 2, 2, 0]


def test_every_epoch_has_its_own_order_and_the_same_one_again():
    share = Share(4, 4, 1)
    assert rows_of(9, share) == rows_of(9, share) != rows_of(9, share, epoch=1)
    loader = RowLoader(list(range(9)), batch_sampler=RowSampler(9, share, process=0, seed=3), collate_fn=list)
    loader.set_epoch(1)
    assert [list(loader)] == rows_of(9, share, epoch=1)


def test_one_process_needs_no_other():
    with joined(), joined():
        assert (rank(), count(), gathered(5), led(lambda: 6)) == (0, 1, [5], 6)
    with pytest.raises(UserError), joined():
        raise UserError("told as it is")


def test_a_variable_without_a_launcher_starts_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with joined():
        assert (rank(), count()) == (0, 1)


def test_what_another_process_has_said_is_not_said_again(capsys):
    from anchorline.cli.show import exit_code

    def ends() -> None:
        raise EndedElsewhere

    assert exit_code(ends) == 1 and capsys.readouterr().err == ""
