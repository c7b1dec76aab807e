"""What the command line shows: progress bars on a terminal, one summary, errors as one line.

>>> exit_code(lambda: None)
0
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from anchorline.errors import UNANSWERED, AnchorlineError, EndedElsewhere, UserError
from anchorline.progress import SILENT, Advance, Progress

if TYPE_CHECKING:
    from rich.console import Console

_PLACES = {errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.EPERM, errno.EROFS}
"""What the system says of a path that the user can change."""


def exit_code(call: Callable[[], None], *, again: str = "") -> int:
    """Make the call; 0, or 2 for the user's mistake, 1 for everything else, with one line on stderr.

    `again` is the command that continues after Ctrl-C.
    """
    try:
        try:
            call()
        finally:
            sys.stdout.flush()  # while what cannot be written can still be told
    except AnchorlineError as error:
        if not isinstance(error, EndedElsewhere):
            _complain(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _complain(f"stopped; what is finished is kept{f'. Continue with: {again}' if again else ''}")
        return 1
    except BrokenPipeError:
        _lost(sys.stdout)  # the reader has gone; there is nobody to tell
        return 1
    except OSError as error:
        place = "standard output" if _lost(sys.stdout) else error.filename or "the system"
        users = error.errno in _PLACES
        way_out = "; name another place, or make this one usable" if users else ""
        _complain(f"error: {place}: {error.strerror or error}{way_out}")
        return UserError.exit_code if users else 1
    except Exception as error:
        if os.environ.get("ANCHORLINE_DEBUG"):
            traceback.print_exc()
        _complain(
            f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:500]} "
            "(ANCHORLINE_DEBUG=1 shows where; please report it)"
        )
        return 1
    return 0


def _complain(text: str) -> None:
    with suppress(OSError):
        print(" ".join(text.splitlines()), file=sys.stderr)
    _lost(sys.stderr)


def _lost(stream: TextIO) -> bool:
    """Whether the stream takes nothing more: what it still holds is thrown away, or Python would fail over it at exit."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):  # a stream without a file of its own, in a test
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def ready_streams() -> None:
    """Make stdout and stderr take whatever is printed: closed ones go nowhere, foreign letters are spelled out."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  (open as long as we are)
        getattr(sys, name).reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """One JSON value a line, with letters as they are where stdout can hold them."""
    print(json.dumps(value, ensure_ascii=not (sys.stdout.encoding or "utf-8").lower().startswith("utf")))


def console(*, stderr: bool = False) -> Console:
    """Where tables are printed: every name as it is, also one with `[bold]` or `:smile:` in it."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextmanager
def progress(*, wanted: bool = True) -> Iterator[Progress]:
    """Bars with rate and remaining time on a terminal, nothing elsewhere."""
    if not wanted or not sys.stderr.isatty():
        yield SILENT
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False),  # a file's name may be in it
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console(stderr=True), speed_estimate_period=60) as bars:
        yield _Shown(bars)


class _Shown:
    def __init__(self, bars: Any) -> None:
        self.bars = bars

    @contextmanager
    def task(self, label: str, *, total: int, unit: str) -> Iterator[Advance]:
        """A bar of its own; it stays when the task is over."""
        task = self.bars.add_task(label, total=total, unit=unit, rate="")

        def advance(count: int, note: str = "", /) -> None:
            self.bars.advance(task, count)
            speed = self.bars.tasks[task].speed
            rate = note or (f"{speed:.1f}/s" if speed and total > 1 else "")
            self.bars.update(task, rate=f"({rate})" if rate else "")

        yield advance


def print_set(summary: Mapping[str, Any], maker: str, folder: str, *, as_json: bool) -> None:
    """One maker's set in a few lines, or the run's summary as JSON."""
    if as_json:
        print_json(summary)
        return
    stage = f"pairs:{maker}"
    made = summary["makers"][stage]
    print(f"set {maker}: {made['pairs']} pairs of {made['rows']} rows, in {folder}/sets/{maker}/pairs.jsonl")
    if summary["unusable"]:
        print(f"  cannot be used: {summary['unusable']} rows of what was given; see failures.jsonl")
    _print_made(made, summary["costs"], stage)
    others = {name: count for name, count in summary["sets"].items() if name != "matched"}
    if "matched" in summary["sets"]:
        sets = ", ".join(f"{name} {count}" for name, count in others.items())
        print(f"matched: {summary['sets']['matched']} pairs in each of {len(others)} sets ({sets})")
    for name in (stage.removeprefix("pairs:") for stage in summary["makers"] if stage != "pairs"):
        if name not in others:
            print(
                f"not matched: {name}, which has no pairs of these answers of the policy; make it again: "
                f"anchorline pairs {name.replace('_', '-')} {folder}"
            )


def _print_made(made: Mapping[str, Any], costs: Mapping[str, Any], stage: str) -> None:
    """What became of a maker's rows, as far as there is something to say."""
    if made["failures"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in made["failures"].items())
        print(f"  not a pair: {kinds}; see failures.jsonl")
        for kind, reason in made.get("reasons", {}).items():
            print(f"  one {kind}: {reason}")
    print_unanswered(made["failures"])
    if made.get("asked_again"):
        print(f"  asked again: {made['asked_again']} rows")
    if "judge" in made:
        judge = made["judge"]
        print(
            f"  judge: {judge['judged']} comparisons, {judge['ties']} ties, {judge['flips']} of them by turning round"
        )
    if "costs" in made:
        used, pair = made["costs"], (costs.get("kept_pair") or {}).get(stage)
        each = f"; a kept pair, its answer included: {pair['tokens']:,.0f} tokens, {_usd(pair['usd'])}" if pair else ""
        print(f"  replies: {used['calls']}, {used['tokens']:,} tokens, {_usd(used['usd'])}{each}")
    if costs.get("timed_out"):
        print(f"  unknown cost: {costs['timed_out']} calls of this run timed out, and the endpoint may want them paid")


def recommended(advice: Mapping[str, Any]) -> str:
    """The advisor's objective and why; where nothing is settled, loudly that it is a default."""
    mark = "" if advice["settled"] else "NOT SETTLED, so by default: "
    experimental = " (experimental)" if advice["objective"] == "apo_up" else ""
    return f"{mark}{advice['objective']}{experimental}; {advice['reason']}"


def print_unanswered(failures: Mapping[str, int]) -> None:
    """How to go on where an endpoint did not answer, if that was so."""
    unanswered = sum(count for kind, count in failures.items() if kind in UNANSWERED)
    if unanswered:
        print(
            f"  no answer of the endpoint: {unanswered} rows; the same command with --retry-failed asks for them again"
        )


def _usd(amount: float | None) -> str:
    if amount is None:
        return "price unknown"
    return f"{amount:.{6 if 0 < amount < 0.01 else 4}f} USD"


def print_summary(summary: Mapping[str, Any], folder: str, *, as_json: bool) -> None:
    """The run in a few lines, or its summary as JSON."""
    if as_json:
        print_json(summary)
        return
    style, drift, preference = summary["style"], summary["drift"], summary["preference"]
    what = "answers" if summary["answers"] and not summary["pairs"] else "pairs"
    print(f"{summary['name']}: {summary[what]} {what}, {summary['failures']} rows left out")
    for stage, made in summary.get("makers", {}).items():
        if stage == "pairs":
            _print_made(made, summary["costs"], stage)
    for maker, count in summary["sets"].items():
        print(f"set {maker}: {count} pairs")
    if advice := summary.get("advice"):
        print(f"objective auto: {recommended(advice)}")
    if style["after"]["all"] is not None:
        before, after = (f"{style[side]['all']:.1%}" for side in ("before", "after"))
        print(f"all rules kept: {before} before, {after} after ({style['n']} held-out prompts)")
    if drift["kl_per_token"] is not None:
        print(f"drift: {drift['kl_per_token']:.3f} nats a token on {drift['prompts']} general prompts")
    if preference["accuracy"] is not None:
        print(f"preference accuracy: {preference['accuracy']:.1%} of {preference['n']} held-out pairs")
    seconds = sum(summary["seconds"].values())
    print(f"{seconds:.0f} s, at most {summary['peak_rss_gib']:.1f} GiB; everything is in {folder}")
