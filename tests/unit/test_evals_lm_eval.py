"""The intervals of lm-evaluation-harness's metrics: Wilson's for shares of documents, the harness's own error otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from anchorline.evals.lm_harness import HarnessTask
from anchorline.evals.tasks_lm_eval import _interval


def task(values: list[float], **metrics: Any) -> HarnessTask:
    rows = [{"doc_id": n, "filter": "none", "acc": value} for n, value in enumerate(values)]
    return HarnessTask({"n": len(values), "acc": sum(values) / len(values), **metrics}, rows)


@pytest.mark.parametrize(("right", "low", "high"), [(8, 0.676, 1.0), (7, 0.529, 0.978), (0, 0.0, 0.324)])
def test_a_share_of_documents_stays_within_0_and_1_and_keeps_a_width(right: int, low: float, high: float) -> None:
    found = _interval(task([1.0] * right + [0.0] * (8 - right), acc_stderr=0.125), "acc")
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_another_mean_has_the_harness_error_and_none_where_it_is_0() -> None:
    found = _interval(task([0.5, 2.0], acc_stderr=0.5), "acc")
    assert (found["low"], found["high"]) == (pytest.approx(1.25 - 0.98), pytest.approx(1.25 + 0.98))
    assert _interval(task([2.0, 2.0], acc_stderr=0.0), "acc") == {"share": 2.0}
