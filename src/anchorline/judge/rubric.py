"""What "better" means, in words for a model: a style's guideline and rules, or the general aim where there is no style.

>>> from anchorline.style import parse_style
>>> print(rubric(parse_style({"name": "calm", "guideline": "Be calm.", "rules": [{"kind": "no_exclamation"}]}), ()))
Be calm.
<BLANKLINE>
Rules, all of them binding:
- no_exclamation: no exclamation marks
"""

from __future__ import annotations

from anchorline.style import Rule, Style
from anchorline.style.rules_edges import EndsWith, StartsWith
from anchorline.style.rules_facts import States
from anchorline.style.rules_limits import MaxSentences, MaxWords
from anchorline.style.rules_shape import NoExclamation, NoMarkdown
from anchorline.style.rules_words import Forbidden, Required, Spelling, Terminology
from anchorline.types import Messages

GENERAL = (
    "The answer should be clearer, more correct and more engaging: it does what was asked, its statements are true, it "
    "is easy to follow, and it holds the reader's interest."
)
"""The aim where there is no style; it is the paper's."""

_MAX_PATTERN = 160
"""A longer pattern tells a model less than the rule's name and the guideline do."""


def rubric(style: Style | None, prompt: Messages) -> str:
    """The aim for an answer to this prompt (a fixed text may hold a value of the prompt)."""
    if style is None or not (style.guideline or style.rules):
        return GENERAL
    rules = [f"- {rule.name}: {rule_in_words(rule, prompt)}" for rule in style.rules]
    listed = "\n".join(["Rules, all of them binding:", *rules]) if rules else ""
    return "\n\n".join(part for part in (style.guideline, listed) if part)


def rule_in_words(rule: Rule, prompt: Messages) -> str:  # noqa: PLR0911 - one line a kind
    """One rule as an instruction."""
    match rule:
        case StartsWith():
            fixed = rule.resolve(prompt)
            return "does not apply here" if fixed is None else f"start with exactly this text: {fixed}"
        case EndsWith():
            fixed = rule.resolve(prompt)
            return "does not apply here" if fixed is None else f"end with exactly this text: {fixed}"
        case States():
            return _fact(rule, prompt)
        case Forbidden():
            short = len(rule.pattern) <= _MAX_PATTERN
            return f"nothing that this pattern matches: {rule.pattern}" if short else "as the rule's name says"
        case Required():
            return f"mention {rule.term}"
        case Terminology():
            return "; ".join(f"write {right!r} instead of {wrong!r}" for wrong, right in rule.terms.items())
        case Spelling():
            kept = f", except in {', '.join(rule.keep)}" if rule.keep else ""
            return f"{rule.variant.capitalize()} spelling{kept}"
        case NoExclamation():
            return "no exclamation marks"
        case NoMarkdown():
            return "plain text: no headings, bold, italics, bullets, links or code marks"
        case MaxWords():
            return f"at most {rule.limit} words"
        case MaxSentences():
            return f"at most {rule.limit} sentences"
        case _:
            return "as the rule's name says"


def _fact(rule: States, prompt: Messages) -> str:
    values = rule.values(prompt)
    if values is not None:
        return f"state {', '.join(values.values())}"
    return "does not apply here" if rule.missing is None else f"answer exactly this, nothing more: {rule.missing}"
