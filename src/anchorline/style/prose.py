"""What in an answer is prose and what is verbatim (code, URLs), and the word arithmetic that rules share.

Rules about wording leave code fences, code spans and URLs alone: a changed character would break them.

>>> sub_prose(re.compile("a"), lambda m: "b", "a `a` https://a.com")
'b `a` https://a.com'
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable

FENCE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})[^\n]*(?:\n(?:[^\n]*\n)*?[ \t]*(?P=fence)[`~]*[ \t\r]*$|[\s\S]*\Z)",
    re.MULTILINE,
)
"""A code fence with its two lines of marks; one that is never closed runs to the end, as a renderer has it."""

_VERBATIM = re.compile(
    rf"(?:{FENCE.pattern})"
    r"|(?<!`)(?P<ticks>`+)(?!`)[^\n]{1,500}?(?<!`)(?P=ticks)(?!`)"
    r"|\bhttps?://\S*[^\s.,!?;:)\]}'\"”’»*_…]",
    re.MULTILINE,
)

Spans = list[tuple[int, int]]


def verbatim_spans(text: str) -> Spans:
    """Where the code and the URLs of `text` are, in order and without overlap."""
    return [match.span() for match in _VERBATIM.finditer(text)]


def is_verbatim(spans: Spans, position: int) -> bool:
    """Whether `position` lies in one of `spans`."""
    index = bisect_right(spans, position, key=lambda span: span[0])
    return index > 0 and position < spans[index - 1][1]


def sub_prose(pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str], text: str) -> str:
    """`pattern.sub`, save for matches that touch code or a URL."""
    spans = verbatim_spans(text)

    def replaced(match: re.Match[str]) -> str:
        verbatim = is_verbatim(spans, match.start()) or is_verbatim(spans, max(match.start(), match.end() - 1))
        return match[0] if verbatim else replacement(match)

    return pattern.sub(replaced, text)


def count_words(text: str) -> int:
    """How many stretches without white space `text` has."""
    return len(text.split())


def spoken_words(text: str) -> list[str]:
    """The words of `text` without case and punctuation, to compare what two texts say."""
    return re.findall(r"\w+", text.casefold())


def has_term(text: str, term: str) -> bool:
    """Whether the whole words of `term` stand in `text`, in any case."""
    return term_pattern([term]).search(text) is not None


def term_pattern(terms: list[str]) -> re.Pattern[str]:
    """What finds any of `terms` as whole words, in any case and over any white space; the longest wins."""
    longest_first = sorted(terms, key=len, reverse=True)
    choices = "|".join(r"\s+".join(map(re.escape, term.split())) for term in longest_first)
    return re.compile(rf"(?<!\w)(?:{choices})(?!\w)", re.IGNORECASE)


def cased_like(word: str, pattern: str) -> str:
    """`word` with the capitals of `pattern`: all of them, the first, or its own."""
    if pattern.isupper() and sum(map(str.isalpha, pattern)) > 1:
        return word.upper()
    if pattern[:1].isupper():
        return word[:1].upper() + word[1:]
    return word
