"""What a reviser is asked, as messages. Pure: the templates are files, the aim is the style in words.

>>> from anchorline.types import Message
>>> turns = revision_request((Message("user", "When?"),), "Monday!", style=None, template=default_template())
>>> "Monday!" in turns[-1].content and "{{" not in turns[-1].content
True
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anchorline.judge import Template, load_template, packaged_template, render, rubric
from anchorline.judge.template import conversation
from anchorline.pairs.markers import CLOSE, OPEN
from anchorline.style import Style
from anchorline.types import Message, Messages

SLOTS = frozenset({"conversation", "answer", "aim", "open", "close"})
"""What a reviser's template has to use."""
_AGAIN_SLOTS = frozenset({"reasons", "open", "close"})


def default_template() -> Template:
    """The reviser's template that comes with the package."""
    return packaged_template("anchorline.pairs", "revise", SLOTS)


def user_template(path: str | Path) -> Template:
    """A reviser's template of the user's own. UserError where it lacks a placeholder or has an unknown one."""
    return load_template(path, slots=SLOTS)


def again_template() -> Template:
    """What follows a revision that cannot be used."""
    return packaged_template("anchorline.pairs", "again", _AGAIN_SLOTS)


def revision_request(prompt: Messages, answer: str, *, style: Style | None, template: Template) -> Messages:
    """The first request for a revision of `answer`."""
    return render(
        template,
        conversation=conversation(prompt),
        answer=answer,
        aim=rubric(style, prompt),
        open=OPEN,
        close=CLOSE,
    )


def again_request(first: Messages, attempt: str, reasons: Sequence[str]) -> Messages:
    """The request after an attempt that cannot be used: the attempt, and why.

    Only the last attempt is shown: earlier ones would cost their tokens again and teach the model their faults.
    """
    listed = "\n".join(f"- {reason}" for reason in reasons)
    turns = render(again_template(), reasons=listed, open=OPEN, close=CLOSE)
    if not attempt.strip():  # no endpoint takes an empty turn
        return (*first[:-1], Message("user", f"{first[-1].content}\n\n{turns[-1].content}"))
    return (*first, Message("assistant", attempt), *turns)
