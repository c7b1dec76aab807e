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

from anchorline.report.files import write_page
from anchorline.report.html import environment


def write_evaluation_page(target: Path, table: Mapping[str, Any]) -> Path:
    """Write the page, whole or not at all, and return its path."""
    return write_page(target, build_evaluation_page(table))


def build_evaluation_page(table: Mapping[str, Any]) -> str:
    """The whole page, from what `evals.table.evaluate` gives."""
    return environment().get_template("evaluation.html.j2").render(table=table)
