"""How a maker or a judge samples a model: what every request of one step has in common.

>>> from anchorline.types import Message
>>> Sampling(max_tokens=64).request((Message("user", "Hi"),), row="a1", stage="judge").max_tokens
64
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import NamedTuple, TypeVar

from anchorline.errors import EndpointError
from anchorline.llm.types import Request
from anchorline.types import Messages

T = TypeVar("T")


class Sampling(NamedTuple):
    """The settings of sampling. The paper's reviser and judge write up to 4096 tokens at 0.7."""

    max_tokens: int = 4096
    temperature: float = 0.7
    top_p: float = 1.0

    def request(self, messages: Messages, *, row: str, stage: str, index: int = 0) -> Request:
        """The request for one row; `index` tells samples of the same messages apart."""
        return Request(messages, self.max_tokens, self.temperature, self.top_p, index, row=row, stage=stage)


async def together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The results of several calls at once, in their order.

    Where one fails, the others are still waited for: they are paid for, and the cache keeps their replies. An error
    that ends the run goes before one that costs a row.
    """
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, EndpointError))
    return [result for result in results if not isinstance(result, BaseException)]
