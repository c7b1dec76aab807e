r"""What every rule is: a check and its minimal repair, under a name that reports and failures use.

A new kind of rule is one subclass, one entry in `rules.Rule` and one in `rules.ORDER`:

    class NoTabs(BaseRule):
        kind: Literal["no_tabs"] = "no_tabs"
        name: Name = "no_tabs"
        def kept(self, prompt, text): return "\t" not in text
        def repaired(self, prompt, text, frame): return change_body(text, frame, lambda body: body.replace("\t", " "))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from anchorline.style.frame import Frame
from anchorline.types import Messages

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60, pattern=r"^[^\n\r]+$")]
FixedText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2_000)]
"""A text that goes into answers as it stands."""


class BaseRule(BaseModel, ABC):
    """One rule of a style."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name

    @abstractmethod
    def kept(self, prompt: Messages, text: str) -> bool:
        """Whether the answer `text` keeps the rule."""

    @abstractmethod
    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        """`text`, which breaks the rule, changed as little as makes it keep the rule; `frame`'s texts stay."""
