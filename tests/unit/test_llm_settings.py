"""Endpoint settings: bounds, and that no key gets in or out."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from anchorline.errors import UserError
from anchorline.llm.openai_http import key_for
from anchorline.llm.prices import AS_OF, TABLE, find_price
from anchorline.llm.settings import OPENAI_URL, BudgetSettings, EndpointSettings, Prices
from anchorline.llm.types import Request
from anchorline.llm.wording import request_body
from anchorline.types import Message

SECRET = "sk-proj-abcdefghijklmnop"


@pytest.mark.parametrize(
    "given",
    [
        {"api_key_env": SECRET},
        {"api_key_env": "MY KEY " + SECRET},
        {"api_key": SECRET},
        {"base_url": f"https://user:{SECRET}@host/v1"},
        {"base_url": f"https://{SECRET}@host/v1"},
        {"base_url": f"https://host/v1?key={SECRET}"},
        {"base_url": ["http://a/v1", f"http://me:{SECRET}@b/v1"]},
        {"extra_body": {"api_key": "plain-" + SECRET}},
        {"extra_body": {"options": [{"note": SECRET}]}},
        {"extra_body": {"headers": {"Authorization": "plain-" + SECRET}}},
        {"max_tokens": SECRET},
        {"prices": {"input": SECRET, "output": 1}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_key_among_the_settings_is_refused_and_not_repeated(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        EndpointSettings.model_validate({"model": "m", **given})
    assert SECRET not in str(caught.value) and SECRET not in repr(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"base_url": "localhost:8000"}, "http"),
        ({"base_url": "ftp://host/v1"}, "http"),
        ({"base_url": "http:///v1"}, "host"),
        ({"base_url": "http://host:99999/v1"}, "URL"),
        ({"base_url": []}, "one or more"),
        ({"base_url": ["http://a/v1", "http://a/v1"]}, "different"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens cannot stand here"),
        ({"extra_body": {"top_k": float("nan")}}, "JSON"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"attempts": 0}, "attempts"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"timeout": float("inf")}, "timeout"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"prices": {"input": -1, "output": 1}}, "prices.input"),
        ({"engine": "vllm"}, "engine"),
        ({"retries": 3}, "retries"),
    ],
    ids=str,
)
def test_what_is_out_of_bounds_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        EndpointSettings.model_validate({"model": "m", **given})


def test_urls() -> None:
    assert EndpointSettings(model="m").urls == (OPENAI_URL,)
    assert EndpointSettings(model="m", base_url="http://a:1/v1/").urls == ("http://a:1/v1",)
    two = EndpointSettings.model_validate({"model": "m", "base_url": ["http://a/v1", "http://b/v1"]})
    assert two.urls == ("http://a/v1", "http://b/v1")
    assert EndpointSettings.model_validate(two.model_dump()) == two


def test_which_models_run_here() -> None:
    assert EndpointSettings(model="embedded:x").runs_here
    assert EndpointSettings(model="some/folder", engine="transformers").runs_here
    assert not EndpointSettings(model="some/model").runs_here


def test_openais_key_goes_over_https_only() -> None:
    environ = {"OPENAI_API_KEY": SECRET, "MINE": "mine"}
    assert key_for(EndpointSettings(model="m"), OPENAI_URL, environ) == SECRET
    assert key_for(EndpointSettings(model="m"), "http://127.0.0.1:8000/v1", environ) == ""
    assert key_for(EndpointSettings(model="m", api_key_env="MINE"), "http://127.0.0.1:8000/v1", environ) == "mine"


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        key_for(EndpointSettings(model="m"), OPENAI_URL, {})
    with pytest.raises(UserError, match="MINE is not set"):
        key_for(EndpointSettings(model="m", api_key_env="MINE"), "http://127.0.0.1:8000/v1", {})
    assert key_for(EndpointSettings(model="m"), "https://host/v1", {}) == ""


@pytest.mark.parametrize("key", ["sk-“smart”", "sk-ключ", "abc\ndef", "abc\x00def", "sk-\udcff"])
def test_a_key_that_cannot_be_sent_is_refused_by_its_variable(key: str) -> None:
    with pytest.raises(UserError, match="MINE holds what is no API key") as caught:
        key_for(EndpointSettings(model="m", api_key_env="MINE"), "http://127.0.0.1:8000/v1", {"MINE": key})
    assert key not in str(caught.value)
    spaced = {"MINE": " sk-fine\n"}
    assert key_for(EndpointSettings(model="m", api_key_env="MINE"), "http://127.0.0.1:8000/v1", spaced) == "sk-fine"


def test_what_is_sent() -> None:
    request = Request(
        (Message("user", "Hi"),), 9, temperature=0.2, top_p=0.9, schema={"type": "object"}, row="r", stage="s"
    )
    local = EndpointSettings(model="m", base_url="http://a/v1", extra_body={"top_k": 5})
    assert request_body(local, request) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 9,
        "temperature": 0.2,
        "top_p": 0.9,
        "top_k": 5,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": {"type": "object"}, "strict": True},
        },
    }
    openai = request_body(EndpointSettings(model="m"), Request((), 9))
    assert openai["max_completion_tokens"] == 9 and "max_tokens" not in openai and "response_format" not in openai
    # where 1 is known to be what holds otherwise, it is not sent: some models take no such setting
    assert openai["temperature"] == 0.7 and "top_p" not in openai


def test_prices_are_the_users_then_the_tables_then_unknown() -> None:
    mine = Prices(input=1, output=2)
    assert find_price(EndpointSettings(model="gpt-4o", prices=mine)) == mine
    assert find_price(EndpointSettings(model="gpt-4o")) == TABLE["gpt-4o"]
    assert find_price(EndpointSettings(model="gpt-4o", base_url="https://other/v1")) is None
    assert find_price(EndpointSettings(model="gpt-unheard-of")) is None
    assert find_price(EndpointSettings(model="embedded:x")) == Prices(input=0, output=0)
    assert AS_OF >= "2026" and all(price.output > price.input > 0 for price in TABLE.values())
    assert mine.cost(2_000_000, 500_000) == 3.0


def test_budgets_are_positive() -> None:
    for wrong in ({"max_usd": 0}, {"max_usd": float("nan")}, {"max_tokens": 0}):
        with pytest.raises(ValidationError):
            BudgetSettings.model_validate(wrong)
