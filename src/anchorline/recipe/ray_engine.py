"""The same maker over Ray Data: shards of rows go to workers, on this machine or on many. Ray's only driver.

The desk is an actor on this machine, with the run's request cache, budget and limits (`relay`); each worker is an actor
that makes the rows of a few shards at a time, and its calls. Files that the recipe names travel as text; a key does not:
each worker reads it from its own environment.

    RAY_ADDRESS=auto anchorline pairs clair recipe.yaml --engine ray

Without RAY_ADDRESS, a cluster of this machine's cores is started, and ends with the run.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from anchorline.data import pair_from_row, write_jsonl
from anchorline.errors import AnchorlineError, BudgetReached, CircuitOpen, KeyRefused, MissingExtra, UserError
from anchorline.llm.costs import Bill
from anchorline.recipe.config import Recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.counts import Counts
from anchorline.recipe.desk import cache_file, price_kept, settings_of
from anchorline.recipe.making import Made, count_rows, needed_endpoints, rows_of
from anchorline.recipe.ray_workers import Desk, Worker, hush, last_line, pack
from anchorline.recipe.shards import Shard, bill_from_row, clear, collect, cut, finished, input_to_row, keep
from anchorline.types import Failure

ADDRESS = "RAY_ADDRESS"
SHARD = 100
"""Rows that travel together; few rows make smaller shards, so that every worker gets some."""
SHARDS_A_WORKER = 4
"""Shards that a worker makes at the same time: as one ends, the others keep its calls going."""
WAVES = 2
"""At least so many times that number of shards, where there are rows enough: a fast worker takes more than a slow one."""
PATIENCE = 10.0
"""Seconds that a cluster's address has to be reached in."""
STRANGER = "InvalidAuthToken"
"""Stands in what Ray says where it tried for long to connect without the cluster's token."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""No telemetry, and nothing of Ray's own on the terminal, unless the environment says otherwise."""
ENDS: dict[str, type[AnchorlineError]] = {
    error.__name__: error for error in (BudgetReached, CircuitOpen, KeyRefused, UserError)
}


def make_set_by_ray(run: RunContext, maker: str, stage: str, file: Path, folder: Path) -> Made:
    """Make a set of pairs into `file`, with the results of finished shards in `folder` until all are there."""
    if not folder.is_dir() or run.calls.retry_failed:  # a finished shard holds its failures
        clear(folder)
    with run.progress.task(f"pairs: {maker}", total=count_rows(run, maker), unit="rows") as advance:
        _make_all(run, maker, folder, advance)
    failures: list[Failure] = []
    counts, bill = Counts(maker), Bill()

    def pairs() -> Iterator[dict[str, Any]]:
        for result in collect(folder):
            if isinstance(result, Bill):
                bill.replies.update(result.replies)  # a reply that two shards use is one
            elif isinstance(result, Failure):
                counts.add(result)
                failures.append(replace(result, stage=stage))
            else:
                counts.add(pair_from_row(result))
                yield result

    write_jsonl(file, pairs())
    if not counts.pairs:
        file.unlink()
    clear(folder)
    return Made(counts.pairs, failures, counts.row(bill))


def _make_all(run: RunContext, maker: str, folder: Path, on_rows: Callable[[int], None]) -> None:
    """Make all rows that have no result in `folder` yet, and keep the results there, shard by shard.

    Raises:
        BudgetReached, CircuitOpen, KeyRefused, UserError: as the local engine does; finished shards stay.

    """
    folder.mkdir(parents=True, exist_ok=True)
    done = finished(folder)
    on_rows(sum(done.values()))
    owed = count_rows(run, maker) - sum(done.values())
    cache = cache_file(run.recipe, run.folder).absolute()
    price_kept(run.recipe, cache, run.id)
    if not owed:
        return
    with _cluster() as ray:
        workers = min(run.recipe.pairs.workers or _room(ray, run.recipe, maker), owed)
        size = max(1, min(SHARD, -(-owed // (workers * SHARDS_A_WORKER * WAVES))))
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        options = {"num_cpus": 0, "max_concurrency": 100_000, "scheduling_strategy": here}
        actor = ray.remote(Desk).options(**options)
        desk = actor.remote(run.recipe, cache, run.id, retry_failed=run.calls.retry_failed)
        shards = cut(rows_of(run, maker), size=size, done=done)
        try:
            ended: AnchorlineError | None = None
            for start, results, bill in _results(ray, run, maker, desk, shards, workers):
                if isinstance(results, AnchorlineError):
                    # the other shards end by it in a moment, with what is in flight: it is paid for
                    ended = ended or results
                    ray.get(desk.stop.remote(ended))
                else:
                    keep(folder, start, results, bill)
                    on_rows(len(results))
            ray.get(desk.close.remote())
        except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
            raise AnchorlineError(
                f"Ray could not go on ({last_line(error)}). What was answered is kept: run the same command again"
            ) from error
        if ended is not None:
            raise ended


def _results(
    ray: Any, run: RunContext, maker: str, desk: Any, shards: Iterator[Shard], workers: int
) -> Iterator[tuple[int, list[dict[str, Any]] | AnchorlineError, Bill]]:
    """The shards' results and bills as they come, in any order; an error where a shard met what ends the run."""
    import pyarrow as pa

    blocks = [
        ray.put(pa.table({"start": [shard.start], "rows": [json.dumps([input_to_row(row) for row in shard.rows])]}))
        for shard in shards
    ]
    gpus = ray.cluster_resources().get("GPU", 0) if _runs_here(run.recipe, maker) else 0
    made = ray.data.from_arrow_refs(blocks).map_batches(
        Worker,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=(pack(run.recipe, maker), desk),
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=workers,
            initial_size=workers,
            max_tasks_in_flight_per_actor=SHARDS_A_WORKER,
            max_concurrent_calls_per_actor=SHARDS_A_WORKER,
        ),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    for row in made.iter_rows():
        if row["ended"]:
            name, text, code = json.loads(row["ended"])
            kind = ENDS.get(name, UserError if code == UserError.exit_code else AnchorlineError)
            yield row["start"], kind(text), Bill()
            continue
        yield row["start"], json.loads(row["results"]), bill_from_row(json.loads(row["bill"]))


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected to the cluster that the environment names, or to one that ends with the block."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = os.environ.get(ADDRESS) or "local"
    if address.startswith("ray://"):
        raise UserError(
            f"{ADDRESS} is {address!r}, a client's address; run the command on a machine of the cluster (its head, say), "
            f"with {ADDRESS}=auto"
        )
    try:
        import ray
        import ray.data
        import ray.data.exceptions
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise MissingExtra("--engine ray", "ray") from error
    hush()
    try:
        _reach(address)
        with _silent():
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        if isinstance(error, ray.exceptions.AuthenticationError) or STRANGER in str(error.__cause__):
            raise UserError(
                f"the Ray cluster at {ADDRESS}={address} did not take this machine's token; set RAY_AUTH_MODE=token here, and "
                "have the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN; see docs/models.md"
            ) from error
        raise UserError(f"no Ray cluster at {ADDRESS}={address}: {last_line(error)}; see docs/models.md") from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        yield ray
    except KeyboardInterrupt:
        # Ray Data still runs in its thread, and Ray that is shut down under its hands may end the process without a word;
        # so it ends with the process, after the message
        raise
    except BaseException:
        ray.shutdown()
        raise
    else:
        ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on stderr: Ray's C++ part announces there that it will announce nothing."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _room(ray: Any, recipe: Recipe, maker: str) -> int:
    """Workers for the cluster as it is: one a core; where models run in the workers and there are GPUs, one a GPU."""
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0) if _runs_here(recipe, maker) else 0
    return max(1, int(gpus or resources.get("CPU", 1)))


def _runs_here(recipe: Recipe, maker: str) -> bool:
    return any(settings_of(recipe, name).runs_here for name in needed_endpoints(recipe, maker))


def _reach(address: str) -> None:
    """Raise an OSError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
