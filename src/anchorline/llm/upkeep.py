"""A request cache's contents counted, old rows thrown away, and prices that were learnt late put in.

>>> stats("requests.sqlite").rows  # doctest: +SKIP
812
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from anchorline.errors import DataError
from anchorline.llm.cache import RequestCache
from anchorline.llm.prices import BATCH_SHARE
from anchorline.llm.settings import Prices
from anchorline.llm.store import connect, readable


class Paid(NamedTuple):
    """Calls that were paid, of one stage or model. `usd` is None where a price was unknown."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None


class Stats(NamedTuple):
    """What a cache file holds. Payments stay when rows are pruned, so they may count more calls than there are rows."""

    rows: int
    answered: int
    cut: int
    failed: dict[str, int]
    rows_by_model: dict[str, int]
    rows_by_stage: dict[str, int]
    paid_by_model: dict[str, Paid]
    paid_by_stage: dict[str, Paid]
    timed_out: int
    """Calls of unknown cost."""
    bytes: int


def stats(path: str | Path) -> Stats:
    """Count what is in the file."""
    with closing(connect(path, must_exist=True)) as db, readable(path):

        def pairs(query: str) -> dict[str, int]:
            return dict(db.execute(query).fetchall())

        def paid(column: str) -> dict[str, Paid]:
            # one call with an unknown price makes the sum unknown
            rows = db.execute(
                f"SELECT {column}, count(*), sum(prompt_tokens), sum(completion_tokens),"  # noqa: S608
                f" CASE WHEN count(usd) = count(*) THEN sum(usd) END FROM payments GROUP BY {column} ORDER BY {column}"
            )
            return {name: Paid(*sums) for name, *sums in rows}

        rows, answered, cut = db.execute(
            "SELECT count(*), count(*) - count(error), count(*) FILTER (WHERE finish = 'length') FROM requests"
        ).fetchone()
        size = sum(f.stat().st_size for f in (Path(f"{path}{end}") for end in ("", "-wal")) if f.is_file())
        return Stats(
            rows,
            answered,
            cut,
            pairs("SELECT error, count(*) FROM requests WHERE error IS NOT NULL GROUP BY error ORDER BY error"),
            pairs("SELECT model, count(*) FROM requests GROUP BY model ORDER BY model"),
            pairs("SELECT stage, count(*) FROM requests GROUP BY stage ORDER BY stage"),
            paid("model"),
            paid("stage"),
            db.execute("SELECT coalesce(sum(calls), 0) FROM timeouts").fetchone()[0],
            size,
        )


def prune(
    path: str | Path, *, older_than: timedelta | None = None, model: str | None = None, failed: bool = False
) -> int:
    """Delete the rows for which all given conditions hold, and give the room back. Returns how many there were.

    What was paid for them stays known. At least one condition has to be given.
    """
    conditions: list[str] = []
    values: list[Any] = []
    if older_than is not None:
        conditions.append("at < ?")
        values.append(time.time() - older_than.total_seconds())
    if model is not None:
        conditions.append("model = ?")
        values.append(model)
    if failed:
        conditions.append("error IS NOT NULL")
    if not conditions:
        raise DataError("nothing says which rows to delete: give an age, a model, or failed ones", file=path)
    with closing(connect(path, must_exist=True)) as db, readable(path):
        deleted = db.execute(f"DELETE FROM requests WHERE {' AND '.join(conditions)}", values).rowcount  # noqa: S608
        if deleted:
            db.execute("VACUUM")
        return deleted


async def price_later(cache: RequestCache, run: str, prices: Mapping[str, Prices]) -> None:
    """Price what a run paid while the prices (by model) were not known: so a pilot tells them, and budgets count it all.

    Replies of a batch are known by their 0 seconds and priced at their share. One that was asked again since, because it
    was cut, or whose row was pruned, cannot be told from others and counts in full.
    """
    query = "SELECT DISTINCT model FROM payments WHERE run = ? AND usd IS NULL"
    unpriced = [model for (model,) in cache.read(query, (run,)) if model in prices]

    def work(db: sqlite3.Connection) -> None:
        for model in unpriced:
            price = prices[model]
            db.execute(
                "UPDATE payments SET usd = (prompt_tokens * ? + completion_tokens * ?) / 1e6 * CASE WHEN EXISTS"
                " (SELECT 1 FROM requests WHERE key = payments.key AND at = payments.at AND seconds = 0)"
                " THEN ? ELSE 1 END WHERE run = ? AND model = ? AND usd IS NULL",
                (price.input, price.output, BATCH_SHARE, run, model),
            )
            db.execute(
                "UPDATE requests SET usd = payments.usd FROM payments WHERE payments.key = requests.key"
                " AND payments.at = requests.at AND payments.run = ? AND payments.model = ? AND requests.usd IS NULL",
                (run, model),
            )

    if unpriced:
        await cache.on_disk(work)
