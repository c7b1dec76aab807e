r"""The rule for what an answer says, not how: the fact that the prompt holds, else that it holds none.

>>> from anchorline.style.frame import Frame
>>> from anchorline.types import Message
>>> rule = States(text="It says {n}.", captures={"n": r"Gate: (\d+)"}, missing="It does not say.")
>>> rule.repaired((Message("user", "Gate: 12\n\nWhich gate?"),), "Gate 7, I think.", Frame("", "", ()))
'It says 12.'
>>> rule.repaired((Message("user", "Which gate?"),), "Gate 7, I think.", Frame("", "", ()))
'It does not say.'
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import model_validator

from anchorline.style.frame import Frame, split_parts, with_body
from anchorline.style.from_prompt import FromPrompt
from anchorline.style.rule import Name
from anchorline.types import Messages


class States(FromPrompt):
    """The answer holds every captured value, whole and in any case; where a capture finds nothing, it is `missing` alone.

    Repair: an answer without the values becomes the text. All of it goes: what stands in the fact's place is as wrong
    as the rest may be, and no rule can tell the two apart.
    """

    kind: Literal["states"] = "states"
    name: Name = "states"

    @model_validator(mode="after")
    def _has_captures(self) -> Self:
        if not self.captures:
            raise ValueError("`states` is about values from the prompt; add `captures`, or use `required`")
        return self

    def kept(self, prompt: Messages, text: str) -> bool:
        values = self.values(prompt)
        if values is None:
            return self.missing is None or text.strip() == self.missing
        denied = self.missing is not None and self.missing in text
        return not denied and all(_holds(text, value) for value in values.values())

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        fixed = self.resolve(prompt)
        assert fixed is not None
        return fixed if self.values(prompt) is None else with_body(split_parts(text, frame), fixed)


def _holds(text: str, value: str) -> bool:
    """Whether `value` stands in `text` by itself: "12" neither in "120" nor in "12:30" nor in "3.12"."""
    words = r"\s+".join(map(re.escape, value.split()))
    return re.search(rf"(?<!\w)(?<!\d[.,:]){words}(?!\w|[.,:]\d)", text, re.IGNORECASE) is not None
