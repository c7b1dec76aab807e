"""The measures of one pair, and their spread over a whole set, ready for JSON.

>>> rows = [measure_pair("It left today.", "It left today!"), measure_pair("Yes.", "No.")]
>>> rows[0].word_jaccard, rows[0].character_levenshtein
(0.5, 1)
>>> summarise(rows, touched=[["no_exclamation"], []])["rules"]
{'no_exclamation': 1}
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from anchorline.measure.text import (
    character_levenshtein,
    distance_share,
    jaccard,
    shared_prefix,
    token_levenshtein,
    words,
)

BINS = 20
"""Bars of each histogram."""

_QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


class PairMeasures(NamedTuple):
    """How alike chosen and rejected are. None where a measure does not exist for the pair."""

    word_jaccard: float
    """Overlap of distinct whitespace-separated words, 0 to 1. Higher is more contrastive."""
    token_jaccard: float | None
    """Overlap of distinct tokenizer tokens, 0 to 1; None without a tokenizer."""
    character_levenshtein: int
    """Edits in characters. Lower is more contrastive."""
    token_levenshtein: int | None
    """Edits in tokenizer tokens; None without a tokenizer."""
    normalised_distance: float
    """Edits in characters as a share of the longer answer, 0 to 1."""
    length_ratio: float | None
    """Words in chosen for each word in rejected; None where rejected has no words."""
    shared_prefix: float
    """Characters of the common opening as a share of the shorter answer, 0 to 1."""


SHARES = ("word_jaccard", "token_jaccard", "normalised_distance", "shared_prefix")
"""Measures between 0 and 1."""


def measure_pair(chosen: str, rejected: str, *, tokenize: Callable[[str], Sequence[int]] | None = None) -> PairMeasures:
    """The measures of one pair; `tokenize` turns a text into the policy's token ids."""
    distance = character_levenshtein(chosen, rejected)
    if tokenize is None:
        return with_distances(chosen, rejected, distance)
    tokens = (tokenize(chosen), tokenize(rejected))
    return with_distances(chosen, rejected, distance, tokens, token_levenshtein(*tokens))


def with_distances(
    chosen: str,
    rejected: str,
    distance: int,
    tokens: tuple[Sequence[int], Sequence[int]] | None = None,
    token_distance: int | None = None,
) -> PairMeasures:
    """`measure_pair` from edit distances that are known already, as `many` counts them for many pairs at once."""
    ours, theirs = words(chosen), words(rejected)
    return PairMeasures(
        word_jaccard=jaccard(ours, theirs),
        token_jaccard=None if tokens is None else jaccard(*tokens),
        character_levenshtein=distance,
        token_levenshtein=token_distance,
        normalised_distance=distance_share(distance, chosen, rejected),
        length_ratio=len(ours) / len(theirs) if theirs else None,
        shared_prefix=shared_prefix(chosen, rejected),
    )


def summarise(rows: Iterable[PairMeasures], *, touched: Iterable[object] = ()) -> dict[str, Any]:
    """Spread of each measure over the set, and for each rule the number of pairs whose repair touched it.

    `touched` holds, for each pair, the names of the rules that its repair touched; what is no list of names, in a pair of
    another tool's, counts for none. The result has the keys "pairs",
    "metrics" (by name: count, mean, min, p5 … p95, max, histogram with edges and counts) and "rules" (most frequent
    first). Pairs without a value are left out of that measure's count; a measure without any value is left out.
    """
    rows = list(rows)
    columns = {
        name: [value for row in rows if (value := row[i]) is not None] for i, name in enumerate(PairMeasures._fields)
    }
    lists = (rules for rules in touched if isinstance(rules, list | tuple))
    counts = Counter(rule for rules in lists for rule in {name for name in rules if isinstance(name, str)})
    return {
        "pairs": len(rows),
        "metrics": {name: _spread(column, share=name in SHARES) for name, column in columns.items() if column},
        "rules": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
    }


def _spread(values: Sequence[float], *, share: bool) -> dict[str, Any]:
    ordered = sorted(values)
    # shares always have bars from 0 to 1, so that two sets can be laid over each other
    low, high = (0.0, 1.0) if share else (ordered[0], ordered[-1])
    return {
        "count": len(ordered),
        "mean": math.fsum(ordered) / len(ordered),
        "min": ordered[0],
        **{name: quantile(ordered, share=part) for name, part in _QUANTILES.items()},
        "max": ordered[-1],
        "histogram": histogram(ordered, low=low, high=high),
    }


def quantile(ordered: Sequence[float], *, share: float) -> float:
    """The value below which `share` of the sorted values lie, interpolated between neighbours."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def histogram(ordered: Sequence[float], *, low: float, high: float) -> dict[str, list[float] | list[int]]:
    """Equal bars from low to high; a value on an edge belongs to the bar on its right, the highest to the last bar.

    Where all are the same, they are one narrow bar in the middle of a span of 1.
    """
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = [low + (high - low) * i / BINS for i in range(BINS)] + [high]
    counts = [0] * BINS
    for value in ordered:
        counts[min(bisect_right(edges, value), BINS) - 1] += 1
    return {"edges": edges, "counts": counts}
