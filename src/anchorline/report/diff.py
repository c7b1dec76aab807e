"""What differs between two answers, word by word, as safe HTML: removed words in <del>, added words in <ins>.

All text that a model or a user wrote reaches the report through `visible`, and through an escape after it: neither a
tag, nor a direction override that makes a line read differently from what it says, survives.

>>> difference = word_diff("Sorry! It left today.", "It left <today>.")
>>> str(difference.before)
'<del>Sorry! </del>It left today.'
>>> str(difference.after)
'It left <ins>&lt;</ins>today<ins>&gt;</ins>.'
"""

from __future__ import annotations

from typing import NamedTuple

import regex
from markupsafe import Markup
from rapidfuzz.distance import Indel

# Control characters other than tab and newline, line and paragraph separators, direction embeddings, overrides and
# isolates, the byte order mark, and lone surrogates, which UTF-8 cannot hold.
_HIDDEN = regex.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_TOKEN = regex.compile(r"⟨U\+[0-9A-F]{4}⟩|\s+|[\w'’]+|\X")
_WORD = regex.compile(r"\w")


class Diff(NamedTuple):
    """Both answers as HTML; without their tags they are the two texts, escaped."""

    before: Markup
    after: Markup
    lengths: tuple[int, int]
    """Characters of the two texts themselves."""


def visible(text: str) -> str:
    r"""The text with each character that hides, reorders or breaks text written out as ⟨U+202E⟩.

    >>> visible("order \u202e7144")
    'order ⟨U+202E⟩7144'
    """
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", text.replace("\r\n", "\n"))


def word_diff(before: str, after: str) -> Diff:
    """Mark the words that only one of the two texts has, with as few changes as possible."""
    a, b = _TOKEN.findall(visible(before)), _TOKEN.findall(visible(after))
    old, new = _Marked(Markup("<del>{}</del>")), _Marked(Markup("<ins>{}</ins>"))
    # A text's tokens are hashable, so this is the longest common subsequence of words, not of characters.
    steps = Indel.opcodes(a, b)
    for index, step in enumerate(steps):
        removed, added = a[step.src_start : step.src_end], b[step.dest_start : step.dest_end]
        # A space or a comma shared between two changes would cut them into confetti.
        glue = step.tag == "equal" and 0 < index < len(steps) - 1 and not any(map(_WORD.match, removed))
        old.add(removed, changed=step.tag != "equal" or glue)
        new.add(added, changed=step.tag != "equal" or glue)
    return Diff(old.html(), new.html(), (len(before), len(after)))


class _Marked:
    """Text collected in runs, the changed ones inside one tag."""

    def __init__(self, tag: Markup) -> None:
        self.tag = tag
        self.runs: list[tuple[bool, str]] = []

    def add(self, tokens: list[str], *, changed: bool) -> None:
        text = "".join(tokens)
        if self.runs and self.runs[-1][0] == changed:
            text = self.runs.pop()[1] + text
        self.runs.append((changed, text))

    def html(self) -> Markup:
        return Markup("").join(self.tag.format(text) if changed else text for changed, text in self.runs if text)
