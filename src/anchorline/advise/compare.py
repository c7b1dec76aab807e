"""The policy's fresh answer against both answers of a pair: two verdicts.

>>> import asyncio
>>> from anchorline.types import Verdict
>>> async def longer(prompt, a, b, *, row=""):
...     return Verdict("a" if len(a) > len(b) else "b")
>>> met = asyncio.run(meet(Pair("p", (), chosen="a long one", rejected="no"), "middle", longer))
>>> met.chosen.winner, met.rejected.winner
('b', 'a')
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from anchorline.judge import Judge, verdict_to_row
from anchorline.judge.sampling import together
from anchorline.types import Pair, Verdict


class Compared(NamedTuple):
    """The verdicts of one pair; a is the policy's fresh answer each time, b the pair's."""

    id: str
    chosen: Verdict
    rejected: Verdict


async def meet(pair: Pair, answer: str, judge: Judge) -> Compared:
    """Judge the answer against chosen and against rejected. The judge's errors come through."""
    against = (pair.chosen, pair.rejected)
    chosen, rejected = await together(judge(pair.prompt, answer, other, row=pair.id) for other in against)
    return Compared(pair.id, chosen, rejected)


def compared_to_row(met: Compared) -> dict[str, Any]:
    """As JSON."""
    return {"id": met.id, "chosen": verdict_to_row(met.chosen), "rejected": verdict_to_row(met.rejected)}


def compared_from_row(row: Mapping[str, Any]) -> Compared:
    """From JSON; what the judge noted beside its verdict is left out."""
    sides = (Verdict(row[side]["winner"], row[side]["flip"], row[side]["judge"]) for side in ("chosen", "rejected"))
    return Compared(row["id"], *sides)
