"""Training on pairs and labelled answers that are there already: every format, the right objective, the right split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anchorline.cli.options import recipe_of_data
from anchorline.data import read_json, read_jsonl
from anchorline.data import write_rows as write_table
from anchorline.errors import RecipeError
from anchorline.recipe import load_recipe, run
from anchorline.recipe.config import Recipe, parse_recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.making import check_style, check_unstyled
from anchorline.recipe.sources import read_answers
from anchorline.recipe.stages import STAGES
from tiny_chat import STYLE, save_tiny_chat, write_recipe, write_rows

THINGS = ("hat", "map", "key", "bag", "cup", "lamp")
QUICK = ["train.dtype=float32", "train.learning_rate=0.01", "train.lora.rank=2", "pairs.heldout=0.34"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More threads only get in each other's way with so small a model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("model"))


def pair(thing: str, layout: str) -> dict[str, Any]:
    """A pair as TRL writes it."""
    chosen, rejected = f"good day. the {thing} left.", f"{thing} box"
    if layout == "plain":
        return {"prompt": f"the {thing}", "chosen": chosen, "rejected": rejected}
    asked = [{"role": "system", "content": "help"}, {"role": "user", "content": f"the {thing}"}]
    sides = {
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    if layout == "whole conversations":
        return {side: [*asked, *turn] for side, turn in sides.items()}
    return {"prompt": asked, **sides}


def trained(model: Path, place: Path, file: str, *overrides: str) -> dict[str, Any]:
    """Run `train` on the file."""
    recipe = recipe_of_data("pairs.file", str(place / file), [f"model={model}", *QUICK, *overrides])
    return run(recipe, place / "out", upto="train")


def rows(file: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(file)]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_every_format_of_pairs_gives_the_same_pairs(model: Path, tmp_path: Path, ending: str) -> None:
    table = [pair(thing, "conversational") for thing in THINGS]
    if ending == "parquet":
        write_table(tmp_path / "p.parquet", table)
    elif ending == "json":
        (tmp_path / "p.json").write_text(json.dumps(table))
    else:
        write_rows(tmp_path / "p.jsonl", table)
    recipe = recipe_of_data("pairs.file", str(tmp_path / f"p.{ending}"), [f"model={model}", "pairs.heldout=0.34"])
    run(recipe, tmp_path / "out", upto="measure")
    kept = rows(tmp_path / "out" / "pairs.jsonl")
    held = rows(tmp_path / "out" / "evals" / "given-pairs.jsonl")
    assert (len(kept), len(held)) == (4, 2)
    back = sorted(((row["prompt"], row["chosen"], row["rejected"]) for row in [*kept, *held]), key=str)
    assert back == sorted(((row["prompt"], row["chosen"], row["rejected"]) for row in table), key=str)
    assert read_json(tmp_path / "out" / "measure.json")["pairs"] == 4


def test_prompts_to_measure_on_need_no_prompts_to_train_on(model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "p.jsonl", [pair(thing, "plain") for thing in THINGS])
    write_rows(tmp_path / "g.jsonl", [{"id": "g1", "prompt": "What is a knot?"}])
    overrides = [f"model={model}", f"prompts.general={tmp_path / 'g.jsonl'}"]
    run(recipe_of_data("pairs.file", str(tmp_path / "p.jsonl"), overrides), tmp_path / "out", upto="measure")
    assert [row["id"] for row in rows(tmp_path / "out" / "evals" / "general-prompts.jsonl")] == ["g1"]


@pytest.mark.parametrize("layout", ["plain", "conversational", "whole conversations"])
def test_every_layout_of_pairs_is_trained_on(model: Path, tmp_path: Path, layout: str) -> None:
    write_rows(tmp_path / "p.jsonl", [pair(thing, layout) for thing in THINGS])
    summary = trained(model, tmp_path, "p.jsonl")
    assert (summary["pairs"], summary["failures"]) == (4, 0)
    assert (tmp_path / "out" / "model" / "adapter_config.json").is_file()
    [step] = rows(tmp_path / "out" / "train" / "metrics.jsonl")
    assert step["loss"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("objective", "loss"), [("apo_zero_unpaired", 0.5), ("kto", 0.5), ("sft", None), ("kto=1,sft=0.1", None)]
)
def test_labelled_answers(model: Path, tmp_path: Path, objective: str, loss: float | None) -> None:
    labelled = [
        {"prompt": f"the {thing}", "completion": f"{thing} left.", "label": n % 2 == 0}
        for n, thing in enumerate(THINGS)
    ]
    write_rows(tmp_path / "u.jsonl", labelled)
    summary = trained(model, tmp_path, "u.jsonl", f"train.objective={objective}")
    assert summary["pairs"] == 4
    kept = rows(tmp_path / "out" / "pairs.jsonl")
    assert {row["label"] for row in kept} == {True, False} and all("completion" in row for row in kept)
    [step] = rows(tmp_path / "out" / "train" / "metrics.jsonl")
    assert loss is None or step["loss"] == pytest.approx(loss, abs=1e-5)


def test_labelled_answers_to_the_end(model: Path, tmp_path: Path) -> None:
    """Measure, evaluation and report do without pairs."""
    labelled = [{"prompt": f"the {thing}", "completion": f"{thing} left.", "label": True} for thing in THINGS]
    write_rows(tmp_path / "r" / "u.jsonl", labelled)
    recipe = load_recipe(
        write_recipe(tmp_path / "r", model, pairs={"file": "u.jsonl", "heldout": 0.34}),
        ["train.objective=sft"],
    )
    summary = run(recipe, tmp_path / "out")
    assert summary["style"]["n"] == 3 and summary["preference"] == {"accuracy": None, "n": None}
    assert summary["drift"]["prompts"] == 2
    assert (tmp_path / "out" / "report.html").is_file()


def test_held_out_pairs_are_other_prompts_than_the_trained_ones(model: Path, tmp_path: Path) -> None:
    twice = [pair(thing, "plain") for thing in THINGS]
    twice += [{**row, "prompt": row["prompt"].upper(), "chosen": "good day."} for row in twice]
    write_rows(tmp_path / "p.jsonl", twice)
    recipe = recipe_of_data("pairs.file", str(tmp_path / "p.jsonl"), ["pairs.heldout=0.34"])
    run(recipe, tmp_path / "out", upto="measure")
    texts = [
        {row["prompt"][0]["content"].lower() for row in rows(tmp_path / "out" / name)}
        for name in ("pairs.jsonl", "evals/given-pairs.jsonl", "evals/prompts.jsonl")
    ]
    assert texts[0] & texts[1] == set() and texts[1] == texts[2] and len(texts[0] | texts[1]) == 6
    asked = [row["prompt"][0]["content"] for row in rows(tmp_path / "out" / "evals" / "prompts.jsonl")]
    assert len(asked) == 2 and all(text.islower() for text in asked), "each prompt once, as it came first"


def test_bad_pairs_are_named_and_left_out(model: Path, tmp_path: Path) -> None:
    good = [pair(thing, "plain") for thing in THINGS]
    write_rows(tmp_path / "p.jsonl", [*good, {**good[0], "chosen": good[0]["rejected"]}, 7])
    recipe = recipe_of_data("pairs.file", str(tmp_path / "p.jsonl"), [])
    assert run(recipe, tmp_path / "out", upto="measure")["failures"] == 2
    failures = rows(tmp_path / "out" / "failures.jsonl")
    assert [(f["stage"], f["kind"], f["details"]["line"], f["details"]["field"]) for f in failures] == [
        ("given", "malformed", 7, "chosen"),
        ("given", "malformed", 8, None),
    ]
    assert all(f["details"]["file"] == str(tmp_path / "p.jsonl") for f in failures)


@pytest.mark.parametrize("objective", ["apo_zero", "apo_down", "dpo", "kto=1,sft=1,dpo=1"])
def test_labelled_answers_are_refused_by_objectives_of_pairs(model: Path, tmp_path: Path, objective: str) -> None:
    write_rows(tmp_path / "u.jsonl", [{"prompt": w, "completion": "left.", "label": True} for w in THINGS])
    with pytest.raises(RecipeError, match=r"^(apo_zero|apo_down|dpo) needs pairs, and .*u.jsonl holds single"):
        trained(model, tmp_path, "u.jsonl", f"train.objective={objective}")
    assert not (tmp_path / "out").exists()


def test_pairs_serve_objectives_of_labelled_answers(model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "p.jsonl", [pair(thing, "plain") for thing in THINGS])
    trained(model, tmp_path, "p.jsonl", "train.objective=kto")
    [step] = rows(tmp_path / "out" / "train" / "metrics.jsonl")
    assert step["chosen_reward"] == pytest.approx(0, abs=1e-3)


def given_answers(place: Path) -> Recipe:
    """Three answers and a style, without a model."""
    (place / "style.yaml").write_text(json.dumps(STYLE))
    asked = [{"role": "user", "content": "the hat"}]
    write_rows(place / "a.jsonl", [{"id": f"a{i}", "prompt": asked, "text": f"hat {i} left"} for i in range(3)])
    return recipe_of_data("pairs.answers", str(place / "a.jsonl"), [f"style={place / 'style.yaml'}"])


def test_the_page_is_written_anew_when_what_it_shows_of_the_manifest_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, page = given_answers(tmp_path), tmp_path / "out" / "report.html"
    run(recipe, tmp_path / "out", upto="page")
    assert "set clair" not in page.read_text(encoding="utf-8")
    run(recipe, tmp_path / "out", maker="clair")
    run(recipe, tmp_path / "out", upto="page")
    assert "set clair" in page.read_text(encoding="utf-8")
    monkeypatch.setattr("anchorline.__version__", "9.8.7")
    run(recipe, tmp_path / "out", upto="page")
    assert "9.8.7" in page.read_text(encoding="utf-8")
    written = page.stat().st_mtime_ns
    run(recipe, tmp_path / "out", upto="page")
    assert page.stat().st_mtime_ns == written


def test_the_report_does_not_count_itself_among_the_stages(tmp_path: Path) -> None:
    run(given_answers(tmp_path), tmp_path / "out", upto="page")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">measure</th>' in page and '<th scope="row">report</th>' not in page


def test_a_set_without_a_model_has_its_page(tmp_path: Path) -> None:
    recipe = given_answers(tmp_path)
    run(recipe, tmp_path / "out", maker="clair")
    with pytest.raises(RecipeError, match="`model` is lacking"):
        run(recipe, tmp_path / "out")
    assert run(recipe, tmp_path / "out", upto="page")["pairs"] == 3
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "set clair" in page and "Word overlap" in page and "This stage has not run: training" in page


LONG = "what is the capital of the country that lies north of the alps and has the most lakes"
COLUMNS: dict[str, dict[str, Any]] = {
    "file": {"chosen": "good day.", "rejected": "box"},
    "answers": {"text": "box!"},
    "candidates": {"completions": [{"response": "box!"}, {"response": "box"}]},
}
WRITTEN = {"file": "pairs.jsonl", "answers": "answers.jsonl", "candidates": "candidates.jsonl"}


def beside_prompts(place: Path, kind: str, **changes: Any) -> tuple[Recipe, str]:
    """A recipe with given rows beside `prompts`, and the stage that reads them."""
    texts = ["the hat", "The  HAT", f"tell me: {LONG}?", "the map", "the cup", "the cup", "the key", "the bag"]
    texts += ["A driver came"]
    write_rows(
        place / "given.jsonl", [{"id": f"g{n}", "prompt": text, **COLUMNS[kind]} for n, text in enumerate(texts)]
    )
    for name, text in {"heldout": "the hat", "general": "a driver came", "evaluation": LONG}.items():
        write_rows(place / f"{name}.jsonl", [{"prompt": text}])
    sources = {name: str(place / f"{name}.jsonl") for name in ("heldout", "general")}
    sources |= {"train": "nowhere.jsonl", "decontaminate": [str(place / "evaluation.jsonl")], "system": "help"}
    pairs = {"file" if kind == "file" else "answers": str(place / "given.jsonl"), "heldout": 0.26}
    pairs |= {"maker": "off_policy"} if kind == "candidates" else {}
    recipe = parse_recipe({"style": "s.yaml", "prompts": sources | changes, "pairs": pairs})
    return recipe, "given" if kind == "file" else "answers"


@pytest.mark.parametrize("kind", list(COLUMNS))
def test_what_evaluation_uses_is_not_trained_on(tmp_path: Path, kind: str) -> None:
    recipe, name = beside_prompts(tmp_path, kind)
    [stage] = [stage for stage in STAGES if stage.name == name]
    (tmp_path / "out").mkdir()
    failures = stage.act(RunContext(recipe, tmp_path / "out"))
    assert [(failure.kind, failure.id) for failure in failures] == [
        ("heldout", "g0"),
        ("heldout", "g1"),
        ("heldout", "g8"),
        ("contaminated", "g2"),
    ]
    kept = rows(tmp_path / "out" / WRITTEN[kind])
    held = rows(tmp_path / "out" / "evals" / "given-pairs.jsonl") if kind == "file" else []
    assert sorted(row["id"] for row in [*kept, *held]) == [f"g{n}" for n in range(3, 8)]
    asked = [{"role": "system", "content": "help"}]
    assert all(row["prompt"][:-1] == asked for row in kept)
    measured = [rows(tmp_path / "out" / "evals" / f"{part}.jsonl") for part in ("prompts", "general-prompts")]
    turns = [[[turn["content"] for turn in row["prompt"]] for row in part] for part in measured]
    assert turns == [[["help", "the hat"]], [["a driver came"]]]


def test_a_share_of_the_given_answers_is_held_out_and_the_limit_holds(tmp_path: Path) -> None:
    recipe, _ = beside_prompts(tmp_path, "answers", heldout=0.34, limit=2)
    found = read_answers(recipe)
    trained, held = ({row.prompt for row in part} for part in (found.train, found.heldout))
    assert len(found.train) == 2 and len(held) == 2 and not trained & held
    assert {prompt.messages for prompt in found.prompts} == held


@pytest.mark.parametrize("kind", ["file", "answers"])
def test_unstyled_prompts_beside_given_rows_are_refused(tmp_path: Path, kind: str) -> None:
    recipe, stage = beside_prompts(tmp_path, kind, unstyled=str(tmp_path / "general.jsonl"))
    with pytest.raises(RecipeError, match=r"prompts\.unstyled is for answers that are sampled"):
        run(recipe, tmp_path / "out", upto=stage)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["file", "answers"])
@pytest.mark.parametrize("change", ["heldout", "general", "evaluation", "system", "limit"])
def test_what_sifts_given_rows_is_in_their_key(tmp_path: Path, kind: str, change: str) -> None:
    recipe, name = beside_prompts(tmp_path, kind)
    [stage] = [stage for stage in STAGES if stage.name == name]
    before = stage.settings(RunContext(recipe, tmp_path))
    if change in {"system", "limit"}:
        recipe, _ = beside_prompts(tmp_path, kind, **{change: {"system": "Help.", "limit": 1}[change]})
    else:
        write_rows(tmp_path / f"{change}.jsonl", [{"prompt": "another one"}])
    assert stage.settings(RunContext(recipe, tmp_path)) != before


def answers_to_repair(place: Path, **pairs: Any) -> Recipe:
    """Two answers: one that shouts, one that keeps every rule and was cut in its last sentence."""
    (place / "style.yaml").write_text("name: calm\nrules: [{kind: no_exclamation}]\n")
    cut = {"text": "It left. It will", "finish": "length"}
    write_rows(place / "a.jsonl", [{"id": "a", "prompt": "Hi", "text": "Yes!"}, {"id": "b", "prompt": "Ho", **cut}])
    return parse_recipe({"style": str(place / "style.yaml"), "pairs": {"answers": str(place / "a.jsonl"), **pairs}})


@pytest.mark.parametrize("maker", [None, "clair"])
def test_the_styles_checks_look_at_the_styles_repairs_a_second_time(tmp_path: Path, maker: Any) -> None:
    run(answers_to_repair(tmp_path), tmp_path / "out", upto="pairs", maker=maker)
    file = tmp_path / "out" / ("sets/clair/pairs.jsonl" if maker else "pairs.jsonl")
    assert [row["id"] for row in rows(file)] == ["a", "b"]
    run(answers_to_repair(tmp_path, verify="style"), tmp_path / "out", upto="pairs", maker=maker)
    [kept] = rows(file)
    assert kept["id"] == "a" and kept["details"]["verdict"]["judge"] == "style:calm"
    [failure] = rows(tmp_path / "out" / "failures.jsonl")
    assert (failure["id"], failure["kind"]) == ("b", "not_preferred")


def test_a_judge_of_repairs_that_is_not_there_is_missed_first(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"llm\.judge"):
        run(answers_to_repair(tmp_path, verify="llm"), tmp_path / "out", upto="pairs")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("maker", "pairs"),
    [
        ("clair", {}),
        ("clair", {"reviser": "llm", "verify": "style"}),
        ("stronger", {"verify": "style"}),
        ("on_policy", {}),
        ("off_policy", {}),
    ],
)
def test_a_style_without_rules_is_found_out_before_anything_is_asked(tmp_path: Path, maker: str, pairs: Any) -> None:
    recipe = answers_to_repair(tmp_path, maker=maker, **pairs)
    (tmp_path / "style.yaml").write_text("name: calm\nguideline: Be calm.\n")
    with pytest.raises(RecipeError, match=rf"style\.yaml: the style has no rules, and the maker {maker}"):
        check_style(RunContext(recipe, tmp_path / "out"), maker)
    by_model = parse_recipe(
        recipe.model_dump() | {"pairs": {"maker": maker, "reviser": "llm", "judge": "llm", "verify": "llm"}}
    )
    check_style(RunContext(by_model, tmp_path / "out"), maker)


def test_unstyled_prompts_and_a_second_look_do_not_go_together(tmp_path: Path) -> None:
    asked = {"train": "t.jsonl", "unstyled": "u.jsonl"}
    recipe = parse_recipe({"style": "s.yaml", "prompts": asked, "pairs": {"verify": "style"}})
    with pytest.raises(RecipeError, match=r"prompts\.unstyled works with .* verify none only"):
        check_unstyled(recipe)
