"""Rules about the marks in an answer: exclamation marks and markdown.

>>> from anchorline.style.frame import Frame
>>> NoExclamation().repaired((), "Great!! Really?!", Frame("", "", ()))
'Great. Really?'
"""

from __future__ import annotations

import re
from typing import Literal

from anchorline.style.frame import Frame, change_body
from anchorline.style.markdown import plain
from anchorline.style.prose import is_verbatim, verbatim_spans
from anchorline.style.rule import BaseRule, Name
from anchorline.types import Messages


class NoExclamation(BaseRule):
    """No exclamation mark outside code and URLs. Repair: a full stop, or the question mark or dots that stand with it.

    `!=` and the mark before a markdown image are not exclamations.
    """

    kind: Literal["no_exclamation"] = "no_exclamation"
    name: Name = "no_exclamation"

    def kept(self, prompt: Messages, text: str) -> bool:
        return calmed(text) == text

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        return change_body(text, frame, calmed)


class NoMarkdown(BaseRule):
    """No headings, bold, italics, bullets, links, images, code spans or fences. Repair: their plain text."""

    kind: Literal["no_markdown"] = "no_markdown"
    name: Name = "no_markdown"

    def kept(self, prompt: Messages, text: str) -> bool:
        return plain(text) == text

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        return change_body(text, frame, plain)


_EXCLAMATIONS = frozenset("!！¡‼⁉")
_RUN = re.compile("[.?…。？!！¡‼⁉]+")
_NO_EXCLAMATION = re.compile(r"=|\[[^\]\n]{0,500}\]\(")
_CLOSES = re.compile(r"[ \t]*\)")
_NEEDS_NO_STOP = frozenset(".,;:?…。？，、；：([{\"'“‘«¿-–—*_#>+")
"""A mark after one of these, or at the start of a line, goes without a full stop in its place."""


def calmed(text: str) -> str:
    """`text` without exclamation marks in its prose."""
    spans = verbatim_spans(text)
    out, done = "", 0
    for match in _RUN.finditer(text):
        start, end = match.span()
        if text[end - 1] == "!" and _NO_EXCLAMATION.match(text, end):
            end -= 1
        if _EXCLAMATIONS.isdisjoint(text[start:end]) or is_verbatim(spans, start):
            continue
        out += text[done:start]
        done = end
        stop = _calm_run(text[start:end])
        if stop is not None:
            out += stop
            continue
        if "¡" in text[start:end]:  # opens an exclamation: nothing stands in its place
            continue
        unspaced = out.rstrip(" \t")
        alone = _CLOSES.match(text, end) if unspaced.endswith("(") else None
        if alone is not None:  # the brackets go with the mark
            out, done = unspaced[:-1].rstrip(" \t"), alone.end()
            continue
        if unspaced[-1:] in ("", "\n", "\r"):
            done = end + len(text[end:]) - len(text[end:].lstrip(" \t"))
        elif unspaced[-1] in _NEEDS_NO_STOP:
            out = unspaced if unspaced[-1] not in "-*+>#" else out
        else:
            out = unspaced + ("。" if "！" in text[start:end] else ".")
    return out + text[done:]


def _calm_run(run: str) -> str | None:
    """What is left of a run of marks: its question marks, else its dots; None where it has exclamation marks alone."""
    if questions := "".join("?" if mark == "⁉" else mark for mark in run if mark in "?？⁉"):
        return questions
    if "…" in run or "。" in run:
        return "…" if "…" in run else "。"
    dots = run.count(".")
    return ("..." if dots >= 3 else ".") if dots else None
