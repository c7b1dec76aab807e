"""How alike two answers are: overlap of words or tokens, edit distances, lengths, the common opening.

Contrastive pairs are alike in all but what matters: high overlap and a low distance (arXiv 2408.06266 compares its
data sets by token Jaccard and character Levenshtein). Everything here is exact; rapidfuzz counts the edits in C++.

>>> jaccard(words("It left today."), words("It left yesterday."))
0.5
>>> character_levenshtein("today", "to day!")
2
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from rapidfuzz.distance import Levenshtein, Prefix

_EXPECTED = 16
"""Edits looked for first; rapidfuzz widens the search until it has them all. Revisions take half the time or less."""


def words(text: str) -> list[str]:
    """The text cut at whitespace; punctuation stays with its word."""
    return text.split()


def jaccard(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Distinct tokens in both, as a share of the distinct tokens in either; 1 where both are empty."""
    left, right = set(a), set(b)
    either = len(left | right)
    return len(left & right) / either if either else 1.0


def character_levenshtein(a: str, b: str) -> int:
    """The least number of characters (code points) to insert, delete or replace to make `b` of `a`."""
    return Levenshtein.distance(a, b, score_hint=_EXPECTED)


def token_levenshtein(a: Sequence[str] | Sequence[int], b: Sequence[str] | Sequence[int]) -> int:
    """The least number of tokens to insert, delete or replace to make `b` of `a`.

    Both hold words, or both hold token ids (0 or above): rapidfuzz tells tokens apart by their hash, and a word and a
    number could share one.
    """
    return Levenshtein.distance(a, b)


def normalised_distance(a: str, b: str) -> float:
    """Character Levenshtein distance as a share of the longer text: 0 for equal texts, 1 at most."""
    return distance_share(character_levenshtein(a, b), a, b)


def distance_share(distance: int, a: str, b: str) -> float:
    """`normalised_distance` from a distance that is known already."""
    return distance / max(len(a), len(b), 1)


def length_ratio(chosen: str, rejected: str) -> float | None:
    """Words in chosen for each word in rejected; None where rejected has no words."""
    count = len(words(rejected))
    return len(words(chosen)) / count if count else None


def shared_prefix(a: str, b: str) -> float:
    """Characters of the common opening as a share of the shorter text; 1 where one text opens with all of the other."""
    shorter = min(len(a), len(b))
    return Prefix.similarity(a, b) / shorter if shorter else 1.0
