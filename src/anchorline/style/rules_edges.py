r"""Rules for how an answer starts and ends: fixed texts, which may hold a value captured from the prompt.

>>> from anchorline.types import Message
>>> rule = EndsWith(text="Reference: order {n}.", captures={"n": r"order (\d+)"}, missing="Reference: none given.")
>>> rule.resolve((Message("user", "Where is order 4417?"),))
'Reference: order 4417.'
"""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Literal

from anchorline.style.frame import Frame, closes_with, join, opens_with, split_parts
from anchorline.style.from_prompt import SLOT, FromPrompt
from anchorline.style.prose import spoken_words
from anchorline.style.rule import Name
from anchorline.style.sentences import drop, split
from anchorline.types import Messages

_MIN_LITERAL_WORDS = 2


class _Edge(FromPrompt):
    """What the two rules share: how a sentence that says the text already gives way to it."""

    @abstractmethod
    def _place(self, fixed: str, body: str, head: str, tail: str) -> str:
        """The answer with the fixed text in its place."""

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
        literal = [spoken_words(part) for part in SLOT.split(self.text)[::2]]
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
