"""JSON on disk that a crash cannot spoil: lines appended one call at a time, whole files replaced in one step.

A row that was only half appended (power gone, process killed) ends without a newline. `read_appended` leaves it out
and says so, so that its row is owed again; the next `append_jsonl` cuts it off.

>>> import tempfile
>>> file = Path(tempfile.mkdtemp()) / "answers.jsonl"
>>> append_jsonl(file, [{"id": "a"}])
>>> with file.open("a") as half_written: _ = half_written.write('{"id": "b", "te')
>>> read_appended(file).rows, read_appended(file).torn.line
([(1, {'id': 'a'})], 2)
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from anchorline.errors import DataError

_UTF8_BOM = b"\xef\xbb\xbf"
_TAIL = 1 << 16


class Appended(NamedTuple):
    """What `append_jsonl` has brought to disk so far."""

    rows: list[tuple[int, dict[str, Any]]]
    """Line number and object of every whole line."""
    torn: DataError | None
    """The half-written last line, if there is one."""


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line; the first line that is not an object raises DataError."""
    for line, row in scan_jsonl(path):
        if isinstance(row, DataError):
            raise row
        yield line, row


def scan_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """As `read_jsonl`, but a bad line comes as its DataError and the next ones are read. Blank lines are skipped."""
    with opened(path) as file:
        for line, raw in enumerate(file, start=1):
            text = raw.removeprefix(_UTF8_BOM) if line == 1 else raw
            if text.strip():
                yield line, _object(text, path, line)


def read_appended(path: str | Path) -> Appended:
    """Read a file of `append_jsonl`. No file yet means no rows; a bad line that is not the torn last one raises."""
    rows: list[tuple[int, dict[str, Any]]] = []
    if not Path(path).exists():
        return Appended(rows, None)
    last = None
    for line, row in scan_jsonl(path):
        if last is not None:
            raise last
        if isinstance(row, DataError):
            last = row
        else:
            rows.append((line, row))
    if last is not None and _ends_with_newline(path):
        raise last
    return Appended(rows, last)


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows and bring them to disk (fsync) in one write. A torn last line is cut off first."""
    lines = b"".join(_line(row, path) for row in rows)
    if not lines:
        return
    # Not mode "a", as a torn line must go. One file has one writer: the run folder's lock sees to that.
    with writing(path), os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        start = _end_of_whole_lines(file)
        file.truncate(start)
        file.seek(start)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file with these rows in one step: a reader sees the old file or the new one, never half of it."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(_line(row, path) for row in rows)


def write_json(path: str | Path, value: Any) -> None:
    """Replace the file with one indented JSON value in one step."""
    text = dumps(value, path, indent=2)
    with replacing(path) as temporary:
        temporary.write_bytes(text + b"\n")


def read_json(path: str | Path) -> Any:
    """The one JSON value that the file holds."""
    with opened(path) as file:
        raw = file.read().removeprefix(_UTF8_BOM)
    return parse_json(raw, file=path)


def parse_json(raw: bytes, *, file: str | Path | None = None, line: int | None = None) -> Any:
    """One JSON value, by the standard's letter: UTF-8, no NaN or Infinity, no half characters; else DataError."""
    try:
        text = raw.decode()
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\ud" in text.lower():  # Only an escape can smuggle in half of a surrogate pair.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start + 1}); save it as UTF-8", file=file, line=line) from None
    except UnicodeEncodeError:
        raise DataError("holds half of a surrogate pair, which is no character", file=file, line=line) from None
    except RecursionError:
        raise DataError("is nested too deeply to be read as JSON", file=file, line=line) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if line is None else f"column {error.colno}"
        raise DataError(f"is not JSON: {error.msg} ({place})", file=file, line=line) from None
    except ValueError as error:  # A number with thousands of digits, or a constant refused below.
        raise DataError(f"is not JSON that can be used: {error}", file=file, line=line) from None
    return value


def dumps(value: Any, file: str | Path, *, indent: int | None = None) -> bytes:
    """One JSON value as UTF-8, readable as it is (no escapes for letters); DataError names what cannot be written."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be written as JSON: {error}", file=file) from None


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """The file's bytes; a file that cannot be read is a DataError."""
    try:
        with Path(path).open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DataError("no such file", file=path) from None
    except IsADirectoryError:
        raise DataError("is a folder, expected a file", file=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=path) from None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not."""
    target, temporary = Path(path), _beside(path)
    try:
        with writing(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        with suppress(OSError):  # Gone already, or its folder is the trouble: then that error is the one to tell.
            temporary.unlink()


def check_place(path: str | Path) -> None:
    """Raise the DataError with which `replacing` would end, before the work whose result it is to hold."""
    with writing(path):
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = _beside(path)
        temporary.touch()
        temporary.unlink()


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what the disk refuses (no room, no permission, no such folder) into one DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", file=path) from None


def _beside(path: str | Path) -> Path:
    return Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")


def _object(raw: bytes, path: str | Path, line: int) -> dict[str, Any] | DataError:
    try:
        value = parse_json(raw, file=path, line=line)
    except DataError as error:
        return error
    if not isinstance(value, dict):
        kind = type(value).__name__
        return DataError(f"is a JSON {kind}, expected one object {{...}} a line", file=path, line=line)
    return value


def _line(row: Mapping[str, Any], path: str | Path) -> bytes:
    return dumps(row, path) + b"\n"


def _end_of_whole_lines(file: BinaryIO) -> int:
    """Where the next row goes. A last line that lacks only its newline is whole: it gets it."""
    end = file.seek(0, os.SEEK_END)
    start, tail = end, b""
    while start > 0 and b"\n" not in tail:
        step = min(_TAIL, start)
        start -= step
        file.seek(start)
        tail = file.read(step) + tail
    last = tail[tail.rfind(b"\n") + 1 :]
    if isinstance(_object(last.removeprefix(_UTF8_BOM), "", 0), DataError):
        return end - len(last)
    file.seek(end)
    file.write(b"\n")
    return end + 1


def _ends_with_newline(path: str | Path) -> bool:
    with opened(path) as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number
