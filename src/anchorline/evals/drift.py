"""What else changed? How far the model moved on prompts that have nothing to do with the style.

Along the reference's own answers to general prompts, at every token, the exact KL(policy ‖ reference) over the vocabulary,
and the change in that token's log-prob. Both are 0 for a model that is unchanged there.

>>> drift(subject, answers, seed=0).table["kl_per_token"]  # doctest: +SKIP
0.081
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from anchorline.data import messages_to_rows
from anchorline.evals.stats import bootstrap_mean
from anchorline.evals.subject import Subject
from anchorline.progress import SILENT, Progress
from anchorline.train.tokenise import BoundaryError, Example
from anchorline.types import Answer

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
"""Prompts packed into one row here."""
MOST = 5
"""Prompts that drifted most, kept for the report."""


class Drift(NamedTuple):
    """What was measured: over all prompts, and of each."""

    table: dict[str, Any]
    rows: list[dict[str, Any]]


def drift(
    subject: Subject,
    answers: Sequence[Answer],
    *,
    seed: int,
    groups: Mapping[str, str] | None = None,
    theirs: dict[tuple[Example, ...], list[Tensor]] | None = None,
    progress: Progress = SILENT,
) -> Drift:
    """Means over all tokens, in nats, with a bootstrap 95 % interval over prompts; the same for each group of prompts.

    `answers` are the reference's own, to general prompts. `groups`: the group of each prompt by its id. `theirs` keeps what
    the reference made of answers, for other policies of the same reference: kilobytes an answer, if it attends packed.
    """
    from anchorline.train.divergence import token_divergences

    pairs = [(answer, _example(answer, subject)) for answer in answers]
    measured = [(answer, example) for answer, example in pairs if example is not None]
    rows: list[dict[str, Any]] = []
    with progress.task("drift", total=len(answers), unit="prompts") as advance, subject.arithmetic():
        advance(len(answers) - len(measured))
        for start in range(0, len(measured), BATCH):
            batch = measured[start : start + BATCH]
            examples = tuple(example for _, example in batch)
            found = token_divergences(
                subject.policy.model,
                subject.reference,
                subject.switched_off,
                examples,
                packed=subject.packed,
                theirs=None if theirs is None else theirs.setdefault(examples, []),
            )
            for (answer, _), both in zip(batch, found, strict=True):
                rows.append(
                    {
                        "id": answer.id,
                        "prompt": messages_to_rows(answer.prompt),
                        "tokens": len(both.kl),
                        "kl_per_token": float(both.kl.mean()),
                        "logprob_change_per_token": float(both.change.mean()),
                    }
                )
            advance(len(batch))
    named = groups or {}
    members: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        members.setdefault(named.get(row["id"], ""), []).append(row)
    table = {
        **_means(rows, seed),
        "groups": {name: _means(members[name], seed) for name in sorted(members) if name},
        "most": sorted(rows, key=lambda row: -row["kl_per_token"])[:MOST],
    }
    return Drift(table, rows)


def _means(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    lengths = [row["tokens"] for row in rows]
    kl = bootstrap_mean([row["kl_per_token"] for row in rows], seed=seed, weights=lengths)
    change = bootstrap_mean([row["logprob_change_per_token"] for row in rows], seed=seed, weights=lengths)
    return {
        "prompts": len(rows),
        "tokens": sum(lengths),
        "kl_per_token": kl.mean,
        "low": kl.low,
        "high": kl.high,
        "logprob_change_per_token": change.mean,
        "change_low": change.low,
        "change_high": change.high,
    }


def _example(answer: Answer, subject: Subject) -> Example | None:
    from anchorline.train.retain import own_answer

    try:
        return own_answer(answer, subject.template)
    except BoundaryError:
        return None
