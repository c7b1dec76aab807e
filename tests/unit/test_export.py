"""A data set for others: rows as TRL reads them, a card that says what is known and no more, and a push when asked."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from anchorline.cli.main import app
from anchorline.data import licence_id, read_pairs
from anchorline.errors import DataError, RecipeError
from anchorline.report.export import export

SECRET = "hf_abcdefghijklmnop"
ORIGIN = {
    "maker": "clair",
    "policy": "/home/someone/models/policy-7b",
    "reviser": "lab/reviser|x",
    "details": {"template": "3f2a", "touched": ["no_apology"], "attempts": [{"text": f"raw {SECRET}"}]},
}
PAIRS = [
    {
        "id": f"r{n}",
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Question {n}?"}],
        "chosen": [{"role": "assistant", "content": f"Good day. {n}"}],
        "rejected": [{"role": "assistant", "content": f"Yo! {n}"}],
        **ORIGIN,
    }
    for n in range(3)
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return tmp_path


@pytest.mark.parametrize(
    ("details", "judge"),
    [
        ({"verdicts": {"x": 1}, "touched": None}, None),
        ({"verdicts": ["x"], "verdict": 7, "scores": [3]}, None),
        ({"verdicts": [{"verdict": {"judge": "big"}}]}, "big"),
        ({"verdict": {"judge": "big"}}, "big"),
        ({"scores": [{"judge": "big"}, {"judge": "big"}]}, "big"),
    ],
)
def test_details_of_any_kind_name_a_judge_or_none(details: dict[str, Any], judge: str | None, place: Path) -> None:
    (place / "own.jsonl").write_text(json.dumps(PAIRS[0] | {"details": details}) + "\n")
    card = export("own.jsonl", place / "out", licence="mit").card.read_text()
    assert ("| judge | big | 1 |" in card) == (judge is not None) and ("judge" in card) == (judge is not None)


class FakeHub:
    """What `huggingface_hub.HfApi` is asked, without a network; `broken` is raised by the upload."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.public = False
        self.broken: Exception | None = None

    def __call__(self) -> FakeHub:
        return self

    def create_repo(self, repository: str, **options: Any) -> None:
        self.asked.append((f"create {repository}", options))

    def repo_info(self, repository: str, **options: Any) -> SimpleNamespace:
        assert options == {"repo_type": "dataset"}
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, **options: Any) -> None:
        if self.broken:
            raise self.broken
        self.asked.append(("upload", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    return fake


def card(folder: str = "out") -> tuple[dict[str, Any], str]:
    """Front matter and text."""
    _, front, text = Path(folder, "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["export", *words])


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_rows_are_trls_and_nothing_else(form: Any) -> None:
    done = export("pairs.jsonl", Path("out"), licence="mit", form=form)
    assert (done.pairs, done.problems, done.address) == (3, [], "")
    assert sorted(str(p) for p in Path("out").rglob("*.*")) == ["out/README.md", f"out/data/train.{form}"]
    again = read_pairs(done.file, strict=True).rows
    wanted = read_pairs("pairs.jsonl", strict=True).rows
    assert [(p.id, p.prompt, p.chosen, p.rejected) for p in again] == [
        (p.id, p.prompt, p.chosen, p.rejected) for p in wanted
    ]
    assert all(not p.provenance.maker and not p.provenance.details for p in again)
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in Path("out").rglob("*.*"))


def test_trl_takes_the_file_as_conversations() -> None:
    import datasets
    from trl.data_utils import is_conversational

    file = export("pairs.jsonl", Path("out"), licence="mit").file
    rows = datasets.Dataset.from_parquet(str(file), cache_dir="cache")
    assert isinstance(rows, datasets.Dataset)
    assert rows.column_names == ["id", "prompt", "chosen", "rejected"] and is_conversational(rows[0])


def test_the_cards_front_matter() -> None:
    export("pairs.jsonl", Path("out"), licence="CC-BY-4.0")
    front, _ = card()
    assert front == {
        "license": "cc-by-4.0",
        "pretty_name": "pairs",
        "task_categories": ["text-generation"],
        "tags": ["anchorline", "preference", "trl", "clair"],
        "size_categories": ["n<1K"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train.parquet"}]}],
    }


def test_the_card_says_how_the_pairs_were_made() -> None:
    export("pairs.jsonl", Path("out"), licence="mit")
    _, text = card()
    assert "| clair | 3 |" in text and "3f2a (3 pairs)" in text and "| no_apology | 3 |" in text
    assert "| policy | policy-7b | 3 |" in text and "/home/someone" not in text, "a path tells of the machine only"
    assert r"| reviser | reviser\|x | 3 |" in text
    assert "What did not become a pair is not recorded." in text
    assert "clair: chosen is a minimal revision" in text and "stronger: " not in text, "no maker that made none"
    assert "| word_jaccard | 0.25 |" in text
    assert "Question" not in text and "Good day" not in text, "no prompt or answer"


def test_the_card_of_a_run(tmp_path: Path) -> None:
    helper = runpy.run_path(str(Path(__file__).with_name("report_folder.py")))
    run = helper["build_run_folder"](tmp_path / "run", held_out=2, pairs=4)
    export(str(run), Path("out"), licence="mit", form="jsonl")
    front, text = card()
    assert front["pretty_name"] == "harbour" and front["configs"][0]["data_files"][0]["path"] == "data/train.jsonl"
    failures = [json.loads(line) for line in (run / "failures.jsonl").read_text().splitlines()]
    kinds = {(row["stage"], row["kind"]) for row in failures if row["stage"] not in ("train", "evaluate")}
    assert re.search(r"Versions: \S+ [^ ,]+, \S+ [^ ,]+", text)
    assert kinds and all(f"| {stage} | {kind} | " in text for stage, kind in kinds)
    assert "made by anchorline 0.1.0" in text and "torch 2.13.0" in text and "Seed: 7" in text


def test_hostile_names_stay_text() -> None:
    row = PAIRS[0] | {"maker": "x|y\n# <b>head", "policy": "a` [b](javascript:x)"}
    Path("pairs.jsonl").write_text(json.dumps(row) + "\n")
    export("pairs.jsonl", Path("out"), licence="mit")
    front, text = card()
    assert "tags" in front and front["tags"] == ["anchorline", "preference", "trl"], "no tag is made of a file's text"
    assert r"| x\|y \# &lt;b&gt;head | 1 |" in text and "<b>" not in text
    assert r"| policy | a\` \[b\](javascript:x) | 1 |" in text


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("Apache-2.0", ("apache-2.0", None)),
        (" MIT ", ("mit", None)),
        ("GPL-3.0-or-later", ("gpl-3.0", None)),
        ("unknown", ("unknown", None)),
        ("Acme-Internal-1.0", ("other", "acme-internal-1.0")),
    ],
)
def test_licences(given: str, found: tuple[str, str | None]) -> None:
    assert licence_id(given) == found


@pytest.mark.parametrize("given", [None, "", "my own licence", "other", "-x", "a\nb", "x" * 80])
def test_the_licence_is_asked_for(given: str | None) -> None:
    with pytest.raises(RecipeError, match="--licence"):
        export("pairs.jsonl", Path("out"), licence=given)
    assert not Path("out").exists()


def test_another_licence_is_named_in_the_card() -> None:
    export("pairs.jsonl", Path("out"), licence="acme-1.0")
    front, text = card()
    assert (front["license"], front["license_name"]) == ("other", "acme-1.0") and "acme-1.0, as stated" in text


def test_an_export_replaces_an_export_and_nothing_else() -> None:
    export("pairs.jsonl", Path("out"), licence="mit", form="jsonl")
    export("pairs.jsonl", Path("out"), licence="mit", form="parquet")
    assert [p.name for p in Path("out/data").iterdir()] == ["train.parquet"]
    Path("out/notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds notes\.txt, which no export wrote"):
        export("pairs.jsonl", Path("out"), licence="mit")
    with pytest.raises(DataError, match="is a file, expected a folder"):
        export("pairs.jsonl", Path("pairs.jsonl"), licence="mit")


@pytest.mark.parametrize("name", ["README.md", "data/train.jsonl", "data/train.parquet"])
def test_a_file_of_the_users_stays_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out/data").mkdir(parents=True)
    Path("out", name).write_text("---\nlicense: mine\n---\nmine")
    monkeypatch.setattr("anchorline.report.export.read_pairs", lambda *_, **__: pytest.fail("said too late"))
    with pytest.raises(DataError, match=rf"holds {name.split('/', maxsplit=1)[0]}.*, which no export wrote"):
        export("pairs.jsonl", Path("out"), licence="mit")
    assert [str(p) for p in Path("out").rglob("*.*")] == [f"out/{name}"]
    assert Path("out", name).read_text().endswith("mine")


def test_a_card_that_cannot_be_made_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> str:
        raise DataError("is damaged")

    monkeypatch.setattr("anchorline.report.export.build_data_card", fail)
    with pytest.raises(DataError, match="is damaged"):
        export("pairs.jsonl", Path("out"), licence="mit")
    assert not Path("out").exists()


def test_nothing_is_pushed_unless_asked(hub: FakeHub) -> None:
    export("pairs.jsonl", Path("out"), licence="mit")
    assert hub.asked == []


def test_a_push(hub: FakeHub) -> None:
    done = export("pairs.jsonl", Path("out"), licence="mit", push_to_hub="me/polite-pairs")
    assert done.address == "https://huggingface.co/datasets/me/polite-pairs"
    (made, options), (_, upload) = hub.asked
    assert made == "create me/polite-pairs"
    assert options == {"repo_type": "dataset", "private": None, "exist_ok": True}
    assert (upload["repo_id"], upload["repo_type"], upload["folder_path"]) == (
        "me/polite-pairs",
        "dataset",
        Path("out"),
    )
    assert upload["allow_patterns"] == ["README.md", "data/*"] and "token" not in upload
    assert card()[0]["pretty_name"] == "polite-pairs"


def test_a_private_push_never_goes_to_a_public_data_set(hub: FakeHub) -> None:
    export("pairs.jsonl", Path("out"), licence="mit", push_to_hub="me/pairs", private=True)
    assert hub.asked[0][1]["private"] is True and hub.asked[-1][0] == "upload"
    hub.asked.clear()
    hub.public = True
    with pytest.raises(DataError, match="me/pairs: is there already and public"):
        export("pairs.jsonl", Path("out"), licence="mit", push_to_hub="me/pairs", private=True)
    assert [what for what, _ in hub.asked] == ["create me/pairs"]


def test_a_push_that_fails_says_why_without_the_token(hub: FakeHub) -> None:
    hub.broken = ConnectionError(f"401 for {SECRET}\nand more")
    done = call("pairs.jsonl", "--out", "out", "--licence", "mit", "--push-to-hub", "me/pairs")
    assert done.exit_code == 2 and SECRET not in done.output and "hf_…" in done.stderr
    assert done.stderr.startswith("error: me/pairs: could not be pushed: 401") and done.stderr.count("\n") == 1
    assert Path("out/README.md").exists(), "what was written stays, to be pushed again"


def test_the_command() -> None:
    done = call("pairs.jsonl", "--out", "out", "--license", "mit", "--format", "jsonl", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "pairs": 3, "file": "out/data/train.jsonl", "card": "out/README.md", "problems": [], "address": "",
    }  # fmt: skip
    assert call("pairs.jsonl", "--out", "out", "--licence", "mit").stdout.startswith(
        "3 pairs in out/data/train.parquet"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "a data set needs a licence"),
        (["--licence", "mit", "--push-to-hub", "pairs"], "expected owner/name"),
        (["--licence", "mit", "--private"], "name it with --push-to-hub"),
    ],
)
def test_mistakes_leave_nothing_behind(words: list[str], says: str) -> None:
    done = call("pairs.jsonl", "--out", "out", *words)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1
    assert not Path("out").exists()
