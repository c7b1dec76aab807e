"""Rules about wording: patterns that must not occur, a term that must, and words that have a right form.

>>> from anchorline.style.frame import Frame
>>> rule = Terminology(terms={"basket": "cart"})
>>> rule.repaired((), "Your Basket is empty.", Frame("", "", ()))
'Your Cart is empty.'
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from anchorline.style.frame import Frame, change_body, join, split_parts, with_additions, with_body
from anchorline.style.patterns import Pattern, find_all
from anchorline.style.prose import cased_like, has_term, sub_prose, term_pattern
from anchorline.style.rule import BaseRule, FixedText, Name
from anchorline.style.sentences import Piece, drop, split
from anchorline.style.spelling_words import AMERICAN, BRITISH
from anchorline.types import Messages

ROUNDS = 100
"""So often is replaced what replacing made anew; what matches then goes with its sentence."""

Term = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class Replace(BaseModel):
    """Put a text where the pattern matches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replace: Annotated[str, StringConstraints(max_length=2_000)]
    """Taken literally; may be empty, which takes the match out."""


class Forbidden(BaseRule):
    """The pattern matches nowhere, code included. Repair: the sentence goes, or the match is replaced."""

    kind: Literal["forbidden"] = "forbidden"
    name: Name = "forbidden"
    pattern: Pattern
    """The `regex` module's syntax; `(?i)` at the start ignores case."""
    repair: Literal["drop_sentence"] | Replace = "drop_sentence"

    def kept(self, prompt: Messages, text: str) -> bool:
        return not find_all(self.pattern, text, rule=self.name)

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        if isinstance(self.repair, Replace):
            replacement = self.repair.replace
            text = change_body(text, frame, lambda body: self._replaced(body, replacement))
        while matches := find_all(self.pattern, text, rule=self.name):
            shorter = _without(text, matches, frame)
            if shorter == text:
                break
            text = shorter
        return text

    def _replaced(self, body: str, replacement: str) -> str:
        """Every match replaced, and those that this makes, unless they become more."""
        matches = find_all(self.pattern, body, rule=self.name)
        for _ in range(ROUNDS):
            before, body = body, _put_in(body, matches, replacement)
            made = find_all(self.pattern, body, rule=self.name)
            if not made or body == before or len(made) > len(matches):
                break
            matches = made
        return body


def _put_in(body: str, matches: list[tuple[int, int]], replacement: str) -> str:
    """The replacement for each match; one taken out whole also takes a space that it would leave doubled."""
    done, out = 0, ""
    for start, end in matches:
        out += body[done:start]
        if not replacement and (not out or out[-1].isspace()) and body[end : end + 1] == " ":
            end += 1  # noqa: PLW2901
        out += replacement
        done = end
    return out + body[done:]


def _without(text: str, matches: list[tuple[int, int]], frame: Frame) -> str:
    """The text without the sentences of its body that a match touches (a match in white space: the sentence after)."""
    parts = split_parts(text, frame)
    pieces = split(parts.body)
    dropped: set[int] = set()
    position = len(parts.head)
    spans: list[tuple[int, int]] = []
    for piece in pieces:
        spans.append((position, position + len(piece.text)))
        position += len(piece.text)
    for start, end in matches:
        touched = [i for i, span in enumerate(spans) if start < span[1] and span[0] < end]
        content = [i for i in touched if pieces[i].is_content]
        if not content and touched:
            content = [_nearest_content(pieces, touched[-1])]
        dropped.update(content)
    if dropped:
        return with_body(parts, drop(pieces, dropped))
    whole = join(parts.head.strip(), parts.body, opening=True)  # the match is in the white space around the body
    return join(whole, parts.tail.strip())


def _nearest_content(pieces: tuple[Piece, ...], index: int) -> int:
    """The content after a marker or a gap, else the one before it, else the piece itself."""
    order = (*range(index, len(pieces)), *reversed(range(index)))
    return next((i for i in order if pieces[i].is_content), index)


class Required(BaseRule):
    """The term occurs, as whole words in any case. Repair: the sentence is added at the end of the body."""

    kind: Literal["required"] = "required"
    name: Name = "required"
    term: Term
    sentence: FixedText

    @model_validator(mode="after")
    def _sentence_has_the_term(self) -> Self:
        if not has_term(self.sentence, self.term):
            raise ValueError(f"the sentence {self.sentence!r} does not hold the term {self.term!r}; add it there")
        return self

    def kept(self, prompt: Messages, text: str) -> bool:
        return has_term(text, self.term)

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        parts = split_parts(text, frame)
        return with_additions(parts, parts.body, frame)


class Terminology(BaseRule):
    """No term of the left column occurs outside code and URLs. Repair: the term of the right column takes its place.

    Whole words, any case; capitals carry over ("Basket" to "Cart", "BASKET" to "CART"), unless the left column has
    capitals of its own.
    """

    kind: Literal["terminology"] = "terminology"
    name: Name = "terminology"
    terms: Annotated[dict[Term, Term], Field(min_length=1, max_length=500)]

    def kept(self, prompt: Messages, text: str) -> bool:
        return self.corrected(text) == text

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        return change_body(text, frame, self.corrected)

    def put_in(self) -> tuple[str, ...]:
        """Every text that the rule may put into an answer."""
        found = {wrong: (wrong, wrong.capitalize(), wrong.upper()) for wrong in self.terms}
        return tuple(_in_case(wrong, right, text) for wrong, right in self.terms.items() for text in found[wrong])

    def corrected(self, text: str) -> str:
        right = {" ".join(wrong.casefold().split()): (wrong, right) for wrong, right in self.terms.items()}

        def replaced(match: re.Match[str]) -> str:
            wrong_right = right.get(" ".join(match[0].casefold().split()))
            if wrong_right is None:  # a letter that ignoring case equates and casefolding does not
                return match[0]
            return _in_case(*wrong_right, match[0])

        return sub_prose(_terms_pattern(tuple(self.terms)), replaced, text)


def _in_case(wrong: str, right: str, found: str) -> str:
    return cased_like(right, found) if wrong == wrong.lower() else right


@lru_cache(maxsize=64)
def _terms_pattern(terms: tuple[str, ...]) -> re.Pattern[str]:
    return term_pattern(list(terms))


class Spelling(BaseRule):
    """One spelling variant outside code and URLs, for the words of a built-in list. Repair: the word is respelled."""

    kind: Literal["spelling"] = "spelling"
    name: Name = "spelling"
    variant: Literal["british", "american"]
    keep: tuple[str, ...] = ()
    """Words never respelled, capitals as given: a name such as "Harbour" in an American text."""

    def kept(self, prompt: Messages, text: str) -> bool:
        return self.corrected(text) == text

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        return change_body(text, frame, self.corrected)

    def corrected(self, text: str) -> str:
        words = BRITISH if self.variant == "british" else AMERICAN

        def respelled(match: re.Match[str]) -> str:
            word = words.get(match[0].lower())
            return match[0] if word is None or match[0] in self.keep else cased_like(word, match[0])

        return sub_prose(_WORD, respelled, text)


_WORD = re.compile(r"[^\W\d_]+")
