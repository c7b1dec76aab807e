"""Packed rows: several examples in one row of tokens, each prompt once, its responses behind it.

    tokens     s s p p c c c r r | p c r r r
    positions  0 1 2 3 4 5 6 4 5 | 2 3 3 4 5

A response sees its prompt and itself. Positions restart at the branch point, so each branch has the positions that it
would have alone. What prompts of a row have in common at their beginning (s: the chat template, a system message) stands
once, at the row's start.

>>> row = pack([Example("a", (5, 6), ((7, 8), (9,)), (True, False))])
>>> row.tokens.tolist(), row.positions.tolist()
([[5, 6, 7, 8, 9]], [[0, 1, 2, 3, 2]])
>>> row.predicts.tolist(), row.targets.tolist()
([1, 2, 1], [7, 8, 9])
>>> two = pack([Example("a", (5, 6), ((7,),), (True,)), Example("b", (5, 8), ((9,),), (True,))])
>>> two.tokens.tolist(), two.positions.tolist()
([[5, 6, 7, 8, 9]], [[0, 1, 2, 1, 2]])
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import NamedTuple

import torch

from anchorline.train.tokenise import Example


class Branching(NamedTuple):
    """Where one example lies in a row.

    Its prompt is [0, opening) and then [start, prompt_end); branch k is [ends[k-1] or prompt_end, ends[k]). A row has one
    opening, or none; the examples that do not begin with it have 0 and their whole prompt to themselves.
    """

    opening: int
    start: int
    prompt_end: int
    ends: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of the prompt's own part, then of each branch."""
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


def shared_opening(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """The tokens at the beginning of prompts that save most when they stand once; each prompt keeps a token of its own.

    >>> shared_opening([(5, 6, 7), (5, 6, 8), (9, 7), (5, 6, 7, 7)])
    (5, 6)
    """
    best, most = prompts[0][:0], 0
    for prompt in prompts:
        common = [min(_common(prompt, other), len(other) - 1) for other in prompts]
        for length in set(common):
            saved = length * (sum(n >= length for n in common) - 1)
            if saved > most and length < len(prompt):
                best, most = prompt[:length], saved
    return best


def begins_with(prompt: Sequence[int], opening: Sequence[int]) -> bool:
    """Whether a prompt is the opening and at least one more token."""
    return len(prompt) > len(opening) and tuple(prompt[: len(opening)]) == tuple(opening)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def rows_of(examples: Sequence[Example], tokens: int) -> list[list[Example]]:
    """The fewest rows of about equal size that keep to `tokens` each; an example that is longer is a row of its own.

    >>> one = Example("a", (5, 6), ((7, 8), (9,)), (True, False))
    >>> [len(row) for row in rows_of([one, one, one], 10)]
    [2, 1]
    """
    return [[examples[i] for i in row] for row in cut([e.tokens for e in examples], tokens)]


def cut(sizes: Sequence[int], tokens: int, *, multiple: int = 1) -> list[list[int]]:
    """The same for sizes, as their places; the number of rows is a multiple of `multiple` where there are enough.

    >>> cut([5, 5, 5, 5], 10), cut([5, 5, 5, 5], 100, multiple=2)
    ([[0, 2], [1, 3]], [[0, 2], [1, 3]])
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    fewest = max(1, -(-sum(sizes) // tokens))
    for count in range(fewest + -fewest % multiple, len(sizes) + 1, multiple):
        rows, used = [[] for _ in range(count)], [0] * count
        for i in order:  # the longest first, each into the row that has most room
            place = used.index(min(used))
            rows[place].append(i)
            used[place] += sizes[i]
        if all(size <= tokens or len(row) == 1 for row, size in zip(rows, used, strict=True)):
            return [sorted(row) for row in rows if row]
    return [[i] for i in range(len(sizes))]


def pack(examples: Sequence[Example], *, share: bool = True) -> Row:
    """Lay examples out one behind the other; without `share`, each has its whole prompt to itself."""
    shared = shared_opening([example.prompt for example in examples]) if share else ()
    tokens: list[int] = list(shared)
    positions: list[int] = list(range(len(shared)))
    layout: list[Branching] = []
    predicts: list[int] = []
    targets: list[int] = []
    branch: list[int] = []
    branches = 0
    for example in examples:
        start, length = len(tokens), len(example.prompt)
        opening = len(shared) if begins_with(example.prompt, shared) else 0
        tokens += example.prompt[opening:]
        positions += range(opening, length)
        prompt_end = len(tokens)
        ends: list[int] = []
        for response in example.responses:
            first = len(tokens)
            tokens += response
            positions += range(length, length + len(response))
            predicts += [prompt_end - 1, *range(first, first + len(response) - 1)]
            targets += response
            branch += [branches] * len(response)
            branches += 1
            ends.append(len(tokens))
        layout.append(Branching(opening, start, prompt_end, tuple(ends)))
    return Row(
        torch.tensor([tokens]),
        torch.tensor([positions]),
        tuple(layout),
        torch.tensor(predicts),
        torch.tensor(targets),
        torch.tensor(branch),
        branches,
    )
