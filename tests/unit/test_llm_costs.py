"""Costs and budgets: unknown stays unknown, the limit holds, and a pilot's interval covers what it says."""

from __future__ import annotations

import asyncio
import random
import re
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_llm_pool import virtual_run

from anchorline.errors import BudgetReached, RecipeError, UserError
from anchorline.llm.budget import Amount, Budget, Metered, worst_case
from anchorline.llm.costs import Bill, estimate
from anchorline.llm.fake import FakeEndpoint, Slow, broken
from anchorline.llm.guess import guess_prompt_tokens
from anchorline.llm.settings import BudgetSettings, Prices
from anchorline.llm.types import Reply, Request
from anchorline.recipe.config import Recipe
from anchorline.recipe.desk import check_endpoints, known_prices
from anchorline.types import Message

DOLLAR = Prices(input=1e6, output=1e6)
"""A dollar a token."""


def metered(script: Any, price: Prices | None = DOLLAR, **limits: Any) -> tuple[Metered, Budget]:
    spent = limits.pop("spent", None)
    budget = Budget(BudgetSettings(**limits), spent=spent)
    return Metered(FakeEndpoint(script), budget=budget, price=price), budget


def ask(words: str = "", most: int = 10, stage: str = "s") -> Request:
    return Request((Message("user", words),), max_tokens=most, stage=stage)


def test_one_unknown_price_makes_the_sum_unknown() -> None:
    bill = Bill()
    bill.add("a", 1, 1.0)
    assert bill.usd == 1.0
    bill.add("b", 1, None)
    assert bill.usd is None and bill.tokens == 2


def test_calls_are_paid_from_the_budget_and_errors_cost_nothing() -> None:
    endpoint, budget = metered([Reply("x", "stop", 3, 4), broken()], max_usd=100)

    async def main() -> None:
        await endpoint.complete(ask())
        with pytest.raises(Exception, match="broken"):
            await endpoint.complete(ask())

    asyncio.run(main())
    assert (budget.tokens, budget.usd) == (7, 7.0)


@pytest.mark.parametrize("limit", ["max_usd", "max_tokens"])
def test_a_call_that_could_pass_the_limit_is_not_made(limit: str) -> None:
    worst = worst_case(ask(), DOLLAR).tokens
    for most, fits in ((worst, True), (worst - 1, False)):
        endpoint, _ = metered("fine", **{limit: most})
        if fits:
            asyncio.run(endpoint.complete(ask()))
        else:
            with pytest.raises(BudgetReached, match=f"{limit} is {most}.*raise the limit"):
                asyncio.run(endpoint.complete(ask()))


def test_what_was_spent_before_counts() -> None:
    endpoint, _ = metered("fine", max_tokens=1000, spent=Amount(990, 0.0))
    with pytest.raises(BudgetReached, match="990 are spent"):
        asyncio.run(endpoint.complete(ask()))


def test_a_limit_of_money_needs_a_price() -> None:
    with pytest.raises(RecipeError, match="no price is known for the model 'fake'"):
        metered("fine", price=None, max_usd=1)
    metered("fine", price=None, max_tokens=1)


@settings(max_examples=40)
@given(
    st.integers(50, 800),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60), st.integers(0, 5)), min_size=1, max_size=40),
)
def test_the_limit_is_never_passed_and_nearly_reached(limit: int, calls: list[tuple[int, int, int]]) -> None:
    """Calls of (max_tokens, reply's tokens, seconds) at the same time."""

    async def main() -> None:
        prompt = guess_prompt_tokens(ask())

        def play(request: Request) -> Slow:
            _, used, seconds = calls[request.index]
            assert budget.tokens + budget._aside_tokens <= limit
            return Slow(seconds + 0.1, Reply("x", "stop", prompt, min(used, request.max_tokens)))

        endpoint, budget = metered(play, max_tokens=limit)
        requests = [Request(ask().messages, most, index=i) for i, (most, _, _) in enumerate(calls)]
        results = await asyncio.gather(*(endpoint.complete(r) for r in requests), return_exceptions=True)
        assert {type(r) for r in results} <= {Reply, BudgetReached}
        paid = [r.prompt_tokens + r.completion_tokens for r in results if isinstance(r, Reply)]
        assert budget.tokens == sum(paid) <= limit and budget._aside_tokens == 0
        if len(paid) < len(calls):  # it stopped: then less than one call's worst case was left
            assert limit - budget.tokens < prompt + max(most for most, _, _ in calls)

    virtual_run(main())


def test_near_the_limit_calls_wait_for_those_in_flight_instead_of_stopping() -> None:
    async def main() -> None:
        endpoint, budget = metered(lambda _: Slow(1, Reply("x", "stop", 5, 5)), max_tokens=300)
        replies = await asyncio.gather(*(endpoint.complete(ask(most=100)) for _ in range(15)), return_exceptions=True)
        # 109 at worst, 10 in truth: 300 takes all fifteen, though only two at once may be in flight at first
        assert sum(isinstance(r, Reply) for r in replies) == 15 and budget.tokens == 150

    virtual_run(main())


def test_who_waits_may_be_told_to_stop() -> None:
    async def main() -> None:
        endpoint, budget = metered(lambda _: Slow(1, Reply("x", "stop", 5, 5)), max_tokens=115)
        tasks = [asyncio.create_task(endpoint.complete(ask(most=100))) for _ in range(4)]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(r, Reply) for r in results] == [False, False, True, False]
        assert isinstance(results[3], BudgetReached) and budget.tokens == 10

    virtual_run(main())


def test_the_guess_of_a_prompt_is_on_the_high_side() -> None:
    texts = ["The quick brown fox jumps over the lazy dog, and nobody minds at all.", "where is my parcel?"]
    for text in texts:
        assert len(text.split()) * 1.3 < guess_prompt_tokens(ask(text))


# estimates


def test_an_estimate_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0], 12)
    # mean 2, s 1, t(2) 4.3027, sqrt(12 * 9 / 3) = 6
    assert found.mean == 24 and found.high == pytest.approx(24 + 4.3027 * 6)
    assert found.low == 6  # what the pilot itself has cost already


def test_a_pilot_of_everything_has_no_interval() -> None:
    found = estimate([1.0, 2.0, 4.0], 3)
    assert found[:3] == (7.0, 7.0, 7.0)


@pytest.mark.parametrize(("m", "t"), [(2, 12.706), (4, 3.182), (6, 2.571), (11, 2.228), (21, 2.086), (101, 1.984)])
def test_students_t(m: int, t: float) -> None:
    pilot = [10.0, 12.0] + [11.0] * (m - 2)
    found = estimate(pilot, 10**6)
    half = statistics.stdev(pilot) * (10**6 * (10**6 - m) / m) ** 0.5
    assert (found.high - found.mean) / half == pytest.approx(t, rel=0.002)


def test_the_interval_covers_the_total_as_often_as_it_says() -> None:
    luck = random.Random(7)
    covered = 0
    for _ in range(1000):
        costs = [luck.gauss(0.02, 0.005) for _ in range(100)]
        found = estimate(costs[:20], 100)
        covered += found.low <= sum(costs) <= found.high
    assert 925 <= covered <= 975


@pytest.mark.parametrize(("pilot", "n"), [([], 10), ([1.0], 10), ([1.0, 1.0, 1.0], 2)])
def test_a_pilot_too_small_or_too_large(pilot: list[float], n: int) -> None:
    with pytest.raises(UserError, match=f"a pilot of {len(pilot)} rows"):
        estimate(pilot, n)


HERE, THERE = "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"


@pytest.mark.parametrize(
    ("llm", "says"),
    [
        (
            {
                "policy": {"model": "m", "base_url": HERE},
                "stronger": {"model": "m", "base_url": THERE, "temperature": 0},
            },
            "llm.policy and llm.stronger are both 'm', at http://127.0.0.1:1/v1 and http://127.0.0.1:2/v1",
        ),
        ({"others": [{"model": "m", "base_url": HERE}, {"model": "m", "base_url": THERE}]}, "under another name"),
        ({"others": [{"model": "m", "base_url": HERE}] * 2}, "llm.others.0 and llm.others.1 are the same model 'm'"),
        ({"others": [{"model": "embedded:e"}, {"model": "embedded:e", "max_tokens": 9}]}, "another temperature"),
    ],
)
def test_endpoints_that_the_cache_cannot_tell_apart_are_refused(llm: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        check_endpoints(Recipe.model_validate({"llm": llm}), [])


@pytest.mark.parametrize(
    "llm",
    [
        {"policy": {"model": "m", "base_url": HERE}, "judge": {"model": "m", "base_url": HERE}},
        {"policy": {"model": "m", "base_url": HERE}, "judge": {"model": "m", "base_url": [THERE, HERE]}},
        {"policy": {"model": "m", "base_url": HERE}, "judge": {"model": "n", "base_url": THERE}},
        {
            "policy": {"model": "m", "base_url": HERE},
            "judge": {"model": "m", "base_url": THERE, "extra_body": {"top_k": 2}},
        },
        {"others": [{"model": "embedded:e"}, {"model": "embedded:e", "temperature": 1}]},
    ],
)
def test_endpoints_that_it_can_tell_apart_are_not(llm: dict[str, Any]) -> None:
    check_endpoints(Recipe.model_validate({"llm": llm}), [])


def test_only_a_price_that_the_recipe_names_counts_for_what_was_paid_before():
    own = {"model": "mine", "base_url": "http://127.0.0.1:1/v1", "prices": {"input": 1, "output": 2}}
    recipe = Recipe.model_validate({"name": "r", "llm": {"reviser": own, "judge": {"model": "gpt-4o-mini"}}})
    assert known_prices(recipe) == {"mine": Prices(input=1, output=2)}, "gpt-4o-mini may have been another seller's"
