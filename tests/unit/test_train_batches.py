"""Every pair once an epoch in every step's right place, and equally many rows in all processes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorline.errors import EndedElsewhere, UserError
from anchorline.train.batches import Share, StepLoader, StepSampler, Unread
from anchorline.train.processes import count, gathered, joined, led, rank


def steps_of(sizes: list[int], share: Share, *, epoch: int = 0) -> list[list[list[list[int]]]]:
    """The rows of each step of each process."""
    samplers = [StepSampler(sizes, share, process=number, seed=3) for number in range(share.processes)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    steps = [list(sampler) for sampler in samplers]
    assert [len(mine) for mine in steps] == [len(sampler) for sampler in samplers]
    return steps


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=40),
    step=st.integers(1, 17),
    tokens=st.integers(1, 120),
    processes=st.integers(1, 5),
    epoch=st.integers(0, 2),
)
def test_a_step_holds_the_same_pairs_whatever_the_number_of_processes(sizes, step, tokens, processes, epoch):
    together = steps_of(sizes, Share(step, tokens, processes), epoch=epoch)
    (alone,) = steps_of(sizes, Share(step, tokens, 1), epoch=epoch)
    assert len(alone) == math.ceil(len(sizes) / step)
    assert sorted(pair for rows in alone for row in rows for pair in row) == list(range(len(sizes)))
    for number, rows in enumerate(alone):
        expected = sorted(pair for row in rows for pair in row)
        assert len(expected) == step or number == len(alone) - 1
        shares = [mine[number] for mine in together]
        assert len({len(share) for share in shares}) == 1, "equally many rows, so equally many collective calls"
        assert sorted(pair for share in shares for row in share for pair in row) == expected
        for row in (row for share in shares for row in share):
            assert sum(sizes[pair] for pair in row) <= tokens or len(row) == 1
        if len(expected) >= processes:
            assert all(any(share) for share in shares), "a process has nothing to do"


def test_whole_steps_are_divided_evenly():
    def lengths(pairs: int, share: Share) -> list[list[int]]:
        return [[len(row) for row in mine] for mine in share.rows([10] * pairs)]

    assert lengths(8, Share(8, 100, 2)) == [[4], [4]]
    assert lengths(8, Share(8, 30, 1)) == [[3, 3, 2]]
    assert lengths(9, Share(9, 20, 2)) == [[2, 2, 1], [2, 1, 1]]
    assert lengths(1, Share(9, 20, 2)) == [[1], [0]]


def test_every_epoch_has_its_own_order_and_the_same_one_again():
    sizes, share = [3] * 9, Share(4, 100, 1)
    assert steps_of(sizes, share) == steps_of(sizes, share) != steps_of(sizes, share, epoch=1)
    loader = StepLoader(Unread(9), batch_sampler=StepSampler(sizes, share, process=0, seed=3), collate_fn=list)
    loader.set_epoch(1)
    assert [list(loader)] == steps_of(sizes, share, epoch=1)


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
