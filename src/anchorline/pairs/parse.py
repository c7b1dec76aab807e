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
from typing import NamedTuple

from anchorline.judge.thinking import begins_thinking, said_alone, without_thinking
from anchorline.pairs.dress import dress
from anchorline.pairs.frames import (
    Found,
    begins_line,
    framed,
    heading,
    is_named,
    own_markers,
    reasoning_in,
    trimmed,
    unfenced,
    without_heading,
)
from anchorline.pairs.json_reply import InJson, revision_in_json
from anchorline.pairs.markers import CLOSE, OPEN, find_markers, has_marker
from anchorline.pairs.phrases import is_excuse, is_refusal, no_answer, self_reference
from anchorline.pairs.remarks import added_label, closing_remark
from anchorline.style import Style, prescribed, without_prescribed
from anchorline.types import Messages

__all__ = ["CLOSE", "OPEN", "Parsed", "parse_revision"]

_FRAME = re.compile(
    r"^[ \t]*<{2,3}[^<>\n]{1,80}>{2,3}[ \t\r]*$|</(?:\w{1,20}[_ -])?(?:revis\w*|answer|corrected|edited|improved)"
    r"(?:[_ -]\w{1,20})?>\s*\Z",
    re.MULTILINE | re.IGNORECASE,
)
"""A line that frames, whatever it says: a misspelt or translated end; and a closing tag that ends a text."""
_CUT = "\u2060"
"""Stands for thinking that was taken out; markers may have it on their line."""


class Parsed(NamedTuple):
    """A reply's parts; `text` is empty where there is none, or none that is free of markers."""

    status: str
    text: str = ""
    reasoning: str = ""

    @property
    def usable(self) -> bool:
        """Whether the text is a revision."""
        return self.status == "clean" or self.status.startswith("tolerated:")


def parse_revision(
    reply: str, finish: str = "stop", *, original: str, prompt: Messages = (), style: Style | None = None
) -> Parsed:
    """The revision in `reply`. `original` is the answer that was to be revised, `prompt` its conversation.

    What the rules of `style` prescribe word for word ("Here is your answer:") is no chatter.
    """
    own = original if style is None else "\n".join((original, *prescribed(style, prompt)))
    found = _clean(reply, own) or _tolerant(reply, own)
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
    if not status and _FRAME.search(found.text) and not _FRAME.search(own):
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
    if dress(text, original) or heading(text, original):
        return "dressed"
    if is_refusal(text, original) or is_excuse(text, original, asked):
        return "refused"
    if self_reference(text, original, asked) or closing_remark(text, original, asked, ended=ended):
        return "self_referring"
    return "dressed" if not ended and added_label(text, original) else ""


def _how(oddities: tuple[str, ...]) -> str:
    return "tolerated:" + "+".join(oddities) if oddities else "clean"


def _clean(reply: str, original: str) -> Found | None:
    """A reply that is exactly as asked; whatever stands between the delimiters then is the revision."""
    if reply.count(OPEN) != 1 or reply.count(CLOSE) != 1 or not reply.rstrip().endswith("\n" + CLOSE):
        return None
    before, _, rest = reply.partition(OPEN)
    inner = rest.rpartition(CLOSE)[0]
    # a line of the block that is a fence around all of it, or a thought, is looked at by the tolerant reading
    if (before and not before.endswith("\n")) or not inner.startswith("\n") or unfenced(inner, original) != inner:
        return None
    if without_heading(inner, original) != inner:
        return None
    outside = without_thinking(before + OPEN)
    if not outside.text.endswith(OPEN):
        return None
    if without_thinking(inner).text != inner:  # only at its start can it be told from tags that the text has
        return None if begins_thinking(inner) else Found(status="ambiguous", reasoning=reasoning_in(before))
    return Found(trimmed(inner), reasoning_in(before))


def _tolerant(reply: str, original: str) -> Found:
    old_ends = "\r" in reply and "\n" not in reply
    reply = reply.replace("\r", "\n") if old_ends else reply
    spoken, thought = without_thinking(reply)
    odd = ["thinking"] * bool(thought) + ["crlf"] * old_ends
    if thought and _straddles(reply, spoken, thought):
        return Found(status="ambiguous", reasoning=thought.strip())
    marked = without_thinking(reply, gap=_CUT).text
    in_json = _json_reply(marked, original)
    if in_json is not None:
        if in_json.revision is None:
            return Found(status="bad_json", reasoning=thought.strip())
        text = in_json.revision
        if any((marker.kind, marker.rank) == ("open", "exact") for marker in find_markers(text)):
            inner = framed(text, original)
            text = text if inner.status else inner.text
        said = said_alone(text)
        if (thought and _CUT in text) or (said != text and (not begins_thinking(text) or _thinks_within(text))):
            return Found(status="ambiguous", reasoning=thought.strip())
        return Found(trimmed(said), in_json.reasoning or thought.strip(), (*odd, "json"))
    found = framed(spoken, original)
    if thought and _CUT in framed(marked, original).text.lstrip(f" \t\r\n{_CUT}"):
        # what was taken for thinking may be the text's own
        return Found(status="ambiguous", reasoning=thought.strip())
    reasoning = "\n".join(part for part in (thought.strip(), found.reasoning) if part)
    return found._replace(reasoning=reasoning, oddities=(*odd, *found.oddities))


def _straddles(reply: str, spoken: str, thought: str) -> bool:
    """Whether what was taken for thinking holds the opening of a frame that ends behind it, or may do so."""
    said, kept = ([m for m in find_markers(part) if is_named(part, m)] for part in (spoken, thought))
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
    if found is None:
        return None
    had = revision_in_json(original)
    openings = [marker for marker in own_markers(text, original) if marker.kind == "open" and begins_line(text, marker)]
    outside = [opening for opening in openings if not found.start <= opening.start < found.end]
    if found.reasoning and (had is None or not had.reasoning):  # few answers have a reasoning beside a revision
        return found if all(opening.rank == "loose" for opening in outside) else None
    return found if had is None and not outside else None
