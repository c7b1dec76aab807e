"""An endpoint's and a budget's settings, as a recipe names them. No setting ever holds a key, only a key's variable.

>>> EndpointSettings(model="gpt-4o-mini").runs_here
False
>>> EndpointSettings(model="embedded:smollm2-135m-instruct").runs_here
True
"""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
EMBEDDED = "embedded:"
SENT_BY_US = frozenset(
    [
        "model",
        "messages",
        "stream",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "response_format",
    ]
)
KEY_NAME = re.compile(
    r"(?:\w+[-_])?(?:api[-_]?key|authorization|bearer|secret|secret[-_]?key|password|(?:access|auth|api|hub|hf)[-_]?token)|token|key"
    r"|(?:extra[-_])?headers|x[-_](?:key|token)",
    re.IGNORECASE,
)
KEY_VALUE = re.compile(r"^(bearer\s+\S+|(sk|pk|hf|gsk|key)[-_]\S{6,})", re.IGNORECASE)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Prices(BaseModel):
    """What tokens cost, in US dollars per million."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: float = Field(ge=0, allow_inf_nan=False)
    """Of the messages that are sent."""
    output: float = Field(ge=0, allow_inf_nan=False)
    """Of the text that comes back."""

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The dollars of one call."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


class EndpointSettings(BaseModel):
    """A model, where it is asked, how it samples, and how hard it may be pressed."""

    # a refused value may be a key: it must not stand in the message
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str = Field(min_length=1)
    """The model's id at the endpoint; `embedded:…`, or with `engine: transformers` a path or hub id, runs in process."""
    engine: Literal["openai", "transformers"] = "openai"
    """openai: over HTTP, at any endpoint that speaks this interface. transformers: in this process."""
    base_url: str | tuple[str, ...] | None = None
    """Where the endpoint is; several URLs of the same model share the load. None: OpenAI's own."""
    api_key_env: str = OPENAI_KEY
    """The NAME of the environment variable with the key. OpenAI's key is never sent over plain http; a server that
    wants a key there needs a variable of its own name."""
    temperature: float = Field(default=0.7, ge=0.0, le=5.0)
    """0 takes the most likely token each time. The paper samples at 0.7."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """The smallest set of tokens with at least this probability is sampled from."""
    max_tokens: int = Field(default=4096, ge=1, le=1_000_000)
    """Where a reply is cut. The paper allows 4096. Raising it asks again only for replies that were cut."""
    timeout: float = Field(default=300.0, gt=0, le=86_400, allow_inf_nan=False)
    """Seconds after which a call is given up."""
    attempts: int = Field(default=5, ge=1, le=100)
    """How often a request is asked before it counts as failed. Being throttled is no attempt, up to a limit."""
    max_concurrency: int = Field(default=64, ge=1, le=4096)
    """The most calls at the same time; how many there are is found out while running. In process: the batch size."""
    requests_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The endpoint's limit of requests, if it has one."""
    tokens_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The endpoint's limit of prompt and reply tokens together, if it has one."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """JSON that is sent along with each request, for what only this endpoint knows. It is part of the cache key."""
    prices: Prices | None = None
    """What the model costs. None: the price table's entry if it is OpenAI's own endpoint, else unknown."""

    @property
    def runs_here(self) -> bool:
        """Whether the model runs in this process."""
        return self.engine == "transformers" or self.model.startswith(EMBEDDED)

    @property
    def urls(self) -> tuple[str, ...]:
        """The base URLs, without a slash at the end."""
        given = OPENAI_URL if self.base_url is None else self.base_url
        return tuple(url.rstrip("/") for url in ([given] if isinstance(given, str) else given))

    @model_validator(mode="before")
    @classmethod
    def _no_key(cls, data: Any) -> Any:
        if isinstance(data, dict) and any(KEY_NAME.fullmatch(str(name)) for name in data):
            raise ValueError(
                "a key was given among the settings; put it in an environment variable and name that in api_key_env"
            )
        return data

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError("one or more different URLs were expected")
        for url in [value] if isinstance(value, str) else value or ():
            try:
                parts = urlsplit(url)
                parts.port  # noqa: B018  (reading it checks it)
            except ValueError:
                raise ValueError("not a URL; write it as http://host:port/v1 or https://host/v1") from None
            if parts.username or parts.password or "@" in parts.netloc or parts.query or parts.fragment:
                raise ValueError(
                    "a URL with a user, password, query or fragment was given; give the bare URL, and the key in the "
                    "environment variable that api_key_env names"
                )
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("an http:// or https:// URL with a host was expected, as in http://127.0.0.1:8000/v1")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if KEY_VALUE.match(value) or not VARIABLE.fullmatch(value):
            raise ValueError(
                "this is not the name of an environment variable (is it the key itself?); put the key in a variable "
                f"and give the variable's name, as in {OPENAI_KEY}"
            )
        return value

    @field_validator("extra_body")
    @classmethod
    def _extra(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(SENT_BY_US & value.keys())
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot stand here: anchorline sends it itself, from its own setting")
        if holds_key(value):
            raise ValueError("a key was given here; put it in the environment variable that api_key_env names")
        if not _is_json(value):
            raise ValueError("only JSON was expected: texts, finite numbers, true, false, null, lists and mappings")
        return value


class BudgetSettings(BaseModel):
    """What a run may spend, over all its endpoints and all its resumes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The most US dollars. Every endpoint's price must be known."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The most prompt and reply tokens together."""


def holds_key(value: Any, name: str = "") -> bool:
    """Whether a text in the value, which stands under this name, is a key by its own name or by its form."""
    if isinstance(value, dict):
        return any(holds_key(inner, str(key)) for key, inner in value.items())
    if isinstance(value, list):
        return any(holds_key(inner, name) for inner in value)
    return isinstance(value, str) and bool(KEY_NAME.fullmatch(name) or KEY_VALUE.match(value))


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(_is_json(inner) for inner in value)
    if isinstance(value, float):
        return abs(value) < float("inf")
    return value is None or isinstance(value, str | int | bool)
