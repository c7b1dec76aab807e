"""A request cache's contents counted, and old rows thrown away.

>>> stats("requests.sqlite").rows  # doctest: +SKIP
812
"""

from __future__ import annotations

import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from anchorline.errors import DataError
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
