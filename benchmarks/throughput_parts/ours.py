"""The CLAIR maker with a model as the reviser, as a command runs it: request cache on disk, pool, parser, gates, pairs.

    python ours.py URL ROWS.jsonl REVISIONS.jsonl FOLDER [CONCURRENCY]

prints its CPU seconds and its peak memory as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import openai  # noqa: F401  (imported here, so that the maker's own CPU seconds begin after it)
from rows import answer, question, read_rows, revision

from anchorline.llm.build import build
from anchorline.llm.cache import RequestCache
from anchorline.llm.fake import FakeEndpoint
from anchorline.llm.settings import EndpointSettings
from anchorline.pairs.make import make
from anchorline.pairs.markers import CLOSE, OPEN
from anchorline.pairs.revise import revise
from anchorline.types import Answer, Failure, Message, Pair

CONCURRENCY = 96
"""Half as many again as the server has slots: its queue is never empty, and no call waits for more than half a turn."""
WINDOW = 256
"""Rows in the works at the same time, as in a recipe's run."""


async def main(url: str, rows: Path, out: Path, folder: Path, concurrency: int) -> None:
    """Make the pairs; a failure is a row without a revision."""
    await revise(_answer(0), reviser=FakeEndpoint(f"{OPEN}\n{revision(0)}\n{CLOSE}"), policy="policy")
    before = _cpu_seconds()
    settings = EndpointSettings(model="fake", base_url=url, max_concurrency=concurrency)
    with RequestCache(folder / "requests.sqlite") as cache, out.open("w", encoding="utf-8") as file:

        def write(result: Pair | Failure) -> None:
            text = result.chosen if isinstance(result, Pair) else None
            file.write(json.dumps({"number": int(result.id), "revision": text}) + "\n")

        async with build(settings, cache=cache, run="throughput") as endpoint:
            await make(
                _answers(rows),
                lambda row: revise(row, reviser=endpoint, policy="policy"),
                on_result=write,
                window=WINDOW,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    sys.stdout.write(json.dumps({"cpu_s": _cpu_seconds() - before, "peak_mib": peak}) + "\n")


def _answers(rows: Path) -> Iterator[Answer]:
    for row in read_rows(rows):
        yield Answer(str(row["number"]), (Message("user", str(row["question"])),), str(row["answer"]), "stop")


def _answer(number: int) -> Answer:
    return Answer(str(number), (Message("user", question(number)),), answer(number), "stop")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    url, rows, out, folder, *rest = sys.argv[1:]
    asyncio.run(main(url, Path(rows), Path(out), Path(folder), int(rest[0]) if rest else CONCURRENCY))
