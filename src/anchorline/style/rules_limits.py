"""Rules about length. Their repair leaves whole sentences out, from the end of the answer's own text.

>>> from anchorline.style.frame import Frame
>>> MaxWords(limit=4).repaired((), "It left today. It comes soon. Bye.", Frame("", "Bye.", ()))
'It left today. Bye.'
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from anchorline.style.frame import Frame, split_parts, with_additions
from anchorline.style.prose import count_words
from anchorline.style.rule import BaseRule, Name
from anchorline.style.sentences import Piece, count_sentences, ends_properly, split
from anchorline.types import Messages

Limit = Annotated[int, Field(ge=1, le=100_000, strict=True)]


class MaxWords(BaseRule):
    """At most so many words (stretches without white space). Repair: sentences go from the end.

    Where one sentence alone is too long, its last words go.
    """

    kind: Literal["max_words"] = "max_words"
    name: Name = "max_words"
    limit: Limit

    def kept(self, prompt: Messages, text: str) -> bool:
        return count_words(text) <= self.limit

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        return _trimmed(text, frame, lambda candidate: count_words(candidate) <= self.limit)


class MaxSentences(BaseRule):
    """At most so many sentences; a list item, a heading and a code fence count as one. Repair: they go from the end."""

    kind: Literal["max_sentences"] = "max_sentences"
    name: Name = "max_sentences"
    limit: Limit

    def kept(self, prompt: Messages, text: str) -> bool:
        return count_sentences(text) <= self.limit

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        return _trimmed(text, frame, lambda candidate: count_sentences(candidate) <= self.limit)


def _trimmed(text: str, frame: Frame, fits: Callable[[str], bool]) -> str:
    """The longest beginning of the body, in sentences, else in words, with which the whole answer fits."""
    parts = split_parts(text, frame)
    pieces = split(parts.body)
    units = [index for index, piece in enumerate(pieces) if piece.is_content]

    def sentences_less(dropped: int) -> str:
        return with_additions(parts, _beginning(pieces, units, len(units) - dropped), frame)

    def words_less(dropped: int) -> str:
        return with_additions(parts, cut_words(first, len(words) - dropped), frame)

    best = bisect_left(range(len(units)), True, key=lambda dropped: fits(sentences_less(dropped)))
    if best < len(units):
        return sentences_less(best)
    if units and pieces[units[0]].kind == "sentence":
        first = _beginning(pieces, units, 1)
        words = first.split()
        best = bisect_left(range(len(words)), True, key=lambda dropped: fits(words_less(dropped)))
        if best < len(words):
            return words_less(best)
    return with_additions(parts, "", frame)


def _beginning(pieces: tuple[Piece, ...], units: list[int], count: int) -> str:
    """The first `count` units; where more follow, one that only leads in to them ("Do this:") goes with them."""
    if count < len(units):
        while count > 1 and pieces[units[count - 1]].text.endswith((":", "：")):
            count -= 1
    text = "".join(piece.text for piece in pieces[: units[count - 1] + 1])
    alone = count == 1 < len(units) and text.endswith(":")
    return text[:-1] + "." if alone else text


def cut_words(text: str, count: int) -> str:
    """The first `count` words of `text`, ended as a sentence is."""
    if count < 1:
        return ""
    last = list(re.finditer(r"\S+", text))[count - 1]
    cut = text[: last.end()]
    for mark in ("**", "`"):  # half a pair of marks says nothing
        if cut.count(mark) % 2:
            before, _, after = cut.rpartition(mark)
            cut = before + after
    cut = cut.rstrip(" \t\r\n,;:–—-([{\"'“‘«*_#>+")
    return cut if not cut or ends_properly(cut) else cut + "."
