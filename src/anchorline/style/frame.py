"""An answer seen as head, body and tail: the fixed opening and closing of a style with the answer's own text between.

Repairs change the body only, so that no rule ever undoes another rule's fixed text.

>>> frame = Frame(opening="Hello.", closing="Bye.", additions=())
>>> split_parts("Hello. It left. Bye.", frame)
Parts(head='Hello. ', body='It left.', tail=' Bye.')
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from anchorline.style.prose import has_term
from anchorline.style.sentences import begins_block, ends_properly


class Addition(NamedTuple):
    """A term that every answer has, and the sentence that brings it in."""

    term: str
    sentence: str


class Frame(NamedTuple):
    """The fixed texts for one prompt; an opening or closing that does not apply is empty."""

    opening: str
    closing: str
    additions: tuple[Addition, ...]


class Parts(NamedTuple):
    """Joined, the parts are the answer. The body has no white space at its ends."""

    head: str
    body: str
    tail: str


def opens_with(text: str, opening: str) -> bool:
    """Whether `text`, white space before it aside, starts with the whole words of `opening`."""
    after = text.lstrip()[len(opening) : len(opening) + 1]
    glued = after.isalnum() and (opening[-1:].isalnum() or opening[-1:].isascii())
    return text.lstrip().startswith(opening) and not glued


def closes_with(text: str, closing: str) -> bool:
    """Whether `text`, white space after it aside, ends with the whole words of `closing`."""
    before = text.rstrip()[: -len(closing)][-1:]
    return text.rstrip().endswith(closing) and not (before.isalnum() and closing[:1].isalnum())


def split_parts(text: str, frame: Frame) -> Parts:
    """Head, body and tail of `text`; the head is white space alone where the opening is missing, and so the tail."""
    start = len(text) - len(text.lstrip())
    if frame.opening and opens_with(text, frame.opening):
        start += len(frame.opening)
    start = len(text) - len(text[start:].lstrip())
    rest = text[start:].rstrip()
    if frame.closing and closes_with(rest, frame.closing):
        rest = rest[: -len(frame.closing)].rstrip()
    return Parts(text[:start], rest, text[start + len(rest) :])


def with_body(parts: Parts, body: str) -> str:
    """The answer with another body. A new last sentence that needs a line of its own gets it."""
    body = body.strip()
    head, tail = parts.head, parts.tail
    if not body:
        return join(head.strip(), tail.strip()) if head.strip() and tail.strip() else (head.rstrip() or tail.lstrip())
    if tail.strip() and "\n" not in _gap(tail) and ends_properly(parts.body) and not ends_properly(body):
        tail = line_break(body) + tail.lstrip()
    if head.strip() and "\n" not in _gap(head[::-1]) and begins_block(body) and not begins_block(parts.body):
        head = head.rstrip() + line_break(body)
    return head + body + tail


def change_body(text: str, frame: Frame, change: Callable[[str], str]) -> str:
    """`text` with its body changed; untouched, byte for byte, where the body does not change."""
    parts = split_parts(text, frame)
    body = change(parts.body)
    return text if body == parts.body else with_body(parts, body)


def with_additions(parts: Parts, body: str, frame: Frame) -> str:
    """The answer with another body, and the sentences for the terms that it then lacks."""
    for addition in frame.additions:
        if not has_term(with_body(parts, body), addition.term):
            body = join(body, addition.sentence)
    return with_body(parts, body)


def join(first: str, second: str, *, opening: bool = False) -> str:
    """Two texts, one after the other: on one line where that reads, else with an empty line between.

    An `opening` is taken as whole, however it ends.
    """
    if not first or not second:
        return first or second
    same_line = (opening or ends_properly(first)) and not begins_block(second)
    return first + (" " if same_line else line_break(first + second)) + second


def line_break(text: str) -> str:
    """An empty line in the line ends that `text` uses."""
    return "\r\n\r\n" if "\r\n" in text else "\n\n"


def _gap(text: str) -> str:
    """The white space that `text` starts with."""
    return text[: len(text) - len(text.lstrip())]
