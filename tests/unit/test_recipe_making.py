"""Which rows a run's makers take, and what is refused before they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anchorline.data import answer_to_row, prompt_to_row, write_jsonl
from anchorline.errors import DataError, RecipeError
from anchorline.recipe.cells import _key
from anchorline.recipe.config import Recipe, parse_recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.grid import Cell
from anchorline.recipe.making import MORE, rows_of
from anchorline.recipe.run import check, run, try_out, wanted_stages
from anchorline.recipe.stages import STAGES
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


def answers_of(place: Path, kind: str, **pairs: Any) -> Recipe:
    """A recipe whose answers are given: one a row, or several."""
    columns: dict[str, Any] = {
        "text": {"text": "a!"},
        "several": {"completions": [{"response": t} for t in ("a!", "b")]},
    }
    write_rows(place / "given.jsonl", [{"prompt": "Hi", **columns[kind]}])
    (place / "style.yaml").write_text("name: calm\nrules: [{kind: no_exclamation}]\n")
    given = {"answers": str(place / "given.jsonl")} | pairs
    return parse_recipe({"style": str(place / "style.yaml"), "pairs": given})


@pytest.mark.parametrize("own", ["clair", "on_policy"])
def test_given_answers_have_to_fit_the_maker_that_is_asked_for(tmp_path: Path, own: str) -> None:
    several, text = (answers_of(tmp_path / kind, kind, maker=own) for kind in ("several", "text"))
    for maker, recipe, other in (("off_policy", several, text), ("clair", text, several)):
        asked: Any = maker
        assert run(recipe, tmp_path / maker, maker=asked)["sets"] == {maker: 1}
        with pytest.raises(DataError, match=rf"the maker {maker} takes .*, got the columns prompt, (text|completions)"):
            run(other, tmp_path / "none", maker=asked)
    assert not (tmp_path / "none").exists()


def test_given_answers_are_what_the_command_sample_has_to_bring(tmp_path: Path) -> None:
    assert run(answers_of(tmp_path, "text"), tmp_path / "out", upto="sample")["answers"] == 1


@pytest.mark.parametrize(("upto", "maker"), [("pairs", None), ("pairs", "clair"), ("sample", None)])
def test_what_given_pairs_take_the_place_of_is_refused(tmp_path: Path, upto: str, maker: Any) -> None:
    recipe = parse_recipe({"model": "m", "style": "s.yaml", "pairs": {"file": "p.jsonl"}})
    says = r"pairs are given \(pairs\.file: p\.jsonl\)"
    with pytest.raises(RecipeError, match=says):
        run(recipe, tmp_path / "out", upto=upto, maker=maker)
    if upto == "pairs":
        with pytest.raises(RecipeError, match=says):
            try_out(recipe, tmp_path / "out", maker=maker)
    assert not (tmp_path / "out").exists()


def test_the_code_of_a_python_rule_is_in_the_keys_of_what_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(RunContext, "model_fingerprint", "f")
    code = tmp_path / "rules_of_this_test.py"
    code.write_text("def sign(prompt, answer):\n    return answer\n")
    recipe = answers_of(tmp_path, "text").model_copy(update={"trust_code": True})
    stages = [stage for stage in STAGES if stage.name in {"pairs:clair", "pairs:on_policy", "evaluate"}]
    cell = Cell("clair", "dpo", 0.1, 0)

    def keys() -> list[Any]:
        run = RunContext(recipe, tmp_path)
        return [*(stage.settings(run) for stage in stages), _key(cell, run, [])]

    assert not any("code" in key for key in keys()), "folders whose style has no code are not made again"
    rules = "[{kind: python, name: signed, function: 'rules_of_this_test:sign'}]"
    (tmp_path / "style.yaml").write_text(f"name: calm\nrules: {rules}\n")
    before = keys()
    assert before == keys()
    code.write_text("def sign(prompt, answer):\n    return answer + '.'\n")
    assert all(old != new for old, new in zip(before, keys(), strict=True))
