"""How a model is asked: a request, its reply, the seam between them, and a recipe's settings of sampling.

Whatever calls a model takes an `Endpoint`. The cache, the budget and the pool are endpoints around another endpoint.

>>> Request((Message("user", "Hi"),), max_tokens=16).temperature
0.7
>>> SampleSettings(temperature=0.0).max_new_tokens
256
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from anchorline.types import Message, Messages

__all__ = ["Endpoint", "Finish", "Message", "Messages", "Reply", "Request", "SampleSettings"]

Finish = Literal["stop", "length", "filter", "refusal"]


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model. `row` and `stage` are for messages and sums; they do not change the answer."""

    messages: Messages
    max_tokens: int
    temperature: float = 0.7
    top_p: float = 1.0
    index: int = 0
    """The k-th sample of the same messages: part of what identifies the request."""
    schema: Mapping[str, Any] | None = None
    """A JSON schema that the reply must follow, where the endpoint can."""
    row: str = ""
    """The id of the row it is for."""
    stage: str = ""
    """What it is for ("revise", "judge", "sample", …): costs are added up by it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `finish` is "length" where the token limit cut it, "filter" where the endpoint withheld it, and
    "refusal" where the model declined and the endpoint says so: then the text is how it declined.
    """

    text: str
    finish: Finish
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str = ""
    cached: bool = False


class Endpoint(Protocol):
    """The seam to every model, near or far.

    `complete` raises an `EndpointError` for this one request, or `KeyRefused`, `BudgetReached` or `CircuitOpen`, which
    end the run.
    """

    @property
    def model(self) -> str:
        """The id of the model, as it stands in cache keys."""
        ...

    async def complete(self, request: Request) -> Reply:
        """The reply to one request."""
        ...


class SampleSettings(BaseModel):
    """Sampling of one answer a prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=256, ge=1, le=32768)
    """Where an answer is cut; a cut answer is marked "length"."""
    temperature: float = Field(default=0.7, ge=0.0, le=5.0)
    """0 takes the most likely token each time. The paper samples at 0.7."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """The smallest set of tokens with at least this probability is sampled from."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Answers written at the same time."""
