"""A second look at a pair: the judge has to prefer the chosen answer, or the pair is set aside as a failure.

>>> import asyncio
>>> from anchorline.judge import style_judge
>>> from anchorline.style import parse_style
>>> judge = style_judge(parse_style({"name": "calm", "rules": [{"kind": "no_exclamation"}]}))
>>> asyncio.run(verified(Pair("a1", (), chosen="It left!", rejected="It left."), judge)).kind
'not_preferred'
"""

from __future__ import annotations

from dataclasses import replace

from anchorline.judge import Judge, verdict_to_row
from anchorline.types import Failure, Pair

STAGE = "pairs"


async def verified(pair: Pair, judge: Judge) -> Pair | Failure:
    """The pair with the verdict in its provenance; a tie is no preference. The judge's errors come through."""
    verdict = await judge(pair.prompt, pair.chosen, pair.rejected, row=pair.id)
    origin = replace(pair.provenance, details={**pair.provenance.details, "verdict": verdict_to_row(verdict)})
    if verdict.winner == "a":
        return replace(pair, provenance=origin)
    preferred = "the rejected answer" if verdict.winner == "b" else "neither answer"
    reason = f"the judge {verdict.judge} prefers {preferred}{' (it changed its mind with the order)' * verdict.flip}"
    details = {"chosen": pair.chosen, "rejected": pair.rejected, "maker": origin.maker, **origin.details}
    return Failure(pair.id, STAGE, "not_preferred", reason, details)
