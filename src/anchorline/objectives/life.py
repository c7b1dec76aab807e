"""Whether a pair still has something to learn: won, live, or stranded.

    won        every reward that the objective moves is past the point where a tenth of the steepest pull is left,
               on the side where it should be
    live       some reward still feels the objective
    stranded   a reward is past that point on the wrong side: the objective has let go of it, and it will not come back

The far point of a logistic term is |r| = 3.64 (`metrics.STUCK_REWARD`). dpo's pull does not die on the wrong side, so
with dpo no pair is stranded; on the right side a tenth is left at a margin of ln 9. sft looks at no reward: it goes on
pulling at every chosen answer, and does not count here.

>>> pair_life({"apo_zero": 1.0}, 4.2, -3.9), pair_life({"apo_zero": 1.0}, 4.2, -1.0), pair_life({"apo_zero": 1.0}, -3.7, -5)
('won', 'live', 'stranded')
>>> pair_life({"dpo": 1.0}, -9.0, -1.0)
'live'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from anchorline.objectives.metrics import STUCK_REWARD

State = Literal["won", "live", "stranded"]
STATES: tuple[State, ...] = ("won", "live", "stranded")
WON_MARGIN = math.log(9)
"""The margin at which dpo's pull, s(-margin), is a tenth."""


class _Term(NamedTuple):
    """How far a term of the loss has come the way that it pushes, and where it is won and lost."""

    progress: float
    won: float = STUCK_REWARD
    lost: float = -STUCK_REWARD


def pair_life(objective: Mapping[str, float], chosen: float, rejected: float, *, anchor: float = 0.0) -> State | None:
    """The state of a pair from its rewards; `anchor` is kto's beta·z. None where the objective reads no reward."""
    return _state([term for name in objective for term in _PAIR_TERMS[name](chosen, rejected, anchor)])


def answer_life(objective: Mapping[str, float], reward: float, *, wanted: bool, anchor: float = 0.0) -> State | None:
    """The same of a single labelled answer."""
    read = any(_PAIR_TERMS[name](0.0, 0.0, 0.0) for name in objective)
    return _state([_Term(reward - anchor if wanted else anchor - reward)] if read else [])


def _state(terms: Sequence[_Term]) -> State | None:
    if not terms:
        return None
    if any(term.progress < term.lost for term in terms):
        return "stranded"
    return "won" if all(term.progress > term.won for term in terms) else "live"


# of r_w, r_l (x) and kto's anchor
_PAIR_TERMS: dict[str, Callable[[float, float, float], list[_Term]]] = {
    "apo_zero": lambda w, x, _: [_Term(w), _Term(-x)],
    "apo_down": lambda w, x, _: [_Term(-w), _Term(w - x)],
    "apo_up": lambda w, x, _: [_Term(x), _Term(w - x)],
    "apo_zero_unpaired": lambda w, x, _: [_Term(w), _Term(-x)],
    "dpo": lambda w, x, _: [_Term(w - x, WON_MARGIN, -math.inf)],
    "kto": lambda w, x, anchor: [_Term(w - anchor), _Term(anchor - x)],
    "sft": lambda w, x, _: [],
}
