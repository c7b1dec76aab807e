"""A hard limit of money and tokens for a run, over all its endpoints and all its resumes.

Before a call its worst case is set aside: the prompt and `max_tokens` of reply. Where that no longer fits, the call waits
until calls in flight are settled, which usually frees most of what they had set aside; where nothing is in flight any
more, the run stops. So the limit is never passed (but for what a prompt's tokens were guessed wrong, and for replies of
one request that could not be read, which are paid, too, and calls that timed out, whose cost nobody tells), and the run
does not stop before less than one call's worst case is left.

>>> import asyncio
>>> from anchorline.llm.fake import FakeEndpoint
>>> budget = Budget(BudgetSettings(max_tokens=20))
>>> endpoint = Metered(FakeEndpoint("two words"), budget=budget, price=None)
>>> asyncio.run(endpoint.complete(Request((), max_tokens=15))).text
'two words'
>>> budget.tokens
2
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from anchorline.errors import BudgetReached, RecipeError
from anchorline.llm.guess import guess_prompt_tokens, used_tokens
from anchorline.llm.pool import ATTEMPTS, Attempts
from anchorline.llm.settings import BudgetSettings, Prices
from anchorline.llm.types import Endpoint, Reply, Request


class Amount(NamedTuple):
    """Tokens and dollars. Dollars are 0 where no price is known; then no limit of money can have been set."""

    tokens: int = 0
    usd: float = 0.0


class Budget:
    """What a run may spend and has spent. One for all endpoints of a run."""

    def __init__(self, settings: BudgetSettings, *, spent: Amount | None = None) -> None:
        """`spent` is what the run paid before it was stopped, as its cache file tells (`RequestCache.spent`)."""
        self.settings = settings
        self.tokens, self.usd = spent or Amount()
        self._aside_tokens, self._aside_usd = 0, 0.0
        self._open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._reached: str | None = None

    async def set_aside(self, worst: Amount) -> None:
        """Wait until `worst` fits.

        Raises:
            BudgetReached: it will not.

        """
        waited = False
        while True:
            fits = self.has_room(worst)
            if self._reached is None and not fits and not self._open:
                self._reached = self.explain(worst)
            if self._reached is not None:
                self._wake_all()
                raise BudgetReached(self._reached)
            if fits and (waited or not self._waiting):
                break
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # whoever has waited already keeps its place
            (self._waiting.appendleft if waited else self._waiting.append)(turn)
            waited = True
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()
                raise
        self._aside_tokens += worst.tokens
        self._aside_usd += worst.usd
        self._open += 1
        self._wake()

    def pay(self, paid: Amount) -> None:
        """Something was spent that was not set aside."""
        self.tokens += paid.tokens
        self.usd += paid.usd

    def settle(self, worst: Amount, paid: Amount) -> None:
        """A call is over: `worst` is free again, `paid` was spent."""
        self._aside_tokens -= worst.tokens
        self._aside_usd -= worst.usd
        self._open -= 1
        self.pay(paid)
        self._wake()

    def has_room(self, worst: Amount) -> bool:
        """Whether `worst` fits beside what is spent and set aside."""
        most_usd, most_tokens = self.settings.max_usd, self.settings.max_tokens
        aside_usd = self._aside_usd if self._open else 0.0  # sums of floats leave crumbs
        return (most_usd is None or self.usd + aside_usd + worst.usd <= most_usd) and (
            most_tokens is None or self.tokens + self._aside_tokens + worst.tokens <= most_tokens
        )

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._waiting:
            self._wake()

    def explain(self, worst: Amount) -> str:
        """Why a call of this worst case cannot be made."""
        limits = []
        if self.settings.max_usd is not None and self.usd + worst.usd > self.settings.max_usd:
            limits.append(
                f"max_usd is {self.settings.max_usd:g}, {self.usd:.4f} USD are spent, and the next call may take up to "
                f"{worst.usd:.4f}"
            )
        if self.settings.max_tokens is not None and self.tokens + worst.tokens > self.settings.max_tokens:
            limits.append(
                f"max_tokens is {self.settings.max_tokens}, {self.tokens} are spent, and the next call may take up to "
                f"{worst.tokens}"
            )
        return (
            f"the run's budget is used up: {'; '.join(limits)}. What was answered is kept: raise the limit and run the "
            "same command again to go on"
        )


class Metered:
    """An endpoint whose calls are paid from a budget."""

    def __init__(self, endpoint: Endpoint, *, budget: Budget | None = None, price: Prices | None = None) -> None:
        if budget is not None and budget.settings.max_usd is not None and price is None:
            raise RecipeError(
                f"max_usd is set, but no price is known for the model {endpoint.model!r}: give its `prices` (input and "
                "output, in USD per million tokens), or limit max_tokens instead"
            )
        self._endpoint, self._budget, self.price = endpoint, budget, price

    @property
    def model(self) -> str:
        return self._endpoint.model

    async def complete(self, request: Request) -> Reply:
        if self._budget is None:
            return await self._endpoint.complete(request)
        worst = worst_case(request, self.price)
        await self._budget.set_aside(worst)
        attempts = ATTEMPTS.get() or Attempts()
        counting = ATTEMPTS.set(attempts)
        used: list[tuple[int, int]] = []
        try:
            reply = await self._endpoint.complete(request)
            used.append(used_tokens(request, reply)[:2])
            return reply
        finally:
            ATTEMPTS.reset(counting)
            prompt, completion = (sum(column) for column in zip((0, 0), *used, *attempts.unread, strict=True))
            self._budget.settle(worst, _amount(prompt, completion, self.price))


def _amount(prompt: int, completion: int, price: Prices | None) -> Amount:
    return Amount(prompt + completion, price.cost(prompt, completion) if price else 0.0)


def worst_case(request: Request, price: Prices | None) -> Amount:
    """The most that one call may take."""
    prompt = guess_prompt_tokens(request)
    return _amount(prompt, request.max_tokens, price)
