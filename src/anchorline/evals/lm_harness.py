"""Any task of lm-evaluation-harness, through its Python interface, on a model as anchorline loads it.

Its tasks bring their own metrics and standard errors; they are handed on as they are, with n and each document's sample.

>>> harness(loaded, ["arc_easy"], limit=100, seed=0)["arc_easy"].metrics["n"]  # doctest: +SKIP
100
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from anchorline.data import append_jsonl, read_appended
from anchorline.errors import MissingExtra, UserError
from anchorline.llm.models import Loaded, first_line
from anchorline.llm.quiet import hushed, quiet
from anchorline.progress import SILENT, Progress

PIECE = 256
"""Requests between two writes: the harness sorts so many by length."""


class HarnessTask(NamedTuple):
    """One task's outcome."""

    metrics: dict[str, Any]
    """Each metric and its standard error, and n: of a group of tasks the sum of theirs."""
    samples: list[dict[str, Any]]
    """A row for each document and filter: document, target, what the model was asked and said, its metrics. None of a group."""

    def results(self, name: str) -> dict[int, float] | None:
        """A metric of each document by the document's number; None where the metric is no mean of these."""
        metric, _, rest = name.partition(",")
        rows = [row for row in self.samples if row["filter"] == (rest or "none") and metric in row]
        if not rows or not all(isinstance(row[metric], int | float) for row in rows):
            return None
        found = {row["doc_id"]: float(row[metric]) for row in rows}
        return found if abs(fmean(found.values()) - self.metrics[name]) < 1e-6 else None


def harness(
    loaded: Loaded,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    replies: Path | None = None,
    progress: Progress = SILENT,
) -> dict[str, HarnessTask]:
    """Run the tasks, and tell each one's outcome.

    `include`: a folder of the user's own task files. `replies`: a file for what this model says to each request, which is
    then not asked again.

    Raises:
        UserError: the harness does not know a task, or cannot get at its data.
        MissingExtra: it is not installed.

    """
    manager = known_tasks(tasks, include=include)
    import lm_eval

    wrap = _replying(replies, progress)
    run: Any = lm_eval.simple_evaluate  # the harness's decorator hides what it takes
    with quiet(), hushed():  # it shows bars of its own, and asks git where it stands
        try:
            found = run(
                model=wrap(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size),
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                log_samples=True,
                bootstrap_iters=1000,  # of metrics whose standard error has no closed form
            )
        except OSError as error:
            raise UserError(
                f"lm-evaluation-harness cannot get the data of {', '.join(tasks)}: {first_line(error)}; it fetches them from "
                "the hub, so run it once with a connection, or name a task file of yours that reads local data (--lm-include)"
            ) from error
        except Exception as error:
            # a task file is a user's own, and its mistakes surface as whatever the harness meets
            raise UserError(
                f"lm-evaluation-harness failed at {', '.join(tasks)}: {type(error).__name__}: {first_line(error)}; where the "
                "task is yours, look at its file and at its data"
            ) from error
    assert found is not None  # None only in the further processes of a distributed run
    samples = found.get("samples", {})
    return {
        name: HarnessTask(
            {"n": _documents(found, name), **_metrics(figures)},
            # numbers that JSON has not, and the objects that some tasks put into their documents, as their text
            json.loads(json.dumps(samples.get(name, []), default=str), parse_constant=str),
        )
        for name, figures in found["results"].items()
    }


def known_tasks(tasks: Sequence[str], *, include: Path | None = None) -> Any:
    """The harness's TaskManager, which knows the tasks; the errors are those of `harness`."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra("lm-evaluation-harness", "lm-eval") from error
    if include and not include.is_dir():
        raise UserError(f"--lm-include: {include} is no folder; name the one with your task files")
    with quiet(), hushed():
        manager = TaskManager(include_path=str(include) if include else None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"lm-evaluation-harness has no task {unknown[0]!r}; name one of its own, or the folder of yours in lm_include"
        )
    return manager


def _replying(file: Path | None, progress: Progress) -> Any:
    """The harness's class of a local model, which writes replies down and does not give again what is written.

    Its own cache pickles, and shows nothing of how far it is.
    """
    from lm_eval.models.huggingface import HFLM

    wrapped: Any = HFLM

    class Replying(wrapped):
        def loglikelihood(self, requests: Any, **named: Any) -> list[Any]:
            return self._each("loglikelihood", super().loglikelihood, requests, named)

        def loglikelihood_rolling(self, requests: Any, **named: Any) -> list[Any]:
            return self._each("loglikelihood_rolling", super().loglikelihood_rolling, requests, named)

        def generate_until(self, requests: Any, **named: Any) -> list[Any]:
            return self._each("generate_until", super().generate_until, requests, named)

        def _each(self, kind: str, ask: Any, requests: Any, named: dict[str, Any]) -> list[Any]:
            asked = [_request_key(kind, request.args) for request in requests]
            known = {row["request"]: row["reply"] for _, row in read_appended(file).rows} if file else {}
            found = [known.get(key) if key else None for key in asked]
            left = [index for index, reply in enumerate(found) if reply is None]
            with progress.task(f"lm_eval, {kind}", total=len(found), unit="requests") as advance:
                advance(len(found) - len(left))
                for start in range(0, len(left), PIECE):
                    part = left[start : start + PIECE]
                    new = ask([requests[index] for index in part], **named)
                    for index, reply in zip(part, new, strict=True):
                        found[index] = reply
                    if file:
                        file.parent.mkdir(parents=True, exist_ok=True)
                        append_jsonl(file, [{"request": asked[i], "reply": found[i]} for i in part if asked[i]])
                    advance(len(part))
            return [tuple(reply) if isinstance(reply, list) else reply for reply in found]

    return Replying


def _request_key(kind: str, args: Sequence[Any]) -> str | None:
    """A hash of what is asked; None where chance has a part in the reply, and where images or the like are asked about."""
    if kind == "generate_until" and args[1].get("do_sample"):
        return None
    try:
        return hashlib.sha256(json.dumps([kind, *args]).encode()).hexdigest()
    except TypeError:
        return None


def _documents(found: Mapping[str, Any], name: str) -> int:
    """How many documents a task had, or the tasks of a group together."""
    if name in found["n-samples"]:
        return found["n-samples"][name]["effective"]
    return sum(_documents(found, part) for part in found.get("group_subtasks", {}).get(name, []))


def _metrics(figures: dict[str, Any]) -> dict[str, float]:
    """Numbers alone: `acc,none` is the metric acc without a filter."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in figures.items()
        if "," in key and isinstance(value, int | float)
    }
