"""A style: what a customer wants, as free text and as rules; which rules an answer keeps, and its minimal repair.

>>> from anchorline.style.load import parse_style
>>> style = parse_style({"name": "calm", "rules": [{"kind": "no_exclamation"}]})
>>> check(style, (), "It left!")
{'no_exclamation': False}
>>> repair(style, (), "It left!").text
'It left.'
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, StringConstraints

from anchorline.errors import DataError
from anchorline.style.frame import Addition, Frame, split_parts
from anchorline.style.rule import Name
from anchorline.style.rules import ORDER, Rule
from anchorline.style.rules_edges import EndsWith, StartsWith
from anchorline.style.rules_facts import States
from anchorline.style.rules_words import Required
from anchorline.types import Message, Messages

MAX_TEXT = 50_000
"""Characters of one answer; of a longer prompt turn, the rest is not searched for captures."""
_ROUNDS = 8
"""One pass over the rules nearly always does; a repair that sets off another rule's check needs a second."""


class Style(BaseModel):
    """A customer's guideline: free text, for LLMs, and rules, in the order they are reported. Made by `load_style`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    guideline: Annotated[str, StringConstraints(strip_whitespace=True, max_length=20_000)] = ""
    """What the customer wants, in words; a reviser and a judge that are LLMs read this."""
    rules: tuple[Rule, ...] = ()


class Repair(NamedTuple):
    """A repaired answer. Where a rule cannot be kept (a Python rule may contradict another), `kept` says so."""

    text: str
    touched: tuple[str, ...]
    """The rules whose repair changed the text."""
    kept: dict[str, bool]
    """The check of `text`."""
    own_words: int
    """How many words of `text` are the answer's own: not an opening, closing or sentence that a rule prescribes.
    What `states` puts in the answer's place is the answer, and counts."""


def check(style: Style, prompt: Messages, answer: str) -> dict[str, bool]:
    """For each rule's name, whether `answer` keeps it. DataError if the answer is longer than MAX_TEXT."""
    if len(answer) > MAX_TEXT:
        raise DataError(f"an answer has {len(answer)} characters; a style reads at most {MAX_TEXT}; shorten or drop it")
    return _kept(style, _bounded(prompt), answer)


def repair(style: Style, prompt: Messages, answer: str) -> Repair:
    """`answer`, changed as little as makes it keep every rule; an answer that keeps them all comes back as it is."""
    kept = check(style, prompt, answer)
    prompt = _bounded(prompt)
    frame = _frame(style, prompt)
    text = answer
    touched: set[str] = set()
    for _ in range(_ROUNDS):
        if all(kept.values()):
            break
        for rule in sorted(style.rules, key=lambda rule: ORDER[rule.kind]):
            if rule.kept(prompt, text):
                continue
            repaired = rule.repaired(prompt, text, frame)
            if repaired != text:
                touched.add(rule.name)
                text = repaired
        kept = _kept(style, prompt, text)
    names = tuple(rule.name for rule in style.rules if rule.name in touched)
    return Repair(text, names, kept, _own_words(text, frame))


def without_prescribed(style: Style, prompt: Messages, text: str) -> str:
    """What of `text` is not prescribed word for word: no opening or closing, no required sentence, no stated fact.

    >>> from anchorline.style.load import parse_style
    >>> style = parse_style({"name": "s", "rules": [{"kind": "starts_with", "text": "Here is the answer:"}]})
    >>> without_prescribed(style, (), "Here is the answer: it left.")
    'it left.'
    """
    text = _own_text(text, _frame(style, _bounded(prompt)))
    for fact in _facts(style, prompt):
        text = text.replace(fact, " ", 1)
    return text.strip()


def prescribed(style: Style, prompt: Messages) -> tuple[str, ...]:
    """All texts that `without_prescribed` leaves out."""
    frame = _frame(style, _bounded(prompt))
    edges = (edge for edge in (frame.opening, frame.closing) if edge)
    return (*edges, *(addition.sentence for addition in frame.additions), *_facts(style, prompt))


def _facts(style: Style, prompt: Messages) -> list[str]:
    stated = (rule.resolve(_bounded(prompt)) for rule in style.rules if isinstance(rule, States))
    return [fact for fact in stated if fact]


def _kept(style: Style, prompt: Messages, text: str) -> dict[str, bool]:
    return {rule.name: rule.kept(prompt, text) for rule in style.rules}


def _frame(style: Style, prompt: Messages) -> Frame:
    opening = next((rule.resolve(prompt) for rule in style.rules if isinstance(rule, StartsWith)), None)
    closing = next((rule.resolve(prompt) for rule in style.rules if isinstance(rule, EndsWith)), None)
    additions = tuple(Addition(rule.term, rule.sentence) for rule in style.rules if isinstance(rule, Required))
    return Frame(opening or "", closing or "", additions)


def _own_words(text: str, frame: Frame) -> int:
    return sum(any(map(str.isalnum, word)) for word in _own_text(text, frame).split())


def _own_text(text: str, frame: Frame) -> str:
    body = split_parts(text, frame).body
    for addition in frame.additions:
        body = body.replace(addition.sentence, " ", 1)
    return body


def _bounded(prompt: Messages) -> Messages:
    return tuple(Message(turn.role, turn.content[:MAX_TEXT]) for turn in prompt)
