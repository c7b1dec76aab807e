"""Whether two texts are in different languages, said only where that is sure: long texts, high confidence.

Code is left out, and languages that are easily taken for one another count as one. A text that is mostly made of the
other's words, as revisions are, is in its language without further inquiry.

>>> language_switch("Short.", "Kurz.") is None
True
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

MIN_LETTERS = 60
"""Letters of prose a text needs; shorter ones are mistaken too often."""
MIN_CONFIDENCE = 0.9

_LANGUAGES = (
    "ar bg bn ca cs da de el en es et eu fa fi fr gl gu he hi hr hu hy id is it ja ka kk kn ko lt lv mk ml mr ms nl nn no "
    "pa pl pt ro ru sk sl sq sr sv sw ta te th tl tr uk ur uz vi zh yue"
)
"""Those that answers are written in. Each further one makes short texts less sure."""
_ALIKE = {
    **dict.fromkeys(("no", "nn", "da"), "no"),
    **dict.fromkeys(("hr", "sr", "bs"), "sr"),
    **dict.fromkeys(("id", "ms"), "ms"),
    **dict.fromkeys(("zh", "yue"), "zh"),
    **dict.fromkeys(("pt", "gl"), "pt"),
    **dict.fromkeys(("cs", "sk"), "cs"),
    **dict.fromkeys(("hi", "mr"), "hi"),
    **dict.fromkeys(("bg", "mk"), "bg"),
}
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}")
SAME_WORDS = 0.7
"""The share of a text's letters in words that the other text has too, from which on both are in one language."""
_MOST_TEXT, _MOST_PROSE = 4_000, 800
"""Characters that are looked at: more make no text surer, and this is the dearest of the gates."""


class Switch(NamedTuple):
    """The languages before and after, as ISO 639 codes."""

    before: str
    after: str


def language_switch(before: str, after: str) -> Switch | None:
    """The two languages if they surely differ."""
    one, other = _prose(before), _prose(after)
    if _shared(one, other) >= SAME_WORDS:
        return None
    first = _language(one)
    second = _language(other) if first else None
    if first is None or second is None or _ALIKE.get(first, first) == _ALIKE.get(second, second):
        return None
    return Switch(first, second)


def _prose(text: str) -> str:
    start = text[:_MOST_TEXT]
    return (_CODE.sub(" ", start) if "`" in start or "://" in start else start)[:_MOST_PROSE]


def _shared(before: str, after: str) -> float:
    """The share of the letters of `after` in words that stand in `before` too."""
    known, found = frozenset(_WORD.findall(before)), _WORD.findall(after)
    letters = sum(map(len, found))
    return sum(len(word) for word in found if word in known) / letters if letters else 0.0


def _language(prose: str) -> str | None:
    if sum(map(str.isalpha, prose)) < MIN_LETTERS:
        return None
    language, confidence = _identifier().classify(prose)
    return language if confidence >= MIN_CONFIDENCE else None


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file("data/model.npz.xz", norm_probs=True)
    identifier.set_languages(_LANGUAGES.split())
    return identifier
