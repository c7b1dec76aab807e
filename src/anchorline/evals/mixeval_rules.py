"""MixEval's rule parsers, as the benchmark defines them: an option letter, or the strings and numbers, of an answer.

Written anew from the benchmark's published definition; what it accepts is kept, its oddities too, since scores hang on them.

>>> parse_choice("The answer is (B).", ["red", "blue"])
'B'
>>> is_right("So the total is 1,250.", ["1250"])
True
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHAPES = (
    " {} ", " {}\n", "\n{} ", "\n{}\n", " {}. ", " {}.\n", "\n{}. ", "\n{}.\n", "({})", "**{} ", " {}**", "**{}. ", " {}.**",
)  # fmt: skip
"""What may stand around an option's letter."""
MARKS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""What the tail of a sentence follows that may hold a free-form answer; in the last sentence also "="."""
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
LONGEST = 10_000
"""Characters of an answer that are read: an answer is model output, and the patterns are tried at each of them."""


def parse_choice(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that the answer names first; None where it names none.

    Letters count before the options' own texts, which are looked for only in answers of more than five words.
    """
    text = answer[:LONGEST]
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        text = text.strip(mark)
    text = f" {text} "
    letters = LETTERS[: len(options)]
    found = [(place, n) for n, letter in enumerate(letters) if (place := _first(text, letter)) >= 0]
    if not found and len(text.split()) > 5:
        lower = text.lower()
        found = [(place, n) for n, option in enumerate(options) if (place := lower.find(option.lower())) >= 0]
    return letters[min(found)[1]] if found else None


def _first(text: str, letter: str) -> int:
    return min((place for shape in SHAPES if (place := text.find(shape.format(letter))) >= 0), default=-1)


def is_right(answer: str, targets: Sequence[str]) -> bool:
    """Whether the answer holds one of the targets: as a text in what its sentences end with, or as the same number."""
    wanted = [value for target in targets for value in normalised(target)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(
        any(target in said for target in texts) if isinstance(said, str) else said in wanted
        for part in predictions(answer[:LONGEST])
        for said in normalised(part)
    )


def predictions(answer: str) -> list[str]:
    """The parts of an answer that may be its result, and the numbers in them."""
    parts = list(_tails(answer))
    return [*parts, *(number for part in parts for pattern in _NUMBERS for number in pattern.findall(part))]


def _tails(answer: str) -> Iterator[str]:
    """The shortest tail of each line that has one; the whole answer where no line has."""
    whole = answer.strip().strip(".").lower()
    lines = whole.split("\n")  # lowered text has no sentence that starts with a capital, so only lines are parts
    tails = []
    for n, line in enumerate(lines):
        marks = (*MARKS, "=") if n == len(lines) - 1 else MARKS
        ends = [line.rsplit(mark, 1)[1].strip() for mark in marks if mark in line]
        shortest = _shortest(ends)
        if shortest and shortest not in {":", ",", ".", "!", "?", ";", "'"}:
            tails.append(shortest)
    yield from tails or [whole]


def _shortest(ends: Sequence[str]) -> str:
    # an empty tail is replaced by the next one, whatever its length; an empty one later wins over what came before
    kept = ""
    for end in ends:
        kept = end if not kept or len(end) < len(kept) else kept
    return kept


def normalised(text: str) -> list[str | float]:
    """A number to two decimals, or the lower-case text; a single character only with a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except (ValueError, OverflowError):
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
