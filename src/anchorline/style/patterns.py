r"""A style's own regular expressions. They come from a file, so they are bounded: in length, in text and in time.

>>> find_all(r"\bsorry\b", "So sorry.", rule="no_apology")
[(3, 8)]
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import regex
from pydantic import AfterValidator, StringConstraints

from anchorline.errors import StyleError

MAX_PATTERN = 2_000
"""Characters of one pattern."""
TIMEOUT_SECONDS = 2.0
"""What one search may take before the style is refused; a sound pattern needs microseconds."""


def checked(pattern: str) -> str:
    """`pattern`, if it compiles and cannot match nothing at all."""
    try:
        found = compiled(pattern).search("", timeout=TIMEOUT_SECONDS)
    except (regex.error, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    except TimeoutError:
        raise ValueError("the pattern takes too long even on an empty text; make it simpler") from None
    if found:
        raise ValueError("the pattern matches the empty text, so it would match everywhere; make it need a character")
    return pattern


Pattern = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PATTERN), AfterValidator(checked)]
"""A regular expression in a style file (the `regex` module's syntax)."""


@lru_cache(maxsize=256)
def compiled(pattern: str) -> regex.Pattern:
    return regex.compile(pattern)


def find_all(pattern: str, text: str, *, rule: str) -> list[tuple[int, int]]:
    """The spans where `pattern` matches at least one character of `text`."""
    try:
        return [m.span() for m in compiled(pattern).finditer(text, timeout=TIMEOUT_SECONDS) if m.end() > m.start()]
    except TimeoutError:
        raise _too_slow(pattern, rule) from None


def capture(pattern: str, text: str, *, rule: str) -> str | None:
    """The first group that took part in the first match (the whole match without groups), white space made single."""
    try:
        match = compiled(pattern).search(text, timeout=TIMEOUT_SECONDS)
    except TimeoutError:
        raise _too_slow(pattern, rule) from None
    if match is None:
        return None
    value = next((group for group in match.groups() if group), None) if match.groups() else match.group()
    return " ".join((value or "").split()) or None


def _too_slow(pattern: str, rule: str) -> StyleError:
    shown = pattern if len(pattern) <= 60 else pattern[:57] + "..."
    return StyleError(
        f"rule {rule!r}: the pattern {' '.join(shown.split())!r} took over {TIMEOUT_SECONDS:g} s on one text; "
        "simplify it (nested repetitions such as (a+)+ are the usual cause)"
    )
