"""How fast the CLAIR maker with a model as the reviser makes pairs, beside distilabel's CLAIR task and Bespoke Curator.

All ask the same fake server (its own process; by default 64 answers at a time, 200 ms each: at most 320 rows a second)
for the same revisions. The contenders take turns; each peer runs in its own environment, made on first use. Only rows
that came back with exactly their revision count. The last line is JSON on stdout; progress goes to stderr.

    python benchmarks/throughput.py                            # all of it: about ten minutes on a quiet machine
    python benchmarks/throughput.py --no-peers --no-memory     # the maker alone: under a minute
    python benchmarks/throughput.py --peer-rows 1000 --rounds 1 --peers-dir /var/tmp/peers
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

PARTS = Path(__file__).with_name("throughput_parts")
sys.path.insert(0, str(PARTS))
from rows import count_right, write_rows  # noqa: E402  # pyright: ignore[reportMissingImports]  (PARTS is on the path)

LATENCY, SLOTS = 0.2, 64
FEW, MANY = 200, 20_000
"""Rows of the two runs whose peak memory is compared."""
PEERS = ("distilabel", "curator")


class Run(NamedTuple):
    """One contender's run. `seconds`: first request to last answer, by the server's clock; `process_seconds`: all of it."""

    right: int
    seconds: float
    process_seconds: float
    requests: int
    cpu_s: float | None = None
    """The maker's own, after its imports. Only ours tells it."""
    peak_mib: float | None = None
    process_cpu_s: float = 0.0
    """Of the whole process and those that it started: imports and all, the server's not."""

    @property
    def rate(self) -> float:
        """Rows a second while it was asking."""
        return self.right / self.seconds if self.seconds else 0.0

    @property
    def process_rate(self) -> float:
        """Rows a second of the whole process: start, imports and writing included."""
        return self.right / self.process_seconds

    @property
    def process_cpu_ms(self) -> float:
        """CPU of the whole process for each row."""
        return 1000 * self.process_cpu_s / self.right


def summary(
    ours: Sequence[Run], peers: dict[str, list[Run]], *, ideal: float, memory: tuple[Run, Run] | None
) -> dict[str, Any]:
    """The figures of the last line: medians over the runs.

    A ratio is ours over theirs, once by the time of asking and once by the whole process: the one that is kinder to the
    peer counts.
    """
    rate, process_rate = _median(ours, lambda run: run.rate), _median(ours, lambda run: run.process_rate)
    figures: dict[str, Any] = {
        "share_of_ideal": round(rate / ideal, 4),
        "cpu_ms_per_row": round(_median(ours, lambda run: 1000 * (run.cpu_s or 0.0) / run.right), 3),
        "rss_growth_mib": round((memory[1].peak_mib or 0.0) - (memory[0].peak_mib or 0.0), 1) if memory else None,
    }
    rates, process_rates = {"ours": round(rate, 1)}, {"ours": round(process_rate, 1)}
    cpu = {"ours": round(_median(ours, lambda run: run.process_cpu_ms), 2)}
    for name in PEERS:
        runs = peers.get(name)
        if not runs:
            figures[f"vs_{name}"] = None
            continue
        theirs, their_process = _median(runs, lambda run: run.rate), _median(runs, lambda run: run.process_rate)
        figures[f"vs_{name}"] = round(min(rate / theirs, process_rate / their_process), 2)
        rates[name], process_rates[name] = round(theirs, 1), round(their_process, 1)
        cpu[name] = round(_median(runs, lambda run: run.process_cpu_ms), 2)
    return figures | {
        "rows_per_s": rates,
        "process_rows_per_s": process_rates,
        "process_cpu_ms_per_row": cpu,
        "ideal_rows_per_s": ideal,
    }


def _median(runs: Sequence[Run], figure: Callable[[Run], float]) -> float:
    return statistics.median(map(figure, runs))


def contend(name: str, python: Path, n: int, *extra: str) -> Run:
    """One run of one contender against a server of its own.

    Raises:
        SystemExit: the contender broke off, or not one row came back.

    """
    with tempfile.TemporaryDirectory(prefix="throughput-") as temporary:
        folder = Path(temporary)
        rows, out, log = folder / "rows.jsonl", folder / "revisions.jsonl", folder / "log.txt"
        (folder / "work").mkdir()
        write_rows(rows, n)
        env = dict(os.environ)
        if name != "ours":
            env.pop("PYTHONPATH", None)  # its environment is its own
        script = PARTS / ("ours.py" if name == "ours" else f"{name}_clair.py")
        with server() as (url, told), log.open("wb") as errors:
            started, cpu_before = time.monotonic(), _children_cpu()
            code, said = _run(
                [str(python), str(script), url, str(rows), str(out), str(folder / "work"), *extra], env, errors
            )
            process_seconds, process_cpu_s = time.monotonic() - started, _children_cpu() - cpu_before
        if code or not out.exists():
            last = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise SystemExit(f"{name} broke off with exit code {code}; it last wrote:\n{last}")
        own = json.loads(said.splitlines()[-1]) if name == "ours" else {}
        run = Run(
            count_right(out), told["seconds"], process_seconds, told["requests"], process_cpu_s=process_cpu_s, **own
        )
    if not run.right:
        raise SystemExit(f"{name} came back with none of {n} revisions, so it has no rate to compare")
    cpu = (
        ""
        if run.cpu_s is None
        else f", {1000 * run.cpu_s / run.right:.2f} ms of CPU a row, peak {run.peak_mib:.0f} MiB"
    )
    note(
        f"{name}: {run.right} of {n} rows right, {run.requests} requests, {run.rate:.1f} rows/s "
        f"({run.process_rate:.1f} and {run.process_cpu_ms:.2f} ms of CPU a row with start and end){cpu}"
    )
    return run


@contextmanager
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """A fake server: its URL, and a mapping that holds what it tells once it has stopped."""
    told: dict[str, Any] = {}
    command = [sys.executable, str(PARTS / "server.py"), "--latency", str(LATENCY), "--slots", str(SLOTS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit("the fake server did not start; its own message stands above")
        yield url, told
        process.terminate()
        told.update(json.loads(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait()


def peer_python(name: str, folder: Path) -> Path:
    """The Python of a peer's environment, which is made when it is missing or its requirements have changed."""
    wanted = PARTS / f"requirements-{name}.txt"
    home = folder / name
    python, installed = home / "bin" / "python", home / "requirements.txt"
    if installed.exists() and installed.read_bytes() == wanted.read_bytes():
        return python
    note(f"installing {name} into {home} …")
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(python), "-m", "pip", "install", "-qq", "-r", str(wanted)],
    )
    for step in steps:
        if subprocess.run(step, check=False, stdout=sys.stderr).returncode:
            raise SystemExit(f"{name} could not be installed; --no-peers leaves the peers out")
    installed.write_bytes(wanted.read_bytes())
    return python


def _children_cpu() -> float:
    """CPU seconds of the processes that have ended: the server of a run ends after it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def note(line: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _run(command: list[str], env: dict[str, str], errors: Any) -> tuple[int, str]:
    """Exit code and output. Its process group ends with it, and with us: some contenders start processes of their own."""
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate()
        return process.returncode, said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it all and print the figures."""
    describe = (__doc__ or "").strip()
    parser = argparse.ArgumentParser(description=describe, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000, help="rows of each of our runs (5000)")
    parser.add_argument("--peer-rows", type=int, default=5000, help="rows of each run of a peer (5000)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each peer has its turn, and we twice (2)")
    parser.add_argument("--no-peers", action="store_true", help="leave the peers out")
    parser.add_argument("--no-memory", action="store_true", help=f"leave out the runs of {FEW} and {MANY} rows")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    default = cache / "anchorline" / "benchmark-peers"
    parser.add_argument("--peers-dir", type=Path, default=default, help=f"where their environments are ({default})")
    given = parser.parse_args(arguments)
    for sign in (signal.SIGTERM, signal.SIGINT):  # leave by an exception, so that server and contender end with us
        signal.signal(sign, lambda number, _: sys.exit(128 + number))
    pythons = {} if given.no_peers else {name: peer_python(name, given.peers_dir.resolve()) for name in PEERS}
    us = Path(sys.executable)
    ours: list[Run] = []
    peers: dict[str, list[Run]] = {name: [] for name in pythons}
    for number in range(given.rounds):
        note(f"round {number + 1} of {given.rounds}")
        for name in PEERS:
            ours.append(contend("ours", us, given.rows))
            if name in pythons:
                peers[name].append(contend(name, pythons[name], given.peer_rows))
    memory = None if given.no_memory else (contend("ours", us, FEW), contend("ours", us, MANY))
    figures = summary(ours, peers, ideal=SLOTS / LATENCY, memory=memory)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
