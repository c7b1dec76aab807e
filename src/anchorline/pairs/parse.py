r"""A reviser's reply taken apart: the revision, the reasoning, and a status for every reply.

>>> parse_revision(f"It lacks the date.\n{OPEN}\nIt left on Monday.\n{CLOSE}", original="It left.")
Parsed(status='clean', text='It left on Monday.', reasoning='It lacks the date.')
>>> parse_revision("Fine.\n**Revised answer:**\nIt left on Monday.", original="It left.").status
'tolerated:loose_marker+no_end'

A revision can be used if its status is `clean` or `tolerated:WHAT`. The others are never used as they are:

    truncated        the token limit cut the reply        no_marker         no revision can be told from the reasoning
    filtered         the endpoint withheld the text       ambiguous         which of several, or how far, is not clear
    refused          it declines                          marker_inside     a marker stands within the revision
    empty            nothing, or words for nothing        bad_json          JSON that cannot be read
    identical        the answer as it was                 self_referring    it alludes to being a revision
    dressed          wrapped in what is no part of it

Which of several revisions is taken: the last, if each has its end marker or if the last is another wording of the one
before (a draft said again); a model stands by what it says last. Where the last is a small part of something else, the
marker may as well be part of the answer, and taking either side would cut it: `ambiguous`.
"""

from __future__ import annotations

import re
from itertools import dropwhile
from typing import NamedTuple

from anchorline.judge.thinking import begins_thinking, said_alone, without_thinking
from anchorline.measure import jaccard, words
from anchorline.pairs.dress import dress
from anchorline.pairs.json_reply import InJson, revision_in_json
from anchorline.pairs.markers import CLOSE, OPEN, Marker, find_markers, has_marker
from anchorline.pairs.phrases import is_excuse, is_refusal, no_answer, self_reference
from anchorline.pairs.remarks import added_label, closing_remark
from anchorline.style import Style, without_prescribed
from anchorline.types import Messages

__all__ = ["CLOSE", "OPEN", "Parsed", "parse_revision"]

_FENCE = re.compile(r"^[ \t]{0,3}(?P<mark>`{3,12}|~{3,12})[ \t]*(?P<code>[\w+-]*)[ \t\r]*$", re.MULTILINE)
_PROSE_FENCES = ("", "text", "txt", "plaintext", "markdown", "md")
_FENCE_AT_END = re.compile(r"\n[ \t]*```[ \t\r]*\Z")
_RULE = re.compile(r"^[ \t]*(?:-{3,80}|={3,80}|\*{3,80})[ \t\r]*$", re.MULTILINE)
_RULE_AT_START = re.compile(r"\A[ \t]*(?:-{3,80}|={3,80}|\*{3,80})[ \t\r]*\n")
_RULE_AT_END = re.compile(r"\n[ \t\r]*\n[ \t]*(?:-{3,80}|={3,80}|\*{3,80})[ \t\r]*\Z")
_MARGIN = re.compile(r"(?:> ?|[ \t]{1,12})+")
_BLANK_LINES = re.compile(r"(?:[ \t\r]*\n)+")
_FRAME = re.compile(
    r"^[ \t]*<{2,3}[^<>\n]{1,80}>{2,3}[ \t\r]*$|</(?:\w{1,20}[_ -])?(?:revis\w*|answer|corrected|edited|improved)"
    r"(?:[_ -]\w{1,20})?>\s*\Z",
    re.MULTILINE | re.IGNORECASE,
)
"""A line that frames, whatever it says: a misspelt or translated end; and a closing tag that ends a text."""
_CUT = "\u2060"
"""Stands for thinking that was taken out; markers may have it on their line."""
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


class Parsed(NamedTuple):
    """A reply's parts; `text` is empty where there is none, or none that is free of markers."""

    status: str
    text: str = ""
    reasoning: str = ""

    @property
    def usable(self) -> bool:
        """Whether the text is a revision."""
        return self.status == "clean" or self.status.startswith("tolerated:")


class _Found(NamedTuple):
    """A revision before it is looked at: how it was found is `oddities`; `status` where it was not."""

    text: str = ""
    reasoning: str = ""
    oddities: tuple[str, ...] = ()
    status: str = ""


def parse_revision(
    reply: str, finish: str = "stop", *, original: str, prompt: Messages = (), style: Style | None = None
) -> Parsed:
    """The revision in `reply`. `original` is the answer that was to be revised, `prompt` its conversation.

    What the rules of `style` prescribe word for word ("Here is your answer:") is no chatter.
    """
    found = _clean(reply, original) or _tolerant(reply, original)
    if has_marker(found.text):
        found = found._replace(text="", status="marker_inside")
    status = {"filter": "filtered", "length": "truncated", "refusal": "refused"}.get(finish) or found.status
    if status == "no_marker" and is_refusal(without_thinking(reply).text, original):
        status = "refused"
    asked = "\n".join(turn.content for turn in prompt)
    status = status or _no_text(found.text, original)
    said, had = (each if style is None else without_prescribed(style, prompt, each) for each in (found.text, original))
    if not status and any(map(str.isalnum, said)):
        status = _fault(said, had, asked, ended="no_end" not in found.oddities)
    if not status and _FRAME.search(found.text) and not _FRAME.search(original):
        found, status = found._replace(text=""), "marker_inside"
    return Parsed(status or _how(found.oddities), found.text, found.reasoning)


def _no_text(text: str, original: str) -> str:
    """Why a text that was found is no edit at all; "" where it is one."""
    if not any(map(str.isalnum, text)):
        return "empty"
    return "identical" if text.split() == original.split() else ""


def _fault(text: str, original: str, asked: str, *, ended: bool) -> str:
    """What of a text is no part of an answer; "" where all of it is."""
    if no_answer(text, original, asked):
        return "empty"
    if dress(text, original) or _heading(text, original):
        return "dressed"
    if is_refusal(text, original) or is_excuse(text, original, asked):
        return "refused"
    if self_reference(text, original, asked) or closing_remark(text, original, asked, ended=ended):
        return "self_referring"
    return "dressed" if not ended and added_label(text, original) else ""


def _how(oddities: tuple[str, ...]) -> str:
    return "tolerated:" + "+".join(oddities) if oddities else "clean"


def _clean(reply: str, original: str) -> _Found | None:
    """A reply that is exactly as asked; whatever stands between the delimiters then is the revision."""
    if reply.count(OPEN) != 1 or reply.count(CLOSE) != 1 or not reply.rstrip().endswith("\n" + CLOSE):
        return None
    before, _, rest = reply.partition(OPEN)
    inner = rest.rpartition(CLOSE)[0]
    # a line of the block that is a fence around all of it, or a thought, is looked at by the tolerant reading
    if (before and not before.endswith("\n")) or not inner.startswith("\n") or _unfenced(inner, original) != inner:
        return None
    if _without_heading(inner, original) != inner:
        return None
    outside = without_thinking(before + OPEN)
    if not outside.text.endswith(OPEN):
        return None
    if without_thinking(inner).text != inner:  # only at its start can it be told from tags that the text has
        return None if begins_thinking(inner) else _Found(status="ambiguous", reasoning=_reasoning(before))
    return _Found(_trimmed(inner), _reasoning(before))


def _tolerant(reply: str, original: str) -> _Found:
    old_ends = "\r" in reply and "\n" not in reply
    reply = reply.replace("\r", "\n") if old_ends else reply
    spoken, thought = without_thinking(reply)
    odd = ["thinking"] * bool(thought) + ["crlf"] * old_ends
    if thought and _straddles(reply, spoken, thought):
        return _Found(status="ambiguous", reasoning=thought.strip())
    marked = without_thinking(reply, gap=_CUT).text
    in_json = _json_reply(marked, original)
    if in_json is not None:
        if in_json.revision is None:
            return _Found(status="bad_json", reasoning=thought.strip())
        text = in_json.revision
        if any(marker.rank == "exact" for marker in find_markers(text)):
            inner = _framed(text, original)
            text = text if inner.status else inner.text
        said = said_alone(text)
        if (thought and _CUT in text) or (said != text and (not begins_thinking(text) or _thinks_within(text))):
            return _Found(status="ambiguous", reasoning=thought.strip())
        return _Found(_trimmed(said), in_json.reasoning or thought.strip(), (*odd, "json"))
    found = _framed(spoken, original)
    if thought and _CUT in _framed(marked, original).text.lstrip(f" \t\r\n{_CUT}"):
        # what was taken for thinking may be the text's own
        return _Found(status="ambiguous", reasoning=thought.strip())
    reasoning = "\n".join(part for part in (thought.strip(), found.reasoning) if part)
    return found._replace(reasoning=reasoning, oddities=(*odd, *found.oddities))


def _straddles(reply: str, spoken: str, thought: str) -> bool:
    """Whether what was taken for thinking holds the opening of a frame that ends behind it, or may do so."""
    said, kept = ([m for m in find_markers(part) if _named(part, m)] for part in (spoken, thought))
    if any(marker.kind == "open" for marker in said):
        return False
    opened = any(marker.kind == "open" for marker in kept)
    return opened and (not begins_thinking(reply) or any(marker.kind == "end" for marker in said))


def _thinks_within(text: str) -> bool:
    """Whether thinking stands in the midst of a text or at its end, where it may as well be the text's own."""
    return _CUT in without_thinking(text, gap=_CUT).text.lstrip(f" \t\r\n{_CUT}")


def _json_reply(text: str, original: str) -> InJson | None:
    """The JSON object that is the reply. Below an opening, or where the original has one such, JSON is the answer's."""
    found = revision_in_json(text)
    if found is None or revision_in_json(original) is not None:
        return None
    openings = [marker for marker in _markers(text, original) if marker.kind == "open" and _begins_line(text, marker)]
    outside = [opening for opening in openings if not found.start <= opening.start < found.end]
    announced = found.reasoning and all(opening.rank == "loose" for opening in outside)  # no answer has both keys
    return found if announced or not outside else None


def _framed(text: str, original: str) -> _Found:
    """The revision between the best markers that there are."""
    markers = _markers(text, original)
    openings = _openings(text, markers)
    if not openings:
        return _Found(status="no_marker", reasoning=text.strip())
    if len(openings) > _MOST_OPENINGS or not all(_said_again(text, openings[0], each) for each in openings[1:]):
        return _Found(status="ambiguous")
    blocks = [_block(text, opening, openings, markers) for opening in openings]
    filled = [block for block in blocks if any(map(str.isalnum, block.text))]
    reasoning = _reasoning(text[: openings[0].start])
    if not filled:
        return _Found(reasoning=reasoning)
    block = filled[-1]
    if len(filled) > 1 and not all(block.ended for block in filled) and not _reworded(filled[-2].text, block.text):
        return _Found(status="ambiguous", reasoning=reasoning)
    if block.torn:
        return _Found(status="ambiguous", reasoning=reasoning)
    body = block.text
    repeated = len(openings) > 1 or sum(m.kind == "open" and m.rank != "loose" for m in markers) > 1
    odd = [block.marker] * bool(block.marker) + ["repeated_marker"] * repeated + [block.end] * bool(block.end)
    if block.crlf:
        body, odd = body.replace("\r\n", "\n"), [*odd, "crlf"]
    loose = block.marker == "loose_marker" and not _RULE.search(
        original
    )  # such a heading often comes with a horizontal rule
    plainer = _without_heading(_without_rules(body) if loose else body, original)
    plainer = _without_rules(plainer) if loose else plainer
    if _trimmed(plainer) != _trimmed(body):
        odd.append("heading")
    if len(_FENCE.findall(text[: block.start])) % 2:  # the fence is around the markers too
        if not block.ended and len(_FENCE.findall(plainer)) % 2:
            plainer = _FENCE_AT_END.sub("", plainer.rstrip())
        odd.append("fence")
    unfenced = _unfenced(plainer, original)
    if unfenced != plainer:
        odd.append("fence")
    return _Found(_trimmed(unfenced), _reasoning(text[: block.start]), tuple(dict.fromkeys(odd)))


def _markers(text: str, original: str) -> list[Marker]:
    """The markers of a text; a line that the original has as well is its own, unless it is the very one asked for."""
    own = {line.strip() for line in original.splitlines()}
    return [m for m in find_markers(text) if m.rank == "exact" or text[m.start : m.end].strip() not in own]


def _said_again(text: str, first: Marker, later: Marker) -> bool:
    """Whether a later opening is the first one once more, and no heading such as "## Revision" of the text below it."""
    return _named(text, later) or text[first.start : first.end].split() == text[later.start : later.end].split()


def _openings(text: str, markers: list[Marker]) -> list[Marker]:
    """The opening markers that count: those of the strictest kind, on lines of their own where there are such."""
    opens = [marker for marker in markers if marker.kind == "open"]
    strict = [marker for marker in opens if marker.rank != "loose"]
    if any(marker.rank == "exact" for marker in opens):
        # another dress of the same line says the same; a heading such as "[Revision]" may be the text's own
        return [marker for marker in strict if marker.alone and _named(text, marker)]
    named = [marker for marker in opens if _named(text, marker)]
    counting = [marker for marker in strict if marker in named]
    counting = counting or ([marker for marker in opens if marker in named or marker in strict] if strict else opens)
    # a heading such as "## Revision" above the marker that was asked for is the reasoning's
    counting = list(dropwhile(lambda marker: marker not in named, counting)) or counting
    on_lines = [marker for marker in counting if _begins_line(text, marker) or _ends_line(text, marker)]
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
    return min(ends, key=lambda end: (end.rank != "exact", not _named(text, end), end.start), default=None)


def _is_torn(text: str, end: Marker, ends: list[Marker], limit: int) -> bool:
    """Whether what stands behind an end may belong to the text before it.

    A line like "[END]" may be the text's own; so may an end within a sentence, or one above another.
    """
    if not _named(text, end):
        return bool(text[end.end : limit].strip().removeprefix("```").strip())
    if not _begins_line(text, end) and text[end.end : limit].partition("\n")[0].strip():
        return True
    last = max(each.start for each in ends if each is end or (_named(text, each) and _begins_line(text, each)))
    return last > end.start and bool(text[end.end : last].strip())


def _named(text: str, marker: Marker) -> bool:
    """Whether a marker has the name that was asked for, ours or the paper's, which no other line has by chance."""
    return _NAME.search(text, marker.start, marker.end) is not None


def _without_margin(body: str, line: str) -> str:
    """`body` without the indentation, or the quote marks, that its lines share with the marker's line."""
    margin = _MARGIN.match(line)
    lines = body.split("\n")
    if margin is None or not all(each.startswith(margin[0]) or not each.strip(" \t\r>") for each in lines):
        return body
    return "\n".join(each.removeprefix(margin[0]) if each.strip(" \t\r>") else "" for each in lines)


def _begins_line(text: str, marker: Marker) -> bool:
    return marker.start == 0 or text[marker.start - 1] == "\n"


def _ends_line(text: str, marker: Marker) -> bool:
    return text[marker.end : marker.end + 1] in ("\n", "\r", "")


def _reworded(first: str, second: str) -> bool:
    """Whether two texts are wordings of one answer."""
    left, right = words(first), words(second)
    return len(right) >= _SAME_LENGTH * len(left) and jaccard(left, right) >= _SAME_WORDS


def _unfenced(text: str, original: str) -> str:
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
    return _unfenced(stripped[fences[0].end() : fences[-1].start()].strip("\r\n"), original)


def _without_rules(text: str) -> str:
    """Without a horizontal rule at either end."""
    return _RULE_AT_END.sub("", _RULE_AT_START.sub("", _trimmed(text)))


def _without_heading(text: str, original: str) -> str:
    """Without a first line that says the marker's own name once more."""
    heading = _heading(text, original)
    return text if heading is None or not _NAME.search(heading) else _trimmed(text)[len(heading) :]


def _heading(text: str, original: str) -> str | None:
    """A first line, none of the original's, that may say what an opening marker says, and may be the text's own."""
    first = _trimmed(text).partition("\n")[0]
    if len(first) > _HEADING or first.strip() in original:
        return None
    opens = (marker for marker in find_markers(first) if marker.kind == "open" and marker.start == 0 and marker.alone)
    return first if any(opens) else None


def _trimmed(text: str) -> str:
    """Without blank lines before it and white space after it; the first line keeps its indentation."""
    lines = text.rstrip()
    start = _BLANK_LINES.match(lines)
    return lines[start.end() if start else 0 :]


def _reasoning(text: str) -> str:
    """The text before a revision without the paper's heading."""
    for marker in find_markers(text):
        if marker.kind == "reasoning":
            return (text[: marker.start] + text[marker.end :]).strip()
    return text.strip()
