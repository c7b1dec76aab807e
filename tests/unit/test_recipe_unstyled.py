"""Prompts where the style does not apply: they are never those that evaluation uses, and their pairs are turned round."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchorline.data import answer_to_row, pair_from_row, read_jsonl, write_json, write_jsonl
from anchorline.errors import DataError
from anchorline.measure import measure_pair, summarise
from anchorline.recipe.config import Prompts, Recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.sources import read_sources
from anchorline.recipe.stages import STAGES
from anchorline.report.files import read_run_folder
from anchorline.report.html import build_report
from anchorline.types import Answer, Message

STYLE = "name: calm\nrules:\n  - {kind: no_exclamation}\n"


def prompts(file: Path, *texts: str) -> str:
    write_jsonl(file, [{"id": f"{file.stem}-{n}", "prompt": text} for n, text in enumerate(texts)])
    return str(file)


def recipe(folder: Path, unstyled: str) -> Recipe:
    (folder / "style.yaml").write_text(STYLE)
    sources = Prompts(
        train=prompts(folder / "train.jsonl", "one", "two"),
        heldout=prompts(folder / "held.jsonl", "three"),
        general=prompts(folder / "general.jsonl", "four"),
        unstyled=unstyled,
        system="Be brief.",
    )
    return Recipe(model="m/n", style=str(folder / "style.yaml"), prompts=sources)


def test_what_evaluation_measures_is_not_trained_on(tmp_path: Path):
    unstyled = prompts(tmp_path / "unstyled.jsonl", "FOUR", "five", "three")
    sources = read_sources(recipe(tmp_path, unstyled))
    assert [p.id for p in sources.unstyled] == ["unstyled-1"]
    assert [p.id for p in sources.dropped] == ["unstyled-0", "unstyled-2"], "the held-out one has a system message"


def test_a_training_prompt_that_is_a_general_one_is_not_trained_on(tmp_path: Path):
    asked = recipe(tmp_path, prompts(tmp_path / "unstyled.jsonl", "five"))
    prompts(tmp_path / "general.jsonl", "ONE", "four")
    sources = read_sources(asked)
    assert ([p.id for p in sources.train], [p.id for p in sources.dropped]) == (["train-1"], ["train-0"])
    prompts(tmp_path / "general.jsonl", "one", "two")
    with pytest.raises(DataError, match=r"train\.jsonl: all its prompts are ones that evaluation measures"):
        read_sources(asked)


def test_unstyled_prompts_get_no_system_message(tmp_path: Path):
    sources = read_sources(recipe(tmp_path, prompts(tmp_path / "unstyled.jsonl", "five")))
    assert [m.role for m in sources.unstyled[0].messages] == ["user"]
    assert [m.role for m in sources.train[0].messages] == ["system", "user"]


def test_an_id_of_a_training_prompt_is_refused(tmp_path: Path):
    write_jsonl(tmp_path / "unstyled.jsonl", [{"id": "train-0", "prompt": "five"}])
    with pytest.raises(DataError, match="train-0"):
        read_sources(recipe(tmp_path, str(tmp_path / "unstyled.jsonl")))


def test_they_are_decontaminated(tmp_path: Path):
    asked = recipe(tmp_path, prompts(tmp_path / "unstyled.jsonl", "what is five and six", "seven"))
    against = prompts(tmp_path / "evaluation.jsonl", "What is five and six?")
    sources = asked.prompts and asked.prompts.model_copy(update={"decontaminate": (against,)})
    found = read_sources(asked.model_copy(update={"prompts": sources}))
    assert [p.id for p in found.unstyled] == ["unstyled-1"]
    assert [(file, overlap.prompt.id) for file, overlap in found.contaminated] == [(against, "unstyled-0")]


def test_their_pairs_prefer_the_answer_as_it_was(tmp_path: Path):
    run = RunContext(recipe(tmp_path, prompts(tmp_path / "unstyled.jsonl", "five")), tmp_path)
    question = (Message("user", "five"),)
    for name, id in (("answers.jsonl", "train-0"), ("unstyled-answers.jsonl", "unstyled-0")):
        write_jsonl(tmp_path / name, [answer_to_row(Answer(id, question, "Fine!", "stop"))])
    stage = next(stage for stage in STAGES if stage.name == "pairs")
    assert stage.act(run) == []
    pairs = {pair.id: pair for pair in (pair_from_row(row) for _, row in read_jsonl(tmp_path / "pairs.jsonl"))}
    assert (pairs["train-0"].chosen, pairs["train-0"].rejected) == ("Fine.", "Fine!")
    assert (pairs["unstyled-0"].chosen, pairs["unstyled-0"].rejected) == ("Fine!", "Fine.")
    turned = {id: pair.provenance.details.get("turned") for id, pair in pairs.items()}
    assert turned == {"train-0": None, "unstyled-0": True}
    write_json(tmp_path / "measure.json", summarise([measure_pair("Fine.", "Fine!")]))
    write_json(tmp_path / "manifest.json", {"name": "x"})
    assert "in 1 of the pairs, on prompts where the style does not apply" in build_report(read_run_folder(tmp_path))
    assert read_run_folder(tmp_path).sampled == 2


def test_they_are_answered_from_the_models_own_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = RunContext(recipe(tmp_path, prompts(tmp_path / "unstyled.jsonl", "five")), tmp_path)
    for stage in STAGES[:1]:
        stage.act(run)
    asked = {}
    monkeypatch.setattr(RunContext, "loaded", lambda run, dtype: None)
    monkeypatch.setattr(
        RunContext,
        "answer",
        lambda run, loaded, prompts, settings, name, salt=0: asked.setdefault(name, settings) and [],
    )
    stage = next(stage for stage in STAGES if stage.name == "sample")
    stage.act(run)
    assert asked["answers.jsonl"] == run.recipe.sample and run.recipe.sample.temperature < 1
    assert asked["unstyled-answers.jsonl"] == run.recipe.sample.model_copy(update={"temperature": 1.0, "top_p": 1.0})
