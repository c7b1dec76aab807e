"""What is kept of each pair that is trained on or scored: log-probs, rewards, gradients, and where the change sits.

Training and `score` make their rows here, so the one can be checked with the other.

>>> recorder = Recorder(settings, reference_tokens=tokens, tokenizer=tokenizer, ends=frozenset({2}))  # doctest: +SKIP
>>> recorder.rows(examples, batch, losses, policy_tokens)[0]["chosen_edited_change"]  # doctest: +SKIP
4.18
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from anchorline.measure.regions import REGIONS, align, by_region
from anchorline.objectives.gradients import gradient_peaks, reward_gradients, share_left
from anchorline.objectives.life import answer_life, pair_life
from anchorline.objectives.logps import AnswerLogps, PairLogps, answer_rewards
from anchorline.objectives.metrics import pair_metrics
from anchorline.objectives.mixed import each
from anchorline.train.config import TrainSettings
from anchorline.train.tokenise import Example, response_key

MOST_MOVED = 5
"""Tokens of each answer whose log-prob changed most that are kept."""

Record = dict[str, Any]


class BatchLogps(NamedTuple):
    """A batch's log-probs: the rows for the objective, and kto's reference point where the batch has mismatched ones."""

    rows: PairLogps | AnswerLogps
    reference_point: Tensor | None
    objectives: tuple[str | None, ...] = ()
    """Each row's own objective; () where no row has one."""


class Recorder:
    """Makes the records of batches. Without `reference_tokens` they lack the places of the change."""

    def __init__(
        self,
        settings: TrainSettings,
        *,
        reference_tokens: Mapping[str, np.ndarray] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        self.settings, self.reference_tokens = settings, reference_tokens
        self.tokenizer, self.ends = tokenizer, ends
        # by what is aligned: held-out rows may have the ids of training's
        self._regions: dict[tuple[Sequence[int], ...], tuple[Sequence[str], ...]] = {}

    def rows(
        self, examples: Sequence[Example], batch: BatchLogps, losses: Tensor | None, tokens: Sequence[Tensor]
    ) -> list[Record]:
        """One record an example: `batch` and `losses` as the objective had them, `tokens` one tensor a response."""
        columns: dict[str, Sequence[Any]] = {"id": [e.id for e in examples]}
        columns["prompt_tokens"] = [len(e.prompt) for e in examples]
        if losses is not None:
            columns["loss"] = losses.detach().tolist()
        columns |= {name: value.detach().tolist() for name, value in batch.rows._asdict().items()}
        columns |= self._rewards(batch) | self._gradients(batch)
        records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        pieces = iter(piece.detach().float().cpu().numpy() for piece in tokens)
        for example, record in zip(examples, records, strict=True):
            if example.objective:
                record["objective"] = example.objective
            record.update(self._life(record, batch))
            record.update(self._places(example, [next(pieces) for _ in example.responses]))
        return records

    def _rewards(self, batch: BatchLogps) -> dict[str, Sequence[Any]]:
        if isinstance(batch.rows, PairLogps):
            metrics = pair_metrics(batch.rows, beta=self.settings.beta)
            return {name: value.tolist() for name, value in metrics._asdict().items()}
        return {"reward": answer_rewards(batch.rows, beta=self.settings.beta).detach().tolist()}

    def _gradients(self, batch: BatchLogps) -> dict[str, Sequence[Any]]:
        weights = {
            "beta": self.settings.beta,
            "desirable_weight": self.settings.desirable_weight,
            "undesirable_weight": self.settings.undesirable_weight,
        }
        point = batch.reference_point

        def pull(objective: Mapping[str, float], rows: Any) -> tuple[Tensor, ...]:
            slopes = reward_gradients(objective, rows, reference_point=point, **weights)
            return *slopes, *share_left(slopes, gradient_peaks(objective, rows, **weights))

        found = each(batch.objectives, self.settings.objective, batch.rows, pull)
        slopes, left = found[: len(found) // 2], found[len(found) // 2 :]
        sides = ("chosen_", "rejected_") if isinstance(batch.rows, PairLogps) else ("",)
        columns: dict[str, Sequence[Any]] = {
            f"{side}gradient": slope.tolist() for side, slope in zip(sides, slopes, strict=True)
        }
        return columns | {f"{side}weight": share.tolist() for side, share in zip(sides, left, strict=True)}

    def _life(self, record: Record, batch: BatchLogps) -> Record:
        own, point = record.get("objective"), batch.reference_point
        objective = {own: 1.0} if own else self.settings.objective
        anchor = 0.0 if point is None else self.settings.beta * float(point)
        if "margin" in record:
            state = pair_life(objective, record["chosen_reward"], record["rejected_reward"], anchor=anchor)
        else:
            state = answer_life(objective, record["reward"], wanted=record["label"], anchor=anchor)
        return {"state": state} if point is None else {"state": state, "anchor": anchor}

    def _places(self, example: Example, policy: Sequence[np.ndarray]) -> Record:
        """Where in each answer the log-prob changed: by region, and the tokens that moved most."""
        if self.reference_tokens is None:
            return {}
        found: Record = {}
        real = [k for k, label in enumerate(example.labels) if label is not None]
        sides = ("chosen_", "rejected_") if len(real) == 2 else ("",)
        regions = self._aligned(example) if len(real) == 2 else None
        for number, (side, k) in enumerate(zip(sides, real, strict=True)):
            response = example.responses[k]
            change = policy[k] - self.reference_tokens[response_key(example.prompt, response)]
            if regions is not None:
                for name, part in by_region(change.tolist(), regions[number]).items():
                    found |= {f"{side}{name}_change": part.change, f"{side}{name}_tokens": part.tokens}
            found[f"{side}moved"] = self._most_moved(response, change)
        return found

    def _aligned(self, example: Example) -> tuple[Sequence[str], ...]:
        answers = example.responses[:2]
        if answers not in self._regions:
            self._regions[answers] = align(*answers, ends=self.ends)
        return self._regions[answers]

    def _most_moved(self, response: Sequence[int], change: np.ndarray) -> list[Record]:
        places = np.argsort(-np.abs(change), kind="stable")[:MOST_MOVED].tolist()
        return [{"at": at, "token": self._text(response[at]), "change": float(change[at])} for at in places]

    def _text(self, token: int) -> str:
        if self.tokenizer is None:
            return str(token)
        # pieces of a character that spans tokens come as the replacement mark: the place says which they are
        return str(self.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))


CHANGES = tuple(f"{side}_{region}_change" for side in ("chosen", "rejected") for region in REGIONS)
"""The columns of a pair's displacement, in nats."""
