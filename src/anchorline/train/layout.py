"""Packed rows: several examples in one row of tokens, each prompt once, its responses behind it.

    tokens     p p p c c c r r | p p c r r r
    positions  0 1 2 3 4 5 3 4 | 0 1 2 2 3 4

A response sees its prompt and itself. Positions restart at the branch point, so each branch has the positions that it
would have alone.

>>> row = pack([Example("a", (5, 6), ((7, 8), (9,)), (True, False))])
>>> row.tokens.tolist(), row.positions.tolist()
([[5, 6, 7, 8, 9]], [[0, 1, 2, 3, 2]])
>>> row.predicts.tolist(), row.targets.tolist()
([1, 2, 1], [7, 8, 9])
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from anchorline.train.tokenise import Example


class Branching(NamedTuple):
    """Where one example lies in a row: the prompt is [start, prompt_end), branch k is [ends[k-1] or prompt_end, ends[k])."""

    start: int
    prompt_end: int
    ends: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of the prompt, then of each branch."""
        cuts = (self.start, self.prompt_end, *self.ends)
        return tuple(b - a for a, b in pairwise(cuts))


class Row(NamedTuple):
    """A packed row. T tokens, R response tokens, B branches.

    `predicts[i]` is the position whose hidden state predicts response token `targets[i]`, which belongs to branch
    `branch[i]`. The first token of every branch is predicted by the prompt's last position.
    """

    tokens: torch.Tensor
    """int64 [1, T]"""
    positions: torch.Tensor
    """int64 [1, T]"""
    layout: tuple[Branching, ...]
    predicts: torch.Tensor
    """int64 [R]"""
    targets: torch.Tensor
    """int64 [R]"""
    branch: torch.Tensor
    """int64 [R], values in [0, B)"""
    branches: int

    def to(self, device: torch.device | str) -> Row:
        """The row with its tensors on `device`."""
        moved = {name: v.to(device) for name, v in self._asdict().items() if isinstance(v, torch.Tensor)}
        return self._replace(**moved)


def pack(examples: Sequence[Example]) -> Row:
    """Lay examples out one behind the other."""
    tokens: list[int] = []
    positions: list[int] = []
    layout: list[Branching] = []
    predicts: list[int] = []
    targets: list[int] = []
    branch: list[int] = []
    branches = 0
    for example in examples:
        start, length = len(tokens), len(example.prompt)
        tokens += example.prompt
        positions += range(length)
        ends: list[int] = []
        for response in example.responses:
            first = len(tokens)
            tokens += response
            positions += range(length, length + len(response))
            predicts += [start + length - 1, *range(first, first + len(response) - 1)]
            targets += response
            branch += [branches] * len(response)
            branches += 1
            ends.append(len(tokens))
        layout.append(Branching(start, start + length, tuple(ends)))
    return Row(
        torch.tensor([tokens]),
        torch.tensor([positions]),
        tuple(layout),
        torch.tensor(predicts),
        torch.tensor(targets),
        torch.tensor(branch),
        branches,
    )
