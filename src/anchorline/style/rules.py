"""The kinds of rules, and the order in which their repairs run.

>>> sorted(ORDER, key=ORDER.__getitem__)[0]
'forbidden'
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from anchorline.style.rules_edges import EndsWith, StartsWith
from anchorline.style.rules_facts import States
from anchorline.style.rules_limits import MaxSentences, MaxWords
from anchorline.style.rules_python import Python
from anchorline.style.rules_shape import NoExclamation, NoMarkdown
from anchorline.style.rules_words import Forbidden, Required, Spelling, Terminology

Rule = Annotated[
    StartsWith
    | EndsWith
    | States
    | Forbidden
    | Required
    | Terminology
    | Spelling
    | NoExclamation
    | NoMarkdown
    | MaxWords
    | MaxSentences
    | Python,
    Field(discriminator="kind"),
]

ORDER = {
    "forbidden": 0,
    "no_markdown": 1,
    "terminology": 2,
    "spelling": 3,
    "no_exclamation": 4,
    "python": 5,
    "states": 6,
    "required": 7,
    "starts_with": 8,
    "ends_with": 9,
    "max_sentences": 10,
    "max_words": 11,
}
"""Sentences go before words change, words change before texts are added, and the length is cut to what is there."""
