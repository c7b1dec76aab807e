"""Which fault a fake server plays for a request: drawn by seed, request and repetition, so never by order of arrival.

>>> plan = FaultPlan(seed=1, error=1.0)
>>> plan.fault("some body", repetition=0)
'error'
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Literal, get_args

Fault = Literal["throttle", "throttle_silently", "error", "hang", "drop", "truncate", "malformed"]
FAULTS: tuple[str, ...] = get_args(Fault)


@dataclass(frozen=True)
class FaultPlan:
    """The share of requests for each fault; together at most 1. `script` goes first: the faults of a request's first
    repetitions, "" for none.
    """

    seed: int = 0
    throttle: float = 0.0
    """429 with Retry-After."""
    throttle_silently: float = 0.0
    """429 without."""
    error: float = 0.0
    """500."""
    hang: float = 0.0
    """No answer at all."""
    drop: float = 0.0
    """The connection is closed in the middle of the answer."""
    truncate: float = 0.0
    """The reply is cut, as by the token limit: an answer all the same."""
    malformed: float = 0.0
    """200 with broken JSON."""
    script: tuple[Fault | Literal[""], ...] = ()

    def fault(self, body: str, *, repetition: int) -> Fault | None:
        """What happens to this body when it comes for the n-th time (from 0)."""
        if repetition < len(self.script):
            return self.script[repetition] or None
        digest = hashlib.sha256(f"{self.seed}:{repetition}:{body}".encode()).digest()
        luck = int.from_bytes(digest[:7], "big") / 2**56
        shares: dict[Fault, float] = {
            "throttle": self.throttle,
            "throttle_silently": self.throttle_silently,
            "error": self.error,
            "hang": self.hang,
            "drop": self.drop,
            "truncate": self.truncate,
            "malformed": self.malformed,
        }
        assert set(shares) == set(FAULTS) and set(FAULTS) < {field.name for field in fields(self)}
        for fault, share in shares.items():
            luck -= share
            if luck < 0:
                return fault
        return None
