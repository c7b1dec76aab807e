r"""Rules for how an answer starts and ends: fixed texts, which may hold a value captured from the prompt.

>>> from anchorline.types import Message
>>> rule = EndsWith(text="Reference: order {n}.", captures={"n": r"order (\d+)"}, missing="Reference: none given.")
>>> rule.resolve((Message("user", "Where is order 4417?"),))
'Reference: order 4417.'
"""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from anchorline.style.frame import Frame, closes_with, join, opens_with, split_parts
from anchorline.style.patterns import Pattern, capture
from anchorline.style.prose import spoken_words
from anchorline.style.rule import BaseRule, FixedText, Name
from anchorline.style.sentences import drop, split
from anchorline.types import Messages

PLACEHOLDER_VALUE = "4417"
"""Stands for a captured value where a style is checked against itself."""

_SLOT = re.compile(r"\{(\w+)\}")
_MAX_VALUE = 200
_MIN_LITERAL_WORDS = 2


class _Edge(BaseRule):
    """What the two rules share: a template, where its values come from, and what stands there without them."""

    text: FixedText
    """The template; `{name}` stands for the capture of that name."""
    captures: Annotated[dict[str, Pattern], Field(max_length=10, default_factory=dict)]
    """Patterns searched in the prompt's user turns, the last turn first. The first group is the value."""
    missing: FixedText | None = None
    """The text where a capture finds nothing; without it the rule then does not apply and counts as kept."""

    @model_validator(mode="after")
    def _captures_and_slots_agree(self) -> Self:
        slots = set(_SLOT.findall(self.text))
        if unknown := sorted(slots - self.captures.keys()):
            raise ValueError(f"the text uses {{{unknown[0]}}}, and captures has no {unknown[0]!r}; add it")
        if unused := sorted(self.captures.keys() - slots):
            raise ValueError(f"the capture {unused[0]!r} is used nowhere in the text; put {{{unused[0]}}} there")
        if self.missing is not None and not self.captures:
            raise ValueError("`missing` is for texts with captures; remove it")
        return self

    @abstractmethod
    def _place(self, fixed: str, body: str, head: str, tail: str) -> str:
        """The answer with the fixed text in its place."""

    def resolve(self, prompt: Messages) -> str | None:
        """The fixed text for this prompt, or None where the rule does not apply."""
        values: dict[str, str] = {}
        for name, pattern in self.captures.items():
            found = (capture(pattern, turn.content, rule=self.name) for turn in reversed(prompt) if turn.role == "user")
            value = next((value for value in found if value and len(value) <= _MAX_VALUE), None)
            if value is None:
                return self.missing
            values[name] = value
        return _SLOT.sub(lambda slot: values[slot[1]], self.text)

    def variants(self) -> tuple[str, ...]:
        """The texts that the rule may put into an answer, a placeholder for each value."""
        filled = _SLOT.sub(PLACEHOLDER_VALUE, self.text)
        return (filled,) if self.missing is None else (filled, self.missing)

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        """The fixed text added. A sentence that already says it, or says it with other values, gives way to it."""
        fixed = self.resolve(prompt)
        assert fixed is not None
        parts = split_parts(text, frame)
        pieces = split(parts.body)
        same = [i for i, piece in enumerate(pieces) if piece.kind == "sentence" and self._is_said(piece.text, fixed)]
        body = drop(pieces, same).strip() if same else parts.body
        return self._place(fixed, body, parts.head, parts.tail)

    def _is_said(self, sentence: str, fixed: str) -> bool:
        said = " ".join(spoken_words(sentence))
        if said in {" ".join(spoken_words(text)) for text in (fixed, self.missing or fixed)}:
            return True
        literal = [spoken_words(part) for part in _SLOT.split(self.text)[::2]]
        if not self.captures or sum(map(len, literal)) < _MIN_LITERAL_WORDS:
            return False
        slot = r"\S+(?: \S+){0,2}"
        return re.fullmatch(f" ?{slot} ?".join(re.escape(" ".join(words)) for words in literal), said) is not None


class StartsWith(_Edge):
    """The answer starts with the text. Repair: the text is put before it."""

    kind: Literal["starts_with"] = "starts_with"
    name: Name = "starts_with"

    def kept(self, prompt: Messages, text: str) -> bool:
        opening = self.resolve(prompt)
        return opening is None or opens_with(text, opening)

    def _place(self, fixed: str, body: str, head: str, tail: str) -> str:
        return join(fixed, body, opening=True) + tail if body else join(fixed, tail.strip(), opening=True)


class EndsWith(_Edge):
    """The answer ends with the text. Repair: the text is put after it."""

    kind: Literal["ends_with"] = "ends_with"
    name: Name = "ends_with"

    def kept(self, prompt: Messages, text: str) -> bool:
        closing = self.resolve(prompt)
        return closing is None or closes_with(text, closing)

    def _place(self, fixed: str, body: str, head: str, tail: str) -> str:
        return head + join(body, fixed) if body else join(head.strip(), fixed, opening=True)
