r"""What a reviser wraps its text in, and what no answer should be learnt with: a label, tags, quotation marks, edit marks.

What the original has as well is its own. Whatever of the wrapping belongs to the text is a guess, so such a text is not
used, and is asked for again without it.

>>> dress("Assistant: It left on Monday.", "It left.")
'a label'
>>> dress("Assistant: It left on Monday.", "Assistant: It left.") is None
True
"""

from __future__ import annotations

import re

from anchorline.measure import jaccard, words

_DRESSES: dict[str, re.Pattern[str]] = {
    "a label": re.compile(
        r"\A\W{0,4}(?:(?:final )?(?:answer|output)|(?:final|new) (?:version|text|response|reply)|assistant|response|reply)"
        r"(?:\W{0,4}:|\W{1,4}\n)",
        re.IGNORECASE,
    ),
    "tags": re.compile(
        r"\A<(?:(?:/?(?:answer|response|reply|assistant|output|text|revised|revision|html|body|p|div)>)|!\[CDATA\[)"
        r"|\A<(?P<name>[\w-]{1,40})>.*</(?P=name)>\Z",
        re.IGNORECASE | re.DOTALL,
    ),
    "JSON": re.compile(
        r"\A(?:```\w{0,20}\s{1,40})?\{\s{0,40}[\"'][^\"'\n]{0,40}?(?:revis|answer|response|reply|output|corrected)[^\"'\n]{0,40}[\"']\s{0,9}:",
        re.IGNORECASE,
    ),
    "YAML": re.compile(
        r"\A[\"']?(?:\w{1,20}[_ -])?(?:revis\w{1,6}|answer|response|reply|output|corrected|text)[\"']?: {0,4}[|>]"
        r"[+-]?[ \t\r]*\n",
        re.IGNORECASE,
    ),
    "backticks": re.compile(r"\A(`{1,2})[^`]*\1\Z"),
    "quotation marks": re.compile(
        r"\A(?:\"[^\"]*\"|“[^“”]*”|«[^«»]*»|„[^„“”]*[“”]|「[^「」]*」|『[^『』]*』|‘.*’|'(?:[^']|\b'\b)*'|'{3}.*'{3}|\"{3}.*\"{3})\Z",
        re.DOTALL,
    ),
    "brackets": re.compile(r"\A(?:\[[^\W\d_][^\[\]]*\]|【[^【】]*】)\Z"),
    "a quote": re.compile(r"\A>[^\n]*(?:\n[ \t\r]*>[^\n]*|\n[ \t\r]*)*\Z"),
    "edit marks": re.compile(
        r"~~(?! )[^~\n]{1,2000}(?<! )~~|\[-[^\n]{1,2000}?-\]|\{\+[^\n]{1,2000}?\+\}|\{\+\+|<del>|<ins>",
    ),
    "escaped line breaks": re.compile(r"\A\\n.*\\n\Z"),
}
"""Each is one pass over the text."""
_MARKS = re.compile(
    r"<\|[a-z_]{2,20}\|>|</?s>\Z|<(?:start|end)_of_turn>|(?-i:\[/?INST\]|<</?SYS>>)"
    r"|^[ \t]{0,4}\[(?:user|human|assistant|system)\]:?[ \t\r]*$(?!\n[^\n]*=)",
    re.IGNORECASE | re.MULTILINE,
)
"""What no writer means to write; an original that has one excuses no other."""
_SIGNED = re.compile(r"^\+.*\n(?:.*\n)?-|^-.*\n(?:.*\n)?\+", re.MULTILINE)
"""A line with a plus and one with a minus, side by side: edit marks, or a list and a number of a telephone."""
_SENTENCE_END = re.compile(r"(?<=[.!?…])[ \t]+")
_REWORDED = 0.5
"""Two lines that share so much are one line before and after an edit."""


def dress(text: str, original: str) -> str | None:
    """What a text is wrapped in that the original is not, in words; None for a plain one."""
    bare = text.strip()
    if bare in original:
        return None
    if any(mark[0] not in original for mark in _MARKS.finditer(bare)):
        return "a model's own marks"
    for name, pattern in _DRESSES.items():
        if pattern.search(bare) and not pattern.search(original.strip()):
            return name
    return "edit marks" if _is_diff(bare, original) else None


def _is_diff(text: str, original: str) -> bool:
    """Whether a line of the answer is marked as removed beside one that is marked as added."""
    if not _SIGNED.search(text) or _SIGNED.search(original):
        return False
    lines, had = text.split("\n"), set(_pieces(original))
    for i, line in enumerate(lines):
        after = [each for each in lines[i + 1 : i + 3] if each.startswith("+")]
        if not line.startswith("-") or not (after or any(each.startswith("+") for each in lines[max(0, i - 2) : i])):
            continue
        removed = _SENTENCE_END.split(line[1:].strip())
        if line[1:].strip() and line.strip() not in had and had.issuperset(removed):
            return True
        if not line[1:2].isdigit() and any(jaccard(words(line[1:]), words(each[1:])) >= _REWORDED for each in after):
            return True
    return False


def _pieces(text: str) -> list[str]:
    """The lines of a text, and the sentences within them."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return [*lines, *(piece for line in lines for piece in _SENTENCE_END.split(line))]
