"""`anchorline compare`: data sets and objectives against each other, on one's own task.

>>> from anchorline.cli.compare import compare
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from anchorline.cli.options import Json, Set
from anchorline.cli.show import exit_code, print_json, progress


def compare(
    recipe: Annotated[str, typer.Argument(help="A recipe with a group `compare`.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the grid; runs/NAME unless given.", show_default=False)
    ] = None,
    overrides: Set = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Begin no cell that would not end in this time.", show_default=False),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Processes that share the cells: one for each GPU, or on a CPU one for each core, "
            "which is faster than one process with all cores. Each needs the memory of a training.",
        ),
    ] = 1,
    as_json: Json = False,
) -> None:
    r"""Train every data set with every objective on the same prompts, and hold gain, drift and what else was learnt together.

    The most useful cells come first. A finished cell is not run again, and a killed one goes on.

    [bold]Examples[/bold]

      anchorline compare recipes/compare_harbour.yaml --max-minutes 60

      anchorline compare recipes/compare_harbour.yaml --processes 2

      anchorline compare recipes/compare_harbour.yaml --set 'compare.sets=\[clair]' --set 'compare.seeds=[0]'
    """

    def call() -> None:
        from anchorline.errors import AnchorlineError
        from anchorline.recipe import load_recipe
        from anchorline.recipe.compare import compare as run_grid
        from anchorline.report.compare_page import compare_text

        loaded = load_recipe(recipe, overrides or [])
        folder = out or Path("runs") / loaded.name
        with progress() as shown:
            failed: list[str] = []
            beside = partial(further, again, folder, processes, max_minutes, failed)
            table = run_grid(loaded, folder, max_minutes=max_minutes, beside=beside, progress=shown)
        if as_json:
            print_json(table)
        else:
            print(f"{compare_text(table)}\n{folder / 'compare.html'}")
        if failed:
            raise AnchorlineError(f"{'; '.join(failed)}; the same command goes on with what is left")

    again = [
        "compare",
        recipe,
        *(w for o in overrides or [] for w in ("--set", o)),
        *(["--out", str(out)] if out else []),
    ]
    words = ["anchorline", *again, *(["--processes", str(processes)] if processes > 1 else [])]
    raise typer.Exit(exit_code(call, again=shlex.join(words)))


@contextmanager
def further(
    again: list[str], folder: Path, count: int, max_minutes: float | None, failed: list[str], gone: float
) -> Iterator[None]:
    """`count` processes at the grid, this one and further ones; each has its share of the cores, or a GPU of its own.

    What the others say goes to OUT/process-N.log, and who of them ended with an error to `failed`. They end by themselves,
    when no cell is left for them; with this one they are stopped, also by `kill` or `timeout`; only after SIGKILL they go on.
    """
    if count == 1:
        yield
        return
    import torch

    threads = max(torch.get_num_threads() // count, 1)
    gpus = torch.cuda.device_count()
    torch.set_num_threads(threads)
    left = [] if max_minutes is None else ["--max-minutes", f"{max(max_minutes - gone, 0):.2f}"]
    with ExitStack() as stack:
        before = signal.signal(signal.SIGTERM, _interrupt)
        stack.callback(signal.signal, signal.SIGTERM, before)
        started = []
        for number in range(1, count):
            env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            if gpus:
                env["CUDA_VISIBLE_DEVICES"] = _gpu(number % gpus)
            log = stack.enter_context((folder / f"process-{number + 1}.log").open("w", encoding="utf-8"))
            command = [sys.executable, "-m", "anchorline", *again, *left]
            started.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log))  # noqa: S603
        try:
            yield
            for number, process in enumerate(started, start=2):
                if process.wait():
                    failed.append(f"process {number} ended with an error: {folder / f'process-{number}.log'}")
        finally:
            for process in started:
                process.terminate()
                process.wait()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _gpu(number: int) -> str:
    """The name of a GPU of those that this process may use."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[number] if number < len(named) else str(number)
