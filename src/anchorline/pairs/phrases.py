"""Texts that speak of themselves: refusals to edit, and answers that allude to being an edit.

What the original or the conversation says too is no sign: an answer about a student's solution may mention it.

>>> is_refusal("I'm sorry, but I can't help with that.", "It left today.")
True
>>> self_reference("In this revised answer, the date is right.", "It left today.", "When did it leave?")
'revised answer'
"""

from __future__ import annotations

import re

_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "\xa0": " "})

_REFUSES = re.compile(
    r"\b(?:i|we) (?:can't|cannot|can not|won't|will not|am unable to|'m unable to|am not able to|'m not able to|"
    r"must decline to|decline to) (?:help|assist|comply|fulfill|fulfil|revise|edit|rewrite|engage|continue with|"
    r"(?:provide|create|generate|write|produce) (?:a |an |the )?(?:revis|edit|such |this |that |content))"
    r"|\bi(?:'m unable| am unable) to (?:help|assist|comply)|\bas an ai(?: language)? model,? i (?:can't|cannot|am)"
    r"|\bi(?:'m| am) (?:sorry|afraid),? (?:but )?(?:there is|there's|i see) no (?:answer|text|conversation)"
)
_REFUSES_EARLY = 300
"""A refusal says so at once; further down, the words stand in a story or in a list."""

_MADE = r"(?:revised|edited|corrected|improved|rewritten|reworked|reworded|polished|enhanced|refined|updated)"
_SPEAKS = re.compile(
    rf"\b{_MADE} (?:answer|response|reply|solution)s?\b"
    r"|\b(?:original|previous|earlier|student's|assistant's|model's) (?:answer|response|reply|solution)s?\b"
    r"|\bthis revision\b|\bin (?:this|the|my) (?:revision|edit|rewrite)\b"
    r"|\b(?:revisions|edits) (?:made|applied)\b|\b(?:aim|bounds) of the edit\b"
    r"|^\W{0,4}(?:changes|edits|revisions|improvements)(?: made| applied)?\W{0,4}:\W{0,4}$",
    re.MULTILINE,
)
_SPEAKS_WEAKLY = re.compile(
    rf"\b(?:the|this|my|a|an|your) {_MADE} (?:version|text|message|draft)\b"
    r"|\b(?:i|i've|i have|we|we've|we have) (?:also )?(?:revised|rewritten|rewrote|edited|reworded|rephrased|polished)\b"
    rf"|\bhere(?:'s| is) (?:the|my|your) {_MADE}\b"
)
"""Said of a text of the user's as often as of the answer: no sign where editing is what was asked for."""
_HINTS = (
    "answer", "response", "reply", "solution", "revis", "edit", "rewrit", "rewrote", "reword", "rephras", "polish",
    "changes", "improve", "correct", "enhance", "refine", "update", "rework",
)  # fmt: skip
"""One of these is in all that the patterns above match."""
_EDITING = re.compile(r"\b(?:revis|re-?writ|re-?word|re-?phras|paraphras|edit|improv|correct|proofread|polish|draft)")

_NO_ANSWER = re.compile(
    r"\A\W{0,8}(?:n/a|no (?:further |other )?(?:changes?|edits?|revisions?|corrections?)(?: (?:is|are|was|were))? "
    r"(?:needed|necessary|required|made)|nothing (?:needs? to be |to |was |has been )?changed?"
    r"|(?:the|this|your)(?: original| current)? (?:answer|response|reply) (?:is (?:already|good|fine|perfect|unchanged)"
    r"|already|needs no|requires no|(?:does not|doesn't) need|remains|stays|can stay)\b"
    r"|(?:the )?same (?:answer |text |response |reply )?as (?:before|above|the original|it was)\b"
    r"|(?:as|see) (?:before|above)\b|unchanged)[^\n]{0,120}\Z"
)
"""All of a text that stands where an answer should and is none."""


def is_refusal(text: str, original: str) -> bool:
    """Whether a reply declines to do the edit."""
    return _declines(text) and not _declines(original)


def no_answer(text: str, original: str, asked: str) -> bool:
    """Whether a text only says that there is nothing to change, or what has changed: "N/A", "Same as before".

    >>> no_answer("No changes needed.", "It left.", "When?"), no_answer("The answer is 42.", "41.", "What is it?")
    (True, False)
    """
    said = plain(text.strip())
    return _NO_ANSWER.search(said) is not None and said.strip("\"'().*_ ") not in plain(f"{original}\n{asked}")


def self_reference(text: str, original: str, asked: str) -> str | None:
    """The words with which a text alludes to being a revision, if it does. `asked` is the conversation."""
    text = plain(text)
    if not any(hint in text for hint in _HINTS):  # most texts have none, and the patterns are slow
        return None
    known = plain(f"{original}\n{asked}")
    for match in _SPEAKS.finditer(text):
        if match[0] not in known:
            return match[0].strip()
    if _EDITING.search(plain(asked)):
        return None
    for match in _SPEAKS_WEAKLY.finditer(text):
        if match[0] not in known:
            return match[0].strip()
    return None


def _declines(text: str) -> bool:
    return _REFUSES.search(plain(text[:_REFUSES_EARLY])[:_REFUSES_EARLY]) is not None


def plain(text: str) -> str:
    """The text in small letters and with plain quotes."""
    return text.translate(_QUOTES).casefold()
