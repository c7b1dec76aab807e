"""What a revision has to pass before it is a chosen answer. Pure checks; each says what is wrong in a sentence.

The sentence is written to the reviser, which is asked again with it.

>>> [fault.kind for fault in failed_gates((), "It left today.", "It  left today.", settings=GateSettings())]
['identical']
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from anchorline.errors import DataError
from anchorline.judge.rubric import rule_in_words
from anchorline.measure import normalised_distance, words
from anchorline.pairs.language import language_switch
from anchorline.pairs.markers import has_marker
from anchorline.pairs.settings import GateSettings
from anchorline.style import Style, check
from anchorline.types import Messages

SPAN = 8
"""Words of the instructions in a row that no revision has by chance."""
_WORD = re.compile(r"\w+")
_SLACK_WORDS = 30
_SLACK_CHARACTERS = 100
"""A style's greeting and closing are much of a short answer; so much may always change."""
_LONG_WORD = 4
_TELLING_WORDS, _LEAST_KEPT = 8, 0.15
"""Of so many words of four letters or more, an edit keeps this share: published revisions keep 0.4, unrelated texts 0.1."""
_RELATED = 0.4
"""And where no more than this share of the characters changed, there is no need to look."""
_CHARACTERS_A_WORD = 15
"""Where words are not set apart (Chinese, Japanese, Thai), so many characters count as one, at the least."""


class Fault(NamedTuple):
    """A gate that a revision does not pass."""

    kind: str
    reason: str


def failed_gates(
    prompt: Messages,
    original: str,
    revision: str,
    *,
    settings: GateSettings,
    style: Style | None = None,
    instructions: str = "",
) -> list[Fault]:
    """The gates that fail, the gravest first. `instructions` is what the reviser was told, without the row's texts."""
    if revision.split() == original.split():
        return [Fault("identical", "your text is the answer as it was; make the change that the aim calls for")]
    found = [
        _leak(prompt, original, revision, style, instructions) if settings.leak else None,
        _length(original, revision, settings),
        _language(original, revision) if settings.language else None,
        _over_edited(original, revision, settings),
        broken_rules(prompt, revision, style) if settings.rules else None,
    ]
    return [fault for fault in found if fault is not None]


def _over_edited(original: str, revision: str, settings: GateSettings) -> Fault | None:
    share = normalised_distance(original, revision)
    changed = share * max(len(original), len(revision))
    if share <= settings.max_change or changed <= _SLACK_CHARACTERS:
        return _unrelated(original, revision) if share > _RELATED and settings.max_change < 1 else None
    reason = (
        f"{share:.0%} of the answer is changed, at most {settings.max_change:.0%} may be; keep more of it word for word"
    )
    return Fault("over_edited", reason)


def _unrelated(original: str, revision: str) -> Fault | None:
    """Texts of like length share a quarter of their letters by chance, but not their longer words."""
    before, after = ({w for w in _normal_words(text) if len(w) >= _LONG_WORD} for text in (original, revision))
    fewer = min(len(before), len(after))
    if fewer < _TELLING_WORDS or len(before & after) >= _LEAST_KEPT * fewer:
        return None
    return Fault("over_edited", "nearly no word of the answer is kept; edit the answer, do not write another one")


def _length(original: str, revision: str, settings: GateSettings) -> Fault | None:
    before, after = _size(original), _size(revision)
    most = settings.max_length_ratio * before + _SLACK_WORDS
    fewest = settings.min_length_ratio * before - _SLACK_WORDS
    if fewest <= after <= most:
        return None
    bound = f"at most {most:.0f}" if after > most else f"at least {fewest:.0f}"
    return Fault("length", f"your text has about {after} words, {bound} are allowed for an answer of {before}")


def _size(text: str) -> int:
    return max(len(words(text)), len(text) // _CHARACTERS_A_WORD)


def _language(original: str, revision: str) -> Fault | None:
    switch = language_switch(original, revision)
    if switch is None:
        return None
    return Fault("language", f"the answer is in {switch.before!r}, your text in {switch.after!r}; keep to its language")


def _leak(prompt: Messages, original: str, revision: str, style: Style | None, instructions: str) -> Fault | None:
    if has_marker(revision):
        return Fault("leak", "your text holds one of the lines that frame it")
    said = _normal_words(revision)
    hits = _spans_told(said, instructions)
    if not hits:
        return None
    # what the conversation or a rule brings in is no leak
    texts = [original, *(turn.content for turn in prompt), *(_prescribed(style, prompt) if style else ())]
    known = frozenset().union(*(_spans(text) for text in texts))
    for i in hits:
        span = tuple(said[i : i + SPAN])
        if span not in known:
            return Fault("leak", f"your text repeats the instructions: {' '.join(span)!r}")
    return None


def _prescribed(style: Style, prompt: Messages) -> Sequence[str]:
    """Texts that the style's rules put into answers."""
    return [text for rule in style.rules for text in (rule_in_words(rule, prompt), *_sentence(rule.model_dump()))]


def _sentence(rule: dict[str, object]) -> list[str]:
    return [text for text in (rule.get("sentence"), rule.get("text"), rule.get("missing")) if isinstance(text, str)]


def broken_rules(prompt: Messages, revision: str, style: Style | None) -> Fault | None:
    """The rules of the style that the revision breaks, in words."""
    if style is None:
        return None
    try:
        kept = check(style, prompt, revision)
    except DataError as error:
        return Fault("broken", str(error))
    broken = [rule for rule in style.rules if not kept[rule.name]]
    if not broken:
        return None
    listed = "; ".join(f"{rule.name} ({rule_in_words(rule, prompt)})" for rule in broken)
    return Fault("broken", f"your text breaks: {listed}")


def _spans_told(said: list[str], instructions: str) -> list[int]:
    """Where spans of the instructions begin in these words.

    Each span holds exactly one of the pairs of words that stand at every (SPAN - 1)-th place, and few pairs of a text are
    pairs of the instructions too: so nearly all is settled with one look at every seventh word.
    """
    told, pairs = _spans(instructions), _neighbours(instructions)
    step, last = SPAN - 1, len(said) - SPAN
    return [
        i
        for k in range(0, len(said) - 1, step)
        if (said[k], said[k + 1]) in pairs
        for i in range(max(0, k - step + 1), min(k, last) + 1)
        if tuple(said[i : i + SPAN]) in told
    ]


def _normal_words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


@lru_cache(maxsize=64)
def _spans(text: str) -> frozenset[tuple[str, ...]]:
    found = _normal_words(text)
    return frozenset(tuple(found[i : i + SPAN]) for i in range(len(found) - SPAN + 1))


@lru_cache(maxsize=64)
def _neighbours(text: str) -> frozenset[tuple[str, str]]:
    found = _normal_words(text)
    return frozenset(pairwise(found))
