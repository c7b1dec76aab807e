r"""MixEval's parsing by a model: which option an answer chose, or how right a free-form answer is, 0 to 1.

The reply's [[...]] counts, else its [...]. A reply without one is asked for again, ten times in all; then the option, or
a score in tenths, is drawn by lot, as the benchmark does it; where no request was answered, there is no score. The judge
sees the question without its context, as there.
The templates are our own.

>>> read_option("It says blue: [[B]]"), read_score("Nearly. [0.8]"), read_score("[[7]]")
('B', 0.8, None)
"""

from __future__ import annotations

import re

from anchorline.errors import EndpointError
from anchorline.evals.mixeval_hard import LETTERS, Item, Score, by_lot, listed, lot
from anchorline.judge import Sampling, packaged_template, render
from anchorline.llm.types import Endpoint

ATTEMPTS = 10
MOST_TOKENS = 999
"""Tokens of a judge's reply."""
CHOICE_SLOTS = frozenset({"question", "options", "answer"})
FREE_SLOTS = frozenset({"question", "targets", "answer"})
_OPTION = (re.compile(r"\[\[([A-Z])\]\]"), re.compile(r"\[([A-Z])\]"))
_SCORE = (re.compile(r"\[\[(\d{1,9}(?:\.\d{0,9})?)\]\]"), re.compile(r"\[(\d{1,9}(?:\.\d{0,9})?)\]"))


def read_option(reply: str) -> str | None:
    """The letter in brackets, two before one; it may be none of the question's: then the answer is wrong."""
    return next((match[1] for pattern in _OPTION if (match := pattern.search(reply))), None)


def read_score(reply: str) -> float | None:
    """The number in brackets, two before one; None where there is none, or it is above 1."""
    found = next((float(match[1]) for pattern in _SCORE if (match := pattern.search(reply))), None)
    return found if found is not None and 0 <= found <= 1 else None


async def score_by_judge(
    item: Item, answer: str, *, judge: Endpoint, temperature: float = 1.0, top_p: float = 1.0, seed: int
) -> Score:
    """The score of one answer; with an `error` where each of the requests failed."""
    sampling = Sampling(MOST_TOKENS, temperature, top_p)
    if item.kind == "choice":
        template = packaged_template("anchorline.evals", "mixeval_choice", CHOICE_SLOTS)
        turns = render(template, question=item.prompt, options=listed(item.options), answer=answer)
    else:
        template = packaged_template("anchorline.evals", "mixeval_free", FREE_SLOTS)
        targets = "\n".join(f"{n}. {target}" for n, target in enumerate(item.targets, start=1))
        turns = render(template, question=item.prompt, targets=targets, answer=answer)
    errors: list[str] = []
    for index in range(ATTEMPTS):
        try:
            reply = await judge.complete(sampling.request(turns, row=item.id, stage="mixeval_hard", index=index))
        except EndpointError as error:
            errors.append(str(error))
            continue
        if item.kind == "choice" and (letter := read_option(reply.text)):
            return Score(item, float(letter == LETTERS[item.target]), False)
        if item.kind == "free" and (score := read_score(reply.text)) is not None:
            return Score(item, score, False)
    if len(errors) == ATTEMPTS:
        return Score(item, 0.0, False, errors[0])
    if item.kind == "choice":
        return Score(item, float(by_lot(item, seed) == LETTERS[item.target]), True)
    return Score(item, lot(item, seed) % 11 / 10, True)
