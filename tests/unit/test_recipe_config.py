"""The recipe file: paths, overrides, the resolved recipe, and that a run folder's own recipe reads back the same.

After a wanted change of a recipe or a default, write the golden file again with ANCHORLINE_UPDATE_GOLDEN=1.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from anchorline.cli.options import as_yaml, recipe_of_data, settings
from anchorline.errors import RecipeError
from anchorline.recipe import Recipe, load_recipe
from anchorline.recipe.config import override_setting, parse_recipe
from anchorline.recipe.run import wanted_stages
from anchorline.train.config import TrainSettings
from tiny_chat import write_recipe

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "recipe.yaml"


def test_the_resolved_harbour_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe("recipes/harbour.yaml")
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if os.environ.get("ANCHORLINE_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda file: file.name)
def test_every_recipe_names_files_that_exist(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.style and Path(recipe.style).is_file()
    assert recipe.prompts
    for source in (recipe.prompts.train, recipe.prompts.heldout, recipe.prompts.general):
        assert Path(str(source)).is_file()


def test_paths_are_beside_the_recipe_and_ids_stay(tmp_path: Path) -> None:
    file = write_recipe(tmp_path / "r", "nobody/model", pairs={"file": "nobody/pairs"})
    recipe = load_recipe(file)
    assert recipe.prompts
    assert recipe.style == str(tmp_path / "r" / "style.yaml")
    assert recipe.prompts.train == str(tmp_path / "r" / "train.jsonl")
    assert (recipe.model, recipe.pairs.file) == ("nobody/model", "nobody/pairs")
    (tmp_path / "r" / "nobody" / "model").mkdir(parents=True)
    assert load_recipe(file).model == str(tmp_path / "r" / "nobody" / "model"), "a folder that is there wins"


def test_missing_files_stay_beside_the_recipe_and_hub_ids_stay(tmp_path: Path) -> None:
    named = {"train": "gone.jsonl", "general": "owner/name", "heldout": 0.5, "unstyled": "no.jsonl"}
    file = write_recipe(tmp_path / "r", "m", prompts=named)
    prompts = load_recipe(file).prompts
    assert prompts and prompts.unstyled == str(tmp_path / "r" / "no.jsonl")
    assert (prompts.train, prompts.general, prompts.heldout) == (
        str(tmp_path / "r" / "gone.jsonl"),
        "owner/name",
        0.5,
    )


@pytest.mark.parametrize("name", ["teknium/OpenHermes-2.5", "owner/name-2.5:test_1.1"])
def test_a_hub_id_may_hold_a_dot(tmp_path: Path, name: str) -> None:
    file = write_recipe(tmp_path / "r", "m", prompts={"train": name}, retain={"prompts": name})
    recipe = load_recipe(file)
    assert recipe.prompts and recipe.prompts.train == name
    assert recipe.retain and recipe.retain.prompts == name


def test_models_in_process_and_the_references_folder_are_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    here = {"engine": "transformers", "model": "../models/tiny"}
    served = {"model": "../models/tiny", "base_url": "http://127.0.0.1:1/v1"}
    llm = {"reviser": here, "judge": served, "others": [here, here | {"model": "owner/name"}]}
    recipe = load_recipe(write_recipe(tmp_path / "r", "m", llm=llm, train={"reference_cache": "kept"}))
    beside = str(tmp_path / "r" / "../models/tiny")
    assert recipe.llm.reviser and recipe.llm.reviser.model == recipe.llm.others[0].model == beside
    assert recipe.llm.judge and (recipe.llm.judge.model, recipe.llm.others[1].model) == ("../models/tiny", "owner/name")
    assert recipe.train.reference_cache == str(tmp_path / "r" / "kept")


def test_overrides_are_taken_from_the_current_folder(tmp_path: Path) -> None:
    file = write_recipe(tmp_path / "r", "m")
    assert load_recipe(file, ["style=mine.yaml"]).style == "mine.yaml"


def test_later_overrides_win_and_others_stay(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, "m")
    changed = load_recipe(file, ["train.beta=0.5", "train.beta=0.2", "train.lora.alpha=4", "prompts.limit=2"])
    assert (changed.train.beta, changed.train.lora and changed.train.lora.alpha) == (0.2, 4.0)
    assert changed.prompts and changed.prompts.limit == 2
    first = load_recipe(file)
    back = load_recipe(file, ["train.beta=0.1", "train.lora.alpha=32", "prompts.limit=null"])
    assert changed != first == back


def test_a_group_that_is_off_can_be_switched_on_by_one_key() -> None:
    data: dict[str, object] = {"train": {"lora": None}}
    override_setting(data, "train.lora.rank=4")
    recipe = parse_recipe(data)
    assert recipe.train.lora and recipe.train.lora.rank == 4


def test_overrides_leave_the_callers_mapping_alone() -> None:
    inner = {"beta": 0.1}
    data: dict[str, object] = {"train": inner}
    override_setting(data, "train.beta=0.3")
    assert inner == {"beta": 0.1} and data["train"] == {"beta": 0.3}


def test_a_run_folders_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "r", "m"), ["train.objective=apo_zero=1,sft=0.2", "train.lora=null"])
    (tmp_path / "out").mkdir()
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (tmp_path / "out" / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "out") == recipe


def test_a_recipe_saved_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfname: marked\n")
    assert load_recipe(tmp_path / "r.yaml").name == "marked"


def test_a_recipe_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 3  # pyright: ignore[reportAttributeAccessIssue]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_options_arrive_as_they_were_typed(text: str) -> None:
    """`--model` and file names are texts, whatever YAML would make of them."""
    data: dict[str, object] = {}
    override_setting(data, f"style={as_yaml(text)}")
    assert data["style"] == text


def test_plain_options_are_shown_plainly() -> None:
    given = settings(["a=1"], model="embedded:x", strict=True, train__objective="dpo", out=None)
    assert given == ["a=1", "model=embedded:x", "strict=True", "train.objective=dpo"]
    assert settings(None, model="a #1") == ['model="a #1"']


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/pairs.jsonl", "pairs"),
        ("my pairs (1).jsonl", "my-pairs-1"),
        ("owner/name:train", "name-train"),
        ("-.jsonl", "run"),
        ("x" * 99 + ".jsonl", "x" * 64),
    ],
)
def test_a_data_file_gives_its_run_a_name(source: str, name: str) -> None:
    recipe = recipe_of_data("pairs.file", source, ["model=m"])
    assert (recipe.name, recipe.pairs.file, recipe.model) == (name, source, "m")


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [("temperature", 0, "temperature"), ("top_p", 0.5, "top_p"), ("max_tokens", 64, "max_new_tokens")],
)
def test_how_a_served_policy_is_sampled_is_said_in_one_place(name: str, value: float, instead: str) -> None:
    with pytest.raises(RecipeError, match=rf"llm\.policy: {name} has no effect .* sample\.{instead}$"):
        parse_recipe({"llm": {"policy": {"model": "m", name: value}}})
    recipe = parse_recipe({"llm": {"policy": {"model": "m"}, "judge": {"model": "m", name: value}}})
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


def test_the_message_counts_what_else_is_wrong() -> None:
    with pytest.raises(RecipeError, match=r"^here: seed: got -1, but .* \(and 1 more\)$"):
        parse_recipe({"train": {"beta": -1}, "seed": -1}, source="here")


@pytest.mark.parametrize(
    "setting",
    [
        "llm.reviser",
        "llm.reviser.timeout",
        "llm.reviser.api_key",
        "llm.api_key",
        "llm",
        "train.arguments",
        "train.arguments.hub_token",
        "train.arguments.run_name",
        "train.arguments.fsdp_config.headers",
    ],
)
def test_a_key_in_the_wrong_place_is_not_shown(setting: str) -> None:
    data: dict[str, object] = {}
    override_setting(data, f"{setting}=sk-not-to-be-seen")
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data)
    assert "sk-not" not in str(caught.value)


def test_a_key_that_stands_where_a_group_belongs_is_not_shown() -> None:
    with pytest.raises(RecipeError, match="not a group of settings") as caught:
        override_setting({"llm": {"reviser": "sk-not-to-be-seen"}}, "llm.reviser.model=m")
    assert "sk-not" not in str(caught.value)


def test_the_trainers_key_is_asked_for_in_the_environment() -> None:
    with pytest.raises(RecipeError, match=r"^recipe: train\.arguments: hub_token .*HF_TOKEN"):
        parse_recipe({"train": {"arguments": {"hub_token": "not-to-be-seen"}}})
    with pytest.raises(RecipeError, match="not YAML") as caught:
        override_setting({}, "train.arguments={hub_token: not-to-be-seen")
    assert "not-to" not in str(caught.value)
    with pytest.raises(ValidationError) as refused:
        TrainSettings(arguments={"hub_token": "not-to-be-seen"})
    assert "not-to" not in str(refused.value)
    plain = {"hub_token": None, "push_to_hub": True, "hub_model_id": "me/it", "include_num_input_tokens_seen": "all"}
    assert TrainSettings(arguments=plain).arguments == plain


def test_evaluation_sets_are_looked_up_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "eval.jsonl").write_text("{}")
    named = {"train": "gone.jsonl", "decontaminate": ["eval.jsonl", "owner/name"]}
    (tmp_path / "r" / "r.yaml").write_text(yaml.safe_dump({"prompts": named}))
    prompts = load_recipe(tmp_path / "r" / "r.yaml").prompts
    assert prompts and prompts.decontaminate == (str(tmp_path / "r" / "eval.jsonl"), "owner/name")


def test_auto_brings_the_advisor_before_training_and_survives_its_own_dump():
    recipe = parse_recipe({"model": "m", "pairs": {"file": "p.jsonl"}, "train": {"objective": "auto"}})
    names = [stage.name for stage in wanted_stages(recipe, "train")]
    assert names == ["given", "advise", "train"]
    again = parse_recipe(recipe.model_dump(mode="json"))
    assert again.train.objective == recipe.train.objective
    fixed = parse_recipe({"model": "m", "pairs": {"file": "p.jsonl"}})
    assert "advise" not in [stage.name for stage in wanted_stages(fixed, "report")]
