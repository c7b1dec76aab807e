"""Whole sources: what is reported, what stops a read, ids, endings, Parquet, the hub."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from anchorline.data import read_pairs, read_prompts, read_unpaired, scan_rows, write_jsonl, write_rows
from anchorline.data.formats import pair_to_row
from anchorline.errors import DataError
from anchorline.types import Message, prompt_id

GOOD = {"prompt": "Where is order 4417?"}


def prompts(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A stand-in for `datasets` that knows one data set; gives back what it was asked for."""
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, *, split: str):
        asked.append((name, split))
        if name != "lab/set-1.5":
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nwith a second line")
        return [{"prompt": "Hi"}, {"prompt": None}]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_bad_row_is_reported_and_the_good_ones_are_kept(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Hi"}\nnot json\n\n{"prompt": [{"role": "bot", "content": "x"}]}\n{"prompt": "Ho"}\n')
    rows, problems = read_prompts(file)
    assert [row.messages[0].content for row in rows] == ["Hi", "Ho"]
    assert [(e.file, e.line, e.field) for e in problems] == [(file, 2, None), (file, 4, "prompt[0].role")]
    assert str(problems[1]) == f"{file}:4: prompt[0].role: is 'bot', expected one of system, user, assistant"
    with pytest.raises(DataError) as caught:
        read_prompts(file, strict=True)
    assert caught.value.line == 2


@pytest.mark.parametrize("read", [read_prompts, read_pairs, read_unpaired])
def test_no_usable_row_and_no_row_at_all_are_errors(tmp_path: Path, read):
    file = prompts(tmp_path / "rows.jsonl", {"text": "a"}, {"text": "b"})
    with pytest.raises(DataError, match=r"no row can be used \(2 bad\); the first: .*rows.jsonl:1: ") as caught:
        read(file)
    assert "\n" not in str(caught.value)
    file.write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        read(file)


def test_ids_are_unique_and_those_given_are_never_changed(tmp_path: Path):
    known = prompt_id((Message("user", GOOD["prompt"]),))
    file = prompts(
        tmp_path / "a.jsonl", GOOD, {"id": 5, **GOOD}, GOOD, {"id": "5", "prompt": "Hi"}, GOOD, {"id": None, **GOOD}
    )
    rows, problems = read_prompts(file)
    assert [row.id for row in rows] == [known, "5", f"{known}-2", f"{known}-3", f"{known}-4"]
    assert [(e.line, e.field) for e in problems] == [(4, "id")]
    assert "taken by line 2" in str(problems[0])


def test_a_made_id_gives_way_to_one_that_stands_in_the_file(tmp_path: Path):
    known = prompt_id((Message("user", GOOD["prompt"]),))
    file = prompts(tmp_path / "a.jsonl", {"id": f"{known}-2", "prompt": "Hi"}, GOOD, GOOD)
    assert [row.id for row in read_prompts(file).rows] == [f"{known}-2", known, f"{known}-3"]


def test_system_is_put_before_every_prompt_and_may_not_be_blank(tmp_path: Path):
    file = prompts(tmp_path / "a.jsonl", GOOD)
    assert read_prompts(file, system="Be kind.").rows[0].messages[0] == Message("system", "Be kind.")
    with pytest.raises(DataError, match="system: is blank"):
        read_prompts(file, system=" ")


def test_every_readable_ending_gives_the_same_rows(tmp_path: Path):
    rows = [{"id": "a", "prompt": "Hi"}, {"id": "b", "prompt": "Ho"}]
    for name in ("a.jsonl", "b.NDJSON"):
        prompts(tmp_path / name, *rows)
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    write_rows(tmp_path / "d.parquet", rows)
    found = [read_prompts(file, strict=True) for file in sorted(tmp_path.iterdir())]
    assert len(found) == 4
    assert all(loaded == found[0] for loaded in found)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"prompt": "Hi"}', "expected an array"),
        (b'{"prompt": "Hi"}\n{"prompt": "Ho"}', "name it .jsonl"),
        (b'[{"prompt": "Hi"},]', "is not JSON"),
        (b"", "is not JSON"),
        (b"[]", "is empty"),
        (b"[7]", "no row can be used"),
        (b'[{"prompt": "\xe9"}]', "is not UTF-8"),
    ],
)
def test_json_files_that_are_no_array_of_objects(tmp_path: Path, content: bytes, reason: str):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_prompts(file)
    assert "\n" not in str(caught.value)


def test_parquet_rows_are_numbered_from_one_across_batches(tmp_path: Path):
    file = tmp_path / "a.parquet"
    write_rows(file, [{"prompt": " " if n in (3, 2500) else f"Question {n}"} for n in range(1, 3001)])
    rows, problems = read_prompts(file)
    assert len(rows) == 2998
    assert [(e.line, e.field) for e in problems] == [(3, "prompt"), (2500, "prompt")]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(50) + b"PAR1", b'{"prompt": "Hi"}\n'])
def test_a_parquet_file_that_is_none(tmp_path: Path, content: bytes):
    file = tmp_path / "a.parquet"
    file.write_bytes(content)
    with pytest.raises(DataError, match="is not a Parquet file") as caught:
        read_prompts(file)
    assert "\n" not in str(caught.value)


def test_parquet_keeps_columns_that_the_first_row_lacks(tmp_path: Path):
    file = tmp_path / "a.parquet"
    write_rows(file, [{"id": "a"}, {"id": "b", "label": True, "details": {}}])
    assert [row for _, row in scan_rows(file)] == [
        {"id": "a", "label": None, "details": None},
        {"id": "b", "label": True, "details": "{}"},
    ]


@pytest.mark.parametrize("value", ["text", 2**80, "\ud800", object()])
def test_what_parquet_cannot_hold_is_one_line_and_leaves_the_old_file(tmp_path: Path, value: object):
    file = tmp_path / "a.parquet"
    write_rows(file, [{"prompt": "Hi"}])
    before = file.read_bytes()
    with pytest.raises(DataError, match="cannot be written as Parquet") as caught:
        write_rows(file, [{"prompt": 1}, {"prompt": value}])
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_other_endings_and_places_are_refused(hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("a.tsv").write_text("prompt\nHi\n")
    Path("folder").mkdir()
    for source, reason in {
        "a.tsv": r"ending '.tsv', expected one of .jsonl, .ndjson, .json, .csv, .parquet",
        "folder": "is a folder",
        "none.jsonl": "no such file;",
        "./none/none": "no such file",
        "folder/pairs": "no such file or folder",
        "elsewhere/pairs.jsonl": "no such file",
        "x" * 5000: "cannot be read: File name too long",
        "a\0b": "no such file",
    }.items():
        with pytest.raises(DataError, match=reason):
            read_prompts(source)
    with pytest.raises(DataError, match="no such file"):
        read_prompts(Path("owner/name"))  # A Path is never a hub id.
    with pytest.raises(DataError, match=r"ending '\.csv', expected one of \.jsonl, \.parquet"):
        write_rows("b.csv", [])
    assert not Path("b.csv").exists()
    assert hub == []


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "a.jsonl", [GOOD])
    assert len(read_prompts("~/a.jsonl").rows) == 1


def test_hub_ids_with_and_without_a_split(hub):
    rows, problems = read_prompts("lab/set-1.5")
    assert [row.messages[0].content for row in rows] == ["Hi"]
    assert [(e.file, e.line, e.field) for e in problems] == [("lab/set-1.5", 2, "prompt")]
    read_prompts("lab/set-1.5:test_prefs")
    assert hub == [("lab/set-1.5", "train"), ("lab/set-1.5", "test_prefs")]


def test_a_file_wins_over_a_hub_id_of_the_same_name(hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("lab").mkdir()
    Path("lab/set-1.5").write_text("{}")
    with pytest.raises(DataError, match="ending"):
        read_prompts("lab/set-1.5")
    assert hub == []


def test_the_hub_out_of_reach_is_one_line(hub):
    with pytest.raises(DataError, match=r"^lab/none: .*Couldn't reach 'lab/none'.*HF_HUB_OFFLINE") as caught:
        read_prompts("lab/none")
    assert "second line" not in str(caught.value)


def test_the_real_library_out_of_reach_and_nothing_heavy_before_it_is_asked():
    code = """
import sys
from anchorline.data import read_prompts
from anchorline.errors import DataError
print({"datasets", "pyarrow", "torch", "transformers", "pandas", "numpy"} & set(sys.modules))
try:
    read_prompts("anchorline-tests/there-is-no-such-set")
except DataError as error:
    print(error)
print({"torch", "transformers"} & set(sys.modules))
"""
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    before, error, after = done.stdout.splitlines()
    assert before == after == "set()"
    assert error.startswith("anchorline-tests/there-is-no-such-set: no such file, and not readable as a hub data set")


def test_an_own_objective_is_read_and_written_and_an_unknown_one_has_its_line(tmp_path):
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        "".join(json.dumps(row | more) + "\n" for more in ({}, {"objective": "apo_up"}, {"objective": "ppo"}))
    )
    loaded = read_pairs(file)
    assert [pair.objective for pair in loaded.rows] == [None, "apo_up"]
    assert [pair_to_row(pair).get("objective") for pair in loaded.rows] == [None, "apo_up"]
    (problem,) = loaded.problems
    assert (problem.line, problem.field) == (3, "objective") and "'ppo'" in str(problem) and "apo_up" in str(problem)
    assert "if the column means something else, rename it" in str(problem)
