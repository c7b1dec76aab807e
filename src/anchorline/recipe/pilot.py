"""A pilot: a random part of a run's rows through one maker, and what all rows will come to.

The pilot's replies are kept in the request cache, so the run that follows does not pay for them again. A reply that
several rows share is counted for the first of them, once.

>>> pilot(run, "clair", 20)["usd"]  # doctest: +SKIP
{'mean': 1.62, 'low': 1.41, 'high': 1.83, 'n': 300}
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from anchorline.data import prompt_to_row
from anchorline.errors import UNANSWERED, DataError
from anchorline.evals.stats import wilson
from anchorline.llm.cache import worth
from anchorline.llm.costs import estimate
from anchorline.llm.keys import request_key
from anchorline.llm.prices import find_price
from anchorline.llm.settings import EndpointSettings
from anchorline.llm.types import Endpoint, Reply, Request
from anchorline.pairs import make
from anchorline.recipe.context import RunContext
from anchorline.recipe.counts import SAMPLED
from anchorline.recipe.desk import Desk, cache_file, open_desk, settings_of
from anchorline.recipe.making import count_rows, needed_endpoints, per_row, rows_of
from anchorline.types import Failure, Pair


def pilot(run: RunContext, maker: str, rows: int, *, total: int | None = None) -> dict[str, Any]:
    """Make a random part of the rows, and say what all of them will come to, with 95 % intervals. No pairs are written.

    `total`: how many rows there are in all, where the run holds a part of them only.
    """
    return asyncio.run(_pilot(run, maker, rows, total))


@contextmanager
def drawn(run: RunContext, rows: int) -> Iterator[RunContext]:
    """A run of a random part of the prompts, in a folder that goes again, with the run's own request cache."""
    prompts = run.prompts("prompts.jsonl")
    some = random.Random(run.recipe.seed).sample(prompts, min(rows, len(prompts)))  # noqa: S311 - not a secret
    llm = run.recipe.llm.model_copy(update={"cache": str(cache_file(run.recipe, run.folder).absolute())})
    recipe = run.recipe.model_copy(update={"llm": llm})
    with TemporaryDirectory(prefix=".pilot-", dir=run.folder) as folder:
        part = RunContext(recipe, Path(folder), progress=run.progress, calls=run.calls, run_id=run.id)
        part.write("prompts.jsonl", some, prompt_to_row)
        part.write("unstyled-prompts.jsonl", [], prompt_to_row)
        yield part


async def _pilot(run: RunContext, maker: str, rows: int, total: int | None) -> dict[str, Any]:
    here = count_rows(run, maker)
    total = here if total is None else total
    drawn = set(random.Random(run.recipe.seed).sample(range(here), min(rows, here)))  # noqa: S311 - not a secret
    results: list[Pair | Failure] = []
    async with open_desk(run) as desk:
        part = [row for n, row in enumerate(rows_of(run, maker)) if n in drawn]
        with run.progress.task(f"pilot: {maker}", total=len(part), unit="rows") as advance:

            def take(result: Pair | Failure) -> None:
                results.append(result)
                advance(1)

            spent, counted = _sampled(desk, maker, [row.id for row in part]), set[str]()

            async def priced(name: str) -> Endpoint:
                return _Priced(await desk.endpoint(name), desk, settings_of(run.recipe, name), spent, counted)

            await make(part, await per_row(run, maker, priced), on_result=take)
    if not part:
        raise DataError(f"there is no row to try {maker} on: none of the prompts has an answer; see failures.jsonl")
    kept = wilson(sum(isinstance(result, Pair) for result in results), len(results))
    answered = any(isinstance(result, Pair) or result.kind not in UNANSWERED for result in results)
    priced_all = answered and all(amount.usd is not None for amount in spent.values())
    return {
        "maker": maker,
        "rows": total,
        "pilot": len(part),
        "tokens": _estimate([amount.tokens for amount in spent.values()], total) if answered else None,
        "usd": _estimate([amount.usd or 0.0 for amount in spent.values()], total) if priced_all else None,
        "kept": kept._asdict(),
        "failures": _kinds(results),
        "reasons": {r.kind: r.reason for r in reversed(results) if isinstance(r, Failure)},
        "unpriced": [name for name in _asked(run, maker) if find_price(settings_of(run.recipe, name)) is None],
    }


def _asked(run: RunContext, maker: str) -> list[str]:
    """The endpoints whose replies a maker's set costs, the policy among them where it is one."""
    sampled = SAMPLED[maker] and run.recipe.llm.policy is not None and run.recipe.pairs.answers is None
    return ["policy"] * bool(sampled) + needed_endpoints(run.recipe, maker)


class _Spent(NamedTuple):
    tokens: int
    usd: float | None

    def plus(self, tokens: int, usd: float | None) -> _Spent:
        return _Spent(self.tokens + tokens, None if usd is None or self.usd is None else self.usd + usd)


class _Priced:
    """An endpoint that writes down what each row's replies cost, whenever they were paid for.

    `counted` has the keys of the replies that stand in `spent` already: equal requests share one reply.
    """

    def __init__(
        self, endpoint: Endpoint, desk: Desk, settings: EndpointSettings, spent: dict[str, _Spent], counted: set[str]
    ) -> None:
        self._endpoint, self._cache, self._spent, self._counted = endpoint, desk.cache, spent, counted
        self._extra = {} if settings.runs_here else settings.extra_body

    @property
    def model(self) -> str:
        return self._endpoint.model

    async def complete(self, request: Request) -> Reply:
        reply = await self._endpoint.complete(request)
        key = request_key(self.model, request, self._extra)
        stored = self._cache.get(key)
        if stored is not None and key not in self._counted:
            self._counted.add(key)
            self._spent[request.row] = self._spent[request.row].plus(*worth(request, stored))
        return reply


def _sampled(desk: Desk, maker: str, ids: Sequence[str]) -> dict[str, _Spent]:
    """Tokens and dollars of the policy's answers that the maker takes, by row: of each the newest, whoever has paid it."""
    query = (
        "SELECT stage, row, coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0), usd FROM requests"
        " WHERE error IS NULL AND stage IN ('sample', 'resample') ORDER BY at"
    )
    newest = {(stage, row): (int(tokens), usd) for stage, row, tokens, usd in desk.cache.read(query)}
    found = {id: _Spent(0, 0.0) for id in ids}
    for (stage, row), spent in newest.items():
        id = row.rpartition("#")[0] if stage == "resample" else row
        if stage in SAMPLED[maker] and id in found:
            found[id] = found[id].plus(*spent)
    return found


def _estimate(amounts: Sequence[float], total: int) -> dict[str, float]:
    return estimate(amounts, total)._asdict()


def _kinds(results: Sequence[Pair | Failure]) -> dict[str, int]:
    kinds: dict[str, int] = defaultdict(int)
    for result in results:
        if isinstance(result, Failure):
            kinds[result.kind] += 1
    return dict(kinds)
