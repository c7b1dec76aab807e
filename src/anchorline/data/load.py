r"""Prompts, pairs, labelled answers and candidates from a file or the hub: the good rows, and what is wrong with others.

A bad row never stops the good ones, unless `strict`. The formats are described in `docs/data.md`.

>>> import tempfile
>>> file = Path(tempfile.mkdtemp()) / "prompts.jsonl"
>>> _ = file.write_text('{"prompt": "Where is order 4417?"}\n{"prompt": " "}\n')
>>> loaded = read_prompts(file)
>>> len(loaded.rows), loaded.problems[0].line, loaded.problems[0].field
(1, 2, 'prompt')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from anchorline.data.candidates import Candidates, Score, candidates_from_row
from anchorline.data.files import scan_rows
from anchorline.data.formats import answer_from_row, unpaired_from_row
from anchorline.data.layouts import PairLayout, read_pair, read_prompt
from anchorline.errors import DataError
from anchorline.types import Answer, Pair, Prompt, Unpaired

T = TypeVar("T", Prompt, Pair, Unpaired, Candidates, Answer)


class Loaded(NamedTuple, Generic[T]):
    """What a source holds."""

    rows: list[T]
    """The good rows, in the source's order, each with an id of its own."""
    problems: list[DataError]
    """One for each row that cannot be used, with file, line and field."""


def read_prompts(source: str | Path, *, strict: bool = False, system: str | None = None) -> Loaded[Prompt]:
    """Read prompts. `system` goes before each prompt that has no system message of its own."""
    if system is not None and not system.strip():
        raise DataError("is blank; give a text or leave it out", field="system")
    return _load(source, lambda row: read_prompt(row, system=system), strict=strict)


def read_pairs(source: str | Path, *, strict: bool = False, layout: PairLayout | None = None) -> Loaded[Pair]:
    """Read preference pairs. Each row's columns say how it is laid out; where they fit several layouts, `layout` does."""
    return _load(source, lambda row: read_pair(row, layout=layout), strict=strict)


def read_unpaired(source: str | Path, *, strict: bool = False) -> Loaded[Unpaired]:
    """Read single labelled answers."""
    return _load(source, unpaired_from_row, strict=strict)


def read_answers(source: str | Path, *, strict: bool = False) -> Loaded[Answer]:
    """Read answers of a model: rows with a prompt and a `text`; `finish` is "stop" where a row does not say, or says null."""
    return _load(source, lambda row: answer_from_row(row, finish="stop"), strict=strict)


def read_candidates(source: str | Path, *, strict: bool = False, score: Score = "overall_score") -> Loaded[Candidates]:
    """Read prompts with several answers each, for off-policy pairs; `score` is one of UltraFeedback's two."""
    return _load(source, lambda row: candidates_from_row(row, score=score), strict=strict)


def _load(source: str | Path, parse: Callable[[dict[str, Any]], T], *, strict: bool) -> Loaded[T]:
    rows: list[T] = []
    problems: list[DataError] = []
    lines: dict[str, int] = {}
    for line, row in scan_rows(source):
        try:
            if isinstance(row, DataError):
                raise row
            parsed = _own_id(parse(row), lines, given=row.get("id") is not None)
        except DataError as error:
            problem = error if error.file is not None else _placed(error, source, line)
            if strict:
                raise problem from None
            problems.append(problem)
        else:
            lines[parsed.id] = line
            rows.append(parsed)
    if not rows:
        raise _nothing(source, problems)
    return Loaded(rows, problems)


def _own_id(row: T, lines: dict[str, int], *, given: bool) -> T:
    """Ids are unique. A repeated prompt without an id gets a suffix; an id that the user gave is never changed."""
    if row.id not in lines:
        return row
    if given:
        raise DataError(
            f"{row.id!r} is taken by line {lines[row.id]}; make ids unique or leave the column out", field="id"
        )
    n = 2
    while f"{row.id}-{n}" in lines:
        n += 1
    return replace(row, id=f"{row.id}-{n}")


def _placed(error: DataError, source: str | Path, line: int) -> DataError:
    text = str(error).removeprefix(f"{error.field}: ")
    return DataError(text, file=source, line=line, field=error.field)


def _nothing(source: str | Path, problems: list[DataError]) -> DataError:
    if not problems:
        return DataError("is empty, expected at least one row", file=source)
    return DataError(f"no row can be used ({len(problems)} bad); the first: {problems[0]}", file=source)
