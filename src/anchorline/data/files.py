"""Rows of any source, by the ending of its name, and back into a file.

>>> import tempfile
>>> file = Path(tempfile.mkdtemp()) / "rows.parquet"
>>> write_rows(file, [{"id": "a", "n": 1}, {"id": "b", "details": {"by": "hand"}}])
>>> list(scan_rows(file))[1]
(2, {'id': 'b', 'n': None, 'details': '{"by": "hand"}'})
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anchorline.data.csv_rows import csv_rows
from anchorline.data.hub import hub_rows, looks_like_hub_id
from anchorline.data.jsonl import dumps, opened, read_json, replacing, scan_jsonl, write_jsonl
from anchorline.errors import DataError

READABLE = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
WRITABLE = (".jsonl", ".parquet")

NumberedRows = Iterator[tuple[int, dict[str, Any] | DataError]]


def scan_rows(source: str | Path) -> NumberedRows:
    """Line (JSONL) or row number from 1 (else) with each row; a bad line comes as its DataError.

    A path that exists wins over a hub id of the same name.
    """
    path = Path(source).expanduser()
    if not _exists(path):
        if isinstance(source, str) and _means_the_hub(source, path):
            return hub_rows(source)
        what = "no such file" if path.suffix else "no such file or folder"
        raise DataError(f"{what}; expected {', '.join(READABLE)} or a hub id (owner/name)", file=source)
    if path.is_dir():
        raise DataError(f"is a folder, expected a file ({', '.join(READABLE)}) or a hub id", file=source)
    ending = path.suffix.lower()
    if ending in (".jsonl", ".ndjson"):
        return scan_jsonl(path)
    if ending == ".json":
        return _json_rows(path)
    if ending == ".csv":
        return csv_rows(path)
    if ending == ".parquet":
        return _parquet_rows(path)
    raise DataError(f"has the ending {ending or 'none'!r}, expected one of {', '.join(READABLE)}", file=source)


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a .jsonl or .parquet file with these rows in one step."""
    check_writable(path)
    if Path(path).suffix.lower() == ".jsonl":
        write_jsonl(path, rows)
    else:
        _write_parquet(path, rows)


def check_writable(path: str | Path) -> None:
    """Raise a DataError where `write_rows` does not know the ending: before the work whose rows it is to write."""
    ending = Path(path).suffix.lower()
    if ending not in WRITABLE:
        raise DataError(f"has the ending {ending or 'none'!r}, expected one of {', '.join(WRITABLE)}", file=path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # A name too long for the system, or below a folder that is shut.
        raise DataError(f"cannot be read: {error.strerror or error}", file=path) from None
    except ValueError:  # A NUL in the name.
        return False


def _means_the_hub(source: str, path: Path) -> bool:
    """`data/pairs.jsonl` and `folder-that-exists/pairs` are files that are missing, not data sets."""
    return looks_like_hub_id(source) and path.suffix.lower() not in READABLE and not path.parent.is_dir()


def _json_rows(path: Path) -> NumberedRows:
    try:
        value = read_json(path)
    except DataError as error:
        if "Extra data" in str(error):
            raise DataError("holds more than one JSON value; name it .jsonl if it is one a line", file=path) from None
        raise
    if not isinstance(value, list):
        kind = type(value).__name__
        raise DataError(f"holds a JSON {kind}, expected an array of objects; or .jsonl, one object a line", file=path)
    for line, row in enumerate(value, start=1):
        bad = DataError(f"is a JSON {type(row).__name__}, expected an object", file=path, line=line)
        yield line, row if isinstance(row, dict) else bad


def _parquet_rows(path: Path) -> NumberedRows:
    import pyarrow
    import pyarrow.parquet

    with opened(path) as file:
        try:
            reader = pyarrow.parquet.ParquetFile(file)
            line = 0
            for batch in reader.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            first = str(error).splitlines()[0]
            raise DataError(f"is not a Parquet file that can be read: {first}", file=path) from None


def _write_parquet(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    # Objects have no fixed columns and an empty one has none at all, which Parquet cannot hold: they go as JSON text.
    flat = [{k: dumps(v, path).decode() if isinstance(v, Mapping) else v for k, v in row.items()} for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    try:
        table = pyarrow.table({name: pyarrow.array([row.get(name) for row in flat]) for name in names})
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"cannot be written as Parquet: {str(error).splitlines()[0]}", file=path) from None
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)
