"""Other tools' layouts, recognised by their columns: what becomes of each column, and what is refused and how."""

import csv
import json
from pathlib import Path

import pytest

from anchorline.data import read_answers, read_candidates, read_pairs, read_prompts, read_unpaired, write_rows
from anchorline.data.candidates import Candidate
from anchorline.errors import DataError
from anchorline.types import Message, Pair, Provenance, prompt_id

QUESTION = (Message("user", "How far is the moon?"),)
DISTILABEL = {
    "task": "How far is the moon?",
    "student_solution": "Far away.",
    "revision": "About 384,400 km.",
    "rational": "A figure is asked for.",
    "model_name": "lab/reviser",
    "distilabel_metadata": {"raw_output_c_l_a_i_r_0": "…"},
}
ULTRAFEEDBACK = {
    "source": "sharegpt",
    "instruction": "How far is the moon?",
    "models": ["a", "b", "c"],
    "completions": [
        {"model": "a", "response": "384,400 km.", "overall_score": 8.5, "fine-grained_score": 4.25},
        {"model": "b", "response": "Far.\n", "overall_score": "3", "fine-grained_score": "N/A"},
        {"model": "c", "response": " ", "overall_score": None},
    ],
    "correct_answers": ["None"],
}


def source(folder: Path, *rows: object, name: str = "a.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def refused(path: Path, read=read_pairs, **options) -> DataError:
    """The one problem of the last row, beside good rows before it."""
    loaded = read(path, **options)
    assert len(loaded.problems) == 1
    return loaded.problems[0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_distilabels_clair_columns(tmp_path: Path, name: str):
    write_rows(tmp_path / name, [DISTILABEL, DISTILABEL])
    first, second = read_pairs(tmp_path / name, strict=True).rows
    origin = Provenance("clair", "", "lab/reviser", {"rational": "A figure is asked for."})
    assert first == Pair(prompt_id(QUESTION), QUESTION, "About 384,400 km.", "Far away.", origin)
    assert second.id == f"{first.id}-2"


def test_the_published_clair_columns_keep_the_reasoning(tmp_path: Path):
    asked = {"role": "user", "content": "How far is the moon?"}
    answers = {"chosen": "384,400 km.", "rejected": "Far."}
    row = {"prompt": asked["content"], "rational": "A figure."}
    row |= {side: [asked, {"role": "assistant", "content": text}] for side, text in answers.items()}
    [pair] = read_pairs(source(tmp_path, row)).rows
    assert (pair.prompt, pair.chosen, pair.rejected) == (QUESTION, "384,400 km.", "Far.")
    assert pair.provenance == Provenance("clair", details={"rational": "A figure."})
    [own] = read_pairs(source(tmp_path, row | {"maker": "stronger", "details": {"n": 1}})).rows
    assert own.provenance == Provenance("stronger", details={"n": 1}), "what the row says of itself stays"


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"revision": None}, "revision", "distilabel found no revision"),
        ({"revision": DISTILABEL["student_solution"]}, "revision", "identical"),
        ({"student_solution": " "}, "student_solution", "is blank"),
        ({"task": [{"role": "bot", "content": "x"}]}, "task[0].role", "is 'bot'"),
    ],
)
def test_a_bad_row_is_told_in_its_own_columns(tmp_path: Path, change: dict, field: str, says: str):
    problem = refused(source(tmp_path, DISTILABEL, DISTILABEL | change))
    assert (problem.file, problem.line, problem.field) == (tmp_path / "a.jsonl", 2, field)
    assert str(problem).startswith(f"{tmp_path / 'a.jsonl'}:2: {field}: ") and says in str(problem)


def test_columns_that_fit_two_layouts_are_refused_until_one_is_chosen(tmp_path: Path):
    both = DISTILABEL | {"prompt": "Hi", "chosen": "Good day.", "rejected": "Yo"}
    with pytest.raises(DataError, match=r"fit the layouts trl and distilabel \(task, .*rejected\).*--layout trl"):
        read_pairs(source(tmp_path, both))
    assert read_pairs(tmp_path / "a.jsonl", layout="trl").rows[0].chosen == "Good day."
    assert read_pairs(tmp_path / "a.jsonl", layout="distilabel").rows[0].chosen == "About 384,400 km."
    with pytest.raises(DataError, match="layout: is 'x', expected one of trl, distilabel"):
        read_pairs(tmp_path / "a.jsonl", layout="x")  # pyright: ignore[reportArgumentType]


def test_a_joined_table_is_read_row_by_row(tmp_path: Path):
    plain = {"prompt": "Hi", "chosen": "Good day.", "rejected": "Yo"}
    write_rows(tmp_path / "a.parquet", [plain, DISTILABEL])  # each row has the other's columns as nulls
    rows = read_pairs(tmp_path / "a.parquet", strict=True).rows
    assert [row.chosen for row in rows] == ["Good day.", "About 384,400 km."]


def test_unknown_columns_are_listed_with_the_known_layouts(tmp_path: Path):
    problem = refused(source(tmp_path, DISTILABEL, {"question": "a", "best": "b"}))
    assert (
        "columns question, best; known are trl: chosen, rejected; distilabel: task, student_solution, revision"
        in str(problem)
    )
    assert refused(source(tmp_path, DISTILABEL, ULTRAFEEDBACK)).field == "completions"
    assert "anchorline pairs off-policy" in str(refused(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("column", ["prompt", "messages", "instruction", "task"])
def test_columns_of_prompts(tmp_path: Path, column: str):
    [prompt] = read_prompts(source(tmp_path, {column: "How far is the moon?", "other": 1})).rows
    assert prompt.messages == QUESTION


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        ({"instruction": "a", "task": "b"}, None, "instruction and task may both be the prompt"),
        ({"instruction": "Translate.", "input": "Bonjour"}, "input", "belongs to instruction"),
        (
            {"question": "a"},
            "prompt",
            "expected a column 'prompt' (or 'messages', 'instruction', 'task'), got question",
        ),
        ({"instruction": " "}, "instruction", "is blank"),
    ],
)
def test_prompts_that_are_not_plainly_one(tmp_path: Path, row: dict, field: str | None, says: str):
    problem = refused(source(tmp_path, {"instruction": "a", "input": ""}, row), read_prompts)
    assert problem.field == field and says in str(problem)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_ultrafeedbacks_completions(tmp_path: Path, name: str):
    row = ULTRAFEEDBACK
    if name == "a.parquet":  # a Parquet column has one type: there all scores are text
        completions = [{k: None if v is None else str(v) for k, v in a.items()} for a in row["completions"]]
        row = row | {"completions": completions}
    write_rows(tmp_path / name, [row])
    [found] = read_candidates(tmp_path / name, strict=True).rows
    assert (found.id, found.prompt) == (prompt_id(QUESTION), QUESTION)
    assert [(a.model, a.text, a.score) for a in found.answers] == [("a", "384,400 km.", 8.5), ("b", "Far.\n", 3.0)]
    [other] = read_candidates(tmp_path / name, score="fine-grained_score").rows
    assert [a.score for a in other.answers] == [4.25, None]


def test_distilabels_generations(tmp_path: Path):
    row = {"instruction": "How far is the moon?", "generations": ["Far.", None, "384,400 km."]}
    [found] = read_candidates(source(tmp_path, row)).rows
    assert [(a.text, a.model, a.score) for a in found.answers] == [("Far.", "", None), ("384,400 km.", "", None)]
    named = row | {"generation_models": ["a", "b", "c"], "ratings": [1, None, 5]}
    [found] = read_candidates(source(tmp_path, named)).rows
    assert [(a.model, a.score) for a in found.answers] == [("a", 1.0), ("c", 5.0)]


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"completions": ULTRAFEEDBACK["completions"][:1]}, "completions", "answers that are not blank: 1, expected"),
        ({"completions": "text"}, "completions", "is a str, expected a list"),
        ({"completions": [{"text": "a"}]}, "completions[0]", "no object with a response"),
        ({"completions": [{"response": 7}]}, "completions[0].response", "is a int, expected text"),
        ({"completions": [{"response": "a", "overall_score": "good"}]}, "completions[0].overall_score", "is 'good'"),
        ({"completions": [{"response": "a", "overall_score": True}]}, "completions[0].overall_score", "is 'True'"),
        ({"completions": None}, None, "got neither: source, instruction"),
        ({"generations": ["a", "b"]}, None, "got both"),
        ({"completions": None, "generations": ["a", "b"], "ratings": [1]}, "ratings", "has 1 entries for 2"),
        ({"instruction": None}, "prompt", "is missing or null"),
    ],
)
def test_candidates_that_cannot_be_used(tmp_path: Path, change: dict, field: str | None, says: str):
    problem = refused(source(tmp_path, ULTRAFEEDBACK, ULTRAFEEDBACK | change), read_candidates)
    assert (problem.line, problem.field) == (2, field) and says in str(problem)


def test_csv_pairs_and_prompts(tmp_path: Path):
    file = tmp_path / "pairs.csv"
    asked = json.dumps([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]).replace(
        '"', '""'
    )
    file.write_bytes(
        b'\xef\xbb\xbfid,prompt,chosen,rejected\r\n7,"Hello,\r\nwhere ""is"" it?",It left.,It left!\r\n\r\n,'
        b'"' + asked.encode() + b'",\xc3\xa9,[1] and more\r\n'
    )
    first, second = read_pairs(file, strict=True).rows
    assert (first.id, first.prompt[0].content) == ("7", 'Hello,\r\nwhere "is" it?')
    assert second.prompt == (Message("system", "Be kind."), Message("user", "Hi"))
    assert (second.id, second.chosen, second.rejected) == (prompt_id(second.prompt), "é", "[1] and more")


def test_csv_columns_that_hold_no_texts(tmp_path: Path):
    (tmp_path / "labelled.csv").write_text("prompt,completion,label\nA,b,True\nA,c,false\nA,d,1\nA,e,0\nA,f,yes\n")
    loaded = read_unpaired(tmp_path / "labelled.csv")
    assert [row.label for row in loaded.rows] == [True, False, True, False]
    assert [str(p).partition("csv:")[2] for p in loaded.problems] == [
        "6: label: is 'yes', expected true or false (or 1 or 0)"
    ]
    with (tmp_path / "several.csv").open("w", newline="") as file:
        lists = {"generations": ["384,400 km.", "[Far]."], "ratings": [5, None]}
        csv.writer(file).writerows([["prompt", *lists], ["How far?", *map(json.dumps, lists.values())]])
        csv.writer(file).writerow(["[x]", '["a", "b"]', ""])
    first, second = read_candidates(tmp_path / "several.csv", strict=True).rows
    assert first.answers == (Candidate("384,400 km.", score=5.0), Candidate("[Far]."))
    assert second.prompt[0].content == "[x]" and [answer.text for answer in second.answers] == ["a", "b"]


def test_messages_as_python_prints_them_are_refused(tmp_path: Path):
    asked = [{"content": "Say {x}", "role": "user"}]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        rows = [["prompt"], [str(asked)], [json.dumps(asked)], ["[{Hello"]]
        csv.writer(file).writerows(rows)
    loaded = read_prompts(tmp_path / "a.csv")
    assert [row.messages[0].content for row in loaded.rows] == ["Say {x}", "[{Hello"]
    (problem,) = loaded.problems
    assert "a.csv:2: prompt: is a list of messages as Python prints it, expected JSON" in str(problem)
    assert problem.field == "prompt"


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (r'[{"role": "user", "content": "cut \ud83d"}]', "half of a surrogate pair"),
        ('[{"role": "user", "content": "Hi", "score": NaN}]', "NaN is not a JSON number"),
    ],
)
def test_a_csv_cell_of_json_that_cannot_be_used_is_its_rows_problem(tmp_path: Path, cell: str, says: str):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt"], [cell], [r'["\ud83d"]'], ["Hello"]])
    loaded = read_prompts(tmp_path / "a.csv")
    assert [row.messages[0].content for row in loaded.rows] == [r'["\ud83d"]', "Hello"], "a list of no messages is text"
    (problem,) = loaded.problems
    assert "a.csv:2: prompt: " in str(problem) and says in str(problem) and problem.field == "prompt"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_an_answer_that_does_not_say_how_it_ended_was_not_cut(tmp_path: Path, name: str):
    if name == "a.csv":
        (tmp_path / name).write_text("prompt,text,finish\nA,b,\nA,c,length\n")
    else:
        write_rows(tmp_path / name, [{"prompt": "A", "text": "b", "finish": end} for end in (None, "length")])
    assert [row.finish for row in read_answers(tmp_path / name, strict=True).rows] == ["stop", "length"]


def test_an_error_of_answers_names_the_columns_that_the_file_has(tmp_path: Path):
    with pytest.raises(DataError, match=r"expected a column 'text', got prompt, answer$"):
        read_answers(source(tmp_path, {"prompt": "Hi", "answer": "Ho"}))


def test_csv_rows_that_cannot_be_used_have_the_line_on_which_they_begin(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text('prompt,note\n"one\ntwo",x\nHi\n"Ho",y,z\n,empty\nHey,\n')
    rows, problems = read_prompts(file)
    assert [row.messages[0].content for row in rows] == ["one\ntwo", "Hey"]
    assert [(e.line, e.field) for e in problems] == [(4, None), (5, None), (6, "prompt")]
    assert str(problems[0]) == f"{file}:4: has 1 cells, expected 2 (prompt, note)"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "a.csv:1: is empty, expected a header"),
        (b"prompt;id\nHi;1\n", "one column, 'prompt;id'; expected commas"),
        (b"prompt,prompt\nHi,Ho\n", "expected a name of its own"),
        (b"prompt,\nHi,Ho\n", "expected a name of its own"),
        (b'prompt\nHi\n"never closed\nHo\n', "a.csv:3: is not CSV that can be read"),
        (b"prompt\n\xe9\n", "is not UTF-8"),
        (b"prompt\n", "is empty, expected at least one row"),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path: Path, content: bytes, says: str):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_prompts(tmp_path / "a.csv")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_long_csv_cell_is_read_whole(tmp_path: Path):
    text = "word " * 60_000
    (tmp_path / "a.csv").write_text(f"prompt\n{text}\n")
    assert read_prompts(tmp_path / "a.csv").rows[0].messages[0].content == text
