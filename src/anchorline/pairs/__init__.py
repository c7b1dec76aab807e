"""Makers: each turns answers into pairs, and what does not become one into a failure with its reason."""

from __future__ import annotations

from anchorline.pairs.clair import Made, clair_pairs, no_pair
from anchorline.pairs.settings import PairSettings

__all__ = ["Made", "PairSettings", "clair_pairs", "no_pair"]
