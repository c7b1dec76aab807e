"""How a long step tells how far it is: the library calls this, the command line shows it, everybody else hears nothing.

>>> with SILENT.task("sample", total=2, unit="answers") as advance:
...     advance(1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Shows tasks. `task` gives a function that is called with the number of units just finished."""

    def task(self, label: str, *, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Begin a task of `total` units."""
        ...


class _Silent:
    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        del label, total, unit
        yield lambda _: None


SILENT: Progress = _Silent()
