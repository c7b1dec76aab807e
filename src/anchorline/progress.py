"""How a long step tells how far it is: the library calls this, the command line shows it, everybody else hears nothing.

>>> with SILENT.task("sample", total=2, unit="answers") as advance:
...     advance(1)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called with the number of units just finished, and with what to show in the place of their rate."""

    def __call__(self, count: int, note: str = "", /) -> None:
        """Tell."""
        ...


class Progress(Protocol):
    """Shows tasks. `task` gives a function that is called with the number of units just finished."""

    def task(self, label: str, *, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Begin a task of `total` units."""
        ...


class _Silent:
    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Advance]:
        del label, total, unit
        yield lambda count, note="": None


SILENT: Progress = _Silent()
