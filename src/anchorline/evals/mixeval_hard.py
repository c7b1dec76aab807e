"""MixEval-Hard: 500 free-form and 500 multiple-choice questions, in the layout of the benchmark's own release.

A folder with `free-form.json` and `multiple-choice.json`: objects of items under their ids. Prompts are the benchmark's
for chat models (no examples in them). Answers are parsed by its rules (`mixeval_rules`) or by a model (`mixeval_judge`).
An answer without an option letter gets an option by lot, as the benchmark does it; how many did is counted.

>>> item = Item("1", "MMLU", "choice", "2 + 2?", None, ("3", "4"), (), 1)
>>> print(question(item).messages[0].content)
2 + 2?
A. 3
B. 4
Answer with the option letter from the given choices directly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from anchorline.data import read_json
from anchorline.errors import DataError
from anchorline.evals.mixeval_rules import LETTERS, is_right, parse_choice
from anchorline.evals.stats import bootstrap_mean, wilson
from anchorline.types import Message, Prompt

Kind = Literal["free", "choice"]
FILES: dict[Kind, str] = {"free": "free-form.json", "choice": "multiple-choice.json"}
CHOOSE = "Answer with the option letter from the given choices directly."
BRIEFLY = "Answer the question shortly."
STEPS = "Answer the question. \nLet's think step by step."
STEPWISE = frozenset({"BBH", "GSM8k", "MATH"})
"""Whose questions ask for steps. These words, here and above, are the benchmark's: a score with others is another score."""


class Item(NamedTuple):
    """One question; `targets` of a free-form one, `target` (the option's place) of a choice."""

    id: str
    benchmark: str
    kind: Kind
    prompt: str
    context: str | None
    options: tuple[str, ...]
    targets: tuple[str, ...]
    target: int


class Score(NamedTuple):
    """What an answer is worth, 0 to 1, and whether it had to be drawn by lot."""

    item: Item
    score: float
    by_lot: bool
    error: str | None = None
    """Why a judge did not reply at all: then the score is none, and does not count."""


def load_items(folder: str | Path, *, limit: int | None = None) -> list[Item]:
    """Both files' items; of each kind the first `limit`. DataError names the file and the item."""
    items = [item for kind in FILES for item in _items(Path(folder) / FILES[kind], kind)[:limit]]
    if not items:
        raise DataError(f"{' and '.join(FILES.values())} hold no items", file=folder)
    return items


def _items(file: Path, kind: Kind) -> list[Item]:
    data = read_json(file)
    if not isinstance(data, Mapping):
        raise DataError("is not an object of items by their ids, as the benchmark's release is", file=file)
    return [_item(file, str(key), row, kind) for key, row in data.items()]


def _item(file: Path, key: str, row: Any, kind: Kind) -> Item:
    def wrong(field: str, expected: str) -> DataError:
        return DataError(f"item {key}: expected {expected}", file=file, field=field)

    if not isinstance(row, Mapping):
        raise wrong("", "an object")
    for field in ("prompt", "benchmark_name"):
        if not isinstance(row.get(field), str):
            raise wrong(field, "a text")
    context, target, options = row.get("context"), row.get("target"), row.get("options") or []
    if context is not None and not isinstance(context, str):
        raise wrong("context", "a text or null")
    if not isinstance(target, list) or not target:
        raise wrong("target", "a list")
    shared = (f"{kind}-{key}", row["benchmark_name"], kind, row["prompt"], context)
    if kind == "free":
        if not all(isinstance(one, str) for one in target):
            raise wrong("target", "a list of texts")
        return Item(*shared, (), tuple(target), -1)
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise wrong("options", "a list of 2 to 26 texts")
    if not all(isinstance(one, str) for one in options):
        raise wrong("options", "texts only")
    if len(target) != 1 or type(target[0]) is not int or not 0 <= target[0] < len(options):
        raise wrong("target", "the place of one option, counted from 0")
    return Item(*shared, tuple(options), (), target[0])


def question(item: Item) -> Prompt:
    """What a chat model is asked."""
    context = (item.context or "").strip()
    blank = context.lower() in ("", "none", "null")
    head = "" if blank else f"{item.context}\n"
    if item.kind == "choice":
        text = f"{head}{item.prompt}\n{listed(item.options)}\n{CHOOSE}"
    else:
        text = f"Question: {head}{item.prompt}\n{STEPS if item.benchmark in STEPWISE else BRIEFLY}"
    return Prompt(item.id, (Message("user", text),))


def listed(options: Sequence[str]) -> str:
    """The options, a line each, with their letters."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def score_by_rules(item: Item, answer: str, *, seed: int) -> Score:
    """1 or 0. A free-form answer that holds no target is wrong; a choice that names no option is drawn by lot."""
    if item.kind == "free":
        return Score(item, float(is_right(answer, item.targets)), False)
    letter = parse_choice(answer, item.options)
    chosen = letter or by_lot(item, seed)
    return Score(item, float(chosen == LETTERS[item.target]), letter is None)


def by_lot(item: Item, seed: int) -> str:
    """An option drawn by the item's own number, whatever was drawn before it."""
    return LETTERS[lot(item, seed) % len(item.options)]


def lot(item: Item, seed: int) -> int:
    """64 bits that hang on the item and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{item.id}".encode()).digest()[:8], "big")


def mixeval_table(scores: Sequence[Score], *, seed: int) -> dict[str, Any]:
    """Mean score with its 95 % interval and n: overall, of each half, and of each benchmark in it."""
    halves = {kind: [one for one in scores if one.item.kind == kind] for kind in FILES}
    names = {kind: sorted({one.item.benchmark for one in rows}) for kind, rows in halves.items()}
    return {
        "overall": _mean(scores, seed),
        **{kind: _mean(rows, seed) for kind, rows in halves.items()},
        "benchmarks": {
            kind: {
                name: _mean([one for one in halves[kind] if one.item.benchmark == name], seed) for name in names[kind]
            }
            for kind in FILES
        },
    }


def _mean(scores: Sequence[Score], seed: int) -> dict[str, Any]:
    values = [one.score for one in scores]
    # whole points are a share; a judge's tenths are a mean
    figures = wilson(sum(values), len(values)) if {*values} <= {0.0, 1.0} else bootstrap_mean(values, seed=seed)
    value, low, high = figures
    return {"n": len(scores), "score": value, "low": low, "high": high, "by_lot": sum(one.by_lot for one in scores)}
