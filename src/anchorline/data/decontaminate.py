"""Training prompts that overlap an evaluation set, found by shared n-grams of words and taken out.

Words are compared without case, punctuation and Unicode form; a script that is written without spaces counts each
character as a word. A system message is no part of the question and is not compared. Linear in the words of both sides.

>>> from anchorline.types import Message
>>> ask = lambda id, text: Prompt(id, (Message("user", text),))
>>> found = drop_contaminated([ask("a", "Why is the sky BLUE?"), ask("b", "Where is it?")], ["(Why is the sky blue at noon)"])
>>> [prompt.id for prompt in found.kept], found.dropped[0].ngram
(['b'], 'why is the sky blue')
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import regex

from anchorline.data.files import scan_rows
from anchorline.data.jsonl import read_json
from anchorline.errors import DataError
from anchorline.types import Prompt

NGRAM = 13
"""Words in a row that two texts do not share by chance, the usual length since GPT-3's report (arXiv 2005.14165, app. C)."""
SHORTEST = 5
"""An evaluation text of fewer words is too common a phrase for its appearance in a longer prompt to mean anything."""

# the last line is scripts that put no space between words
_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
    r"|(?:(?![\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])[\p{L}\p{N}]\p{M}*)+"
)
_TEXT_COLUMNS = (
    "prompt", "messages", "instruction", "task", "question", "query", "problem", "input", "context", "passage", "text",
)  # fmt: skip


class Contaminated(NamedTuple):
    """A prompt that was taken out, and why."""

    prompt: Prompt
    ngram: str
    """The words that it shares, as they are compared."""
    text: int
    """Which of the evaluation texts holds them, from 0."""


class Decontaminated(NamedTuple):
    """Both keep the prompts' order; together they are all of them."""

    kept: list[Prompt]
    dropped: list[Contaminated]


def drop_contaminated(prompts: Sequence[Prompt], against: Iterable[str], *, n: int = NGRAM) -> Decontaminated:
    """Take out each prompt that shares `n` words in a row with one of the texts `against`.

    A prompt of fewer than `n` words is taken out when all of it stands in a text, and a text of fewer than `n` words
    (but at least `SHORTEST`) takes out each prompt in which all of it stands. A prompt without any word is kept.
    """
    if n < SHORTEST:
        raise DataError(f"is {n}, expected at least {SHORTEST} words: fewer are shared by chance", field="n")
    asked = [_prompt_words(prompt) for prompt in prompts]
    lengths = {min(len(words), n) for words in asked if words}
    grams: dict[str, int] = {}
    short: dict[int, dict[str, int]] = {}
    for index, text in enumerate(against):
        words = normal_words(text)
        for length in lengths:
            for gram in _grams(words, length):
                grams.setdefault(gram, index)
        if SHORTEST <= len(words) < n:
            short.setdefault(len(words), {}).setdefault(" ".join(words), index)
    result = Decontaminated([], [])
    for prompt, words in zip(prompts, asked, strict=True):
        found = _first(_grams(words, min(len(words), n)), grams)
        for length, texts in sorted(short.items()):
            found = found or _first(_grams(words, length), texts)
        if found:
            result.dropped.append(Contaminated(prompt, *found))
        else:
            result.kept.append(prompt)
    return result


def evaluation_texts(source: str | Path) -> list[str]:
    """The texts of an evaluation set: each row's questions and passages, in the columns where such sets keep them.

    Answers and options are left out: alone, they are common phrases. Beside the usual sources, a JSON object of objects
    is read (MixEval's files). Any malformed row is an error, since a text that is not read protects nothing.
    """
    texts: list[str] = []
    for line, row in _evaluation_rows(source):
        if isinstance(row, DataError):
            raise row
        found = [text for name in _TEXT_COLUMNS for text in _texts(row.get(name))]
        if not found:
            columns = ", ".join(map(str, row)) or "none"
            raise DataError(
                f"no text in the columns {columns}; expected one of {', '.join(_TEXT_COLUMNS)}", file=source, line=line
            )
        texts += found
    if not texts:
        raise DataError("is empty, expected at least one row", file=source)
    return texts


def normal_words(text: str) -> list[str]:
    """The words of a text as they are compared.

    >>> normal_words("“Don’t” is 2 WORDS, ﬁne: 東京")
    ['don', 't', 'is', '2', 'words', 'fine', '東', '京']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))


def _prompt_words(prompt: Prompt) -> list[str]:
    return [word for message in prompt.messages if message.role != "system" for word in normal_words(message.content)]


def _grams(words: Sequence[str], length: int) -> Iterator[str]:
    # the words hold no space, so a joined n-gram tells its words apart, and one dict serves all lengths
    if length:
        yield from (" ".join(words[at : at + length]) for at in range(len(words) - length + 1))


def _first(grams: Iterable[str], known: Mapping[str, int]) -> tuple[str, int] | None:
    return next(((gram, known[gram]) for gram in grams if gram in known), None)


def _evaluation_rows(source: str | Path) -> Iterable[tuple[int, dict[str, Any] | DataError]]:
    path = Path(source).expanduser()
    if path.suffix.lower() == ".json" and path.is_file():
        value = read_json(path)
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            return enumerate(value.values(), start=1)
    return scan_rows(source)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value.strip() else []
    if not isinstance(value, list):
        return []
    return [
        turn["content"]
        for turn in value
        if isinstance(turn, dict) and turn.get("role") != "system" and isinstance(turn.get("content"), str)
    ]
