r"""The plain text of a markdown answer: the words stay, the marks go.

>>> plain("## Steps\n- **Open** the [page](https://a.com).")
'Steps\nOpen the page (https://a.com).'
"""

from __future__ import annotations

import re
from collections.abc import Callable

from anchorline.style.prose import FENCE

_SPAN = 500
"""Characters that a mark may span; it bounds the search for marks that nothing closes."""
DEEP = 8
"""From so many rounds on all bullets and heading marks of a line go at once: one a round, thousands would take minutes."""


def plain(text: str) -> str:
    """`text` without markdown; marks within marks go too. Every step shortens the text, so this ends."""
    before, rounds = None, 0
    while before != text:
        before, rounds = text, rounds + 1
        for pattern, replacement in _STEPS:
            text = pattern.sub(replacement, text)
        if rounds >= DEEP:
            text = _OPENINGS.sub(r"\1", text)
    return text


def _unfenced(match: re.Match[str]) -> str:
    lines = match[0].splitlines(keepends=True)[1:]
    closed = lines and lines[-1].lstrip().startswith(match["fence"])
    return "".join(lines[:-1] if closed else lines).removesuffix("\n").removesuffix("\r")


def _linked(match: re.Match[str]) -> str:
    label, target = match["label"], match["target"]
    return label if label == target or match["image"] else f"{label} ({target})"


def _around(mark: str, *, inside_words: bool) -> re.Pattern[str]:
    """Text between two equal marks that touch it."""
    before, after = ("", "") if inside_words else (r"(?<![\w*_])", r"(?![\w*_])")
    return re.compile(rf"{before}{mark}(?=[^\s*_`])([^\n]{{0,{_SPAN}}}?[^\s])(?<!\\){mark}{after}")


_OPENINGS = re.compile(r"^([ \t]*)(?:(?:#{1,6}|[-*+])(?:[ \t]+|(?=\r?$)))+", re.MULTILINE)
"""All bullets and heading marks that a line opens with. What follows them, a fence or a link, has its turn sooner so."""
_STEPS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (FENCE, _unfenced),
    (re.compile(r"(?<!`)(?P<ticks>`+)(?!`)([^\n]{1,500}?)(?<!`)(?P=ticks)(?!`)"), r"\2"),
    (
        re.compile(
            r"(?P<image>!?)\[(?P<label>[^\[\]\n]{1,500})\]\((?P<target>[^()\s]{1,500})(?:[ \t]+\"[^\"\n]{0,200}\")?\)"
        ),
        _linked,
    ),
    (re.compile(r"^([ \t]*)#{1,6}(?:[ \t]+|(?=\r?$))", re.MULTILINE), r"\1"),
    (re.compile(r"^([ \t]*)[-*+](?:[ \t]+|(?=\r?$))", re.MULTILINE), r"\1"),
    (_around(r"\*\*", inside_words=True), r"\1"),
    (_around("__", inside_words=False), r"\1"),
    (_around(r"\*", inside_words=False), r"\1"),
    (_around("_", inside_words=False), r"\1"),
)
"""In this order: code first, whose content then counts as text; bold before italic."""
