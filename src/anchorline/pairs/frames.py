r"""The revision that stands in a frame: which markers count, where each block ends, and what of a block is no text of it.

A looser marker within a stricter frame is the text's own line, and so is what the original has as well. Where a frame is loose,
what may be the text's own makes the reply `ambiguous`: nothing is cut away on a guess.

>>> from anchorline.pairs.markers import OPEN
>>> framed(f"Why.\n{OPEN}\nIt left.\n[END]\nBye.\n{CLOSE}", "It left!").text
'It left.\n[END]\nBye.'
>>> framed(f"Why.\n{OPEN}\nIt left.\n[END]\nBye.", "It left!").status
'ambiguous'
"""

from __future__ import annotations

import re
from itertools import dropwhile
from typing import NamedTuple

from anchorline.measure import jaccard, words
from anchorline.pairs.markers import CLOSE, Marker, find_markers

_FENCE = re.compile(r"^[ \t]{0,3}(?P<mark>`{3,12}|~{3,12})[ \t]*(?P<code>[\w+-]*)[ \t\r]*$", re.MULTILINE)
_PROSE_FENCES = ("", "text", "txt", "plaintext", "markdown", "md")
_FENCE_AT_END = re.compile(r"\n[ \t]*```[ \t\r]*\Z")
_RULE = re.compile(r"^[ \t]*(?:-{3,80}|={3,80}|\*{3,80})[ \t\r]*$", re.MULTILINE)
_RULE_AT_START = re.compile(r"\A[ \t]*(?:-{3,80}|={3,80}|\*{3,80})[ \t\r]*\n")
_RULE_AT_END = re.compile(r"\n[ \t\r]*\n[ \t]*(?:-{3,80}|={3,80}|\*{3,80})[ \t\r]*\Z")
_MARGIN = re.compile(r"(?:> ?|[ \t]{1,12})+")
_BLANK_LINES = re.compile(r"(?:[ \t\r]*\n)+")
_PAPERS = re.compile(r"student[ _-]?solution", re.IGNORECASE)
_NAME = re.compile(r"revised[ _-]?answer|corrected[ _-]?student[ _-]?solution|<<<end>>>", re.IGNORECASE)
_MOST_OPENINGS = 10
"""A reply with more goes round in circles."""
_HEADING = 200
"""A longer line is no heading."""
_PART_OF_END = 8
"""An end marker that breaks off is known by so many characters; fewer, such as "<<<END", may as well be the text's."""
_SAME_LENGTH, _SAME_WORDS = 0.5, 0.3
"""Two wordings of one answer: at least half as long, and this overlap of words (real revisions have 0.28 on average)."""


class Found(NamedTuple):
    """A revision before it is looked at: how it was found is `oddities`; `status` where it was not."""

    text: str = ""
    reasoning: str = ""
    oddities: tuple[str, ...] = ()
    status: str = ""


def framed(text: str, original: str) -> Found:
    """The revision between the best markers that there are."""
    markers = own_markers(text, original)
    openings = _openings(text, markers)
    if not openings:
        return Found(status="no_marker", reasoning=text.strip())
    if len(openings) > _MOST_OPENINGS or not all(_said_again(text, openings[0], each) for each in openings[1:]):
        return Found(status="ambiguous")
    blocks = [_block(text, opening, openings, markers) for opening in openings]
    filled = [block for block in blocks if any(map(str.isalnum, block.text))]
    reasoning = reasoning_in(text[: openings[0].start])
    if not filled:
        return Found(reasoning=reasoning)
    block = filled[-1]
    if len(filled) > 1 and not all(block.ended for block in filled) and not _reworded(filled[-2].text, block.text):
        return Found(status="ambiguous", reasoning=reasoning)
    if block.torn:
        return Found(status="ambiguous", reasoning=reasoning)
    body = block.text
    repeated = len(openings) > 1 or sum(m.kind == "open" and m.rank != "loose" for m in markers) > 1
    odd = [block.marker] * bool(block.marker) + ["repeated_marker"] * repeated + [block.end] * bool(block.end)
    if block.crlf:
        body, odd = body.replace("\r\n", "\n"), [*odd, "crlf"]
    # a heading for a marker often comes with a horizontal rule
    ruled = block.marker == "loose_marker" and not _RULE.search(original)
    plainer = without_heading(_without_rules(body) if ruled else body, original)
    plainer = _without_rules(plainer) if ruled else plainer
    if trimmed(plainer) != trimmed(body):
        odd.append("heading")
    if len(_FENCE.findall(text[: block.start])) % 2:  # the fence is around the markers too
        if not block.ended and len(_FENCE.findall(plainer)) % 2:
            plainer = _FENCE_AT_END.sub("", plainer.rstrip())
        odd.append("fence")
    bare = unfenced(plainer, original)
    if bare != plainer:
        odd.append("fence")
    return Found(trimmed(bare), reasoning_in(text[: block.start]), tuple(dict.fromkeys(odd)))


def own_markers(text: str, original: str) -> list[Marker]:
    """The markers of a text; a line that the original has as well is its own, unless it is the very one asked for."""
    own = {line.strip() for line in original.splitlines()}
    return [m for m in find_markers(text) if m.rank == "exact" or text[m.start : m.end].strip() not in own]


def _said_again(text: str, first: Marker, later: Marker) -> bool:
    """Whether a later opening is the first one once more, and no heading such as "## Revision" of the text below it."""
    return is_named(text, later) or text[first.start : first.end].split() == text[later.start : later.end].split()


def _openings(text: str, markers: list[Marker]) -> list[Marker]:
    """The opening markers that count: those of the strictest kind, on lines of their own where there are such."""
    opens = [marker for marker in markers if marker.kind == "open"]
    strict = [marker for marker in opens if marker.rank != "loose"]
    if any(marker.rank == "exact" for marker in opens):
        # another dress of the same line says the same; a heading such as "[Revision]" may be the text's own
        return [marker for marker in strict if marker.alone and is_named(text, marker)]
    named = [marker for marker in opens if is_named(text, marker)]
    counting = [marker for marker in strict if marker in named]
    counting = counting or ([marker for marker in opens if marker in named or marker in strict] if strict else opens)
    # a heading such as "## Revision" above the marker that was asked for is the reasoning's
    counting = list(dropwhile(lambda marker: marker not in named, counting)) or counting
    on_lines = [marker for marker in counting if begins_line(text, marker) or _ends_line(text, marker)]
    if on_lines:
        return on_lines
    # within a line it is more likely talked about than used, unless the end marker ends the reply
    ends = [marker for marker in markers if marker.kind == "end"]
    framing = len(counting) == len(ends) == 1 and not text[ends[0].end :].strip()
    return counting if framing else []


class _Block(NamedTuple):
    start: int
    text: str
    ended: bool
    """Whether an end marker ends it."""
    crlf: bool
    marker: str
    """What is odd about its opening, if anything is."""
    end: str
    """And about its end."""
    torn: bool
    """Whether words follow that may belong to it: a line like "[END]" may be the text's own."""


def _block(text: str, opening: Marker, openings: list[Marker], markers: list[Marker]) -> _Block:
    """What stands after an opening, up to an end, the reasoning, or the next opening."""
    odd = {"exact": "", "close": "marker", "loose": "loose_marker"}[opening.rank]
    after = [marker for marker in markers if marker.start >= opening.end]
    limit = next((m.start for m in after if m in openings), len(text))
    ends = [marker for marker in after if marker.kind == "end" and marker.start < limit]
    end = _first_end(text, ends)
    if end is None and _PAPERS.search(text, opening.start, opening.end):  # the paper's reply has two parts
        limit = next((m.start for m in after if m.kind == "reasoning" and m.start < limit), limit)
    crlf = text[max(0, opening.end - 1) : opening.end + 1].startswith("\r") or text[opening.end :].startswith("\r\n")
    body = text[opening.end : limit if end is None else end.start]
    # on a marker's own line, the blank after it is not the text's
    body = _without_margin(body, text[opening.start : opening.end]) if opening.alone else body.lstrip(" \t\xa0")
    if end is not None:
        trailing = text[end.end : limit].strip().removeprefix("```").strip()
        plain_end = "" if end.rank == "exact" else "marker"
        torn = _is_torn(text, end, ends, limit)
        return _Block(opening.start, body, True, crlf, odd, "trailing" if trailing else plain_end, torn)
    last = body.rstrip().rpartition("\n")[2].strip()
    part = bool(last) and CLOSE.startswith(last)
    if part and len(last) >= _PART_OF_END:
        body, part = body.rstrip().removesuffix(last), False
    return _Block(opening.start, body, False, crlf, odd, "no_end", torn=part)


def _first_end(text: str, ends: list[Marker]) -> Marker | None:
    """The first end of the strictest kind that there is; looser ones between it and an opening are lines of the text."""
    return min(ends, key=lambda end: (end.rank != "exact", not is_named(text, end), end.start), default=None)


def _is_torn(text: str, end: Marker, ends: list[Marker], limit: int) -> bool:
    """Whether what stands behind an end may belong to the text before it.

    A line like "[END]" may be the text's own; so may an end within a sentence, or one above another.
    """
    if not is_named(text, end):
        return bool(text[end.end : limit].strip().removeprefix("```").strip())
    if not begins_line(text, end) and text[end.end : limit].partition("\n")[0].strip():
        return True
    last = max(each.start for each in ends if each is end or (is_named(text, each) and begins_line(text, each)))
    return last > end.start and bool(text[end.end : last].strip())


def is_named(text: str, marker: Marker) -> bool:
    """Whether a marker has the name that was asked for, ours or the paper's, which no other line has by chance."""
    return _NAME.search(text, marker.start, marker.end) is not None


def _without_margin(body: str, line: str) -> str:
    """`body` without the indentation, or the quote marks, that its lines share with the marker's line."""
    margin = _MARGIN.match(line)
    lines = body.split("\n")
    if margin is None or not all(each.startswith(margin[0]) or not each.strip(" \t\r>") for each in lines):
        return body
    return "\n".join(each.removeprefix(margin[0]) if each.strip(" \t\r>") else "" for each in lines)


def begins_line(text: str, marker: Marker) -> bool:
    return marker.start == 0 or text[marker.start - 1] == "\n"


def _ends_line(text: str, marker: Marker) -> bool:
    return text[marker.end : marker.end + 1] in ("\n", "\r", "")


def _reworded(first: str, second: str) -> bool:
    """Whether two texts are wordings of one answer."""
    left, right = words(first), words(second)
    return len(right) >= _SAME_LENGTH * len(left) and jaccard(left, right) >= _SAME_WORDS


def unfenced(text: str, original: str) -> str:
    """`text` without a code fence around all of it, unless the answer is code."""
    stripped = text.strip()
    if stripped[:3] not in ("```", "~~~") or stripped[-3:] != stripped[:3] or _FENCE.search(original):
        return text
    fences = list(_FENCE.finditer(stripped))
    whole = len(fences) >= 2 and fences[0].start() == 0 and fences[-1].end() == len(stripped)
    inner_pairs = [fence["code"] for fence in fences[1:-1]]
    if not whole or fences[0]["code"].casefold() not in _PROSE_FENCES or fences[-1]["code"] or len(inner_pairs) % 2:
        return text
    longest = all(len(fence["mark"]) < len(fences[0]["mark"]) for fence in fences[1:-1])
    if not longest and not all(inner_pairs[::2]):  # "``` a ``` b ```": code, prose, code
        return text
    return unfenced(stripped[fences[0].end() : fences[-1].start()].strip("\r\n"), original)


def _without_rules(text: str) -> str:
    """Without a horizontal rule at either end."""
    return _RULE_AT_END.sub("", _RULE_AT_START.sub("", trimmed(text)))


def without_heading(text: str, original: str) -> str:
    """Without a first line that says the marker's own name once more."""
    first = heading(text, original)
    return text if first is None or not _NAME.search(first) else trimmed(text)[len(first) :]


def heading(text: str, original: str) -> str | None:
    """A first line, none of the original's, that may say what an opening marker says, and may be the text's own."""
    first = trimmed(text).partition("\n")[0]
    if len(first) > _HEADING or first.strip() in original:
        return None
    opens = (marker for marker in find_markers(first) if marker.kind == "open" and marker.start == 0 and marker.alone)
    return first if any(opens) else None


def trimmed(text: str) -> str:
    """Without blank lines before it and white space after it; the first line keeps its indentation."""
    lines = text.rstrip()
    start = _BLANK_LINES.match(lines)
    return lines[start.end() if start else 0 :]


def reasoning_in(text: str) -> str:
    """The text before a revision without the paper's heading."""
    for marker in find_markers(text):
        if marker.kind == "reasoning":
            return (text[: marker.start] + text[marker.end :]).strip()
    return text.strip()
