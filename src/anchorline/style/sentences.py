"""Cut a text into sentences without losing a character, so that a repair can take one out and leave the rest alone.

A text is a row of pieces: sentences, code fences, list or heading markers, and the gaps between them. Joined, the
pieces are the text. A code fence is one unit; abbreviations, decimals, initials, enumerations and URLs do not end a
sentence; a line break does, unless the next line goes on in lower case.

>>> [p.text for p in split("See Dr. Hall at 3.15 p.m. today. Bye!") if p.kind == "sentence"]
['See Dr. Hall at 3.15 p.m. today.', 'Bye!']
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

from anchorline.style.abbreviations import MAY_END, NEVER_END, NUMBERED, STARTERS
from anchorline.style.prose import FENCE, is_verbatim, verbatim_spans

_END = re.compile(r"""(?P<mark>[.!?…]+)(?P<closer>["'”’»)\]}*_]*)(?=\s|\Z)|[。！？]+[」』）”’]*""")
_MARKER = re.compile(r"(?:[-*+•]|\d{1,3}[.)]|#{1,6}|>)(?:[ \t]+|(?=\r?$))", re.M)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_ENUMERATOR = re.compile(r"\A\s*\d{1,2}\Z|:\s*1\Z")
_WINDOW = 40
_LAST = re.compile(r"""[.!?…。！？]["'”’»)\]}*_」』）]*\Z""")


class Piece(NamedTuple):
    """A stretch of a text. A `sentence` or `code` piece is content; a `gap` is white space."""

    text: str
    kind: Literal["sentence", "code", "marker", "gap"]

    @property
    def is_content(self) -> bool:
        return self.kind in ("sentence", "code")


def split(text: str) -> tuple[Piece, ...]:
    """The pieces of `text`, in order and complete: their texts, joined, are `text`."""
    pieces: list[Piece] = []
    for piece in _pieces(text):
        if pieces and piece.kind == "gap" and pieces[-1].kind == "gap":
            pieces[-1] = Piece(pieces[-1].text + piece.text, "gap")
        elif piece.text:
            pieces.append(piece)
    return tuple(pieces)


def count_sentences(text: str) -> int:
    """How many sentences and code fences `text` has."""
    return sum(piece.is_content for piece in split(text))


def ends_properly(text: str) -> bool:
    """Whether a sentence may follow `text` on the same line."""
    last_line = text.rstrip().rpartition("\n")[2]
    return bool(_LAST.search(last_line)) and not begins_block(last_line)


def without_torn_end(text: str) -> str:
    """`text` without its last sentence where that one does not end: for answers that a token limit cut.

    >>> without_torn_end("It left today. It will arr")
    'It left today.'
    """
    pieces = split(text)
    content = [index for index, piece in enumerate(pieces) if piece.is_content]
    if not content or ends_properly(text):
        return text
    return drop(pieces, {content[-1]}).rstrip()


def begins_block(text: str) -> bool:
    """Whether `text` starts with what needs a line of its own: a list item, a heading, a quotation, a code fence."""
    return bool(_MARKER.match(text.lstrip()) or FENCE.match(text.lstrip()))


def drop(pieces: tuple[Piece, ...], dropped: Collection[int]) -> str:
    """The text without the pieces at the indices `dropped`; a list item that loses all its content loses its marker."""
    gone = set(dropped)
    for index, piece in enumerate(pieces):
        if piece.kind == "marker":
            item = _item(pieces, index)
            if item and gone.issuperset(item):
                gone.add(index)
    out = ""
    gaps: list[str] = []
    bare_marker = False  # a marker whose next content is gone brings its own blank
    for index, piece in enumerate(pieces):
        if index in gone:
            continue
        if piece.kind == "gap":
            gaps.append(piece.text)
            continue
        gap = _merged(gaps)
        out += piece.text if bare_marker and "\n" not in gap else gap + piece.text
        bare_marker = piece.kind == "marker" and index + 1 in gone
        gaps = []
    return out + _merged(gaps)


def _item(pieces: tuple[Piece, ...], marker: int) -> list[int]:
    """The content pieces on the line of a marker."""
    item = []
    for index in range(marker + 1, len(pieces)):
        if pieces[index].kind == "gap" and "\n" in pieces[index].text:
            break
        if pieces[index].is_content:
            item.append(index)
    return item


def _merged(gaps: list[str]) -> str:
    """One gap for what was several: the largest break of them, with the indentation of the line that follows."""
    breaks = [gap for gap in gaps if "\n" in gap]
    if not breaks:
        return gaps[0] if gaps else ""
    largest = max(breaks, key=lambda gap: gap.count("\n"))
    return largest[: largest.rindex("\n") + 1] + breaks[-1][breaks[-1].rindex("\n") + 1 :]


def _pieces(text: str) -> Iterator[Piece]:
    done = 0
    for fence in FENCE.finditer(text):
        yield from _prose(text[done : fence.start()])
        yield Piece(fence[0], "code")
        done = fence.end()
    yield from _prose(text[done:])


def _prose(text: str) -> Iterator[Piece]:
    """The pieces of a text without fences: markers at the starts of lines, and paragraphs of lines that go on."""
    paragraph = ""
    for line in _LINE.findall(text):
        content = line.lstrip()
        marker = _MARKER.match(content)
        if paragraph and content[:1].islower() and not marker:
            paragraph += line
            continue
        yield from _sentences(paragraph)
        yield Piece(line[: len(line) - len(content)], "gap")
        while marker:
            yield Piece(marker[0], "marker")
            content = content[marker.end() :]
            marker = _MARKER.match(content)
        paragraph = content if content.strip() else ""
        if not paragraph:
            yield Piece(content, "gap")
    yield from _sentences(paragraph)


def _sentences(paragraph: str) -> Iterator[Piece]:
    start = len(paragraph) - len(paragraph.lstrip())
    yield Piece(paragraph[:start], "gap")
    verbatim = verbatim_spans(paragraph)
    for end in _END.finditer(paragraph):
        if end.start() < start or is_verbatim(verbatim, end.start()) or not _is_end(paragraph, start, end):
            continue
        yield Piece(paragraph[start : end.end()], "sentence")
        rest = paragraph[end.end() :]
        start = len(paragraph) - len(rest.lstrip())
        yield Piece(paragraph[end.end() : start], "gap")
    rest = paragraph[start:].rstrip()
    yield Piece(rest, "sentence")
    yield Piece(paragraph[start + len(rest) :], "gap")


def _is_end(paragraph: str, start: int, end: re.Match[str]) -> bool:
    after = paragraph[end.end() : end.end() + _WINDOW].lstrip()
    if not after or end["mark"] is None:
        return True
    if end["mark"] != "." or end["closer"]:
        goes_on = end["closer"] or "…" in end["mark"] or ".." in end["mark"]
        return not (goes_on and after[0].islower())
    before = paragraph[max(start, end.start() - _WINDOW) : end.start()]
    token = (before.split() or [""])[-1].lstrip("\"'“‘«([{*_").lower()
    if token in NEVER_END or _ENUMERATOR.search(before):
        return False
    if token in NUMBERED and after[0].isdigit():
        return False
    if token in MAY_END or _INITIALS.fullmatch(token):
        next_word = re.match(r"\W*(\w*)", after)
        return next_word is not None and next_word[1].lower() in STARTERS and not next_word[1].islower()
    return True
