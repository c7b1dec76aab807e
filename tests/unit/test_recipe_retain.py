"""The stage `retain`: which prompts are held, how they are answered, and what makes it and the training run again."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_recipe_unstyled import prompts, recipe

from anchorline.data import answer_to_row, write_jsonl
from anchorline.errors import DataError
from anchorline.recipe.config import Recipe, load_recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.run import wanted_stages
from anchorline.recipe.sources import read_retained
from anchorline.recipe.stages import RETAINED, STAGES, Stage
from anchorline.train.config import RetainSettings
from anchorline.types import Answer, Message


def holding(folder: Path, *texts: str, **settings) -> Recipe:
    kept = RetainSettings(prompts=prompts(folder / "kept.jsonl", *texts), max_new_tokens=9, **settings)
    return recipe(folder, prompts(folder / "unstyled.jsonl", "five")).model_copy(update={"retain": kept})


def stage(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)


def context(asked: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunContext, dict]:
    """A run whose model need not be there, and what it is asked."""
    monkeypatch.setattr(RunContext, "model_fingerprint", "f")
    seen = {}
    monkeypatch.setattr(RunContext, "loaded", lambda run, dtype: None)
    monkeypatch.setattr(RunContext, "answer", lambda run, _, prompts, how, name: seen.update({name: (prompts, how)}))
    return RunContext(asked, folder), seen


def test_what_evaluation_measures_is_not_held_and_the_rest_is_answered_as_the_reference_would(tmp_path, monkeypatch):
    run, seen = context(holding(tmp_path, "FOUR", "six", "three"), tmp_path, monkeypatch)
    stage("prompts").act(run)
    failures = stage("retain").act(run)
    asked, how = seen[RETAINED]
    assert [(p.id, [m.role for m in p.messages]) for p in asked] == [("kept-1", ["user"])]
    assert (how.temperature, how.top_p, how.max_new_tokens) == (1.0, 1.0, 9)
    assert [(f.id, f.kind) for f in failures] == [("kept-0", "heldout"), ("kept-2", "heldout")]


def test_prompts_that_are_all_measured_are_refused(tmp_path, monkeypatch):
    run, _ = context(holding(tmp_path, "four"), tmp_path, monkeypatch)
    stage("prompts").act(run)
    with pytest.raises(DataError, match="evaluation measures"):
        stage("retain").act(run)


def test_what_overlaps_an_evaluation_set_is_not_held(tmp_path, monkeypatch):
    asked = holding(tmp_path, "seven", "what is five and six")
    against = prompts(tmp_path / "evaluation.jsonl", "What is five and six?")
    sources = asked.prompts and asked.prompts.model_copy(update={"decontaminate": (against,)})
    run, seen = context(asked.model_copy(update={"prompts": sources}), tmp_path, monkeypatch)
    assert stage("retain").settings(run) != stage("retain").settings(RunContext(asked, tmp_path))
    failures = stage("retain").act(run)
    assert [p.id for p in seen[RETAINED][0]] == ["kept-0"]
    assert [(f.id, f.kind) for f in failures] == [("kept-1", "contaminated")]


def test_prompts_that_all_overlap_an_evaluation_set_are_refused(tmp_path):
    asked = holding(tmp_path, "what is five and six")
    against = prompts(tmp_path / "evaluation.jsonl", "What is five and six?")
    sources = asked.prompts and asked.prompts.model_copy(update={"decontaminate": (against,)})
    with pytest.raises(DataError, match=r"kept\.jsonl: all its prompts overlap an evaluation set"):
        read_retained(asked.model_copy(update={"prompts": sources}), [])


def test_another_weight_trains_again_and_asks_nobody_again(tmp_path, monkeypatch):
    write_jsonl(tmp_path / RETAINED, [answer_to_row(Answer("a", (Message("user", "six"),), "Yes.", "stop"))])
    keys = []
    for weight in (1.0, 0.3):
        run, _ = context(holding(tmp_path, "six", weight=weight), tmp_path, monkeypatch)
        keys.append((stage("retain").settings(run), stage("train").settings(run)))
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]


@pytest.mark.parametrize(("weight", "there"), [(1.0, True), (0.0, False)])
def test_the_stage_is_there_where_something_is_held(tmp_path, weight, there):
    found = [s.name for s in wanted_stages(holding(tmp_path, "six", weight=weight), "train")]
    assert ("retain" in found) is there and found[-1] == "train"


def test_its_file_lies_beside_the_recipe(tmp_path):
    (tmp_path / "kept.jsonl").write_text("")
    (tmp_path / "r.yaml").write_text("retain: {prompts: kept.jsonl}\n")
    held = load_recipe(tmp_path / "r.yaml").retain
    assert held is not None and held.prompts == str(tmp_path / "kept.jsonl")
