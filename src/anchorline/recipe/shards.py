"""Rows cut into shards for workers, and what became of each shard: a file, kept until all are there.

A shard is a run of rows, known by its first row and its length. A stage that was stopped finds the finished ones again and
cuts only the rest, so another number of workers spoils nothing.

>>> [(shard.start, len(shard.rows)) for shard in cut(["a", "b", "c", "d", "e"], size=2, done={2: 2})]
[(0, 2), (4, 1)]
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from anchorline.data import (
    answer_from_row,
    answer_to_row,
    failure_from_row,
    failure_to_row,
    messages_to_rows,
    pair_to_row,
    prompt_from_row,
    prompt_to_row,
    read_jsonl,
    write_jsonl,
)
from anchorline.data.candidates import Candidate, Candidates
from anchorline.llm.costs import Bill
from anchorline.types import Answer, Failure, Message, Pair, Prompt

Row = dict[str, Any]


class Shard(NamedTuple):
    """Some rows in a row, and the number of the first of them."""

    start: int
    rows: list[Any]


def cut(rows: Iterable[Any], *, size: int, done: Mapping[int, int]) -> Iterator[Shard]:
    """The rows that are in no finished shard (`done`: first row to length), at most `size` together."""
    part: list[Any] = []
    covered = 0
    number = -1
    for number, row in enumerate(rows):
        if number in done:
            covered = number + done[number]
        if part and (len(part) == size or number < covered):
            yield Shard(number - len(part), part)
            part = []
        if number >= covered:
            part.append(row)
    if part:
        yield Shard(number + 1 - len(part), part)


def finished(folder: Path) -> dict[int, int]:
    """The shards whose results are in the folder: first row to length."""
    found = (file.stem.split("-") for file in folder.glob("*-*.jsonl"))
    return {int(start): int(length) for start, length in found}


def keep(folder: Path, start: int, results: list[Row], bill: Bill) -> None:
    """Put a shard's results, and the bill of their replies, on disk, whole or not at all."""
    write_jsonl(folder / f"{start:09d}-{len(results)}.jsonl", [*results, {"bill": bill.replies}])


def collect(folder: Path) -> Iterator[Row | Failure | Bill]:
    """All results in the order of the rows: pairs as rows, and failures; after those of a shard, its bill."""
    for file in sorted(folder.glob("*-*.jsonl")):
        for _, result in read_jsonl(file):
            ((kind, value),) = result.items()
            if kind == "bill":
                yield bill_from_row(value)
            else:
                yield value if kind == "pair" else failure_from_row(value)


def bill_from_row(row: Mapping[str, Any]) -> Bill:
    """The bill again, of JSON."""
    return Bill({key: (tokens, usd) for key, (tokens, usd) in row.items()})


def result_to_row(result: Pair | Failure) -> Row:
    """A row's result as JSON."""
    if isinstance(result, Pair):
        return {"pair": pair_to_row(result)}
    return {"failure": failure_to_row(result)}


def input_to_row(row: Answer | Candidates | Prompt) -> Row:
    """What a maker takes, as JSON that `input_from_row` reads."""
    if isinstance(row, Answer):
        return {"answer": answer_to_row(row)}
    if isinstance(row, Prompt):
        return {"prompt": prompt_to_row(row)}
    # of the policy's samples any number may have failed, and a file's row of one answer is refused
    return {
        "candidates": {
            "id": row.id,
            "prompt": messages_to_rows(row.prompt),
            "answers": [[answer.text, answer.model, answer.score] for answer in row.answers],
        }
    }


def input_from_row(row: Row) -> Answer | Candidates | Prompt:
    """The row again."""
    ((kind, value),) = row.items()
    if kind == "candidates":
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in value["prompt"])
        return Candidates(value["id"], prompt, tuple(Candidate(*fields) for fields in value["answers"]))
    return answer_from_row(value) if kind == "answer" else prompt_from_row(value)


def clear(path: Path) -> None:
    """Remove what was left half done, by whichever engine."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
