r"""The lines that frame a revision in a model's reply: ours, the paper's, and what models make of them.

A marker is `exact` (the very line that was asked for), `close` (unmistakable, in another dress: other brackets, bold, the
paper's `{corrected_student_solution}`), or `loose` (a heading such as "## Revised answer:", which a text may have too).

>>> [(m.kind, m.rank) for m in find_markers("**[Revised answer]:**\nIt left today.")]
[('open', 'close')]

One pass over the lines, and every repetition in a pattern is bounded: the time is linear in the text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

OPEN = "<<<REVISED ANSWER>>>"
CLOSE = "<<<END OF REVISED ANSWER>>>"


class Marker(NamedTuple):
    """One marker: what it starts (`open`), ends (`end`), or heads (`reasoning`), and where it stands."""

    kind: Literal["open", "end", "reasoning"]
    rank: Literal["exact", "close", "loose"]
    start: int
    end: int
    alone: bool
    """Whether nothing else stands on its line."""


# what a line may have around a marker; sets that share no character keep the patterns from backtracking
_GAP = r"[ \t\r\xa0\u200b\u2060\ufeff]"
_DRESS = r"[ \t\r\xa0\u200b\u2060\ufeff*_#>`~=|•-]"
_OPENS = r"[\[({<«‹“„‘\"'【〈《＜「]"
_SHUTS = r"[\])}>»›”’\"'】〉》＞」]"
_OURS = r"revised[ _-]?answer"
_PAPERS = r"corrected[ _-]?student[ _-]?solution"
_LOOSE = (
    r"(?:revised|corrected|improved|edited|rewritten|updated)[ _-](?:answer|response|reply|solution|version|text)"
    r"|revision|revised"
)
_LEAD = r"(?:(?:here(?:['’]s|[ ]is)|below[ ]is|this[ ]is)[ ])?(?:(?:the|my|an?)[ ])?(?:(?:final|full|complete)[ ])?"

_LINE_OPEN = re.compile(
    rf"^(?P<dress>{_DRESS}{{0,24}})(?P<number>\d{{1,2}}[.)]{_GAP}{{1,4}}[*_]{{0,3}})?(?P<lead>{_LEAD})"
    rf"(?P<opens>{_OPENS}{{0,4}}){_GAP}{{0,4}}(?P<name>{_OURS}|{_PAPERS}|{_LOOSE}){_GAP}{{0,4}}"
    rf"(?P<shuts>{_SHUTS}{{0,4}})(?P<mark>[*_`]{{0,3}}{_GAP}{{0,4}}[:：]?[*_`]{{0,3}})(?P<gap>{_DRESS}{{0,24}})"
    rf"(?P<eol>$)?",
    re.IGNORECASE | re.MULTILINE,
)
_LINE_END = re.compile(
    rf"^{_DRESS}{{0,24}}(?:"
    rf"(?P<named>{_OPENS}{{1,4}}{_GAP}{{0,4}}(?:/|end)[ _-]?(?:of[ _-])?(?:the[ _-])?(?:{_OURS}|{_PAPERS}|{_LOOSE})"
    rf"{_GAP}{{0,4}}{_SHUTS}{{1,4}}"
    rf"|end[ _-](?:of[ _-])?(?:the[ _-])?(?:{_OURS}|{_PAPERS}))"
    rf"|(?:<{{1,3}}|\[{{1,3}})(?:/|end)(?:[ _]?(?:of[ _])?answer)?(?:>{{1,3}}|\]{{1,3}}))[.:]?{_DRESS}{{0,24}}$",
    re.IGNORECASE | re.MULTILINE,
)
_LINE_REASONING = re.compile(
    rf"^{_DRESS}{{0,24}}{_OPENS}{{0,4}}(?:(?P<name>teacher_reasoning)|teacher[ -]?reasoning(?=[^\w\n]{{0,12}}(?:[:：]|$)))"
    rf"{_SHUTS}{{0,4}}[*_`]{{0,3}}[:：]?{_DRESS}{{0,24}}",
    re.IGNORECASE | re.MULTILINE,
)
_LITERAL = re.compile(
    r"<{2,3}[ ]?(?P<end>/|end(?:[ _]of)?[ _])?(?:revised[ _]answer)[ ]?>{2,3}|(?P<short><<<end>>>)", re.IGNORECASE
)
_ANYWHERE = re.compile(
    r"<{2,3}[ ]?(?:/|end(?:[ _]of)?[ _])?revised[ _]answer[ ]?>{2,3}|<<<end>>>"
    r"|corrected_student_solution|teacher_reasoning|\{corrected student solution\}",
    re.IGNORECASE,
)
_HINTS = ("revis", "correct", "improved", "edited", "rewritten", "updated", "teacher", "<<<end>>>")
"""One of these is in each marker that no answer has by chance; most answers have none, and the patterns are slow."""


@lru_cache(maxsize=64)  # the parser asks about a revision, and then the gates
def has_marker(text: str) -> bool:
    """Whether a marker that no answer has by chance stands anywhere in the text, on a line of its own or within one."""
    folded = text.casefold()
    if not folded.isascii():  # the patterns take dotless and dotted i for one letter
        folded = folded.replace("i\u0307", "i").replace("\u0131", "i")
    if not any(hint in folded for hint in _HINTS):
        return False
    if _ANYWHERE.search(text):
        return True
    return any(marker.rank == "close" for marker in find_markers(text))


def find_markers(text: str) -> list[Marker]:
    """All markers, in their order; where two readings overlap, the stricter one."""
    found: list[Marker] = []
    found += [_literal(text, match) for match in _LITERAL.finditer(text)]
    for match in _LINE_OPEN.finditer(text):
        marker = _opening(match)
        if marker is not None:
            found.append(marker)
    for match in _LINE_END.finditer(text):
        found.append(Marker("end", "close" if match["named"] else "loose", match.start(), match.end(), True))
    found += [Marker("reasoning", "close", m.start(), m.end(), True) for m in _LINE_REASONING.finditer(text)]
    strictness = {"exact": 0, "close": 1, "loose": 2}
    kept: list[Marker] = []
    for marker in sorted(found, key=lambda m: (m.start, strictness[m.rank])):
        if not kept or marker.start >= kept[-1].end:
            kept.append(marker)
        elif strictness[marker.rank] < strictness[kept[-1].rank]:
            kept[-1] = marker
    return kept


def _literal(text: str, match: re.Match[str]) -> Marker:
    """Our own delimiter, wherever it stands; markdown around it on its line goes with it."""
    line_start = text.rfind("\n", max(0, match.start() - 26), match.start()) + 1
    line_end = text.find("\n", match.end(), match.end() + 26)
    after = text[match.end() : line_end if line_end >= 0 else match.end() + 26]
    starts = re.fullmatch(rf"{_DRESS}{{0,24}}", text[line_start : match.start()]) is not None and (
        line_start > 0 or match.start() < 26
    )
    tail = re.fullmatch(rf"[:：]?{_DRESS}{{0,24}}", after) is not None and (
        line_end >= 0 or len(text) < match.end() + 26
    )
    kind = "end" if match["end"] or match["short"] else "open"
    plain = match[0] == (OPEN if kind == "open" else CLOSE)
    clean = plain and starts and tail and text[line_start : match.start()] == "" and after.strip(" \t\r") == ""
    start = line_start if starts else match.start()
    end = match.end() + len(after) if tail else _after_mark(text, match.end())
    return Marker(kind, "exact" if clean else "close", start, end, starts and tail)


def _after_mark(text: str, position: int) -> int:
    """Past what belongs to a marker with text behind it: bold, a colon, a blank."""
    found = re.compile(r"[*_`]{0,3}[:：]?[*_`]{0,3}[ \t]{0,4}").match(text, position)
    return position if found is None else found.end()


def _opening(match: re.Match[str]) -> Marker | None:
    """What a line that may open a revision is, if it does."""
    name = match["name"].casefold()
    framed = bool(match["opens"]) and bool(match["shuts"])
    own_name = re.fullmatch(f"{_OURS}|{_PAPERS}", name) is not None
    bold = "*" in match["dress"] or "_" in match["dress"] or bool(match["number"] and "*" in match["number"])
    colon = ":" in match["mark"] or "：" in match["mark"]
    alone = match["eol"] is not None
    if colon and match["gap"].strip(" \t\r-") in ("|", ">"):
        return None  # "revision: |": YAML, whose text is indented
    if not alone and colon and match["opens"][-1:] in ('"', "'"):
        return None  # '"revision": "It left."': a key of JSON
    if not alone and not (framed or bold or colon):
        return None  # "Revised answers are …": a sentence
    if not alone and not own_name and not framed and not (bold and colon):
        return None  # "Revision: 3": a line of a text
    closed_bold = bold and ("*" in match["mark"] or "_" in match["mark"])
    if not alone and bold and not closed_bold and not framed:
        return None  # "**Revised answers** are": emphasis within a sentence
    quoted = match["opens"][:1] in ("(", '"', "'", "“", "‘")
    sure = framed and not match["lead"] and (own_name or (not quoted and (alone or bold)))
    sure = sure or "corrected_student_solution" in name
    end = match.end() if alone else match.end("mark")
    return Marker("open", "close" if sure else "loose", match.start(), end, alone)
