"""The price table: US dollars per million tokens at OpenAI's own endpoint. What is not here is unknown, never 0.

Only models for which at least two published readings of the price page agree are listed, the last from September. Left out:
models with a charge for writing the cache (gpt-6), and those whose readings differ (gpt-5.6-sol). The prices are those of
prompts below 272,000 tokens; that a cached prompt costs less is not counted. A setting `prices` goes first.

>>> find_price(EndpointSettings(model="gpt-4o-mini")).output
0.6
>>> find_price(EndpointSettings(model="gpt-4o-mini", base_url="http://127.0.0.1:8000/v1")) is None
True
"""

from __future__ import annotations

from anchorline.llm.settings import OPENAI_URL, EndpointSettings, Prices

AS_OF = "2026-09"
SOURCE = "https://developers.openai.com/api/docs/pricing"
BATCH_SHARE = 0.5
"""The share of the price that the batch interface costs, says the same page."""

TABLE: dict[str, Prices] = {
    "gpt-4.1": Prices(input=2.00, output=8.00),
    "gpt-4.1-mini": Prices(input=0.40, output=1.60),
    "gpt-4.1-nano": Prices(input=0.10, output=0.40),
    "gpt-4o": Prices(input=2.50, output=10.00),
    "gpt-4o-mini": Prices(input=0.15, output=0.60),
    "gpt-5.4": Prices(input=2.50, output=15.00),
    "gpt-5.4-mini": Prices(input=0.75, output=4.50),
    "gpt-5.5": Prices(input=5.00, output=30.00),
    "gpt-5.6-luna": Prices(input=0.20, output=1.20),
    "gpt-5.6-terra": Prices(input=2.00, output=12.00),
}


def find_price(settings: EndpointSettings) -> Prices | None:
    """The user's own prices, 0 for a model in this process, the table's for OpenAI's own endpoint; else None."""
    if settings.prices is not None:
        return settings.prices
    if settings.runs_here:
        return Prices(input=0, output=0)
    # another seller of the same model has its own prices
    return TABLE.get(settings.model) if settings.urls == (OPENAI_URL,) else None
