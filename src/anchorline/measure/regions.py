"""Which part of an answer a token belongs to, seen beside the other answer of its pair.

    prefix   what both answers begin with
    edited   what only this answer has
    common   what both have after the first difference
    end      the token that ends the turn

What is common is the longest common subsequence of tokens, exactly. Of two answers that have little to do with each other
it is scattered tokens (full stops, articles), so read it beside its size.

>>> regions = align([5, 6, 7, 8, 2], [5, 9, 7, 8, 2], ends={2})
>>> [" ".join(side) for side in regions]
['prefix edited common common end', 'prefix edited common common end']
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import NamedTuple

from rapidfuzz.distance import Indel

REGIONS = ("prefix", "edited", "common", "end")


class Regions(NamedTuple):
    """The region of each token of both answers."""

    chosen: list[str]
    rejected: list[str]


class Part(NamedTuple):
    """What fell on one region of an answer."""

    change: float
    """The sum of its tokens' values."""
    tokens: int


def align(chosen: Sequence[int], rejected: Sequence[int], *, ends: Collection[int] = ()) -> Regions:
    """The regions of both answers' token ids. A last token that is not in `ends` (a cut answer) ends no turn."""
    bodies = [answer[: len(answer) - bool(answer and answer[-1] in ends)] for answer in (chosen, rejected)]
    first, second = bodies
    opening = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False)))
    sides: list[list[str]] = [["prefix"] * opening + ["edited"] * (len(body) - opening) for body in bodies]
    for block in Indel.opcodes(first[opening:], second[opening:]):
        if block.tag == "equal":
            spans = ((block.src_start, block.src_end), (block.dest_start, block.dest_end))
            for side, (start, stop) in zip(sides, spans, strict=True):
                side[opening + start : opening + stop] = ["common"] * (stop - start)
    for side, answer in zip(sides, (chosen, rejected), strict=True):
        side.extend(["end"] * (len(answer) - len(side)))
    return Regions(*sides)


def by_region(values: Sequence[float], regions: Sequence[str]) -> dict[str, Part]:
    """The values (one a token) added up in each region; every region is there, an empty one with 0 of 0 tokens.

    >>> by_region([0.5, 1.0, -2.0], ["prefix", "edited", "edited"])["edited"]
    Part(change=-1.0, tokens=2)
    """
    if len(values) != len(regions):
        raise ValueError(f"got {len(values)} values for {len(regions)} tokens: expected one a token")
    found: dict[str, Part] = {}
    for name in REGIONS:
        inside = [value for value, region in zip(values, regions, strict=True) if region == name]
        found[name] = Part(sum(inside), len(inside))
    return found
