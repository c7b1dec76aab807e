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

from collections.abc import Container, Iterable, Sequence
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
    """Judgements of each kind, in all, that would settle it with a chance of 80 %; None: it is settled, or no number is
    known: nothing was judged, or a rate that is to be settled is exactly a half."""


def advise(
    met: Iterable[Compared], *, level: float = 0.95, experimental: bool = False, own_rejected: bool = False
) -> Advice:
    """Place the set. `own_rejected`: the rejected answers are samples of this policy, as CLAIR's are.

    Then a fresh answer is as good as rejected by construction: only the verdicts against chosen place the set, and no
    number of judgements is asked for to settle the others.
    """
    met = list(met)
    chosen = win_rate((m.chosen for m in met), level=level)
    rejected = win_rate((m.rejected for m in met), level=level)
    place, settled, reason = _place_by_chosen(chosen, rejected) if own_rejected else _place(chosen, rejected)
    objective: ObjectiveName = "apo_down" if place == "above" else "apo_zero"
    if place == "below":
        offer = "apo_up is ours and experimental (docs/objectives.md)"
        if experimental:
            objective, reason = "apo_up", f"{reason}; {offer}"
        else:
            reason += f"; {offer}, and is taken with advise.experimental=true only, so apo_zero it is"
    asked = (chosen,) if own_rejected else (chosen, rejected)
    numbers = [rate.needed for rate in asked if rate.side == "open"]
    known = [number for number in numbers if number is not None]
    needed = max(known) if not settled and known and len(known) == len(numbers) else None
    return Advice(place, objective, settled, reason, chosen, rejected, needed)


def _place(chosen: WinRate, rejected: WinRate) -> tuple[Place, bool, str]:
    sides = (chosen.side, rejected.side)
    return _PLACES[sides] if sides in _PLACES else _open({"chosen": chosen, "rejected": rejected})


def _place_by_chosen(chosen: WinRate, rejected: WinRate) -> tuple[Place, bool, str]:
    if chosen.side == "open":
        return _open({"chosen": chosen})
    if chosen.side == "below":
        place, reason = "between", "the policy is worse than chosen, and rejected is its own answer"
    else:
        place = "above"
        reason = (
            "the policy is better than chosen, and rejected is its own answer: then this judge prefers rejected, too, so look "
            "at the labels"
        )
    if rejected.side == "below":
        won = f"{rejected.wins + rejected.ties / 2:g} of {rejected.n}"
        reason += (
            f"; that it loses to rejected all the same ({won}) is chance, or rejected is not what it answers now: look at "
            "how the pairs were sampled"
        )
    return place, True, reason


def _open(rates: dict[str, WinRate]) -> tuple[Place, bool, str]:
    n = min(rate.n for rate in rates.values())
    if n == 0:
        return "not settled", False, "nothing could be judged"
    unsure = [name for name, rate in rates.items() if rate.side == "open"]
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
    pairs: Sequence[Pair],
    met: Iterable[Compared],
    advice: Advice,
    *,
    experimental: bool = False,
    own_rejected: Container[str] = (),
) -> list[Pair]:
    """Each pair with an objective: the one that it has; else what its own two verdicts ask for; else the set's.

    `own_rejected`: the ids of pairs whose rejected answer is a sample of this policy, where the verdict against it is chance.
    """
    found = {m.id: _own(m, experimental=experimental, own_rejected=m.id in own_rejected) for m in met}
    return [replace(pair, objective=pair.objective or found.get(pair.id) or advice.objective) for pair in pairs]


def _own(met: Compared, *, experimental: bool, own_rejected: bool) -> ObjectiveName | None:
    """One verdict is no measurement, but it is what there is about this pair."""
    match met.chosen.winner, "a" if own_rejected else met.rejected.winner:
        case "b", "a":
            return "apo_zero"
        case "a", "a":
            return "apo_down"
        case "b", "b" if experimental:
            return "apo_up"
    return None
