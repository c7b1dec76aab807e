r"""Rows of a CSV file: commas, a header, UTF-8, quoted fields that may hold line breaks (RFC 4180).

An empty cell is a missing value. A cell that holds a list of messages as JSON is read as one, since a conversation
taken for one long user turn would be trained on without anybody noticing; for the same reason one that is written as
Python prints it (what pandas' `to_csv` does) is refused. Other columns whose values are no texts are read as JSON, too.

>>> import tempfile
>>> file = Path(tempfile.mkdtemp()) / "prompts.csv"
>>> _ = file.write_text('id,prompt\n7,"Hello,\nwhere is it?"\n8,Thanks,too much\n')
>>> (line, row), (other, problem) = csv_rows(file)
>>> line, row
(2, {'id': '7', 'prompt': 'Hello,\nwhere is it?'})
>>> other, problem.line
(4, 4)
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anchorline.data.jsonl import opened, parse_json
from anchorline.errors import DataError

_LABELS = {"true": True, "1": True, "false": False, "0": False}
_LISTS = frozenset(["completions", "generations", "generation_models", "ratings"])
"""Columns of `candidates_from_row` that hold a list of anything."""
_PRINTED = re.compile(r"""\s*\[\s*\{.*['"]role['"]""", re.DOTALL)
_LONGEST_CELL = 2**31 - 1  # the module's own limit, 128 KiB, is less than a long conversation


def csv_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """Line on which each row begins, with the row; a row with too few or too many cells comes as its DataError."""
    with opened(path) as file:
        csv.field_size_limit(_LONGEST_CELL)
        reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        line = 1
        try:
            names = _header(next(reader, None), path)
            line = reader.line_num + 1
            for cells in reader:
                if cells:  # a blank line is no row
                    yield line, _row(names, cells, path, line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"is not CSV that can be read: {error}", file=path, line=line) from None
        except UnicodeDecodeError as error:
            # the decoder reads ahead of the rows, so the line is not known
            raise DataError(f"is not UTF-8 ({error.reason}); save it as UTF-8", file=path) from None


def _header(names: list[str] | None, path: str | Path) -> list[str]:
    names = [name.strip() for name in names or ()]
    if not names:
        raise DataError("is empty, expected a header with the names of the columns", file=path, line=1)
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise DataError(
            f"the header is one column, {names[0][:60]!r}; expected commas between columns", file=path, line=1
        )
    if not all(names) or len(set(names)) < len(names):
        raise DataError(
            f"the header is {', '.join(names)}; expected a name of its own for each column", file=path, line=1
        )
    return names


def _row(names: list[str], cells: list[str], path: str | Path, line: int) -> dict[str, Any] | DataError:
    if len(cells) != len(names):
        return DataError(f"has {len(cells)} cells, expected {len(names)} ({', '.join(names)})", file=path, line=line)
    try:
        return {name: _value(name, cell) for name, cell in zip(names, cells, strict=True)}
    except DataError as error:
        text = str(error).removeprefix(f"{error.field}: ")
        return DataError(text, file=path, line=line, field=error.field)


def _value(name: str, cell: str) -> Any:
    if not cell.strip():
        return None
    if name == "label":
        return _LABELS.get(cell.strip().casefold(), cell)
    if cell.lstrip()[0] != "[":
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        if _PRINTED.match(cell):
            raise DataError(
                "is a list of messages as Python prints it, expected JSON; save such columns with json.dumps, or the whole "
                "table as JSON lines (pandas: to_json(file, orient='records', lines=True))",
                field=name,
            ) from None
        return cell
    messages = all(isinstance(v, dict) and "role" in v and "content" in v for v in value)
    if not value or not (name in _LISTS or messages):
        return cell
    try:
        return parse_json(cell.encode())  # which refuses what the module lets pass: NaN, half a surrogate pair
    except DataError as error:
        raise DataError(str(error), field=name) from None
