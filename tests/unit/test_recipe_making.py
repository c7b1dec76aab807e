"""Which rows a run's makers take, and what is refused before they are asked."""

from __future__ import annotations

from pathlib import Path

from anchorline.data import answer_to_row, prompt_to_row, write_jsonl
from anchorline.recipe.config import Recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.making import MORE, rows_of
from anchorline.types import Answer, Message, Prompt


def asked(id: str) -> tuple[Message, ...]:
    return (Message("user", f"question {id}"),)


def test_a_prompt_whose_first_sample_is_missing_keeps_its_others(tmp_path: Path) -> None:
    answers = {"answers.jsonl": ["b"], MORE: ["a#1", "a#2", "b#1"]}
    for name, ids in answers.items():
        rows = [Answer(id, asked(id[0]), f"answer {id}", "stop") for id in ids]
        write_jsonl(tmp_path / name, map(answer_to_row, rows))
    write_jsonl(tmp_path / "prompts.jsonl", [prompt_to_row(Prompt(id, asked(id))) for id in "abc"])
    rows = list(rows_of(RunContext(Recipe(model="m"), tmp_path), "on_policy"))
    assert [(row.id, row.prompt) for row in rows] == [(id, asked(id)) for id in "abc"]
    assert [[answer.text for answer in row.answers] for row in rows] == [
        ["answer a#1", "answer a#2"],
        ["answer b", "answer b#1"],
        [],
    ]
