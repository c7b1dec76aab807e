"""How the pairs of a run were made, as the pages show it: sets, replies and gates, judges, costs. From the manifest, pure.

>>> made = making({"makers": {"pairs": {"maker": "clair", "rows": 4, "pairs": 3, "failures": {"identical": 1}}}})
>>> made.sets[0].kinds, made.sets[0].name
('1 identical', 'the run’s own pairs (clair)')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from anchorline.report.charts import is_number
from anchorline.report.figures import number
from anchorline.report.files import mapping

PURPOSES = {
    "sample": "the policy’s answers",
    "resample": "further answers of the policy",
    "others": "other models’ answers",
    "revise": "revisions",
    "stronger": "the stronger model’s answers",
    "judge": "judging",
}
QUARANTINED, UNREADABLE = "not_preferred", "unreadable"


class MadeSet(NamedTuple):
    """One set of pairs."""

    name: str
    rows: Any
    pairs: Any
    kinds: str
    """What did not become a pair, counted."""
    replies: str
    """The parser's statuses of a reviser's replies."""
    gates: str
    asked_again: Any
    judge: Mapping[str, Any]
    quarantined: int
    """Pairs that verification set aside."""
    unreadable: int
    pair: Mapping[str, Any]
    """Tokens and dollars of a kept pair."""


class Making(NamedTuple):
    """All sets, and what the calls of the run cost, by purpose."""

    sets: list[MadeSet]
    costs: list[tuple[str, Mapping[str, Any]]]
    total: Mapping[str, Any]
    timed_out: Any
    """Calls of unknown cost."""


def making(manifest: Mapping[str, Any]) -> Making:
    """The manifest's `makers` and `costs`."""
    costs = mapping(manifest.get("costs"))
    stages = mapping(costs.get("stages"))
    named = [(PURPOSES.get(name, name), mapping(cost)) for name, cost in stages.items()]
    counts = ("calls", "prompt_tokens", "completion_tokens")
    total = {"usd": costs.get("usd")} | {name: _summed([cost.get(name) for _, cost in named]) for name in counts}
    return Making(list(_sets(manifest, mapping(costs.get("kept_pair")))), named, total, costs.get("timed_out"))


def usd(amount: Any) -> str:
    """Dollars; an unknown price is not 0.

    >>> usd(None), usd(0.00345), usd(12.5), usd(0.0)
    ('unknown', '0.0034', '12.50', '0')
    """
    if not is_number(amount):
        return "unknown"
    return (
        "0"
        if amount == 0
        else f"{amount:,.2f}"
        if amount >= 1
        else f"{amount:.4f}"
        if amount >= 0.001
        else f"{amount:.2g}"
    )


def _sets(manifest: Mapping[str, Any], a_pair: Mapping[str, Any]) -> Iterator[MadeSet]:
    for stage, made in mapping(manifest.get("makers")).items():
        made = mapping(made)  # noqa: PLW2901 - a damaged file may hold anything
        maker, failures = str(made.get("maker", "")), mapping(made.get("failures"))
        yield MadeSet(
            name=f"the run’s own pairs ({maker})" if stage == "pairs" else f"set {maker}",
            rows=made.get("rows"),
            pairs=made.get("pairs"),
            kinds=_listed(failures),
            replies=_listed(mapping(made.get("replies"))),
            gates=_listed(mapping(made.get("gates"))),
            asked_again=made.get("asked_again"),
            judge=mapping(made.get("judge")),
            quarantined=failures.get(QUARANTINED, 0),
            unreadable=failures.get(UNREADABLE, 0),
            pair=mapping(a_pair.get(stage)),
        )


def _listed(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{number(count)} {name}" for name, count in counts.items())


def _summed(amounts: list[Any]) -> Any:
    """The sum; None where one is lacking."""
    return sum(amounts) if all(map(is_number, amounts)) else None


def share(part: Any, whole: Any) -> float | None:
    """A part of a whole, None where one of them is no number or there is nothing."""
    return part / whole if is_number(part) and is_number(whole) and whole else None
