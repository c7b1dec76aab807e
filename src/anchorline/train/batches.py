"""Which pairs go into which row of which process, step by step.

A step's pairs are cut into rows of about one size, each within the budget of tokens, and the processes take the rows in
turn. In a step all processes have equally many rows, some perhaps empty, so that all of them make the same collective
calls; and a step holds the same pairs whatever the number of processes is. Each process works all of this out by itself.

>>> steps = StepSampler([9] * 5, Share(pairs_per_step=4, tokens_per_row=20, processes=2), process=1, seed=0)
>>> [[len(row) for row in rows] for rows in steps]
[[2], [0]]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from anchorline.train.layout import cut

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share:
    """How a step is divided."""

    pairs_per_step: int
    tokens_per_row: int
    """At most, a pair that is longer by itself excepted."""
    processes: int

    @property
    def pairs(self) -> int:
        """Pairs of a whole step in each process, about."""
        return math.ceil(self.pairs_per_step / self.processes)

    def rows(self, sizes: Sequence[int]) -> list[list[list[int]]]:
        """The rows of each process, for pairs of these sizes (tokens): their places in `sizes`."""
        rows = cut(sizes, self.tokens_per_row, multiple=self.processes)
        rows += [[]] * (-len(rows) % self.processes)
        return [rows[process :: self.processes] for process in range(self.processes)]


@dataclass(frozen=True, slots=True)
class Beside:
    """Examples that come with every step's pairs, in rows of their own, so that the pairs' rows are what they were."""

    sizes: Sequence[int] = ()
    per_step: int = 0

    @property
    def count(self) -> int:
        """Of a step."""
        return min(self.per_step, len(self.sizes))


class StepSampler(Sampler[list[list[int]]]):
    """The rows of one process in each step of an epoch; every epoch has an order of its own, the same in all processes.

    The examples `beside` are numbered after the pairs. They are gone through in turn, step after step, one round after
    the other in the order of the epoch.
    """

    def __init__(
        self, sizes: Sequence[int], share: Share, *, process: int, seed: int, beside: Beside = Beside()
    ) -> None:
        self.sizes, self.share, self.process, self.seed, self.epoch = sizes, share, process, seed, 0
        self.beside = beside

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.sizes) / self.share.pairs_per_step)

    def __iter__(self) -> Iterator[list[list[int]]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.sizes), generator=generator).tolist()
        beside = torch.randperm(len(self.beside.sizes), generator=generator).tolist()
        for number, start in enumerate(range(0, len(order), self.share.pairs_per_step)):
            rows = self._rows(order[start : start + self.share.pairs_per_step], self.sizes)
            count = self.beside.count
            along = [beside[k % len(beside)] for k in range(number * count, (number + 1) * count)]
            kept = self._rows(along, self.beside.sizes) if along else []
            yield [*rows, *([len(order) + i for i in row] for row in kept)]

    def _rows(self, step: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
        rows = self.share.rows([sizes[i] for i in step])[self.process]
        return [[step[place] for place in row] for row in rows]


class Unread(Dataset[Any]):
    """In the place of data: the rows as the sampler has them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: T) -> T:
        return index


class StepLoader(DataLoader[Any]):
    """A loader that tells its sampler of the epochs."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        assert isinstance(self.batch_sampler, StepSampler)
        self.batch_sampler.set_epoch(epoch)
