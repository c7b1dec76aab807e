"""A model's thinking told apart from what it says: `<think>` blocks, which hold drafts that nobody meant as an answer.

A block that never closes is thinking to the end. A closing tag alone closes a block that the chat template had opened.

>>> without_thinking("<think>Maybe B.</think>A.")
Spoken(text='A.', thought='Maybe B.')
>>> without_thinking("Maybe B.</think>A.").text
'A.'
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NAMES = r"(?:\w{1,12}:)?(?:thoughts?|reasoning|reflection|scratch_?pad|analysis)"
"""Tags that an answer may write about: one begins a block at the start of a line, and ends it at the end of one."""
_TAG = re.compile(
    r"[<◁](?P<close>/?)(?:\w{1,12}:)?think(?:ing)?[>▷]"
    rf"|^[ \t]{{0,8}}<{_NAMES}>|(?P<ended></{_NAMES}>)(?=[ \t\r]{{0,8}}$)"
    r"|\[(?P<closed>/?)THINK\]|<\|(?:begin|(?P<over>end))_of_thought\|>"
    r"|<\|channel\|>(?:analysis|commentary)[^<\n]{0,80}<\|message\|>"
    r"|(?P<final>(?:<\|end\|>\s{0,4})?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>)",
    re.IGNORECASE | re.MULTILINE,
)
"""An opening or closing tag."""
_STARTS = "<◁["
"""Each begins with one of these; most texts have none, and the pattern is slow."""


class Spoken(NamedTuple):
    """What a model said, and what it thought before."""

    text: str
    thought: str


def has_tag(text: str) -> bool:
    """Whether a tag of thinking stands in the text."""
    return any(start in text for start in _STARTS) and _TAG.search(text) is not None


def without_thinking(text: str) -> Spoken:
    """One pass over the tags; the text between blocks stays as it is."""
    said: list[str] = []
    thought: list[str] = []
    position, inside = 0, False
    for tag in _TAG.finditer(text):
        piece = text[position : tag.start()]
        closes = any(tag[name] for name in ("close", "closed", "ended", "over", "final"))
        if inside:
            thought.append(piece)
        elif closes:
            thought += [*said, piece]
            said.clear()
        else:
            said.append(piece)
        position, inside = tag.end(), not closes
    (thought if inside else said).append(text[position:])
    return Spoken("".join(said), "".join(thought))
