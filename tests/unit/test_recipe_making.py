"""Which rows a run's makers take, and what is refused before they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anchorline.data import answer_to_row, prompt_to_row, write_jsonl
from anchorline.errors import RecipeError
from anchorline.recipe.config import parse_recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.making import MORE, rows_of
from anchorline.recipe.run import check, wanted_stages
from anchorline.types import Answer, Message, Prompt
from tiny_chat import write_rows


def asked(id: str) -> tuple[Message, ...]:
    return (Message("user", f"question {id}"),)


def test_a_prompt_whose_first_sample_is_missing_keeps_its_others(tmp_path: Path) -> None:
    answers = {"answers.jsonl": ["b"], MORE: ["a#1", "a#2", "b#1"]}
    for name, ids in answers.items():
        rows = [Answer(id, asked(id[0]), f"answer {id}", "stop") for id in ids]
        write_jsonl(tmp_path / name, map(answer_to_row, rows))
    write_jsonl(tmp_path / "prompts.jsonl", [prompt_to_row(Prompt(id, asked(id))) for id in "abc"])
    rows = list(rows_of(RunContext(parse_recipe({}), tmp_path), "on_policy"))
    assert [(row.id, row.prompt) for row in rows] == [(id, asked(id)) for id in "abc"]
    assert [[answer.text for answer in row.answers] for row in rows] == [
        ["answer a#1", "answer a#2"],
        ["answer b", "answer b#1"],
        [],
    ]


@pytest.mark.parametrize("change", [{"reviser": "llm"}, {"maker": "stronger"}, {"verify": "llm"}])
def test_a_set_beside_the_runs_own_pairs_has_no_unstyled_prompts_to_turn(tmp_path: Path, change: Any) -> None:
    (tmp_path / "style.yaml").write_text("name: calm\nrules: [{kind: no_exclamation}]\n")
    for name in ("train", "unstyled"):
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {n}"} for n in range(2)])
    prompts = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "unstyled")}
    models = {
        name: {"model": name, "base_url": "http://127.0.0.1:1/v1"}
        for name in ("policy", "reviser", "judge", "stronger")
    }
    recipe = parse_recipe({"style": str(tmp_path / "style.yaml"), "prompts": prompts, "llm": models, "pairs": change})
    context = RunContext(recipe, tmp_path / "out")
    check(context, wanted_stages(recipe, f"pairs:{recipe.pairs.maker}"))
    with pytest.raises(RecipeError, match=r"prompts\.unstyled works with"):
        check(context, wanted_stages(recipe, "pairs"))
