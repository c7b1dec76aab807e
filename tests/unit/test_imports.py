"""The command line answers without the engines, and the data side works where they are not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_chat import STYLE, write_rows

HEAVY = ("torch", "transformers", "accelerate", "peft", "datasets", "pandas", "plotly", "numpy", "pyarrow", "jinja2")
COMMANDS = ("run", "sample", "pairs", "measure", "export", "train", "score", "eval", "report")
ASK_FOR_HELP = f"""
import sys
import anchorline.cli.main as main
for words in [["--help"], ["--version"], *([c, "--help"] for c in {COMMANDS})]:
    try:
        main.app(words)
    except SystemExit as end:
        assert not end.code
print(sorted(set({HEAVY}) & set(sys.modules)))
"""
WITHOUT_ENGINES = """
import sys
from importlib.machinery import PathFinder

class Others(PathFinder):  # what an interpreter finds where the engines were never installed
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "accelerate", "peft"):
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Others
sys.argv[0] = "anchorline"
from anchorline.cli.main import entry
entry()
"""


def python(code: str, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=folder)


def test_help_imports_no_engine() -> None:
    done = python(ASK_FOR_HELP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A style, answers, pairs and a tokenizer without weights."""
    from tokenizers import Tokenizer, models

    write_rows(tmp_path / "answers.jsonl", [{"prompt": "where is my hat", "text": "Boats sail."}])
    pairs = [{"prompt": w, "chosen": "good day. Boats sail.", "rejected": "Boats sail."} for w in ("a", "b")]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    (tmp_path / "style.yaml").write_text(json.dumps(STYLE))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")).save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pairs", "answers.jsonl", "--style", "style.yaml", "--out", "made.parquet", "--json"], '"pairs": 1'),
        (["measure", "pairs.jsonl", "--json"], '"pairs": 2'),
        (["measure", "pairs.jsonl", "--model", "model"], "token_levenshtein"),
    ],
    ids=["pairs", "measure", "measure with a tokenizer"],
)
def test_the_data_side_needs_no_engine(place: Path, words: list[str], says: str) -> None:
    done = python(WITHOUT_ENGINES, *words, folder=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert says in done.stdout


def test_a_recipe_of_given_pairs_is_measured_without_an_engine(place: Path) -> None:
    (place / "recipe.yaml").write_text("model: model\npairs: {file: pairs.jsonl, heldout: 0.5}\n")
    done = python(WITHOUT_ENGINES, "measure", "recipe.yaml", "--out", "out", "--json", folder=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["pairs"] == 1
    assert json.loads((place / "out" / "measure.json").read_text())["pairs"] == 1


def test_training_without_an_engine_says_what_to_install(place: Path) -> None:
    words = ["train", "pairs.jsonl", "--model", "model", "--out", "out"]
    done = python(WITHOUT_ENGINES, *words, folder=place)
    assert done.returncode == 2 and not (place / "out").exists()
    assert done.stderr == (
        "error: running a model needs packages that are not installed; in anchorline's checkout: "
        "pip install -c constraints.txt '.[train]'\n"
    )
