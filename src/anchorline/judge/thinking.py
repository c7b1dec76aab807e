"""A model's thinking told apart from what it says: `<think>` blocks, which hold drafts that nobody meant as an answer.

A reply that begins with a block that never closes is thinking to the end. A closing tag alone closes a block that the chat
template had opened. A tag that is merely written about, within a sentence or in a code block, is said.

>>> without_thinking("<think>Maybe B.</think>A.")
Spoken(text='A.', thought='Maybe B.')
>>> without_thinking("Maybe B.</think>A.").text
'A.'
>>> without_thinking("Wrap it in <think> and </think>.").thought
''
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import NamedTuple

_NAMES = r"(?:\w{1,12}:)?(?:thoughts?|reasoning|reflection|scratch_?pad|analysis)"
"""Tags that an answer may well have: one begins a block at the start of a reply only, and ends it at the end of a line."""
_TAG = re.compile(
    r"[<◁](?P<close>/?)(?:\w{1,12}:)?think(?:ing)?[>▷]"
    rf"|^[ \t]{{0,8}}(?P<named><{_NAMES}>)|(?P<ended></{_NAMES}>)(?=[ \t\r]{{0,8}}$)"
    r"|\[(?P<closed>/?)THINK\]|<\|(?:begin|(?P<over>end))_of_thought\|>"
    r"|<\|channel\|>(?:analysis|commentary)[^<\n]{0,80}<\|message\|>"
    r"|(?P<final>(?:<\|end\|>\s{0,4})?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>)",
    re.IGNORECASE | re.MULTILINE,
)
"""An opening or closing tag."""
_CLOSING = ("close", "closed", "ended", "over", "final")
"""The groups of closing tags."""
_FENCE = re.compile(r"^[ \t]{0,3}(?:`{3}|~{3})", re.MULTILINE)
_ENDS = ".!?…。！？"
_STARTS = "<◁["
"""Each begins with one of these; most texts have none, and the pattern is slow."""


class Spoken(NamedTuple):
    """What a model said, and what it thought before."""

    text: str
    thought: str


def has_tag(text: str) -> bool:
    """Whether a tag of thinking stands in the text."""
    return any(start in text for start in _STARTS) and _TAG.search(text) is not None


def without_thinking(text: str, *, gap: str = "") -> Spoken:
    """One pass over the tags; the text between blocks stays as it is. `gap` is put where a block was."""
    if not has_tag(text):
        return Spoken(text, "")
    tags = list(_TAG.finditer(text))
    fences = [fence.start() for fence in _FENCE.finditer(text)]
    last_close = max((tag.start() for tag in tags if _closes(tag)), default=-1)
    said: list[str] = []
    thought: list[str] = []
    position, inside, mentioned = 0, False, False
    for tag in tags:
        piece, closes = text[position : tag.start()], _closes(tag)
        if not inside:
            first = not closes and not piece.strip() and not "".join(said).strip()
            closed = closes or tag.start() < last_close
            in_code = _in_code(fences, position, tag.start())
            if not first and not (closed and not in_code and _is_one(tag, piece, mentioned=mentioned)):
                mentioned = mentioned or not closes
                continue
        if inside:
            thought.append(piece)
        elif closes:
            thought += [*said, piece]
            said.clear()
        else:
            said += [piece, gap]
        position, inside, mentioned = tag.end(), not closes, False
    (thought if inside else said).append(text[position:])
    return Spoken("".join(said), "".join(thought))


def said_alone(text: str) -> str:
    """An answer without its thinking; one that has none stays as it is, white space included."""
    spoken = without_thinking(text).text
    return text if spoken == text else spoken.strip()


def begins_thinking(text: str) -> bool:
    """Whether a text begins with a block of thinking."""
    tag = _TAG.match(text.lstrip())
    return tag is not None and not _closes(tag)


def _closes(tag: re.Match[str]) -> bool:
    return any(tag[name] for name in _CLOSING)


def _in_code(fences: list[int], start: int, position: int) -> bool:
    """Whether a place is within a code block that begins after `start` and ends."""
    after = bisect_left(fences, position)
    return (after - bisect_left(fences, start)) % 2 == 1 and after < len(fences)


def _is_one(tag: re.Match[str], before: str, *, mentioned: bool) -> bool:
    """Whether a tag in the midst of a reply opens or closes a block: on a line's start, or set right behind a word.

    `before` is the text before it, `mentioned` whether an opening tag was written about there.
    """
    if tag[0].startswith("<|"):  # a model's own mark, which nobody types
        return True
    if tag["named"] or tag["ended"]:
        return False
    line = before.rpartition("\n")[2]
    if not line.strip():
        return True
    if _closes(tag):
        return not mentioned and (line[-1].isalnum() or line[-1] in _ENDS)
    return (line[-1].isascii() and line[-1].isalnum()) or line[-1] in _ENDS
