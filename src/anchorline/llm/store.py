"""The SQLite file of requests and payments: opened, checked, written in groups. It holds no key and no URL.

Each answered or failed request is one row of `requests`. What was paid stands in `payments`, also where a row was
replaced (a cut reply asked again) or pruned: so a budget still knows it. `timeouts` counts calls whose cost nobody told.
`waiting` and `batches` belong to the batch interface.

>>> connect(":memory:").execute("SELECT count(*) FROM requests").fetchone()
(0,)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from anchorline.errors import CacheError, DataError

VERSION = 3
MARK = 0x616E6C63
"""Tells our files from other SQLite files ("anlc")."""
BUSY_MS = 60_000

TABLES = """
CREATE TABLE requests (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, messages TEXT NOT NULL, settings TEXT NOT NULL,
    max_tokens INTEGER NOT NULL, error TEXT, retry_after REAL, text TEXT NOT NULL, finish TEXT, prompt_tokens INTEGER,
    completion_tokens INTEGER, reply_model TEXT NOT NULL, attempts INTEGER NOT NULL, run TEXT NOT NULL,
    stage TEXT NOT NULL, row TEXT NOT NULL, usd REAL, seconds REAL NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE payments (
    key TEXT NOT NULL, run TEXT NOT NULL, model TEXT NOT NULL, stage TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, guessed INTEGER NOT NULL, usd REAL, at REAL NOT NULL
);
CREATE INDEX payments_by_run ON payments (run);
CREATE TABLE batches (
    file TEXT PRIMARY KEY, id TEXT, run TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL, at REAL NOT NULL
);
"""
WAITING = """
CREATE TABLE waiting (
    key TEXT NOT NULL, file TEXT NOT NULL, messages TEXT NOT NULL, settings TEXT NOT NULL,
    max_tokens INTEGER NOT NULL, stage TEXT NOT NULL, row TEXT NOT NULL, PRIMARY KEY (key, file)
) WITHOUT ROWID;
"""
"""What was ordered by each batch file: two runs may have ordered the same request."""
TIMEOUTS = """
CREATE TABLE timeouts (
    run TEXT NOT NULL, model TEXT NOT NULL, stage TEXT NOT NULL, calls INTEGER NOT NULL, at REAL NOT NULL
);
CREATE INDEX timeouts_by_run ON timeouts (run);
"""
RENAME, COPY = "ALTER TABLE waiting RENAME TO old", "INSERT INTO waiting SELECT * FROM old; DROP TABLE old"
STEPS = {0: (TABLES, WAITING, TIMEOUTS), 1: (RENAME, WAITING, COPY, TIMEOUTS), 2: (TIMEOUTS,)}
"""By a file's format, what brings it to this one. In format 1 a request waited for one batch file only."""

_WRITABLE = "make the file and its folder writable for you"
WAYS_OUT = {
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_BUSY: "another process holds it: wait for that one, or end it",
    sqlite3.SQLITE_READONLY: _WRITABLE,
    sqlite3.SQLITE_CANTOPEN: _WRITABLE,
}
"""What to do, by SQLite's primary code; of any other the file is taken to be damaged."""
DAMAGED = "if its disk is well, move the file away: its answers are then asked again"


class Record(NamedTuple):
    """A row of `requests`, in the order of its columns. `error` is an error's kind; `text` then is its message."""

    key: str
    model: str
    messages: str
    settings: str
    max_tokens: int
    error: str | None
    retry_after: float | None
    text: str
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    reply_model: str
    attempts: int
    run: str
    stage: str
    row: str
    usd: float | None
    seconds: float
    at: float


class Payment(NamedTuple):
    """A row of `payments`, in the order of its columns."""

    key: str
    run: str
    model: str
    stage: str
    prompt_tokens: int
    completion_tokens: int
    guessed: bool
    usd: float | None
    at: float


class TimedOut(NamedTuple):
    """A row of `timeouts`: so many calls got no answer in time. What the endpoint wants for them, it has not told."""

    run: str
    model: str
    stage: str
    calls: int
    at: float


Row = Record | Payment | TimedOut
INSERTS: dict[type[Row], str] = {
    Record: f"INSERT OR REPLACE INTO requests VALUES ({', '.join('?' * len(Record._fields))})",  # noqa: S608
    Payment: f"INSERT INTO payments VALUES ({', '.join('?' * len(Payment._fields))})",  # noqa: S608
    TimedOut: f"INSERT INTO timeouts VALUES ({', '.join('?' * len(TimedOut._fields))})",  # noqa: S608
}


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Inside, SQLite's errors become one line that names the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # Python's own errors have none
        raise CacheError(
            f"{path}: the request cache cannot be used ({error}); {WAYS_OUT.get(primary, DAMAGED)}; then run the same "
            "command again"
        ) from error


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of it is written, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite may have rolled back by itself, on a full disk say
            db.execute("ROLLBACK")
        raise


def connect(path: str | Path, *, must_exist: bool = False) -> sqlite3.Connection:
    """Open a file, or make a new one.

    Raises:
        DataError: it is not such a file, or was written by a newer anchorline.
        CacheError: it is damaged, or cannot be opened.

    """
    if must_exist and not Path(path).is_file():
        raise DataError("there is no such request cache; give the path of one", file=path)
    with readable(path):
        # several tasks use one connection, each from the thread that it was given to
        db = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
    return db


def write(db: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Write a group, in the caller's transaction."""
    for row in rows:
        db.execute(INSERTS[type(row)], row)


def _prepare(db: sqlite3.Connection, path: str | Path) -> None:
    """Make the tables, or bring them to this format. A file that is not ours is left as it is."""
    # the tables first: whoever makes the file at this moment writes them and the mark at once
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    version, mark = _number(db, "user_version"), _number(db, "application_id")
    if mark != MARK and (tables or version or mark):
        raise DataError("is a SQLite file of another program, not a request cache", file=path)
    if version > VERSION:
        raise DataError(
            f"was written by a newer anchorline (its format is {version}, this one reads {VERSION}): update anchorline, "
            "or use another file",
            file=path,
        )
    db.execute("PRAGMA journal_mode = WAL")
    # a commit survives the process at once, and the machine's loss of power after the next checkpoint
    db.execute("PRAGMA synchronous = NORMAL")
    if version < VERSION:
        with transaction(db):
            steps = STEPS.get(_number(db, "user_version"))  # another process may have made them at the same moment
            if steps is not None:
                for statement in ";".join(steps).split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {MARK}")
                db.execute(f"PRAGMA user_version = {VERSION}")


def _number(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"PRAGMA {pragma}").fetchone()[0])
