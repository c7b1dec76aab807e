"""Several sets of pairs made comparable: the same prompts, as many pairs of each, in one order.

>>> from anchorline.types import Message
>>> one = [Pair("1", (Message("user", "a"),), "x", "y"), Pair("2", (Message("user", "b"),), "x", "y")]
>>> matched = match({"clair": one, "stronger": one[1:]})
>>> [pair.id for pair in matched.sets["clair"]], matched.dropped
(['2'], {'clair': 1, 'stronger': 0})
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from anchorline.types import Pair, prompt_id


class Matched(NamedTuple):
    """The sets, each with the same prompts in the same order, and how many pairs each has lost."""

    sets: dict[str, list[Pair]]
    dropped: dict[str, int]


def match(sets: Mapping[str, Sequence[Pair]]) -> Matched:
    """Keep of each prompt as many pairs as the set with the fewest has, the first ones; the first set gives the order."""
    by_prompt = {name: _by_prompt(pairs) for name, pairs in sets.items()}
    shared = Counter({key: len(pairs) for key, pairs in next(iter(by_prompt.values()), {}).items()})
    for found in by_prompt.values():
        shared &= Counter({key: len(pairs) for key, pairs in found.items()})
    order = [key for key in next(iter(by_prompt.values()), {}) if shared[key]]
    kept = {name: [pair for key in order for pair in found[key][: shared[key]]] for name, found in by_prompt.items()}
    return Matched(kept, {name: len(pairs) - len(kept[name]) for name, pairs in sets.items()})


def _by_prompt(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The pairs of each prompt, in the order of the prompts' first pairs. Turns count, ids do not."""
    found: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        found[prompt_id(pair.prompt)].append(pair)
    return dict(found)
