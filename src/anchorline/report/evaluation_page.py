"""An evaluation on one HTML page: every figure with n and its interval, the other model beside it, the paired test.

>>> figure = {"name": "kept", "unit": "share", "n": 4, "value": 0.5, "low": 0.15, "high": 0.85}
>>> page = build_evaluation_page({"model": "m", "tasks": {"style": {"figures": [figure]}}})
>>> "kept" in page, "<script" in page
(True, False)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchorline.report.figures import reading
from anchorline.report.files import write_page
from anchorline.report.html import environment

TITLES = {
    "style": ("Style", "Share of answers that keep each rule."),
    "preference": (
        "Preference",
        "Share of held-out pairs whose chosen answer gained more log-probability over the other model than the rejected one.",
    ),
    "drift": (
        "Drift",
        "Along the other model's own answers, in nats. 0: nothing moved. A log-probability below 0: they became less likely.",
    ),
    "winrate": ("Win rate", "Whose answers are better, each prompt's two judged in both orders. A tie is half a win."),
    "mixeval_hard": ("MixEval-Hard", "Mean scores of the benchmark's questions."),
    "lm_eval": (
        "lm-evaluation-harness",
        "The harness's own metrics; intervals are Wilson's for shares of documents, else ±1.96 standard errors.",
    ),
}
"""A task's heading, and how its figures are read."""


def write_evaluation_page(target: Path, table: Mapping[str, Any]) -> Path:
    """Write the page, whole or not at all, and return its path."""
    return write_page(target, build_evaluation_page(table))


def build_evaluation_page(table: Mapping[str, Any]) -> str:
    """The whole page, from what `evals.table.evaluate` gives."""
    return environment().get_template("evaluation.html.j2").render(table=table, titles=TITLES, reading=reading)
