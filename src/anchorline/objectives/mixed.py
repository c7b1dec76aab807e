"""Rows of which some have an objective of their own: each group of rows through its own function, back in their order.

>>> import torch
>>> from anchorline.objectives.dpo import dpo
>>> from anchorline.objectives.apo import apo_zero
>>> same, tokens = torch.full((3,), -10.0), torch.full((3,), 5)
>>> rows = PairLogps(same, same, same, same, tokens, tokens)
>>> of = {"dpo": dpo, "apo_zero": apo_zero}
>>> each(("dpo", None, "dpo"), {"apo_zero": 1.0}, rows, lambda weights, part: (of[next(iter(weights))](part),))
(tensor([0.6931, 1.0000, 0.6931]),)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from anchorline.objectives.logps import AnswerLogps, PairLogps

Logps = TypeVar("Logps", bound=PairLogps | AnswerLogps)


def each(
    own: Sequence[str | None],
    weights: Mapping[str, float],
    logps: Logps,
    function: Callable[[Mapping[str, float], Logps], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """`function(weights, rows)` of the rows whose own objective is the same; `weights` for those that have none.

    `own` has one name, or None, for each row; () is none for all. `function` gives tensors [rows] and each comes back
    in the order of the rows. Raises ValueError where `own` has another length than the rows.
    """
    if not any(own):
        return function(weights, logps)
    count = len(logps[0])
    if len(own) != count:
        raise ValueError(f"got {len(own)} objectives of {count} rows: expected one, or None, for each row")
    groups = [torch.tensor([n for n, name in enumerate(own) if name == wanted]) for wanted in dict.fromkeys(own)]
    parts = []
    for wanted, places in zip(dict.fromkeys(own), groups, strict=True):
        rows = type(logps)(*(value[places.to(value.device)] for value in logps))
        parts.append(function(weights if wanted is None else {wanted: 1.0}, rows))
    back = torch.cat(groups).argsort()
    return tuple(torch.cat(same)[back.to(same[0].device)] for same in zip(*parts, strict=True))
