"""What became of a maker's rows: pairs and failures by kind, what revisers replied, how the judge judged, what it cost.

>>> counts = Counts("clair")
>>> counts.add(Failure("a1", "pairs", "identical", "the answer as it was"))
>>> counts.row()["failures"]
{'identical': 1}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from anchorline.errors import UNANSWERED
from anchorline.llm.costs import Bill, known_sum
from anchorline.types import Failure, Pair

SAMPLED = {"clair": ("sample",), "stronger": ("sample",), "on_policy": ("sample", "resample"), "off_policy": ()}
"""The stages that asked the policy for the answers that a maker takes."""
SAMPLING = {stage for stages in SAMPLED.values() for stage in stages}
"""All stages in which the policy answers training prompts."""


@dataclass(slots=True)
class Counts:
    """Of one making of a set; `row` is JSON for the manifest."""

    maker: str
    pairs: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    """What an endpoint said that gave no answer: for each kind the first."""
    replies: Counter[str] = field(default_factory=Counter)
    """The parser's statuses of all replies of a reviser, first and further attempts."""
    gates: Counter[str] = field(default_factory=Counter)
    """Gates that a reply did not pass, whatever became of the row."""
    asked_again: int = 0
    """Rows that were asked for more than once."""
    judge: Counter[str] = field(default_factory=Counter)

    def add(self, result: Pair | Failure) -> None:
        """One row's end."""
        details = result.provenance.details if isinstance(result, Pair) else result.details
        if isinstance(result, Pair):
            self.pairs += 1
        else:
            self.failures[result.kind] += 1
            if result.kind in UNANSWERED:
                self.reasons.setdefault(result.kind, result.reason)
        attempts = details.get("attempts") or ()
        self.asked_again += len(attempts) > 1
        for attempt in attempts:
            self.replies[attempt["status"]] += 1
            self.gates.update(kind for kind in attempt["faults"] if kind != attempt["status"])
        for verdict in _verdicts(details):
            self.judge["judged"] += 1
            self.judge["ties"] += verdict["winner"] == "tie"
            self.judge["flips"] += verdict["flip"]

    def row(self, bill: Bill | None = None) -> dict[str, Any]:
        """The counts as JSON, with what the replies in use cost."""
        rows = self.pairs + self.failures.total()
        found: dict[str, Any] = {"maker": self.maker, "rows": rows, "pairs": self.pairs}
        found["failures"] = dict(self.failures.most_common())
        if self.reasons:
            found["reasons"] = self.reasons
        if self.replies:
            found |= {"replies": dict(self.replies.most_common()), "gates": dict(self.gates.most_common())}
            found["asked_again"] = self.asked_again
        if self.judge:
            found["judge"] = {name: self.judge[name] for name in ("judged", "ties", "flips")}
        if bill is not None and bill.replies:
            found["costs"] = {"calls": len(bill.replies), "tokens": bill.tokens, "usd": bill.usd}
        return found


def _verdicts(details: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "verdict" in details:
        yield details["verdict"]
    for meeting in details.get("verdicts") or ():
        yield meeting["verdict"]


def a_pair(costs: list[Mapping[str, Any]], pairs: int) -> dict[str, Any] | None:
    """What one of so many kept pairs took of these costs; None where there is no pair. Unknown dollars stay unknown.

    >>> a_pair([{"tokens": 30, "usd": 0.5}, {"tokens": 10, "usd": None}], 4)
    {'tokens': 10.0, 'usd': None}
    """
    if not pairs:
        return None
    usd = known_sum([cost["usd"] for cost in costs])
    return {"tokens": sum(cost["tokens"] for cost in costs) / pairs, "usd": None if usd is None else usd / pairs}
