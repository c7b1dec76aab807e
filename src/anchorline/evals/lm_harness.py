"""Any task of lm-evaluation-harness, through its Python interface, on a model as anchorline loads it.

Its tasks bring their own metrics and standard errors; they are handed on as they are, with n.

>>> harness(loaded, ["arc_easy"], limit=100, seed=0)["arc_easy"]["n"]  # doctest: +SKIP
100
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchorline.errors import MissingExtra, UserError
from anchorline.llm.models import Loaded
from anchorline.llm.quiet import quiet


def harness(
    loaded: Loaded,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Each task's metrics, their standard errors, and n. `include`: a folder of the user's own task files.

    Raises:
        UserError: the harness does not know a task, or cannot run it.
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
    model = wrap(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
    with quiet():
        found = run(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            log_samples=False,
            bootstrap_iters=1000,  # of metrics whose standard error has no closed form
        )
    assert found is not None  # None only in the further processes of a distributed run
    counts = found["n-samples"]
    return {
        name: {"n": counts.get(name, {}).get("effective"), **_metrics(figures)}
        for name, figures in found["results"].items()
    }


def _metrics(figures: dict[str, Any]) -> dict[str, float]:
    """Numbers alone: `acc,none` is the metric acc without a filter."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in figures.items()
        if "," in key and isinstance(value, int | float)
    }
