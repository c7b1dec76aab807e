"""Figures as the report and the card print them. What is missing or not a number is "–", never "nan" or "None".

>>> number(0.0812), objective_text({"apo_zero": 1.0, "sft": 0.2})
('0.0812', 'apo_zero + 0.2 sft')
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from anchorline.report.charts import is_number

MISSING = "–"
UNIT = "\u00a0%"


def percent(value: Any, *, digits: int | None = None) -> str:
    r"""A share in per cent: whole where it is whole, else with one digit, or as many as tell it from all and from nothing.

    >>> percent(0.95), percent(0.997), percent(0.9996), percent(0.95, digits=1), percent(None)
    ('95\xa0%', '99.7\xa0%', '99.96\xa0%', '95.0\xa0%', '–')
    """
    if not is_number(value):
        return MISSING
    whole = abs(value * 100 - round(value * 100)) < 1e-9
    if digits is None:
        digits = 0 if whole else 1
    while not whole and round(value * 100, digits) in (0, 100):
        digits += 1
    return f"{value * 100:.{digits}f}{UNIT}".replace("-", "−")


def interval(share: Mapping[str, Any]) -> str:
    r"""The ends of a share's interval, in per cent.

    >>> interval({"low": 0.863, "high": 0.9996}), interval({})
    ('86.3–99.96\xa0%', '–')
    """
    low, high = (percent(share.get(end), digits=1) for end in ("low", "high"))
    return MISSING if MISSING in (low, high) else f"{low.removesuffix(UNIT)}–{high}"


def number(value: Any, digits: int | None = None) -> str:
    """A number with that many digits after the point, or with three significant ones; a count in full.

    >>> number(12345), number(0.0812), number(-7.4, 2), number(-0.001, 2), number(float("nan"))
    ('12,345', '0.0812', '−7.40', '0.00', '–')
    """
    if not is_number(value):
        return MISSING
    if digits is None and isinstance(value, int):
        text = f"{value:,}"
    elif digits is None:
        text = f"{value:z.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    else:
        text = f"{value:z,.{digits}f}"  # a change that rounds to nothing has no sign
    return text.replace("-", "−")


def change(value: Any, digits: int | None = None) -> str:
    """The number with its sign, which a change that rounds to nothing has not.

    >>> change(2.5, 1), change(-2.5, 1), change(0.01, 1)
    ('+2.5', '−2.5', '0.0')
    """
    text = number(value, digits)
    return f"+{text}" if is_number(value) and value > 0 and text.strip("0.,") else text


def duration(value: Any) -> str:
    r"""Seconds as a reader says them.

    >>> duration(4.21), duration(372), duration(7380)
    ('4.2\xa0s', '6\xa0min 12\xa0s', '2\xa0h 03\xa0min')
    """
    if not is_number(value):
        return MISSING
    if value < 59.95:
        return f"{value:.1f}\u00a0s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes:02d}\u00a0min" if hours else f"{minutes}\u00a0min {seconds:02d}\u00a0s"


def objective_text(weights: Any, pairs: Sequence[Mapping[str, Any]] | None = ()) -> str:
    """The objective as it is written in the text: a weighted sum, a weight of 1 left out; and what pairs have of their own.

    >>> objective_text({"apo_zero": 1.0, "sft": 0.2})
    'apo_zero + 0.2 sft'
    >>> objective_text({"apo_zero": 1.0}, [{"objective": "dpo"}, {}])
    'apo_zero; 1 of 2 pairs by their own: 1 dpo'
    """
    own, count = own_objectives(pairs), len(pairs or ())
    counts = ", ".join(f"{number(n)} {name}" for name, n in own.items())
    if own and own.total() == count:
        return f"{counts}, each pair’s own"
    text = MISSING
    if isinstance(weights, Mapping) and weights:
        text = " + ".join(name if weight == 1 else f"{number(weight)} {name}" for name, weight in weights.items())
    return f"{text}; {number(own.total())} of {number(count)} pairs by their own: {counts}" if own else text


def own_objectives(pairs: Sequence[Mapping[str, Any]] | None) -> Counter[str]:
    """How many pairs have which objective of their own, in the order of the names."""
    return Counter(sorted(str(pair["objective"]) for pair in pairs or () if pair.get("objective")))


def factor(kl: Any) -> str:
    """How many times as probable a token is to the policy as to the reference, on geometric average, at this KL in nats."""
    return number(math.exp(kl), 2) if is_number(kl) and kl < 20 else MISSING


def reading(low: Any, high: Any) -> str:
    r"""What the interval of a win rate says against a half.

    >>> reading(0.41, 0.63)
    'not settled: the interval holds 50\xa0%'
    """
    if not is_number(low) or not is_number(high):
        return "not settled: there is no interval"
    if low <= 0.5 <= high:
        return "not settled: the interval holds 50\u00a0%"
    return f"{'better' if low > 0.5 else 'worse'}: the interval lies {'above' if low > 0.5 else 'below'} 50\u00a0%"
