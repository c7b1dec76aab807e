"""What the parts hand to each other: messages, answers, pairs, labelled answers, verdicts, failures. Frozen, no I/O.

>>> question = (Message("user", "Where is order 4417?"),)
>>> pair = Pair("a1", question, chosen="It left today.", rejected="It left today!")
>>> pair.swap().chosen
'It left today!'
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
ObjectiveName = Literal["apo_zero", "apo_down", "apo_up", "apo_zero_unpaired", "dpo", "kto", "sft"]
"""The objectives; `objectives.names` says what each is for."""
OBJECTIVE_NAMES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked: a conversation whose last turn is the user's. `id` is unique within a file."""

    id: str
    messages: Messages
    group: str = ""
    """What it is counted with in evaluation ("coding", "small talk"); "" where its row names none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a model to a prompt. `finish` is "length" where the token limit cut it."""

    id: str
    prompt: Messages
    text: str
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a pair comes from: the maker, the models in it, and what the maker noted (`details`, JSON only)."""

    maker: str = ""
    policy: str = ""
    reviser: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with the answer to prefer and the answer to prefer it to."""

    id: str
    prompt: Messages
    chosen: str
    rejected: str
    provenance: Provenance = field(default_factory=Provenance)
    objective: ObjectiveName | None = None
    """What this pair is trained with, whatever the others are."""

    def swap(self) -> Pair:
        """The same pair with the answers exchanged."""
        return replace(self, chosen=self.rejected, rejected=self.chosen)


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A prompt with one answer, and whether that answer is wanted."""

    id: str
    prompt: Messages
    completion: str
    label: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that did not become what its stage makes. `kind` is a short word for counting, `reason` a sentence."""

    id: str
    stage: str
    kind: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of two answers a judge prefers. `details` (JSON only) holds what the judge noted.

    `flip` marks a tie of a judge that preferred the other answer when it was asked in the other order.
    """

    winner: Literal["a", "b", "tie"]
    flip: bool = False
    judge: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def prompt_id(messages: Messages) -> str:
    """16 hex digits that depend on the turns' roles and texts only.

    >>> prompt_id((Message("user", "Hi"),)) == prompt_id((Message("user", "Hi"),))
    True
    """
    text = json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
