"""What commands print: results for people, one JSON object for machines, bars on a terminal and silence elsewhere."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from anchorline.cli.main import app
from anchorline.cli.show import exit_code, print_set, print_summary, progress
from anchorline.data import read_jsonl
from anchorline.errors import AnchorlineError, DataError, MissingExtra
from anchorline.recipe.counts import Counts
from anchorline.types import Failure, Pair
from tiny_chat import STYLE, write_rows

PAIRS = [
    {
        "prompt": f"where is my {w}",
        "chosen": "good day. Boats sail.",
        "rejected": "Boats sail.",
        "details": {"touched": ["greeting"]},
    }
    for w in ("map", "hat", "[b]bag[/b]")
]
SUMMARY: dict[str, Any] = {
    "name": "tiny",
    "style": {"before": {"all": 0.0}, "after": {"all": 0.95}, "n": 60},
    "drift": {"kl_per_token": 0.0812, "prompts": 100},
    "preference": {"accuracy": 0.98, "n": 50},
    "answers": 18,
    "unusable": 0,
    "pairs": 290,
    "sets": {},
    "failures": 10,
    "objective": {"apo_zero": 1.0},
    "seconds": {"sample": 60.0, "train": 61.2},
    "peak_rss_gib": 3.21,
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with it nothing would be left to fail at the end
    write_rows(Path("pairs.jsonl"), PAIRS)
    answers = [{"prompt": "a", "text": "Boats sail."}, {"prompt": "b", "text": ""}, {"prompt": "c"}, 7]
    write_rows(Path("answers.jsonl"), answers)
    Path("style.yaml").write_text(json.dumps(STYLE))
    return tmp_path


def good(*words: str) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    assert result.stderr == "", "quiet where stderr is no terminal"
    return result


def one_object(text: str) -> dict[str, Any]:
    """The only thing printed."""
    assert text.count("\n") == 1 and text.endswith("\n")
    return json.loads(text)


def test_measure_as_json() -> None:
    table = one_object(good("measure", "pairs.jsonl", "--json").stdout)
    assert (table["pairs"], table["rules"], table["left_out"]) == (3, {"greeting": 3}, [])
    assert table["metrics"]["word_jaccard"]["mean"] == pytest.approx(0.5)


def test_measure_for_people() -> None:
    text = good("measure", "pairs.jsonl").stdout
    assert "3 pairs" in text and "word_jaccard" in text and "greeting: touched in 3 pairs" in text


def test_measure_names_the_rows_that_it_left_out() -> None:
    write_rows(Path("pairs.jsonl"), [*PAIRS, {"prompt": "[red]a[/red]"}])
    text = good("measure", "pairs.jsonl").stdout
    assert "3 pairs" in text and "left out: pairs.jsonl:4: chosen: " in text
    [problem] = one_object(good("measure", "pairs.jsonl", "--json").stdout)["left_out"]
    assert problem.startswith("pairs.jsonl:4: chosen: ")


def test_measure_writes_its_table() -> None:
    printed = one_object(good("measure", "pairs.jsonl", "--json", "--out", "m.json").stdout)
    assert json.loads(Path("m.json").read_text()) == printed


def test_pairs_of_a_file() -> None:
    words = ("pairs", "answers.jsonl", "--style", "style.yaml", "--out", "made.jsonl")
    assert one_object(good(*words, "--json").stdout) == {"pairs": 1, "failures": 3}
    [pair] = [row for _, row in read_jsonl("made.jsonl")]
    assert pair["chosen"] == [{"role": "assistant", "content": "good day. Boats sail."}]
    assert (pair["maker"], pair["reviser"], pair["details"]["touched"]) == ("clair", "rules", ["greeting"])
    failures = [row for _, row in read_jsonl("made.failures.jsonl")]
    assert [(f["kind"], f["details"].get("line"), f["details"].get("field")) for f in failures] == [
        ("malformed", 3, "text"),
        ("malformed", 4, None),
        ("empty", None, None),
    ]
    assert failures[1]["reason"].count("answers.jsonl:4: ") == 1
    text = good(*words).stdout
    assert text == "1 pairs in made.jsonl; 3 rows left out, see made.failures.jsonl\n"


def test_ids_of_a_files_pairs_are_unique() -> None:
    rows = [{"id": "x", "text": "boats"}, {"id": "x", "text": "tents"}, {"text": "a"}, {"text": "b"}]
    Path("twice.jsonl").write_text("".join(json.dumps({"prompt": "Hi", "finish": None} | row) + "\n" for row in rows))
    words = ("pairs", "twice.jsonl", "--style", "style.yaml", "--out", "made.jsonl", "--json")
    assert one_object(good(*words).stdout) == {"pairs": 3, "failures": 1}
    made = [row["id"] for _, row in read_jsonl("made.jsonl")]
    assert made[0] == "x" and made[2] == f"{made[1]}-2"
    [failure] = [row for _, row in read_jsonl("made.failures.jsonl")]
    assert (failure["id"], failure["details"]["field"]) == ("twice.jsonl:2", "id")


def test_pairs_and_measure_follow_each_other() -> None:
    good("pairs", "answers.jsonl", "--style", "style.yaml", "--out", "made.parquet")
    table = one_object(good("measure", "made.parquet", "--json").stdout)
    assert (table["pairs"], table["rules"]) == (1, {"greeting": 1})


def test_the_summary_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(SUMMARY, "runs/tiny", as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "tiny: 290 pairs, 10 rows left out",
        "all rules kept: 0.0% before, 95.0% after (60 held-out prompts)",
        "drift: 0.081 nats a token on 100 general prompts",
        "preference accuracy: 98.0% of 50 held-out pairs",
        "121 s, at most 3.2 GiB; everything is in runs/tiny",
    ]


def test_the_summary_leaves_out_what_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {"style": {"before": {"all": None}, "after": {"all": None}, "n": None}}
    nothing |= {"drift": {"kl_per_token": None, "prompts": None}, "preference": {"accuracy": None, "n": None}}
    print_summary(SUMMARY | nothing, "runs/tiny", as_json=False)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_run_that_only_sampled_counts_its_answers(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(SUMMARY | {"pairs": 0}, "runs/tiny", as_json=False)
    assert capsys.readouterr().out.splitlines()[0].startswith("tiny: 18 answers, ")


def test_the_summary_says_which_objective_auto_came_to_and_loudly_where_nothing_is_settled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for settled, name, said in (
        (False, "apo_zero", "NOT SETTLED, so by default: apo_zero; why"),
        (True, "apo_up", "apo_up (experimental); why"),
    ):
        advice = {"settled": settled, "objective": name, "reason": "why"}
        print_summary(SUMMARY | {"advice": advice}, "runs/tiny", as_json=False)
        assert capsys.readouterr().out.splitlines()[1] == f"objective auto: {said}"


def test_the_summary_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(SUMMARY | {"name": "é"}, "runs/tiny", as_json=True)
    assert one_object(capsys.readouterr().out) == SUMMARY | {"name": "é"}


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("is empty", file="a.jsonl"), 2, "error: a.jsonl: is empty\n"),
        (AnchorlineError("no"), 1, "error: no\n"),
        (
            MissingExtra("training", "train"),
            2,
            "error: training needs packages that are not installed; in anchorline's checkout: ",
        ),
        (KeyboardInterrupt(), 1, "stopped; what is finished is kept. Continue with: anchorline run 'a b.yaml'\n"),
        (OSError(28, "No space left on device", "f"), 1, "error: f: No space left on device\n"),
        (PermissionError(13, "Permission denied", "f"), 2, "error: f: Permission denied; name another place, or "),
        (ZeroDivisionError("x"), 1, "internal error: ZeroDivisionError: x ("),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANCHORLINE_DEBUG", raising=False)

    def call() -> None:
        raise error

    assert exit_code(call, again="anchorline run 'a b.yaml'") == code
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(line) and shown.err.count("\n") == 1


def test_debug_shows_where(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANCHORLINE_DEBUG", "1")
    assert exit_code(lambda: print(1 / 0)) == 1
    assert "Traceback" in capsys.readouterr().err


def test_no_bars_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as shown, shown.task("sample", total=2, unit="answers") as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def on_a_terminal(*words: str) -> tuple[str, str]:
    """A command's stdout, and what a terminal in the place of its stderr was sent."""
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-m", "anchorline", *words], stdout=subprocess.PIPE, stderr=theirs, env=env
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        shown += part
    out, _ = process.communicate()
    os.close(ours)
    assert process.returncode == 0, shown
    return out.decode(), shown.decode()


def test_bars_on_a_terminal_and_json_apart_from_them() -> None:
    out, shown = on_a_terminal("measure", "pairs.jsonl", "--json")
    assert one_object(out)["pairs"] == 3
    assert "measure" in shown and "3/3" in shown and "pairs" in shown


def test_names_are_shown_as_they_are() -> None:
    for name in ("a[b]c", "a:smile:c"):
        Path(f"{name}.jsonl").write_bytes(Path("pairs.jsonl").read_bytes() + b"{}\n")
        out, shown = on_a_terminal("measure", "pairs.jsonl", "--against", f"{name}.jsonl")
        assert f"measure {name}" in shown
        assert f"┃ {name} " in out and f"{name} minus pairs" in out and f"left out: {name}.jsonl:4: " in out


def test_a_name_that_closes_a_tag_of_rich_breaks_nothing() -> None:
    Path("a[").mkdir()
    Path("a[/b]c.jsonl").write_bytes(Path("pairs.jsonl").read_bytes())
    _, shown = on_a_terminal("measure", "pairs.jsonl", "--against", "a[/b]c.jsonl", "pairs.jsonl", "--json")
    assert "a[/b]c.jsonl" in shown


ANCHORLINE = [sys.executable, "-m", "anchorline"]


@pytest.mark.parametrize("words", [["measure", "pairs.jsonl"], ["measure", "pairs.jsonl", "--json"], ["--help"]])
def test_output_that_a_full_disk_refuses_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*ANCHORLINE, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


@pytest.mark.parametrize("words", [["measure", "pairs.jsonl"], ["measure", "pairs.jsonl", "--json"], ["--help"]])
def test_a_reader_that_has_gone_is_told_nothing(words: list[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([*ANCHORLINE, *words], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("words", "code"), [("measure pairs.jsonl --json", 0), ("measure none.jsonl", 2)])
@pytest.mark.parametrize("end", ["2>&-", "2>/dev/full"])
def test_an_stderr_that_takes_nothing_changes_no_result(words: str, code: int, end: str) -> None:
    call = f"{' '.join(ANCHORLINE)} {words} {end}"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout == "" if code else one_object(done.stdout)["pairs"] == 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_stdout_cannot_hold_are_spelled_out(encoding: str) -> None:
    Path("é…").mkdir()
    write_rows(Path("é…/pairs.jsonl"), [*PAIRS, {"prompt": "x"}])
    env = os.environ | {"PYTHONIOENCODING": encoding}
    call = [*ANCHORLINE, "measure", "é…/pairs.jsonl"]
    done = subprocess.run(call, capture_output=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and b"\\u2026/pairs.jsonl:4" in done.stdout
    done = subprocess.run([*call, "--json"], capture_output=True, env=env, check=False)
    [problem] = one_object(done.stdout.decode("ascii"))["left_out"]
    assert problem.startswith("é…/pairs.jsonl:4: ")


@pytest.mark.parametrize("command", [["run"], ["pairs"], ["measure"], ["train", "--plan"], ["cache", "stats"]])
def test_a_name_too_long_is_one_line(command: list[str]) -> None:
    done = subprocess.run([*ANCHORLINE, *command, "x" * 300], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: xxx") and done.stderr.count("\n") == 1
    assert "File name too long" in done.stderr


def test_a_process_beside_that_fails_lets_the_others_go_on_and_is_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def grid(recipe: Any, folder: Path, *, beside: Any, **_: Any) -> dict[str, int]:
        folder.mkdir()
        with beside(0.0):
            pass
        return {"todo": 1}

    monkeypatch.setattr("anchorline.recipe.compare.compare", grid)
    Path("recipe.yaml").write_text("name: tiny\n")  # the process beside finds no grid in it
    done = CliRunner().invoke(app, ["compare", "recipe.yaml", "--out", "out", "--processes", "2", "--json"])
    assert done.exit_code == 1 and one_object(done.stdout) == {"todo": 1}
    assert done.stderr.startswith("error: process 2 ended with an error: out/process-2.log; the same command")
    assert "`compare` needs `model`" in Path("out/process-2.log").read_text(encoding="utf-8")


def test_a_set_says_why_an_endpoint_gave_no_answer_and_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    counts = Counts("clair")
    counts.add(Pair("a", (), "A", "B"))
    for n in range(2):
        counts.add(Failure(f"b{n}", "pairs", "refused_request", f"no credit left ({n})"))
    counts.add(Failure("c", "pairs", "identical", "the answer as it was"))
    made = {"makers": {"pairs:clair": counts.row()}, "costs": {"timed_out": 3}, "sets": {}, "unusable": 0}
    print_set(made, "clair", "runs/x", as_json=False)
    told = capsys.readouterr().out
    assert "unknown cost: 3 calls of this run timed out" in told
    assert "one refused_request: no credit left (0)" in told and "as it was" not in told
    assert "no answer of the endpoint: 2 rows; the same command with --retry-failed asks for them again" in told
