r"""A model as judge of one answer at a time: a score from 1 to 10, the mean of n replies. The higher mean wins.

Cheaper than both orders of every pair where many answers are compared; coarser, so that ties are common.

>>> parse_score("Short and right.\n**Score: 8/10**", "stop")
8.0
"""

from __future__ import annotations

import re
from statistics import fmean
from typing import NamedTuple

from anchorline.judge.rubric import rubric
from anchorline.judge.sampling import Sampling, together
from anchorline.judge.template import Template, conversation, packaged_template, render
from anchorline.judge.verdict import Judge, Scored, Scorer, Unreadable, decision
from anchorline.llm.types import Endpoint
from anchorline.style import Style
from anchorline.types import Messages, Verdict

SLOTS = frozenset({"rubric", "conversation", "answer"})
"""What a scoring template has to use."""
LOWEST, HIGHEST = 1, 10

_LINE = re.compile(
    r"^[ \t>#*_`\"'{\[(]{0,12}(?:final[ _]|overall[ _])?score[ \t*_`\"']{0,6}[:：=][ \t*_`\"'\[({]{0,8}"
    r"(-?\d{1,4}(?:\.\d{1,4})?)(?:[ \t]?(?:/|out of)[ \t]?10)?[ \t\r.*_`\"'\])}]{0,12}$",
    re.IGNORECASE | re.MULTILINE,
)


class Score(NamedTuple):
    """The mean of the replies' scores."""

    mean: float
    values: tuple[float, ...]


def default_template() -> Template:
    """The template that comes with the package."""
    return packaged_template("anchorline.judge", "score", SLOTS)


def parse_score(text: str, finish: str) -> float:
    """The score of one reply. Raises Unreadable, also for a score outside the scale."""
    score = float(decision(text, finish, _LINE, expected="one line such as 'SCORE: 7'"))
    if not LOWEST <= score <= HIGHEST:
        raise Unreadable(f"the judge's score is {score:g}, expected {LOWEST} to {HIGHEST}")
    return score


async def score_answer(
    prompt: Messages,
    answer: str,
    *,
    judge: Endpoint,
    n: int = 1,
    style: Style | None = None,
    template: Template | None = None,
    sampling: Sampling | None = None,
    row: str = "",
) -> Score:
    """The mean of `n` independent replies; one that cannot be read fails them all."""
    template, sampling = template or default_template(), sampling or Sampling()
    turns = render(template, rubric=rubric(style, prompt), conversation=conversation(prompt), answer=answer)

    async def ask(index: int) -> float:
        reply = await judge.complete(sampling.request(turns, row=row, stage="judge", index=index))
        return parse_score(reply.text, reply.finish)

    values = await together(ask(index) for index in range(n))
    return Score(fmean(values), tuple(values))


def score_judge(
    endpoint: Endpoint,
    *,
    n: int = 1,
    style: Style | None = None,
    template: Template | None = None,
    sampling: Sampling | None = None,
) -> Judge:
    """A judge of two answers that scores each alone."""
    template = template or default_template()

    async def score(prompt: Messages, answer: str, row: str) -> Score:
        return await score_answer(
            prompt, answer, judge=endpoint, n=n, style=style, template=template, sampling=sampling, row=row
        )

    async def judge(prompt: Messages, a: str, b: str, *, row: str = "") -> Verdict:
        of_a, of_b = await together([score(prompt, a, row), score(prompt, b, row)])
        details = {"mode": "score", "template": template.hash, "scores": [list(of_a.values), list(of_b.values)]}
        winner = "tie" if of_a.mean == of_b.mean else "a" if of_a.mean > of_b.mean else "b"
        return Verdict(winner, judge=endpoint.model, details=details)

    return judge


def score_scorer(
    endpoint: Endpoint,
    *,
    n: int = 1,
    style: Style | None = None,
    template: Template | None = None,
    sampling: Sampling | None = None,
) -> Scorer:
    """`score_answer`'s mean with the replies' scores, for choosing among many answers."""
    template = template or default_template()

    async def scorer(prompt: Messages, answer: str, *, row: str = "") -> Scored:
        score = await score_answer(
            prompt, answer, judge=endpoint, n=n, style=style, template=template, sampling=sampling, row=row
        )
        details = {"mode": "score", "template": template.hash, "scores": list(score.values)}
        return Scored(score.mean, endpoint.model, details)

    return scorer
