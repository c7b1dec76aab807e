"""Any task of lm-evaluation-harness, through its Python interface, on a model as anchorline loads it.

Its tasks bring their own metrics and standard errors; they are handed on as they are, with n and each document's sample.

>>> harness(loaded, ["arc_easy"], limit=100, seed=0)["arc_easy"].metrics["n"]  # doctest: +SKIP
100
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from anchorline.errors import MissingExtra, UserError
from anchorline.llm.models import Loaded, first_line
from anchorline.llm.quiet import hushed, quiet


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
) -> dict[str, HarnessTask]:
    """Run the tasks, and tell each one's outcome. `include`: a folder of the user's own task files.

    Raises:
        UserError: the harness does not know a task, or cannot get at its data.
        MissingExtra: it is not installed.

    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra("lm-evaluation-harness", "lm-eval") from error
    manager = TaskManager(include_path=str(include) if include else None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"lm-evaluation-harness has no task {unknown[0]!r}; name one of its own, or the folder of yours in lm_include"
        )
    wrap: Any = HFLM  # the harness's decorators hide what these two take
    run: Any = lm_eval.simple_evaluate
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
