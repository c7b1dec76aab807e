"""The evaluations by their names: each takes what is shared and gives figures, JSON-ready. A new one is a line here.

A figure is a value with n and its 95 % interval; beside it the other model's and the paired difference, where there is one.

>>> sorted(TASKS)
['drift', 'lm_eval', 'mixeval_hard', 'preference', 'style', 'winrate']
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from anchorline.errors import UserError
from anchorline.evals.runner import Evaluation
from anchorline.evals.tasks_answers import style_needs, style_task, winrate_needs, winrate_task
from anchorline.evals.tasks_lm_eval import lm_eval_needs, lm_eval_task
from anchorline.evals.tasks_logprobs import drift_needs, drift_task, preference_needs, preference_task
from anchorline.evals.tasks_mixeval import mixeval_needs, mixeval_task


class Task(NamedTuple):
    """An evaluation."""

    run: Callable[[Evaluation, Any], dict[str, Any]]
    """Its figures, of what `needs` has read."""
    needs: Callable[[Evaluation], Any]
    """Reads what it needs beside the models: a UserError says what is lacking, before any model has answered."""


TASKS = {
    "style": Task(style_task, style_needs),
    "preference": Task(preference_task, preference_needs),
    "drift": Task(drift_task, drift_needs),
    "winrate": Task(winrate_task, winrate_needs),
    "mixeval_hard": Task(mixeval_task, mixeval_needs),
    "lm_eval": Task(lm_eval_task, lm_eval_needs),
}


def evaluate(work: Evaluation) -> Iterator[dict[str, Any]]:
    """All tasks of the settings, in their order: after each one what has been found so far.

    Raises:
        UserError: a task is not known, or lacks what it needs.
        EndpointError: the judge gave no verdict at all.

    """
    unknown = [name for name in work.settings.tasks if name not in TASKS]
    if unknown:
        raise UserError(f"--tasks: got {unknown[0]!r}, expected some of {', '.join(TASKS)}")
    read = {name: TASKS[name].needs(work) for name in work.settings.tasks}
    given = work.settings.answers and set(work.settings.tasks) == {"winrate"}
    table: dict[str, Any] = {
        "model": work.settings.model,
        "against": None if given else work.against_shown,  # given answers are named by the task itself
        "seed": work.settings.seed,
        "tasks": {},
    }
    for name, needs in read.items():
        table["tasks"][name] = TASKS[name].run(work, needs)
        yield table
