"""Makers: each turns answers into pairs, and what does not become one into a failure with its reason."""

from __future__ import annotations

from anchorline.pairs.choose import Choice, Chooser, by_rounds, by_score
from anchorline.pairs.clair import Made, clair_pairs, no_pair
from anchorline.pairs.gates import Fault, failed_gates
from anchorline.pairs.make import Tally, make
from anchorline.pairs.match import Matched, match
from anchorline.pairs.off_policy import ask_models, off_policy
from anchorline.pairs.on_policy import on_policy, sample
from anchorline.pairs.parse import Parsed, parse_revision
from anchorline.pairs.render import user_template
from anchorline.pairs.revise import revise
from anchorline.pairs.settings import GateSettings, PairSettings
from anchorline.pairs.stronger import stronger
from anchorline.pairs.verify import verified

__all__ = [
    "Choice",
    "Chooser",
    "Fault",
    "GateSettings",
    "Made",
    "Matched",
    "PairSettings",
    "Parsed",
    "Tally",
    "ask_models",
    "by_rounds",
    "by_score",
    "clair_pairs",
    "failed_gates",
    "make",
    "match",
    "no_pair",
    "off_policy",
    "on_policy",
    "parse_revision",
    "revise",
    "sample",
    "stronger",
    "user_template",
    "verified",
]
