"""Find rules that no answer can keep together, before a run finds out: every rule's check is run on every fixed text.

>>> from anchorline.style.rules_edges import StartsWith
>>> from anchorline.style.rules_shape import NoExclamation
>>> try:
...     refuse_conflicts((StartsWith(text="Hello!"), NoExclamation()), source="s.yaml")
... except RuleConflict as error:
...     print(error)
s.yaml: rules 'starts_with' and 'no_exclamation' conflict: the text 'Hello!' of the first breaks the second; change one
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from typing import NamedTuple

from anchorline.errors import RuleConflict
from anchorline.style.frame import join
from anchorline.style.prose import count_words
from anchorline.style.rules import Rule
from anchorline.style.rules_edges import EndsWith, StartsWith
from anchorline.style.rules_facts import States
from anchorline.style.rules_limits import MaxSentences, MaxWords
from anchorline.style.rules_python import Python
from anchorline.style.rules_words import Forbidden, Replace, Required, Spelling, Terminology
from anchorline.style.sentences import count_sentences

Rules = tuple[Rule, ...]


class FixedText(NamedTuple):
    """A text that a rule puts into answers."""

    rule: Rule
    text: str


def refuse_conflicts(rules: Rules, *, source: str) -> None:
    """Raise RuleConflict, which names two rules and says why, if `rules` cannot be kept together."""
    for problem in (*_twice(rules), *_broken(rules), *_too_long(rules), *_alone(rules)):
        raise RuleConflict(f"{source}: {problem}")


def _twice(rules: Rules) -> Iterator[str]:
    for first, second in combinations(rules, 2):
        if first.name == second.name:
            kinds = f"kinds {first.kind} and {second.kind}"
            yield f"two rules are called {first.name!r} ({kinds}); give each a `name` of its own"
        if first.kind == second.kind and isinstance(first, StartsWith | EndsWith):
            yield _says(first, second, f"an answer can have one {first.kind} text; keep one of the two")
        if isinstance(first, Spelling) and isinstance(second, Spelling) and first.variant != second.variant:
            yield _says(first, second, f"{first.variant} and {second.variant} spelling exclude each other; keep one")


def _broken(rules: Rules) -> Iterator[str]:
    """Fixed texts that another rule's check refuses, alone or where two of them meet."""
    checks = [
        rule
        for rule in rules
        if not isinstance(rule, StartsWith | EndsWith | States | Required | MaxWords | MaxSentences | Python)
    ]
    for fixed in (*_edges(rules), *_sentences(rules), *_put_in(rules)):
        for rule in checks:
            if rule.kept((), fixed.text):
                continue
            if rule is fixed.rule:
                why = f"it would change its own text {fixed.text!r} again; choose a text that it leaves alone"
                yield f"rule {rule.name!r} conflicts with itself: {why}"
            else:
                yield _says(fixed.rule, rule, f"the text {fixed.text!r} of the first breaks the second; change one")
    for frame in _frames(rules):
        whole = _joined(frame)
        for rule in checks:
            if not rule.kept((), whole):
                yield _says(frame[-1].rule, rule, f"the fixed texts together, {whole!r}, break the second; change one")


def _too_long(rules: Rules) -> Iterator[str]:
    """Fixed texts that leave no room for the answer under a limit."""
    limits = [rule for rule in rules if isinstance(rule, MaxWords | MaxSentences)]
    for limit, frame in product(limits, _frames(rules)):
        whole = _joined(frame)
        words = isinstance(limit, MaxWords)
        size = count_words(whole) if words else count_sentences(whole)
        if size >= limit.limit:
            longest = max(frame, key=lambda fixed: len(fixed.text)).rule
            unit = "words" if words else "sentences"
            yield _says(
                longest,
                limit,
                f"the fixed texts have {size} {unit} and the limit is {limit.limit}, which leaves no room for the "
                "answer; raise the limit or shorten the texts",
            )


def _alone(rules: Rules) -> Iterator[str]:
    """The text of `states` that is an answer by itself, and rules that would have more in the answer, or less."""
    for first, second in product(rules, rules):
        if not isinstance(first, States) or first.missing is None or first is second or isinstance(second, Python):
            continue
        if not second.kept((), first.missing):
            why = f"the first asks for {first.missing!r} as a whole answer, and that breaks the second"
            yield _says(first, second, f"{why}; change one")


def _edges(rules: Rules) -> list[FixedText]:
    return [
        FixedText(rule, text) for rule in rules if isinstance(rule, StartsWith | EndsWith) for text in rule.variants()
    ]


def _sentences(rules: Rules) -> list[FixedText]:
    """What stands between the edges: first what `states` says."""
    stated = [FixedText(rule, rule.variants()[0]) for rule in rules if isinstance(rule, States)]
    return stated + [FixedText(rule, rule.sentence) for rule in rules if isinstance(rule, Required)]


def _put_in(rules: Rules) -> Iterator[FixedText]:
    """What rules put in the place of the answer's own words."""
    for rule in rules:
        if isinstance(rule, Forbidden) and isinstance(rule.repair, Replace):
            yield FixedText(rule, rule.repair.replace)
        if isinstance(rule, Terminology):
            yield from (FixedText(rule, text) for text in dict.fromkeys(rule.put_in()))


def _frames(rules: Rules) -> Iterator[tuple[FixedText, ...]]:
    """The fixed texts of a whole answer, in order, for each choice of variants."""
    edges = _edges(rules)
    openings = [(fixed,) for fixed in edges if isinstance(fixed.rule, StartsWith)] or [()]
    closings = [(fixed,) for fixed in edges if isinstance(fixed.rule, EndsWith)] or [()]
    for opening, closing in product(openings, closings):
        if frame := (*opening, *_sentences(rules), *closing):
            yield frame


def _joined(frame: tuple[FixedText, ...]) -> str:
    whole = ""
    for fixed in frame:
        whole = join(whole, fixed.text)
    return whole


def _says(first: Rule, second: Rule, why: str) -> str:
    return f"rules {first.name!r} and {second.name!r} conflict: {why}"
