"""Several sets of pairs side by side: the spread of each measure, and differences on the prompts that sets share.

All sets' bars have the same edges, so that they can be laid over each other. Sets made of different prompts differ for
that reason alone; the matched differences compare prompt by prompt and are free of it.

>>> from anchorline.measure.summary import measure_pair
>>> revised = Measured("revised", ["p"], [measure_pair("It left today.", "It left today!")])
>>> sampled = Measured("sampled", ["p"], [measure_pair("Yes.", "It left today!")])
>>> compare([revised, sampled])["matched"][0]["metrics"]["word_jaccard"]["mean"]
-0.5
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from anchorline.measure.summary import SHARES, PairMeasures, histogram, quantile, summarise

FEWEST = 6
"""Shared prompts below which no interval is given: the spread of so few differences says little."""


class Measured(NamedTuple):
    """One set. `prompts` and `touched` hold an entry for each of `rows`."""

    name: str
    prompts: Sequence[str]
    """What tells prompts apart, the same in all sets: `types.prompt_id`."""
    rows: Sequence[PairMeasures]
    touched: Sequence[object] = ()
    """The rules that each pair's repair touched, where the maker noted them."""


def compare(sets: Sequence[Measured]) -> dict[str, Any]:
    """Spread of each set and matched differences to the first one, ready for JSON.

    "sets" holds what `summarise` gives, with "name" and "prompts" (distinct ones). The histograms of a measure that has
    no upper bound end at the 99th percentile of all sets together; what is beyond is counted in the last bar.

    "matched" holds for each other set its "name", that of the first one as "against", the number of shared "prompts",
    and "metrics": the mean of the differences (other − first, one for each prompt), "low" and "high" of its 95 %
    interval (Student's t), and on how many prompts the other set is "higher", "lower" or "equal". Where a set has
    several pairs of a prompt, their mean stands for it.
    """
    summaries = [
        {"name": one.name, **summarise(one.rows, touched=one.touched), "prompts": len(set(one.prompts))} for one in sets
    ]
    for metric in PairMeasures._fields:
        if metric not in SHARES:
            _same_edges([summary["metrics"] for summary in summaries], metric, [_values(one, metric) for one in sets])
    matched = [_matched(sets[0], other) for other in sets[1:]]
    return {"sets": summaries, "matched": matched}


def _same_edges(tables: Sequence[dict[str, Any]], metric: str, columns: Sequence[Sequence[float]]) -> None:
    together = sorted(value for column in columns for value in column)
    if not together:
        return
    low, high = together[0], quantile(together, share=0.99)
    for table, column in zip(tables, columns, strict=True):
        if column:
            table[metric]["histogram"] = histogram(sorted(column), low=low, high=high)


def _values(measured: Measured, metric: str) -> list[float]:
    place = PairMeasures._fields.index(metric)
    return [value for row in measured.rows if (value := row[place]) is not None]


def _matched(first: Measured, other: Measured) -> dict[str, Any]:
    ours, theirs = _by_prompt(first), _by_prompt(other)
    shared = [prompt for prompt in ours if prompt in theirs]
    metrics = {}
    for place, name in enumerate(PairMeasures._fields):
        both = [(_mean(ours[prompt], place), _mean(theirs[prompt], place)) for prompt in shared]
        differences = [b - a for a, b in both if a is not None and b is not None]
        if differences:
            metrics[name] = dict(_difference(differences))
    return {"name": other.name, "against": first.name, "prompts": len(shared), "metrics": metrics}


def _by_prompt(measured: Measured) -> Mapping[str, list[PairMeasures]]:
    found: dict[str, list[PairMeasures]] = defaultdict(list)
    for prompt, row in zip(measured.prompts, measured.rows, strict=True):
        found[prompt].append(row)
    return found


def _mean(rows: Sequence[PairMeasures], place: int) -> float | None:
    values = [value for row in rows if (value := row[place]) is not None]
    return math.fsum(values) / len(values) if values else None


def _difference(values: Sequence[float]) -> Iterator[tuple[str, float | int | None]]:
    n = len(values)
    mean = math.fsum(values) / n
    yield "mean", mean
    half = None
    if n >= FEWEST:
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
        half = _student(n - 1) * math.sqrt(variance / n)
    yield "low", None if half is None else mean - half
    yield "high", None if half is None else mean + half
    yield "higher", sum(value > 0 for value in values)
    yield "lower", sum(value < 0 for value in values)
    yield "equal", sum(value == 0 for value in values)


def _student(freedom: int) -> float:
    """97.5th percentile of Student's t, by its expansion around the normal one (Abramowitz and Stegun 26.7.5).

    >>> round(_student(5), 2), round(_student(30), 3)
    (2.57, 2.042)
    """
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
