"""What other tools wrote goes in, and what is made comes out, by commands against a real HTTP server on loopback."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat import Running, anchorline, manifest_of, rows_of, write_project

from anchorline.data import read_pairs

pytestmark = pytest.mark.e2e

TEMPLATE = """=== user ===
Edit for {{aim}}
<answer>
{{answer}}
</answer>
of {{conversation}}. You edit what stands there; write {{open}}, the text, {{close}}.
"""
COMPLETIONS = [{"response": "Hello! Hi!", "model": "a"}, {"response": "Good day.", "model": "b", "overall_score": 9}]


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, Path]:
    """The same three answers as CSV, Parquet, JSON and JSONL."""
    rows = [{"id": f"a{i}", "prompt": f"Where is {i}?", "text": f'It "left", on\nMonday {i}!'} for i in range(3)]
    files = {form: tmp_path / f"answers.{form}" for form in ("csv", "parquet", "json", "jsonl")}
    with files["csv"].open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "text"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), files["parquet"])
    files["json"].write_text(json.dumps(rows))
    files["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def test_answers_in_every_form_give_the_same_pairs(answers: dict[str, Path], tmp_path: Path) -> None:
    with Running() as fake:
        write_project(tmp_path, fake.url)
        made = []
        for form, file in answers.items():
            words = [
                "--style",
                tmp_path / "calm.yaml",
                "--reviser",
                "m",
                "--base-url",
                fake.url,
                "--out",
                tmp_path / form,
            ]
            anchorline("pairs", "clair", file, *words, "--set", f"llm.cache={tmp_path / 'shared.sqlite'}")
            made.append((tmp_path / form / "sets/clair/pairs.jsonl").read_bytes())
        assert len(set(made)) == 1 and fake.calls == 3  # runs that share a cache share its replies
    assert rows_of(tmp_path / "csv/sets/clair/pairs.jsonl")[1]["chosen"][0]["content"] == 'It "left", on\nMonday 1.'


def test_ultrafeedback_is_judged(tmp_path: Path) -> None:
    file = tmp_path / "ultra.jsonl"
    rows = [{"instruction": f"Greet {i}", "completions": COMPLETIONS} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"instruction": "x", "completions": []}]))
    with Running() as fake:
        write_project(tmp_path, fake.url)
        style = ("--style", tmp_path / "calm.yaml")
        said = anchorline("pairs", "off-policy", file, *style, "--out", tmp_path / "by-style").stdout
        assert "set off_policy: 4 pairs of 4 rows" in said and fake.calls == 0
        words = (*style, "--judge", "m", "--base-url", fake.url, "--out", tmp_path / "by-model")
        anchorline("pairs", "off-policy", file, *words)
        assert fake.calls == 8  # four prompts, each in both orders
    pairs = rows_of(tmp_path / "by-model/sets/off_policy/pairs.jsonl")
    assert {(p["chosen"][0]["content"], p["details"]["chosen_model"]) for p in pairs} == {("Good day.", "b")}
    assert [row["kind"] for row in rows_of(tmp_path / "by-model/failures.jsonl")] == ["malformed"]
    assert (
        "takes a prompt and a `text`"
        in anchorline("pairs", "clair", file, *style, "--out", tmp_path / "x", code=2).stderr
    )


def test_distilabel_and_trl_pairs_are_measured_side_by_side(tmp_path: Path) -> None:
    distilabel, trl = tmp_path / "d.jsonl", tmp_path / "t.jsonl"
    distilabel.write_text(
        json.dumps({"task": "2 + 2?", "student_solution": "5", "revision": "4", "rational": "No."}) + "\n"
    )
    trl.write_text(json.dumps({"prompt": "2 + 2?", "chosen": "Four it is.", "rejected": "5"}) + "\n")
    found = json.loads(anchorline("measure", distilabel, "--against", trl, "--json").stdout)
    assert '"pairs": 1' in json.dumps(found)
    page = tmp_path / "page.html"
    anchorline("measure", distilabel, "--against", trl, "--out", page)
    assert page.read_text().count("<svg") > 2


def test_evaluation_sets_are_kept_out_and_counted(tmp_path: Path) -> None:
    question = "Which of the seven harbours along the northern coast was the last one to be closed in winter?"
    (tmp_path / "exam.jsonl").write_text(json.dumps({"prompt": f"Question 9. {question}"}) + "\n")
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url)
        with (tmp_path / "prompts.jsonl").open("a") as file:
            file.write(json.dumps({"id": "leaked", "prompt": f"Tell me: {question.lower()} Please."}) + "\n")
        anchorline(
            "pairs",
            "clair",
            recipe,
            "--out",
            tmp_path / "run",
            "--set",
            f"prompts.decontaminate=[{tmp_path}/exam.jsonl]",
        )
        assert "northern" not in str(list(fake.server.bodies))
    failures = rows_of(tmp_path / "run/failures.jsonl")
    assert [(row["id"], row["kind"]) for row in failures] == [("leaked", "contaminated")]
    assert len(rows_of(tmp_path / "run/sets/clair/pairs.jsonl")) == 8


def test_a_prompt_of_ones_own_and_an_export_with_its_card(tmp_path: Path) -> None:
    out, template = tmp_path / "run", tmp_path / "mine.txt"
    template.write_text(TEMPLATE)
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url, pairs__prompt="mine.txt", llm__reviser__max_tokens=2)
        anchorline("pairs", "clair", recipe, "--out", out, code=2)  # cut at two tokens, every one
        assert set(manifest_of(out)["makers"]["pairs:clair"]["replies"]) == {"truncated"}
        fake.server._reply = lambda body: (
            "Why.\n<<<REVISED ANSWER>>>\nIt left today, and calmly.\n<<<END OF REVISED ANSWER>>>"
        )
        anchorline(
            "pairs",
            "clair",
            recipe,
            "--out",
            out,
            "--set",
            "llm.reviser.max_tokens=500",
            "--set",
            "pairs.gates.max_change=1",
        )
        texts = [b["messages"][-1]["content"] for b in fake.server.bodies]
        assert any(text.startswith("Edit for Answer calmly.") and "no_exclamation" in text for text in texts)
    assert "sets of makers" in anchorline("export", out, "--out", tmp_path / "d", "--licence", "mit", code=2).stderr
    assert (
        "only you can know"
        in anchorline("export", out / "sets/clair/pairs.jsonl", "--out", tmp_path / "d", code=2).stderr
    )
    anchorline("export", out / "sets/clair/pairs.jsonl", "--out", tmp_path / "d", "--licence", "mit")
    assert len(read_pairs(tmp_path / "d/data/train.parquet").rows) == 8
    card = (tmp_path / "d/README.md").read_text()
    assert "license: mit" in card and "# try-clair" in card and "| reviser | reviser | 8 |" in card
    assert "did not become a pair is not recorded" not in card
