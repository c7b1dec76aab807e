"""Does the model prefer the better answer of held-out pairs? Rewards relative to the reference, so 0 before training.

>>> preference(subject, pairs, settings)["accuracy"]  # doctest: +SKIP
0.98
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from anchorline.evals.stats import wilson
from anchorline.evals.subject import Subject
from anchorline.progress import SILENT, Progress
from anchorline.train.config import TrainSettings
from anchorline.train.tokenise import Example, tokenise
from anchorline.types import Failure, Pair

BATCH = 8
"""Pairs packed into one row here."""


class Preference(NamedTuple):
    """The table, JSON-ready; one row a pair; and the pairs that could not be scored."""

    table: dict[str, Any]
    rows: list[dict[str, Any]]
    failures: list[Failure]


def preference(
    subject: Subject, pairs: Sequence[Pair], settings: TrainSettings, *, progress: Progress = SILENT
) -> Preference:
    """Accuracy (share of pairs with r_w > r_l, Wilson 95 %), mean margin and rewards, share where both answers fell."""
    from anchorline.objectives.metrics import pair_metrics

    data = tokenise(pairs, subject.template, max_tokens=settings.max_tokens, overlong="drop")
    failures = [Failure(f.id, "evaluate", f.kind, f.reason, f.details) for f in data.failures]
    rows: list[dict[str, Any]] = []
    with progress.task("held-out pairs", total=len(data.examples), unit="pairs") as advance:
        for start in range(0, len(data.examples), BATCH):
            batch = data.examples[start : start + BATCH]
            metrics = pair_metrics(_logps(subject, batch), beta=settings.beta)
            columns = [metrics.chosen_reward, metrics.rejected_reward, metrics.margin]
            for example, *values in zip(batch, *(c.tolist() for c in columns), strict=True):
                chosen, rejected, margin = values
                rows.append({"id": example.id, "chosen_reward": chosen, "rejected_reward": rejected, "margin": margin})
            advance(len(batch))
    return Preference(_table(rows), rows, failures)


def _logps(subject: Subject, batch: Sequence[Example]) -> Any:
    import torch

    from anchorline.train.forward import example_logps
    from anchorline.train.trainer import batch_logps

    with torch.no_grad(), subject.arithmetic():
        policy = example_logps(subject.policy.model, batch, packed=subject.packed, pad=subject.pad)
        with subject.switched_off():
            reference = example_logps(subject.reference, batch, packed=subject.packed, pad=subject.pad)
    return batch_logps(batch, policy, reference).rows


def _table(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    accuracy = wilson(sum(row["margin"] > 0 for row in rows), len(rows))
    means = {name: _mean([row[name] for row in rows]) for name in ("margin", "chosen_reward", "rejected_reward")}
    fell = _mean([float(row["chosen_reward"] < 0 and row["rejected_reward"] < 0) for row in rows])
    return {
        "n": len(rows),
        "accuracy": accuracy.share,
        "low": accuracy.low,
        "high": accuracy.high,
        **means,
        "both_fell": fell,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
