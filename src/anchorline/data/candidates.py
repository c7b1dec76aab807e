"""Several answers to one prompt, with the models that wrote them and scores where there are some.

They are what off-policy pairs are made of. UltraFeedback's layout is read (`instruction` and `completions`, a list of
objects with `response`, `model` and scores), and distilabel's (`instruction` and `generations`, a list of texts with
`generation_models` and `ratings` beside it); `prompt` may stand for `instruction`.

>>> given = [{"model": "a", "response": "Four.", "overall_score": 9.0}, {"model": "b", "response": "Five."}]
>>> found = candidates_from_row({"instruction": "2 + 2?", "completions": given})
>>> found.answers[0]
Candidate(text='Four.', model='a', score=9.0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from anchorline.data.formats import messages_to_rows
from anchorline.data.layouts import read_prompt
from anchorline.errors import DataError
from anchorline.types import Messages

Score = Literal["overall_score", "fine-grained_score"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer. `model` is "" and `score` None where the row does not say."""

    text: str
    model: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """A prompt and the answers to choose from, at least two, none of them blank, in the row's order."""

    id: str
    prompt: Messages
    answers: tuple[Candidate, ...]


def candidates_from_row(row: Mapping[str, Any], *, score: Score = "overall_score") -> Candidates:
    """Prompt and answers of a row. `score` says which of UltraFeedback's two scores is taken.

    Answers that are null or blank (a model that failed) are left out; fewer than two others are an error.
    """
    if score not in get_args(Score):
        raise DataError(f"is {score!r}, expected one of {', '.join(get_args(Score))}", field="score")
    layouts = [name for name in ("completions", "generations") if row.get(name) is not None]
    if len(layouts) != 1:
        found = ", ".join(map(str, row)) or "none"
        what = "both" if layouts else "neither"
        raise DataError(f"expected either completions (UltraFeedback) or generations (distilabel), got {what}: {found}")
    field = layouts[0]
    prompt = read_prompt(row)
    read = _completions if field == "completions" else _generations
    answers = tuple(answer for answer in read(row, score) if answer.text.strip())
    if len(answers) < 2:
        raise DataError(f"answers that are not blank: {len(answers)}, expected at least two", field=field)
    return Candidates(prompt.id, prompt.messages, answers)


def candidates_to_row(candidates: Candidates) -> dict[str, Any]:
    """The row that `candidates_from_row` reads: UltraFeedback's layout."""
    answers = [{"model": a.model, "response": a.text, "overall_score": a.score} for a in candidates.answers]
    return {"id": candidates.id, "prompt": messages_to_rows(candidates.prompt), "completions": answers}


def _completions(row: Mapping[str, Any], score: Score) -> list[Candidate]:
    answers = []
    for n, item in enumerate(_list(row, "completions")):
        place = f"completions[{n}]"
        if not isinstance(item, Mapping) or "response" not in item:
            raise DataError("is no object with a response", field=place)
        text = _text(item["response"], f"{place}.response")
        model = _text(item.get("model"), f"{place}.model")
        answers.append(Candidate(text, model, _score(item.get(score), f"{place}.{score}")))
    return answers


def _generations(row: Mapping[str, Any], score: Score) -> list[Candidate]:
    del score  # this layout has one only
    texts = _list(row, "generations")
    columns = {}
    for name in ("generation_models", "ratings"):
        values = _list(row, name) if row.get(name) is not None else [None] * len(texts)
        if len(values) != len(texts):
            raise DataError(f"has {len(values)} entries for {len(texts)} generations", field=name)
        columns[name] = values
    return [
        Candidate(
            _text(text, f"generations[{n}]"),
            _text(columns["generation_models"][n], f"generation_models[{n}]"),
            _score(columns["ratings"][n], f"ratings[{n}]"),
        )
        for n, text in enumerate(texts)
    ]


def _list(row: Mapping[str, Any], field: str) -> Sequence[Any]:
    value = row[field]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DataError(f"is a {type(value).__name__}, expected a list", field=field)
    return value


def _text(value: Any, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"is a {type(value).__name__}, expected text", field=field)
    return value


def _score(value: Any, field: str) -> float | None:
    """A number, also as text; the raters' "N/A" and an empty text are no score."""
    if value is None or (isinstance(value, str) and value.strip().casefold() in ("", "n/a", "none")):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"is {str(value)[:40]!r}, expected a number or N/A", field=field)
    return number
