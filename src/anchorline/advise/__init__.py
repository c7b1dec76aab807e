"""Which objective fits a model and a set of pairs, and what to look at before training."""

from __future__ import annotations

from anchorline.advise.advice import Advice, advise, own_objectives
from anchorline.advise.compare import Compared, compared_from_row, compared_to_row, meet
from anchorline.advise.flips import flip_table
from anchorline.advise.settings import AdviseSettings
from anchorline.advise.warnings import warnings_of

__all__ = [
    "Advice",
    "AdviseSettings",
    "Compared",
    "advise",
    "compared_from_row",
    "compared_to_row",
    "flip_table",
    "meet",
    "own_objectives",
    "warnings_of",
]
