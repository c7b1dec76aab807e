r"""A model as judge of two answers, asked in both orders: only what it says in both is a preference.

Agreement gives the winner; disagreement is a tie that is marked as a flip. A reply without a verdict is an error.

>>> parse_verdict("A is friendlier, B is right.\nVERDICT: B", "stop")
'b'
"""

from __future__ import annotations

import re
from typing import Literal

from anchorline.judge.rubric import rubric
from anchorline.judge.sampling import Sampling, together
from anchorline.judge.template import Template, conversation, packaged_template, render
from anchorline.judge.verdict import Judge, decision
from anchorline.llm.types import Endpoint
from anchorline.style import Style
from anchorline.types import Messages, Verdict

SLOTS = frozenset({"rubric", "conversation", "a", "b"})
"""What a pairwise template has to use."""

Winner = Literal["a", "b", "tie"]

_LINE = re.compile(
    r"^[ \t>#*_`\"'{\[(]{0,12}(?:final[ _])?verdict[ \t*_`\"']{0,6}[:：=][ \t*_`\"'\[({]{0,8}"
    r"(?:answer[ _])?(a|b|tie)\b[ \t\r.*_`\"'\])}]{0,12}$",
    re.IGNORECASE | re.MULTILINE,
)
_SWAPPED: dict[Winner, Winner] = {"a": "b", "b": "a", "tie": "tie"}


def default_template() -> Template:
    """The template that comes with the package."""
    return packaged_template("anchorline.judge", "pairwise", SLOTS)


def parse_verdict(text: str, finish: str) -> Winner:
    """Which answer the reply prefers. Raises Unreadable."""
    said = decision(text, finish, _LINE, expected="one line such as 'VERDICT: A'")
    return "a" if said == "A" else "b" if said == "B" else "tie"


async def judge_pair(
    prompt: Messages,
    a: str,
    b: str,
    *,
    judge: Endpoint,
    style: Style | None = None,
    template: Template | None = None,
    sampling: Sampling | None = None,
    row: str = "",
) -> Verdict:
    """The verdict of a model that is asked twice, with a first and with b first. The rubric is the style.

    Equal texts tie without a call. EndpointError where it cannot be asked, its kind "unreadable" where it says nothing.
    """
    template, sampling = template or default_template(), sampling or Sampling()
    details = {"mode": "pairwise", "template": template.hash}
    if a == b:
        return Verdict("tie", judge=judge.model, details=details | {"orders": []})

    async def ask(first: str, second: str) -> Winner:
        turns = render(template, rubric=rubric(style, prompt), conversation=conversation(prompt), a=first, b=second)
        reply = await judge.complete(sampling.request(turns, row=row, stage="judge"))
        return parse_verdict(reply.text, reply.finish)

    straight, swapped = await together([ask(a, b), ask(b, a)])
    turned = _SWAPPED[swapped]
    details |= {"orders": [straight, turned]}
    if straight == turned:
        return Verdict(straight, judge=judge.model, details=details)
    return Verdict("tie", flip=True, judge=judge.model, details=details)


def pairwise_judge(
    endpoint: Endpoint,
    *,
    style: Style | None = None,
    template: Template | None = None,
    sampling: Sampling | None = None,
) -> Judge:
    """`judge_pair` with everything but the answers settled."""

    async def judge(prompt: Messages, a: str, b: str, *, row: str = "") -> Verdict:
        return await judge_pair(
            prompt, a, b, judge=endpoint, style=style, template=template, sampling=sampling, row=row
        )

    return judge
