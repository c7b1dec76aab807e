"""Which pairs go into which row of which process, step by step.

A step's pairs are cut into rows, which the processes take in turn. In a step all processes have equally many rows, some
perhaps empty, so that all of them make the same collective calls; and a step holds the same pairs whatever the number of
processes is.

>>> rows = RowSampler(5, Share(pairs_per_step=4, pairs_per_row=8, processes=2), process=1, seed=0)
>>> [len(row) for row in rows]
[2, 0]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Sampler


@dataclass(frozen=True, slots=True)
class Share:
    """How a step is divided."""

    pairs_per_step: int
    pairs_per_row: int
    """At most."""
    processes: int

    @property
    def row(self) -> int:
        """Pairs in a row, such that the rows of a step are of about one size."""
        mine = math.ceil(self.pairs_per_step / self.processes)
        return math.ceil(mine / math.ceil(mine / self.pairs_per_row))

    @property
    def rows(self) -> int:
        """Rows of a whole step in each process."""
        return self.rows_of(self.pairs_per_step)

    def rows_of(self, pairs: int) -> int:
        """Rows in each process of a step of so many pairs."""
        return math.ceil(math.ceil(pairs / self.row) / self.processes)


class RowSampler(Sampler[list[int]]):
    """The rows of one process in one epoch; every epoch has an order of its own, the same in all processes."""

    def __init__(self, pairs: int, share: Share, *, process: int, seed: int) -> None:
        self.pairs, self.share, self.process, self.seed, self.epoch = pairs, share, process, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.pairs, self.share.pairs_per_step)
        return whole * self.share.rows + self.share.rows_of(rest)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.pairs, generator=generator).tolist()
        share = self.share
        for start in range(0, self.pairs, share.pairs_per_step):
            step = order[start : start + share.pairs_per_step]
            rows = [step[i : i + share.row] for i in range(0, len(step), share.row)]
            rows += [[]] * (share.rows_of(len(step)) * share.processes - len(rows))
            yield from rows[self.process :: share.processes]


class RowLoader(DataLoader[int]):
    """A loader that tells its sampler of the epochs."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        assert isinstance(self.batch_sampler, RowSampler)
        self.batch_sampler.set_epoch(epoch)
