"""Where the model stands to the pairs, and which objective follows: for the set, and for each pair that was judged.

    below both    chosen and rejected are better than what the policy writes: the paper has no objective for this
    between       better than rejected, worse than chosen: apo_zero
    above both    apo_down

>>> from anchorline.types import Verdict
>>> wins, losses = Verdict("a"), Verdict("b")
>>> advise([Compared(str(n), losses, wins) for n in range(20)])[:3]
('between', 'apo_zero', True)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from anchorline.advise.compare import Compared
from anchorline.advise.rates import WinRate, win_rate
from anchorline.types import ObjectiveName, Pair

Place = Literal["below", "between", "above", "not settled", "contradiction"]


class Advice(NamedTuple):
    """What the judgements say about a set."""

    place: Place
    objective: ObjectiveName
    """What to train with; apo_zero wherever the judgements settle nothing else."""
    settled: bool
    reason: str
    chosen: WinRate
    """The policy's fresh answers against chosen."""
    rejected: WinRate
    needed: int | None
    """Judgements of each kind, in all, that would settle it with a chance of 80 %; None: no number, or it is settled."""


def advise(
    met: Iterable[Compared], *, level: float = 0.95, experimental: bool = False, own_rejected: bool = False
) -> Advice:
    """Place the set. `own_rejected`: the rejected answers are samples of this policy, as CLAIR's are.

    Then a fresh answer is as good as rejected by construction, and that the interval holds a half says nothing is open.
    """
    met = list(met)
    chosen = win_rate((m.chosen for m in met), level=level)
    rejected = win_rate((m.rejected for m in met), level=level)
    place, settled, reason = _place(chosen, rejected, own_rejected=own_rejected)
    objective: ObjectiveName = "apo_down" if place == "above" else "apo_zero"
    if place == "below":
        offer = "apo_up is ours and experimental (docs/objectives.md)"
        if experimental:
            objective, reason = "apo_up", f"{reason}; {offer}"
        else:
            reason += f"; {offer}, and is taken with advise.experimental=true only, so apo_zero it is"
    open_ones = [rate for rate in (chosen, rejected) if rate.side == "open"]
    numbers = [rate.needed for rate in open_ones]
    known = [number for number in numbers if number is not None]
    needed = max(known) if not settled and known and len(known) == len(numbers) else None
    return Advice(place, objective, settled, reason, chosen, rejected, needed)


def _place(chosen: WinRate, rejected: WinRate, *, own_rejected: bool) -> tuple[Place, bool, str]:
    sides = (chosen.side, rejected.side)
    if sides == ("below", "open") and own_rejected:
        return "between", True, "the policy is worse than chosen, and rejected is its own answer"
    if sides in _PLACES:
        return _PLACES[sides]
    unsure = [name for name, rate in (("chosen", chosen), ("rejected", rejected)) if rate.side == "open"]
    n = min(chosen.n, rejected.n)
    if n == 0:
        return "not settled", False, "nothing could be judged"
    return "not settled", False, f"the interval against {' and against '.join(unsure)} holds 50 % (n = {n})"


_PLACES: dict[tuple[str, str], tuple[Place, bool, str]] = {
    ("below", "above"): ("between", True, "the policy is worse than chosen and better than rejected"),
    ("above", "above"): ("above", True, "the policy is better than both answers"),
    ("below", "below"): (
        "below",
        True,
        "the policy is worse than both answers, for which the paper gives no objective",
    ),
    ("above", "below"): (
        "contradiction",
        False,
        "the policy beats chosen and loses to rejected: this judge would turn the pairs round; look at the labels",
    ),
}


def own_objectives(
    pairs: Sequence[Pair], met: Iterable[Compared], advice: Advice, *, experimental: bool = False
) -> list[Pair]:
    """Each pair with the objective that its own two verdicts ask for; the set's where they do not say, or there are none."""
    found = {m.id: _own(m, experimental=experimental) for m in met}
    return [replace(pair, objective=found.get(pair.id) or advice.objective) for pair in pairs]


def _own(met: Compared, *, experimental: bool) -> ObjectiveName | None:
    """One verdict is no measurement, but it is what there is about this pair."""
    match met.chosen.winner, met.rejected.winner:
        case "b", "a":
            return "apo_zero"
        case "a", "a":
            return "apo_down"
        case "b", "b" if experimental:
            return "apo_up"
    return None
