"""Several processes of one run: how they meet, what they tell each other, and how they end together.

A launcher (`accelerate launch`, `torchrun`) starts the same command several times and says by RANK, WORLD_SIZE and
MASTER_ADDR who is who. Process 0 leads: it alone writes the run folder; the others wait until it calls them to a training.
What they say here goes over the CPU, in a group of its own that may wait for days, as sampling before training may take
that long. Without a launcher everything here does nothing. Imports torch only with one.

>>> with joined(): count(), rank(), gathered("a"), led(lambda: "b")
(1, 0, ['a'], 'b')
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from anchorline.errors import EndedElsewhere, TrainingError

T = TypeVar("T")

PATIENCE = timedelta(days=30)
_group: Any = None


def launched() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """The number of this process; 0 leads."""
    return int(os.environ.get("RANK", "0")) if launched() > 1 else 0


def count() -> int:
    """How many processes have joined: 1 outside of `joined`."""
    return launched() if _group is not None else 1


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the launched processes know each other. Around a whole command; further ones inside it do nothing.

    An error of one process ends all of them, and is told once: by the process that failed first.

    Raises:
        EndedElsewhere: another process failed before this one; it has said why.
        TrainingError: another process is gone and has said nothing.

    """
    global _group  # noqa: PLW0603 (a process has one group, as it has one rank)
    if launched() == 1 or _group is not None:
        yield
        return
    import torch
    from torch.distributed import destroy_process_group, init_process_group, new_group
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # a store of our own, so that who failed first can be asked for when the group is broken
    store, number, size = next(rendezvous("env://"))
    backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
    init_process_group(backend, store=store, rank=number, world_size=size)
    _group = new_group(backend="gloo", timeout=PATIENCE)
    failed = False
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        failed = True
        if not _failed_first(store):
            raise EndedElsewhere from error
        if _is_lost_connection(error):
            raise TrainingError(
                "another process of this run is gone and left no message; it was killed, or memory ran out"
            ) from error
        raise
    finally:
        _group = None
        if not (failed and torch.cuda.is_available()):  # NCCL would wait there for the others
            # else gloo's threads may still run when the interpreter ends, which aborts
            destroy_process_group()


def gathered(value: T) -> list[T]:
    """What each process gives, by their numbers. All processes have to call it."""
    if _group is None:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * launched()
    torch.distributed.all_gather_object(values, value, group=_group)
    return values


def led(make: Callable[[], T]) -> T:
    """What process 0 makes, for all of them. All processes have to call it; they wait until it is made."""
    if _group is None:
        return make()
    import torch.distributed

    values: list[Any] = [make() if rank() == 0 else None]
    torch.distributed.broadcast_object_list(values, src=0, group=_group)
    return values[0]


def _failed_first(store: Any) -> bool:
    # without the launcher's own store, process 0 keeps it, and it is gone with process 0
    with suppress(RuntimeError):
        return store.add("anchorline/failed", 1) == 1
    return True


def _is_lost_connection(error: BaseException) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
