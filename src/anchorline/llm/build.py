"""An endpoint as its settings ask for it, from the inside out: the model, the pool, the budget, the cache.

What the cache holds costs neither a slot nor money, so the cache stands outside. The pool bounds and retries what is paid,
so it stands inside the budget: a request's worst case is set aside once, however often it is tried.

>>> async def example():
...     with RequestCache("requests.sqlite") as cache:
...         async with build(EndpointSettings(model="gpt-4o-mini"), cache=cache, run="r1") as endpoint:
...             return await endpoint.complete(Request((), max_tokens=8))
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from anchorline.llm.budget import Budget, Metered
from anchorline.llm.cache import CachedEndpoint, RequestCache
from anchorline.llm.costs import Bill
from anchorline.llm.local_endpoint import LocalEndpoint
from anchorline.llm.models import resolve
from anchorline.llm.openai_http import OpenAIEndpoint, key_for
from anchorline.llm.pool import Pool
from anchorline.llm.prices import find_price
from anchorline.llm.settings import EndpointSettings
from anchorline.llm.types import Endpoint


@asynccontextmanager
async def build(
    settings: EndpointSettings,
    *,
    cache: RequestCache | None = None,
    run: str = "",
    bill: Bill | None = None,
    budget: Budget | None = None,
    retry_failed: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> AsyncIterator[Endpoint]:
    """The whole endpoint, closed at the end. `bill` and `budget` are shared by all endpoints of a run.

    Raises:
        UserError: the key is missing, a limit of money lacks a price, or a local model is not there.

    """
    async with model_of(settings, environ=environ, cache=cache) as inner:
        yield around(inner, settings, cache=cache, run=run, bill=bill, budget=budget, retry_failed=retry_failed)


def model_of(
    settings: EndpointSettings, *, environ: Mapping[str, str] = os.environ, cache: RequestCache | None = None
) -> LocalEndpoint | OpenAIEndpoint:
    """The model alone: every call is made, once. `cache` only tells whether the model has ever answered."""
    if settings.runs_here:
        return LocalEndpoint(settings)
    return OpenAIEndpoint(
        settings, environ=environ, known=lambda: cache is not None and cache.has_reply_of(settings.model)
    )


def check_endpoint(settings: EndpointSettings, *, environ: Mapping[str, str] = os.environ) -> None:
    """Raise a UserError where its key is not set, or its model is not here; nothing is asked or loaded."""
    if settings.runs_here:
        resolve(settings.model)
        return
    for url in settings.urls:
        key_for(settings, url, environ)


def around(
    inner: Endpoint,
    settings: EndpointSettings,
    *,
    cache: RequestCache | None = None,
    run: str = "",
    bill: Bill | None = None,
    budget: Budget | None = None,
    retry_failed: bool = False,
) -> Endpoint:
    """Pool, budget and cache around the model `inner`, which makes the calls."""
    price = find_price(settings)
    # in process, the batch is the bound and nothing throttles
    pooled: Endpoint = inner if settings.runs_here else Pool(inner, settings)
    metered = Metered(pooled, budget=budget, price=price)
    if cache is None:
        return metered
    return CachedEndpoint(
        metered,
        cache,
        run=run,
        retry_failed=retry_failed,
        extra_body={} if settings.runs_here else settings.extra_body,
        price=price,
        bill=bill,
    )
