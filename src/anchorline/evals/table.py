"""The evaluations by their names: each takes what is shared and gives figures, JSON-ready. A new one is a line here.

A figure is a value with n and its 95 % interval; beside it the other model's and the paired difference, where there is one.

>>> sorted(TASKS)
['drift', 'lm_eval', 'mixeval_hard', 'preference', 'style', 'winrate']
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anchorline.errors import UserError
from anchorline.evals.runner import Evaluation
from anchorline.evals.tasks_answers import style_task, winrate_task
from anchorline.evals.tasks_lm_eval import lm_eval_task
from anchorline.evals.tasks_logprobs import drift_task, preference_task
from anchorline.evals.tasks_mixeval import mixeval_task

TASKS: dict[str, Callable[[Evaluation], dict[str, Any]]] = {
    "style": style_task,
    "preference": preference_task,
    "drift": drift_task,
    "winrate": winrate_task,
    "mixeval_hard": mixeval_task,
    "lm_eval": lm_eval_task,
}


def evaluate(work: Evaluation) -> dict[str, Any]:
    """All tasks of the settings, in their order.

    Raises:
        UserError: a task is not known, or lacks what it needs.

    """
    unknown = [name for name in work.settings.tasks if name not in TASKS]
    if unknown:
        raise UserError(f"--tasks: got {unknown[0]!r}, expected some of {', '.join(TASKS)}")
    given = work.settings.answers and set(work.settings.tasks) == {"winrate"}
    return {
        "model": work.settings.model,
        "against": None if given else work.against,  # given answers are named by the task itself
        "seed": work.settings.seed,
        "tasks": {name: TASKS[name](work) for name in dict.fromkeys(work.settings.tasks)},
    }
