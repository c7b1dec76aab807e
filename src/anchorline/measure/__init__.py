"""How contrastive pairs are: measures of one pair of answers and of a whole set. Pure, and without torch.

>>> measure_pair("Your order left today.", "Your order left today!").character_levenshtein
1
"""

from __future__ import annotations

from anchorline.measure.compare import Measured, compare
from anchorline.measure.many import measure_pairs
from anchorline.measure.summary import PairMeasures, measure_pair, summarise
from anchorline.measure.text import (
    character_levenshtein,
    jaccard,
    length_ratio,
    normalised_distance,
    shared_prefix,
    token_levenshtein,
    words,
)

__all__ = [
    "Measured",
    "PairMeasures",
    "character_levenshtein",
    "compare",
    "jaccard",
    "length_ratio",
    "measure_pair",
    "measure_pairs",
    "normalised_distance",
    "shared_prefix",
    "summarise",
    "token_levenshtein",
    "words",
]
