"""Checks the card: what it says, that its code runs, that it escapes everything, and what it does with missing files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_folder import RULES, build_run_folder

from anchorline.errors import DataError, RunFolderError
from anchorline.recipe.config import parse_recipe
from anchorline.report import ReportData, build_card, read_run_folder, write_card, write_report
from anchorline.report.card import markdown
from anchorline.report.diff import visible
from tiny_chat import save_tiny_chat

HOSTILE = (
    "---\nlicense: mit\n---\n# h\n```\n</td><script>x</script>![a](http://x.test/a.png)[b](c) | *d* __e__ ~~f~~ `g` "
    "$h$ &lt; <!-- \u202egnp\ud800 {{ 7*7 }}\\"
)
SHOWN = re.sub(r"[ \t\n]+", " ", visible(HOSTILE))


class Seen(HTMLParser):
    """A rendered text: its tags, and its words as a reader sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.parts: list[str] = []
        self.feed(html)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.parts.append(" | ")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def rendered(text: str) -> Seen:
    return Seen(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def front_and_body(card: str) -> tuple[dict[str, Any], str]:
    start, front, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front), body


def settings(**changes: Any) -> str:
    """A resolved recipe, as a run leaves it."""
    recipe = parse_recipe({"name": "harbour", "model": "embedded:smollm2-135m-instruct", **changes})
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = build_run_folder(tmp_path, held_out=60, pairs=290, steps=3)
    prompts = {"train": "p.jsonl", "system": "You answer for Harbour."}
    (folder / "recipe.yaml").write_text(settings(prompts=prompts, sample={"temperature": 0.5}))
    (folder / "model").mkdir()
    (folder / "model" / "adapter_config.json").write_text("{}")
    return folder


def test_the_card_says_what_the_folder_says(folder: Path) -> None:
    path = write_card(folder)
    front, body = front_and_body(path.read_text(encoding="utf-8"))
    assert path == folder / "README.md"
    assert front == {"library_name": "peft", "tags": ["anchorline", "lora", "apo_zero", "sft"]}
    text = " ".join(rendered(body).text.split())
    for words in (
        "A LoRA adapter for embedded:smollm2-135m-instruct, made by anchorline 0.1.0",
        "290 pairs. Objective: apo_zero + 0.2 sft",
        "60 held-out prompts | 0 % (0.0–6.0 %) | 95 % (86.3–98.3 %)",
        "100 general prompts | 0 | 0.081 (0.070 to 0.095)",
        "58 held-out pairs | | 98.3 % (90.9–99.7 %)",
        "mean | 61.4 | 47.8",
        "closing_reference | 0.0 % | 95.0 % | 286",
        "train.beta | 0.1",
        "sample.temperature | 0.5",
        "seed | 0",
        "290 pairs from 300 answers",
        "pairs | unchanged | 6",
        "pairs | emptied | 3",
        "train | too_long | 1",
        "took 5 min 43 s and at most 3.21 GiB",
        "Whoever publishes this model sets its licence",
    ):
        assert words in text, words
    assert [text.index(f" {rule} | ") for rule in RULES] == sorted(text.index(f" {rule} | ") for rule in RULES)
    assert text.index("unchanged") < text.index("emptied") < text.index("too_long")


@pytest.mark.parametrize(
    ("own", "says", "tags"),
    [
        (["dpo", "kto", None], "apo_zero; 2 of 3 pairs by their own: 1 dpo, 1 kto", ["apo_zero", "dpo", "kto"]),
        (["dpo", "dpo", "dpo"], "3 dpo, each pair’s own", ["dpo"]),
        ([None, None, None], "apo_zero", ["apo_zero"]),
    ],
)
def test_pairs_with_an_objective_of_their_own_are_counted(own: list[str | None], says: str, tags: list[str]) -> None:
    pairs = [{"id": str(n), "objective": name} for n, name in enumerate(own)]
    data = ReportData(name="a", summary={"pairs": 3, "objective": {"apo_zero": 1.0}}, pairs=pairs)
    front, body = front_and_body(build_card(data, saved="adapter"))
    assert f"Objective: {says}. `report" in body
    assert front["tags"] == ["anchorline", "lora", *tags]


def test_a_rule_that_no_repair_touched_is_counted_as_none() -> None:
    side = {"rules": {"a": {"share": 1.0}}}
    data = ReportData(name="x", style={"rules": ["a"], "before": side, "after": side}, measure={"rules": {}})
    assert "| a | 100.0\u00a0% | 100.0\u00a0% | 0 |" in build_card(data, saved=None)
    assert "| a | 100.0\u00a0% | 100.0\u00a0% | – |" in build_card(replace(data, measure=None), saved=None)


def test_the_card_says_nothing_of_the_machines_folders(folder: Path) -> None:
    arguments = {"logging_dir": "/home/mina/logs", "deepspeed": "~/zero.json", "optim": "adafactor"}
    train = {"reference_cache": "somewhere/references", "arguments": arguments}
    (folder / "recipe.yaml").write_text(settings(train=train))
    card = write_card(folder).read_text(encoding="utf-8")
    assert "references" not in card and "/home" not in card and "\\~" not in card
    assert "| train.arguments.deepspeed | zero.json |" in card
    assert "| train.arguments.optim | adafactor |" in card


def test_no_prompt_or_answer_of_a_customer_is_in_the_card(folder: Path) -> None:
    card = write_card(folder).read_text(encoding="utf-8")
    for name in ("pairs.jsonl", "evals/answers.jsonl", "failures.jsonl"):
        for row in map(json.loads, (folder / name).read_text().splitlines()):
            texts = [turn["content"] for turn in row.get("prompt", []) if turn["role"] == "user"]
            texts += [row[key] for key in ("before", "after") if key in row]
            texts += [row[key][0]["content"] for key in ("chosen", "rejected") if key in row]
            assert not [text for text in texts if text in card]


@pytest.mark.parametrize(
    ("model", "base", "named"),
    [
        ("some-lab/small_chat.v2", "some-lab/small_chat.v2", "some-lab/small_chat.v2"),
        ("/home/somebody/models/mine", None, "mine"),
        ("embedded:smollm2-135m-instruct", None, "embedded:smollm2-135m-instruct"),
    ],
)
def test_only_a_hub_id_is_a_base_model(model: str, base: str | None, named: str) -> None:
    front, body = front_and_body(build_card(ReportData(name="x", recipe=settings(model=model)), saved="adapter"))
    assert front.get("base_model") == base
    assert f"adapter for {named}, " in rendered(body).text
    assert "somebody" not in body
    assert ("names the base model by its path" in body) == (base is None)


def test_a_folder_that_looks_like_a_hub_id_is_no_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some-lab" / "chat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = build_card(ReportData(name="x", recipe=settings(model="some-lab/chat")), saved="adapter")
    assert "base_model" not in front_and_body(card)[0]


def test_no_licence_is_made_up(folder: Path) -> None:
    front, body = front_and_body(write_card(folder).read_text(encoding="utf-8"))
    assert not {"license", "licence"} & set(front)
    assert not re.search(r"apache|mit licen|\bcc-by", body, re.IGNORECASE)


def test_whole_weights_and_merged_weights(folder: Path) -> None:
    (folder / "model" / "merged").mkdir()
    (folder / "model" / "merged" / "config.json").write_text("{}")
    assert "`model/merged` holds the same" in write_card(folder).read_text(encoding="utf-8")
    (folder / "model" / "merged" / "config.json").unlink()
    (folder / "model" / "adapter_config.json").rename(folder / "model" / "config.json")
    front, body = front_and_body(write_card(folder).read_text(encoding="utf-8"))
    assert front["library_name"] == "transformers" and "lora" not in front["tags"]
    assert "Peft" not in body and "model/merged" not in body and "adapter" not in body


def test_given_pairs_and_labelled_answers() -> None:
    recipe = settings(pairs={"file": "mine.parquet"}, prompts={"train": "x", "system": "not used"})
    data = ReportData(name="x", summary={"pairs": 2}, recipe=recipe, pairs=[{"completion": []}])
    body = build_card(data, saved="adapter")
    assert "2 single labelled answers" in body and "were given in a file" in body
    assert "not used" not in body and "sample." not in body and "repairs" not in body


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_the_code_loads_the_model_and_answers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = save_tiny_chat(tmp_path / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if kind == "adapter":
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if kind == "whole" or "lora_B" in name:  # else the adapter changes nothing, and its loss would not show
            weight.data += torch.randn_like(weight) * 0.3
    model.save_pretrained(tmp_path / "run" / "model")
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    system = 'be brief\n"""\n```\n\u202e'
    (tmp_path / "run" / "recipe.yaml").write_text(settings(prompts={"train": "p.jsonl", "system": system}))

    card = write_card(tmp_path / "run").read_text(encoding="utf-8")
    (block,) = [t for t in MarkdownIt("commonmark").parse(card) if t.type == "fence"]
    monkeypatch.chdir(tmp_path / "run")
    exec(compile(block.content, "README.md", "exec"), {})
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "Your question"}]
    start = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    whole = model.eval().generate(**start, max_new_tokens=256, do_sample=False)
    wanted = tokenizer.decode(whole[0, start["input_ids"].shape[1] :], skip_special_tokens=True)
    assert wanted.strip() and capsys.readouterr().out.endswith(wanted + "\n")  # behind what packages say of themselves


def hostile() -> ReportData:
    """Every text that comes from a file, hostile."""
    share = {"share": 0.5, "low": 0.1, "high": 0.9}
    side = {"all": share, "rules": {HOSTILE: share}, "words": {"mean": 1.0}}
    recipe = {"model": HOSTILE, "prompts": {"system": HOSTILE}, "train": {HOSTILE: HOSTILE}}
    return ReportData(
        name=HOSTILE,
        summary={"pairs": 1, "objective": {HOSTILE: 0.5}, "seconds": {HOSTILE: 1.0}},
        manifest={"anchorline": HOSTILE, "machine": {"cpu": HOSTILE, "device": HOSTILE, "dtype": HOSTILE}},
        recipe=yaml.safe_dump(recipe),
        failures=[{"id": HOSTILE, "stage": HOSTILE, "kind": HOSTILE, "reason": HOSTILE}],
        measure={"pairs": 1, "metrics": {HOSTILE: {}, "word_jaccard": {"mean": 0.5}}, "rules": {HOSTILE: 1}},
        style={"n": 2, "rules": [HOSTILE], "before": side, "after": side},
        drift={"prompts": 1, "kl_per_token": 0.1},
    )


@pytest.mark.parametrize("saved", ["adapter", "whole", None])
def test_all_text_is_escaped(saved: Any) -> None:
    card = build_card(hostile(), saved=saved)
    card.encode("utf-8")
    front, body = front_and_body(card)
    assert front["tags"][-1] == SHOWN and set(front) <= {"library_name", "tags"}
    seen, plain = rendered(body), rendered(front_and_body(build_card(twin(), saved=saved))[1])
    assert seen.tags == plain.tags  # nothing from the data became markup
    # of a base model's path only the last part is named, and the system message stands there as a Python literal
    elsewhere = 2 if saved else 0
    assert seen.text.count(SHOWN) == plain.text.count("tame") - elsewhere > 8
    assert "49" not in seen.text and not set(card) & {"\u202e", "\ud800"}


def twin() -> ReportData:
    """The hostile data with a harmless word in the place of each hostile text."""

    def tame(value: Any) -> Any:
        if isinstance(value, dict):
            return {tame(key): tame(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [tame(inner) for inner in value]
        return value.replace(HOSTILE, "tame") if isinstance(value, str) else value

    data = hostile()
    recipe = yaml.safe_dump(tame(yaml.safe_load(data.recipe or "")))
    fields = {name: tame(getattr(data, name)) for name in ReportData.__dataclass_fields__ if name != "recipe"}
    return ReportData(**fields, recipe=recipe)


@given(st.text(alphabet=st.characters() | st.sampled_from("\\`*_[]|~$#<>&!()-+.1\n a:"), max_size=30))
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    wanted = re.sub(r"[ \t\n]+", " ", visible(text)).strip()
    for around in ("# {}\n", "see {} there\n", "| {} |\n|---|\n", "| a |\n|---|\n| {} |\n"):
        escaped = markdown(text)
        assert "\n" not in escaped
        seen, plain = rendered(around.format(escaped)), rendered(around.format("plain"))
        assert (seen.tags, squeeze(seen.text)) == (plain.tags, squeeze(plain.text.replace("plain", wanted)))


def squeeze(text: str) -> str:
    """Without the white space that Markdown itself cuts off or joins."""
    return re.sub(r"\s+", "", text)


FILES = ["summary.json", "manifest.json", "recipe.yaml", "answers.jsonl", "pairs.jsonl", "failures.jsonl",
         "measure.json", "train/metrics.jsonl", "evals/style.json", "evals/answers.jsonl", "evals/preference.json",
         "evals/drift.json", "model/adapter_config.json"]  # fmt: skip


@pytest.mark.parametrize("missing", FILES)
def test_each_file_may_be_missing(missing: str, folder: Path) -> None:
    (folder / missing).unlink()
    front, body = front_and_body(write_card(folder).read_text(encoding="utf-8"))
    assert "anchorline" in front["tags"]
    titles = re.findall("^## (.+)$", body, re.MULTILINE)
    assert titles == ["What changed", "How to load it", "How it was trained", "The data", "Limits", "Licence"]
    told = {
        "There is no model in this folder yet": "model/adapter_config.json",
        "There is no recipe in this folder": "recipe.yaml",
        "what was left out is not recorded": "failures.jsonl",
        "Drift was not measured": "evals/drift.json",
    }
    assert {file for words, file in told.items() if words in body} == {missing} & set(told.values())


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    front, body = front_and_body(write_card(tmp_path).read_text(encoding="utf-8"))
    assert front == {"tags": ["anchorline"]}
    assert "A run that has not trained its model yet." in body
    assert "The evaluation has not run" in body and "```" not in body


def test_an_evaluation_that_measured_nothing_has_run(folder: Path) -> None:
    for name in ("style.json", "preference.json", "drift.json"):
        (folder / "evals" / name).unlink()
    body = write_card(folder).read_text(encoding="utf-8")
    assert "The evaluation has not run" not in body and "The evaluation had nothing to measure" in body


def test_pairs_that_came_from_a_file_are_of_no_answers(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stages"]["given"] = manifest["stages"].pop("pairs")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    card, page = (write(folder).read_text(encoding="utf-8") for write in (write_card, write_report))
    assert "290 pairs; left out" in card and "from 300 answers" not in page


@pytest.mark.parametrize(
    ("maker", "says"),
    [
        ("clair", "290 pairs from 300 answers"),
        ("on_policy", "290 pairs from 302 answers"),
        ("off_policy", "290 pairs; left"),
    ],
)
def test_the_answers_counted_are_those_that_the_maker_took(folder: Path, maker: str, says: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["makers"]["pairs"]["maker"] = maker
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "more-answers.jsonl").write_text('{"id": "a1#1"}\n{"id": "a2#1"}\n')
    assert says in write_card(folder).read_text(encoding="utf-8")


def test_several_completions_a_row_are_no_answers_of_the_policy(folder: Path) -> None:
    (folder / "answers.jsonl").write_text("")  # what a file of candidates leaves
    assert "290 pairs; left out" in write_card(folder).read_text(encoding="utf-8")


def test_nothing_dropped(folder: Path) -> None:
    (folder / "failures.jsonl").write_text("")
    assert "290 pairs from 300 answers; nothing was left out." in write_card(folder).read_text(encoding="utf-8")


def test_no_figure_is_ever_nan_or_none(folder: Path) -> None:
    data = read_run_folder(folder)
    fields = {name: spoil(getattr(data, name)) for name in ReportData.__dataclass_fields__ if name != "name"}
    words = set(re.split(r"[\s|]+", front_and_body(build_card(ReportData(name="x", **fields), saved="adapter"))[1]))
    assert not words & {"nan", "NaN", "None", "inf", "Undefined", "nan%"}, words


def spoil(value: Any) -> Any:
    """The same shape, with no figure left: not a number, or none at all, by turns."""
    if isinstance(value, dict):
        return {key: spoil(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [spoil(inner) for inner in value]
    return float("nan") if isinstance(value, float) else None if isinstance(value, int) else value


@pytest.mark.parametrize("text", ["name: [", "name: \x07", "a: " + "[" * 400])
def test_a_recipe_that_is_not_yaml_is_named(text: str) -> None:
    with pytest.raises(DataError, match=r"^recipe\.yaml: is not YAML"):
        build_card(ReportData(name="x", recipe=text), saved=None)


def test_a_card_that_cannot_be_written_leaves_nothing_half_written(folder: Path) -> None:
    (folder / "README.md").mkdir()
    before = sorted(folder.iterdir())
    with pytest.raises(RunFolderError, match=r"README\.md: cannot be written"):
        write_card(folder)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ("{maker: clair, reviser: llm}", "as another model revised it"),
        ("{maker: on_policy}", "a judge chose between answers of the model"),
        ("{maker: off_policy}", "between answers of other models"),
        ("{maker: stronger}", "a stronger model's own answer"),
        ("{maker: clair}", "no other model wrote anything"),
    ],
)
def test_the_card_says_who_wrote_the_chosen_answers(pairs: str, says: str) -> None:
    card = build_card(ReportData(name="x", recipe=f"model: lab/m\npairs: {pairs}\n"), saved=None)
    said = " ".join(card.split())
    assert says in said
    assert ("no other model wrote anything" in said) == (pairs == "{maker: clair}")
    assert ("repaired answers of the base model" in said) == (pairs == "{maker: clair}")


def test_costs_and_verdicts_stand_on_the_card() -> None:
    made = {"maker": "clair", "rows": 4, "pairs": 2, "failures": {"not_preferred": 2}}
    made["judge"] = {"judged": 4, "ties": 2, "flips": 1}
    costs = {
        "stages": {"revise": {"calls": 4, "prompt_tokens": 40, "completion_tokens": 8, "usd": None}},
        "kept_pair": {"pairs": {"tokens": 24.0, "usd": None}},
        "timed_out": 1200,
    }
    card = build_card(ReportData(name="x", manifest={"makers": {"pairs": made}, "costs": costs}), saved=None)
    assert "| revisions | 4 | 40 | 8 | unknown |" in card
    assert "| the run’s own pairs (clair) | 4 | 2 | 24 | unknown |" in card
    assert "Unknown cost: 1,200 calls timed out" in card
    assert "4 comparisons by the judge, 2 ties, 1 of them flips" in card and "2 pairs set aside" in card
