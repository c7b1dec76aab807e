r"""A text with values captured from the prompt: what rules about openings, closings and facts share.

>>> from anchorline.style.rules_edges import EndsWith
>>> from anchorline.types import Message
>>> rule = EndsWith(text="Order {n}.", captures={"n": r"order (\d+)"})
>>> rule.values((Message("user", "Where is order 4417?"),))
{'n': '4417'}
"""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from anchorline.style.patterns import Pattern, capture
from anchorline.style.rule import BaseRule, FixedText
from anchorline.types import Messages

PLACEHOLDER_VALUE = "4417"
"""Stands for a captured value where a style is checked against itself."""
SLOT = re.compile(r"\{(\w+)\}")
"""`{name}` in a template."""

_MAX_VALUE = 200


class FromPrompt(BaseRule):
    """A template, where its values come from, and what stands there without them."""

    text: FixedText
    """The template; `{name}` stands for the capture of that name."""
    captures: Annotated[dict[str, Pattern], Field(max_length=10, default_factory=dict)]
    """Patterns searched in the prompt's user turns, the last turn first. The first group is the value."""
    missing: FixedText | None = None
    """The text where a capture finds nothing; without it the rule then does not apply and counts as kept."""

    @model_validator(mode="after")
    def _captures_and_slots_agree(self) -> Self:
        slots = set(SLOT.findall(self.text))
        if unknown := sorted(slots - self.captures.keys()):
            raise ValueError(f"the text uses {{{unknown[0]}}}, and captures has no {unknown[0]!r}; add it")
        if unused := sorted(self.captures.keys() - slots):
            raise ValueError(f"the capture {unused[0]!r} is used nowhere in the text; put {{{unused[0]}}} there")
        if self.missing is not None and not self.captures:
            raise ValueError("`missing` is for texts with captures; remove it")
        return self

    def values(self, prompt: Messages) -> dict[str, str] | None:
        """What the captures find in this prompt, or None where one of them finds nothing."""
        values: dict[str, str] = {}
        for name, pattern in self.captures.items():
            found = (capture(pattern, turn.content, rule=self.name) for turn in reversed(prompt) if turn.role == "user")
            value = next((value for value in found if value and len(value) <= _MAX_VALUE), None)
            if value is None:
                return None
            values[name] = value
        return values

    def resolve(self, prompt: Messages) -> str | None:
        """The text for this prompt, or None where the rule does not apply."""
        values = self.values(prompt)
        return self.missing if values is None else SLOT.sub(lambda slot: values[slot[1]], self.text)

    def variants(self) -> tuple[str, ...]:
        """The texts that the rule may put into an answer, a placeholder for each value."""
        filled = SLOT.sub(PLACEHOLDER_VALUE, self.text)
        return (filled,) if self.missing is None else (filled, self.missing)
