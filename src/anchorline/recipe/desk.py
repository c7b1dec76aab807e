"""The models that a run asks beside its policy: built at first use, one cache and one budget for all of them.

>>> async def example(run):
...     async with open_desk(run) as desk:
...         return await desk.endpoint("reviser")
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorline.errors import RecipeError
from anchorline.llm.budget import Budget
from anchorline.llm.cache import RequestCache
from anchorline.llm.costs import Bill, known_sum
from anchorline.llm.keys import canonical
from anchorline.llm.prices import find_price
from anchorline.llm.settings import EndpointSettings, Prices
from anchorline.llm.types import Endpoint
from anchorline.llm.upkeep import price_later

if TYPE_CHECKING:
    from anchorline.recipe.config import Recipe
    from anchorline.recipe.context import RunContext

CACHE = "requests.sqlite"


@dataclass(slots=True)
class Desk:
    """The endpoints of a run by their names in the recipe's group `llm`."""

    run: RunContext
    cache: RequestCache
    budget: Budget
    stack: AsyncExitStack
    bill: Bill = field(default_factory=Bill)
    built: dict[str, Endpoint] = field(default_factory=dict)

    async def endpoint(self, name: str) -> Endpoint:
        """The endpoint, the same one each time."""
        if name not in self.built:
            from anchorline.llm.build import build

            opened = build(
                settings_of(self.run.recipe, name),
                cache=self.cache,
                run=self.run.id,
                bill=self.bill,
                budget=self.budget,
                retry_failed=self.run.calls.retry_failed,
            )
            self.built[name] = await self.stack.enter_async_context(opened)
        return self.built[name]


@asynccontextmanager
async def open_desk(run: RunContext) -> AsyncIterator[Desk]:
    """The desk of a run, closed at the end."""
    with RequestCache(cache_file(run.recipe, run.folder)) as cache:
        await price_later(cache, run.id, known_prices(run.recipe))
        budget = Budget(run.recipe.llm.budget, spent=cache.spent(run.id))
        async with AsyncExitStack() as stack:
            yield Desk(run, cache, budget, stack)


def price_kept(recipe: Recipe, file: Path, run_id: str) -> None:
    """Give what the run has paid for already the prices that it lacked; no desk is open."""
    with RequestCache(file) as cache:
        asyncio.run(price_later(cache, run_id, known_prices(recipe)))


def cache_file(recipe: Recipe, folder: Path) -> Path:
    """Where a run keeps what its models answered."""
    return Path(recipe.llm.cache).expanduser() if recipe.llm.cache else folder / CACHE


def settings_of(recipe: Recipe, name: str) -> EndpointSettings:
    """An endpoint's settings by its name: policy, reviser, judge, stronger, others.0, others.1 and so on.

    Raises:
        RecipeError: the recipe does not have them.

    """
    group, _, number = name.partition(".")
    llm = recipe.llm
    if group == "others":
        if not llm.others:
            raise RecipeError(
                "llm.others is lacking: off_policy needs two models or more there, or pairs.answers with their answers"
            )
        return llm.others[int(number)]
    one = {"policy": llm.policy, "reviser": llm.reviser, "judge": llm.judge, "stronger": llm.stronger}[group]
    if one is None:
        raise RecipeError(
            f"the setting `llm.{group}` is lacking; name a model there, such as --set llm.{group}.model=gpt-4o-mini"
        )
    return one


def known_prices(recipe: Recipe) -> dict[str, Prices]:
    """Prices that the recipe names, by model; one that is asked at several endpoints only if it costs the same at all of them.

    The table's are left out: they hold at one seller, and whom a reply without a price came from is not known any more.
    """
    found: defaultdict[str, set[Prices | None]] = defaultdict(set)
    for settings in _named(recipe).values():
        found[settings.model].add(settings.prices)
    return {model: price for model, prices in found.items() for price in prices if price and len(prices) == 1}


def check_endpoints(recipe: Recipe, names: list[str]) -> None:
    """Look at everything that can be wrong with endpoints before one is asked.

    Raises:
        UserError: an endpoint is lacking, its key is not set, a limit in dollars lacks a price, or the cache cannot tell
            two endpoints from each other.

    """
    from anchorline.llm.build import check_endpoint

    _tell_apart(recipe)
    for name in names:
        settings = settings_of(recipe, name)
        if recipe.llm.budget.max_usd is not None and find_price(settings) is None:
            raise RecipeError(
                f"llm.budget.max_usd is set, but the price of {settings.model!r} is not known; set llm.{name}.prices (input "
                "and output, USD per million tokens), or limit llm.budget.max_tokens instead"
            )
        check_endpoint(settings)


def _named(recipe: Recipe) -> dict[str, EndpointSettings]:
    """All endpoints of a recipe by their names, as `settings_of` takes them."""
    llm = recipe.llm
    one = {"policy": llm.policy, "reviser": llm.reviser, "judge": llm.judge, "stronger": llm.stronger}
    many = {f"others.{n}": settings for n, settings in enumerate(llm.others)}
    return {name: settings for name, settings in (one | many).items() if settings is not None}


def _tell_apart(recipe: Recipe) -> None:
    """A stored reply is known by model, messages and sampling, not by its URL: what differs must differ in these."""
    for (name, settings), (other, its) in combinations(_named(recipe).items(), 2):
        if _known_by(settings) != _known_by(its):
            continue
        if not settings.runs_here and not set(settings.urls) & set(its.urls):
            raise RecipeError(
                f"llm.{name} and llm.{other} are both {settings.model!r}, at {settings.urls[0]} and {its.urls[0]}: the cache "
                "knows a model by its name, so one would be given the other's replies; serve one of them under another "
                "name, or, if it is the same model, give both URLs to each (base_url: [URL, URL])"
            )
        sampling = (settings.temperature, settings.top_p) == (its.temperature, its.top_p)
        if sampling and name.startswith("others.") and other.startswith("others."):
            raise RecipeError(
                f"llm.{name} and llm.{other} are the same model {settings.model!r} with the same settings: their answers "
                "would be one and the same; name another model, or give one another temperature, top_p or extra_body"
            )


def _known_by(settings: EndpointSettings) -> tuple[bool, str, str]:
    """What of an endpoint, besides its sampling, the key of a request holds."""
    return settings.runs_here, settings.model, canonical({} if settings.runs_here else settings.extra_body)


def costs(cache: RequestCache, run: str) -> dict[str, dict[str, Any]]:
    """What a run has paid so far, in all its processes, by what it was for. `usd` is None where a price is unknown."""
    sums = cache.read(
        "SELECT stage, count(*), sum(prompt_tokens), sum(completion_tokens), sum(guessed) FROM payments"
        " WHERE run = ? GROUP BY stage ORDER BY stage",
        (run,),
    )
    dollars: defaultdict[str, list[float | None]] = defaultdict(list)
    for stage, usd in cache.read("SELECT stage, usd FROM payments WHERE run = ?", (run,)):
        dollars[stage].append(usd)
    names = ("calls", "prompt_tokens", "completion_tokens", "guessed")
    return {stage: dict(zip(names, found, strict=True)) | {"usd": known_sum(dollars[stage])} for stage, *found in sums}
