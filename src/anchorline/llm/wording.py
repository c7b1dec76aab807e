"""The body of a request, in words that the endpoint takes: what it refuses tells them.

OpenAI's newer models take the limit of tokens under its newer name only, and some models take no `temperature` or `top_p`.
One that is 1, which is the interface's default, is then left out; any other would be another sampling than was asked for.

>>> first = Wording()
>>> first.mended("Unsupported parameter: 'top_p' is not supported with this model.", Request((), max_tokens=8))
Wording(newer=False, without=frozenset({'top_p'}))
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from anchorline.errors import RecipeError
from anchorline.llm.settings import OPENAI_URL, EndpointSettings
from anchorline.llm.types import Request

NEWER = "max_completion_tokens"
DEFAULT = 1.0
SAMPLING = re.compile(r"\b(temperature|top_p)\b")
REFUSING = re.compile(
    r"(?i)unsupported|not support|not allowed|not permitted|cannot both|deprecated|invalid|only .*(supported|allowed)"
)


class Wording(NamedTuple):
    """Whether the limit goes under its newer name, and which settings of sampling are left out where they are 1."""

    newer: bool = False
    without: frozenset[str] = frozenset()

    def mended(self, refusal: str, request: Request) -> Wording | None:
        """The wording that a refusal asks for; None where it is about something else, or asks for another setting."""
        if NEWER in refusal and not self.newer:
            return self._replace(newer=True)
        free = {name for name, value in refused_sampling(refusal, request).items() if value == DEFAULT} - self.without
        return self._replace(without=self.without | free) if free else None

    def both(self, other: Wording) -> Wording:
        """What one and the other have learnt."""
        return Wording(self.newer or other.newer, self.without | other.without)


def wording_of(url: str) -> Wording:
    """The wording to begin with."""
    return Wording(newer=True, without=frozenset({"temperature", "top_p"})) if url == OPENAI_URL else Wording()


def refused_sampling(refusal: str, request: Request) -> dict[str, float]:
    """The settings of sampling that a refusal is about, with their values."""
    names = set(SAMPLING.findall(refusal)) if REFUSING.search(refusal) else set()
    return {
        name: value for name, value in (("temperature", request.temperature), ("top_p", request.top_p)) if name in names
    }


def sampling_error(refusal: str, request: Request, settings: EndpointSettings) -> RecipeError | None:
    """The error for a refusal that every request with these settings of sampling would meet."""
    refused = {name: value for name, value in refused_sampling(refusal, request).items() if value != DEFAULT}
    if not refused:
        return None
    got = " and ".join(f"{name} {value:g}" for name, value in refused.items())
    return RecipeError(
        f"the model {settings.model!r} does not take {got} ({refusal}); set the {' or the '.join(refused)} of this model to "
        "what it takes (1 is left out where a model takes none)"
    )


def request_body(settings: EndpointSettings, request: Request, wording: Wording | None = None) -> dict[str, Any]:
    """What is sent; in the words to begin with, unless others are given."""
    newer, without = wording or wording_of(settings.urls[0])
    sampling = {"temperature": request.temperature, "top_p": request.top_p}
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        NEWER if newer else "max_tokens": request.max_tokens,
        **{name: value for name, value in sampling.items() if value != DEFAULT or name not in without},
        **settings.extra_body,
    }
    if request.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": dict(request.schema), "strict": True},
        }
    return body
