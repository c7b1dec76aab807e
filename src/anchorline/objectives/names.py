"""The objectives' names, what each needs, and when to use it. No torch, so that a recipe is checked without it.

`table` puts the functions to these names.

>>> parse_objective("apo_zero")
{'apo_zero': 1.0}
>>> parse_objective({"apo_zero": 1, "sft": 0.2})
{'apo_zero': 1.0, 'sft': 0.2}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Literal, NamedTuple

from anchorline.errors import RecipeError
from anchorline.types import OBJECTIVE_NAMES


class Description(NamedTuple):
    """What one objective asks for.

    `needs` is the data: "pairs" only, single labelled "answers" (a pair is then two of them), or "either".
    `needs_reference` is False where the reference log-probs play no part; such an objective has no beta.
    `needs_reference_point` is True where a KL estimate from mismatched completions is asked for too.
    """

    needs: Literal["pairs", "answers", "either"]
    needs_reference: bool
    needs_reference_point: bool
    summary: str


DESCRIPTIONS: dict[str, Description] = {
    "apo_zero": Description(
        "pairs", True, False, "chosen is better than what the model writes now: raise it, lower rejected"
    ),
    "apo_down": Description(
        "pairs", True, False, "the model already writes better than chosen: lower both, rejected more"
    ),
    "apo_up": Description(
        "pairs", True, False, "experimental, ours: both answers are better than what the model writes: raise both"
    ),
    "apo_zero_unpaired": Description(
        "answers", True, False, "single labelled answers: raise the wanted, lower the others"
    ),
    "dpo": Description("pairs", True, False, "a baseline: widens the gap and lets both answers fall"),
    "kto": Description("answers", True, True, "a baseline for labelled answers, measured from a KL estimate"),
    "sft": Description(
        "either", False, False, "a baseline, or a small term beside another: imitate the wanted answers"
    ),
}

assert tuple(DESCRIPTIONS) == OBJECTIVE_NAMES, "names.py and types.py list different objectives"


def parse_objective(value: str | Mapping[str, float]) -> dict[str, float]:
    """Weights by name, from "apo_zero", "apo_zero=1,sft=0.2" or a mapping. A name alone weighs 1.

    Raises RecipeError for an unknown or repeated name, and for a weight that is not a finite number above 0.
    """
    if isinstance(value, str):
        weights = _parse_text(value)
    elif isinstance(value, Mapping):
        weights = dict(value)
    else:
        raise RecipeError(
            f"objective is a {type(value).__name__}: expected a name ({_known()}) or a mapping from name to weight"
        )
    if not weights:
        raise RecipeError(f"objective is empty: name at least one of {_known()}")
    return {_known_name(name): _weight(name, weight) for name, weight in weights.items()}


def _parse_text(text: str) -> dict[str, object]:
    weights: dict[str, object] = {}
    for term in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = (part.strip() for part in term.partition("="))
        if name in weights:
            raise RecipeError(f"objective {name!r} is given twice in {text!r}: give it once")
        try:
            weights[name] = float(number) if equals else 1.0
        except ValueError:
            weights[name] = number  # refused below, with the name beside it
    return weights


def _known_name(name: object) -> str:
    if not isinstance(name, str) or name not in DESCRIPTIONS:
        raise RecipeError(f"unknown objective {name!r}: expected one of {_known()}")
    return name


def _weight(name: str, weight: object) -> float:
    # True is an int to Python; in a recipe it is a slip ("apo_zero: yes"). A comparison with nan is False.
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= sys.float_info.max:
        raise RecipeError(f"objective {name!r} has the weight {weight!r}: expected a finite number above 0")
    return float(weight)


def _known() -> str:
    return ", ".join(DESCRIPTIONS)
