"""A style's own checks as judge: the answer that keeps more rules wins, as many is a tie. Exact, free, no model.

>>> import asyncio
>>> from anchorline.style import parse_style
>>> judge = style_judge(parse_style({"name": "s", "rules": [{"kind": "max_words", "limit": 2}]}))
>>> asyncio.run(judge((), "It left today.", "It left.")).winner
'b'
"""

from __future__ import annotations

from anchorline.errors import StyleError
from anchorline.judge.verdict import Judge, Scored, Scorer
from anchorline.style import Style, check
from anchorline.types import Messages, Verdict


def style_judge(style: Style) -> Judge:
    """A judge of two answers. StyleError where the style has no rules to judge by."""
    _need_rules(style)

    async def judge(prompt: Messages, a: str, b: str, *, row: str = "") -> Verdict:
        of_a, of_b = check(style, prompt, a), check(style, prompt, b)
        kept_a, kept_b = sum(of_a.values()), sum(of_b.values())
        broken = [[name for name, kept in checks.items() if not kept] for checks in (of_a, of_b)]
        winner = "tie" if kept_a == kept_b else "a" if kept_a > kept_b else "b"
        return Verdict(winner, judge=f"style:{style.name}", details={"mode": "style", "broken": broken})

    return judge


def style_scorer(style: Style) -> Scorer:
    """The number of rules that an answer keeps, for choosing among many answers."""
    _need_rules(style)

    async def scorer(prompt: Messages, answer: str, *, row: str = "") -> Scored:
        checks = check(style, prompt, answer)
        broken = [name for name, kept in checks.items() if not kept]
        return Scored(float(sum(checks.values())), f"style:{style.name}", {"mode": "style", "broken": broken})

    return scorer


def _need_rules(style: Style) -> None:
    if not style.rules:
        raise StyleError(f"the style {style.name!r} has no rules to judge by; add rules, or take a model as the judge")
