"""The grid of `anchorline compare`: its settings, its cells, and their order. Pure.

The order makes an early stop useful: first every set with every objective once, then the other learning rates and further
seeds of the cells that the two headline contrasts rest on, the weights of `retain`, and the other learning rates of the rest
(which `sweep: contrasts` leaves out).

>>> grid = CompareSettings(sets=("clair",), objectives=("dpo",), learning_rates=(1e-3, 1e-4), seeds=(0, 1))
>>> [cell.name for cell in planned(grid, {})]
['clair-dpo-lr0.001-seed0', 'clair-dpo-lr0.0001-seed0']
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from anchorline.objectives.names import parse_objective
from anchorline.pairs.settings import MAKERS, Maker


class Voice(BaseModel):
    """A way in which the policy itself answers, in the place of another model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str | None = None
    """In the place of the prompts' system message; null leaves it."""
    temperature: float = Field(default=0.7, ge=0.0, le=5.0)
    """Of sampling."""
    max_new_tokens: int = Field(default=48, ge=1, le=32768)
    """Where an answer is cut; the torn last sentence of a cut one is left out."""
    samples: int = Field(default=1, ge=1, le=64)
    """Answers to each prompt, of which the one that keeps most rules is taken."""


class CompareSettings(BaseModel):
    """Which cells the grid has. The first set, objective, seed and weight are what the others are held against."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sets: tuple[Maker, ...] = Field(default=MAKERS, min_length=1)
    """Makers of the data sets, all on the same prompts."""
    objectives: tuple[str, ...] = Field(default=("apo_zero", "apo_down", "dpo", "kto", "sft"), min_length=1)
    """Names, or weighted sums such as `apo_zero=1,sft=1`."""
    learning_rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(5e-4, 1.5e-4), min_length=1)
    """Tried for every objective, the same budget for each; `sweep` says on which sets. The first one for every set."""
    sweep: Literal["all", "contrasts"] = "all"
    """Where the other learning rates are tried: everywhere, or for the first set's row and the first objective's column
    alone, on which the contrasts rest."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(default=(0, 1, 2), min_length=1)
    """Further ones are run for the first set's row and the first objective's column, at their best learning rate."""
    retain_weights: tuple[Annotated[float, Field(ge=0, le=1000)], ...] = Field(default=(0.0,), min_length=1)
    """Values of `retain.weight`; further ones are run on the first set, at the best learning rate."""
    checkpoints: int = Field(default=1, ge=1, le=100)
    """Points of each training, evenly apart, that are evaluated; the last is its end."""
    pairs: int | None = Field(default=None, ge=1)
    """Use only this many pairs of each set, the first ones."""
    stronger: Voice | None = None
    """The stronger answers, where no `llm.stronger` is asked."""
    others: tuple[Voice, ...] = ()
    """Two or more: the answers of off_policy, where no `llm.others` are asked."""
    tone: tuple[str, ...] = ("please", "thank", "sorry", "happy")
    """Words whose share of answers is counted before and after, beside the aim."""

    @field_validator("objectives")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_spelled, names))

    @field_validator("sets", "objectives", "learning_rates", "seeds", "retain_weights")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        # what a cell's folder does not tell apart is one: two cells in it would empty it for each other
        kept: dict[Any, Any] = {}
        for value in values:
            kept.setdefault(f"{value:g}" if isinstance(value, float) else value, value)
        return tuple(kept.values())


class Cell(NamedTuple):
    """One training."""

    maker: Maker
    objective: str
    learning_rate: float
    seed: int
    weight: float = 0.0

    @property
    def name(self) -> str:
        """Of its folder."""
        held = f"-retain{self.weight:g}" if self.weight else ""
        objective = re.sub(r"[^\w.]+", "_", self.objective)
        return f"{self.maker}-{objective}-lr{self.learning_rate:g}{held}-seed{self.seed}"


def _spelled(objective: str) -> str:
    weights = parse_objective(objective)
    if list(weights.values()) == [1.0]:
        return next(iter(weights))
    return ",".join(f"{name}={weight:g}" for name, weight in sorted(weights.items()))


Results = Mapping[Cell, Mapping[str, Any]]


def planned(grid: CompareSettings, done: Results) -> list[Cell]:
    """Every cell that is known so far, in order: seeds and weights come when the learning rates of their cell are done."""
    rates, seed, weight = grid.learning_rates, grid.seeds[0], grid.retain_weights[0]
    head, rest = _head_and_rest(grid)
    cells = [Cell(s, o, rates[0], seed, weight) for s, o in (*head, *rest)]
    cells += [Cell(s, o, rate, seed, weight) for rate in rates[1:] for s, o in head]
    chosen = {(s, o): best(swept(grid, done, s, o)) for s, o in head if len(swept(grid, done, s, o)) == len(rates)}
    for further in grid.seeds[1:]:
        cells += [cell._replace(seed=further) for key in head if (cell := chosen.get(key))]
    for held in grid.retain_weights[1:]:
        cells += [cell._replace(weight=held) for key in head if (cell := chosen.get(key)) and key[0] == grid.sets[0]]
    return cells + [Cell(s, o, rate, seed, weight) for rate in _rates_of_rest(grid)[1:] for s, o in rest]


def to_come(grid: CompareSettings, done: Results) -> int:
    """How many cells are left, those included that are not known yet (`planned`)."""
    head, rest = _head_and_rest(grid)
    row = sum(key[0] == grid.sets[0] for key in head)
    seeds, weights = len(grid.seeds) - 1, len(grid.retain_weights) - 1
    further = len(head) * seeds + row * weights
    for key in head:  # where every learning rate failed nothing follows
        found = swept(grid, done, *key)
        if len(found) == len(grid.learning_rates) and best(found) is None:
            further -= seeds + weights * (key[0] == grid.sets[0])
    whole = len(head) * len(grid.learning_rates) + len(rest) * len(_rates_of_rest(grid)) + further
    return whole - sum(cell in done for cell in planned(grid, done))


def _rates_of_rest(grid: CompareSettings) -> tuple[float, ...]:
    return grid.learning_rates if grid.sweep == "all" else grid.learning_rates[:1]


def _head_and_rest(grid: CompareSettings) -> tuple[list[tuple[Maker, str]], list[tuple[Maker, str]]]:
    """The first set's row and the first objective's column, and the other sets with the other objectives."""
    every = list(product(grid.sets, grid.objectives))
    head = [key for key in every if key[0] == grid.sets[0]]
    head += [key for key in every if key[0] != grid.sets[0] and key[1] == grid.objectives[0]]
    return head, [key for key in every if key not in head]


def swept(grid: CompareSettings, done: Results, maker: str, objective: str) -> dict[Cell, Mapping[str, Any]]:
    """The finished cells of a set and an objective that differ in the learning rate alone, failed ones among them."""
    same = (maker, objective, grid.seeds[0], grid.retain_weights[0])
    return {c: r for c, r in done.items() if (c.maker, c.objective, c.seed, c.weight) == same}


def best(results: Results) -> Cell | None:
    """The cell with most answers that keep all rules; then with most rules kept; then with the least drift; none failed."""
    results = {cell: result for cell, result in results.items() if "failed" not in result}
    return max(results, key=lambda cell: _merit(results[cell]), default=None)


def _merit(result: Mapping[str, Any]) -> tuple[float, ...]:
    return result["share"], result["rules_kept"], -result["drift"]


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return sum(values) / len(values) if values else None
