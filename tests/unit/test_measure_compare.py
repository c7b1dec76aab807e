"""Several sets: many pairs at once against one at a time, shared edges, matched differences, the page and the command."""

from __future__ import annotations

import json
import statistics
import threading
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from anchorline.cli.main import app
from anchorline.llm.tokens import tokenize_many_with, tokenize_with
from anchorline.measure import Measured, PairMeasures, compare, measure_pair, measure_pairs, summarise
from anchorline.measure.compare import FEWEST
from anchorline.measure.many import BLOCK
from anchorline.report.charts import BOTTOM, LEFT, RIGHT, TOP, Outline, outlines
from anchorline.report.measure_page import build_measure_page, write_measure_page

TEXT = st.text("ab é\n", max_size=12)


def row(jaccard: float = 0.5, *, edits: int = 10, ratio: float | None = 1.0) -> PairMeasures:
    return PairMeasures(jaccard, None, edits, None, 0.5, ratio, 0.0)


def lengths(texts: Any) -> list[list[int]]:
    """A stand-in for a tokenizer of many texts: each word's length is its token id."""
    return [[len(word) for word in text.split()] for text in texts]


@given(pairs=st.lists(st.tuples(TEXT, TEXT), max_size=6), times=st.integers(1, BLOCK), threads=st.integers(1, 3))
def test_many_pairs_are_measured_as_one(pairs: list[tuple[str, str]], times: int, threads: int) -> None:
    repeated = pairs * times
    plain = [measure_pair(*pair) for pair in pairs] * times
    assert list(measure_pairs(repeated, threads=threads)) == plain
    tokens = [measure_pair(*pair, tokenize=lambda text: lengths([text])[0]) for pair in pairs] * times
    assert list(measure_pairs(repeated, tokenize=lengths, threads=threads)) == tokens


def test_a_reader_that_stops_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    found = measure_pairs([("a b", "a")] * 5000, threads=2)
    assert next(found).length_ratio == 2.0
    found.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.active_count() == before


def test_what_a_tokenizer_raises_is_raised() -> None:
    def broken(texts: Any) -> Any:
        raise RuntimeError(f"{len(texts)} texts")

    with pytest.raises(RuntimeError, match="4 texts"):
        list(measure_pairs([("a", "b"), ("c", "d")], tokenize=broken))


def test_a_models_tokens_of_many_texts_are_those_of_each(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(3)
    (tmp_path / "config.json").write_text("{}")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    one, many = tokenize_with(str(tmp_path)), tokenize_many_with(str(tmp_path))
    assert one and many
    texts = ["a b", "b", "", "a b a b a x"]
    assert [list(ids) for ids in many(texts)] == [list(one(text)) for text in texts]
    assert list(one("a b a b a x")) == [1, 2, 1, 2, 1, 0], "neither padded nor cut, whatever the file says"


def test_each_set_keeps_its_own_figures() -> None:
    rows = [row(0.2, edits=5), row(0.4, edits=7)]
    table = compare([Measured("a", ["p", "p"], rows, [["x"], []]), Measured("b", ["q"], [row()])])
    first = table["sets"][0]
    own = summarise(rows, touched=[["x"], []])
    assert (first["name"], first["pairs"], first["prompts"], first["rules"]) == ("a", 2, 1, {"x": 1})
    for name, spread in own["metrics"].items():
        assert {k: v for k, v in first["metrics"][name].items() if k != "histogram"} == {
            k: v for k, v in spread.items() if k != "histogram"
        }
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_all_sets_have_the_same_edges_and_every_pair_is_in_a_bar() -> None:
    near = [row(edits=n, ratio=None) for n in range(100)]
    far = [row(edits=200 + n) for n in range(99)] + [row(edits=9000)]
    table = compare([Measured("near", ["p"] * 100, near), Measured("far", ["q"] * 100, far)])
    one, two = (s["metrics"]["character_levenshtein"]["histogram"] for s in table["sets"])
    assert one["edges"] == two["edges"] and (one["edges"][0], one["edges"][-1]) == (0, pytest.approx(297, abs=1))
    assert sum(one["counts"]) == sum(two["counts"]) == 100
    assert one["counts"][-1] == 0 < two["counts"][-1], "what lies beyond the last edge is in the last bar"
    assert table["sets"][1]["metrics"]["character_levenshtein"]["max"] == 9000
    assert "length_ratio" not in table["sets"][0]["metrics"]


def test_matched_differences_by_hand() -> None:
    first = Measured("first", ["p", "q", "r", "p"], [row(0.1), row(0.5), row(0.9), row(0.3)])
    other = Measured("other", ["q", "p", "s"], [row(0.4, ratio=None), row(0.6), row(1.0)])
    [matched] = compare([first, other])["matched"]
    assert (matched["name"], matched["against"], matched["prompts"]) == ("other", "first", 2)
    # p: 0.6 − mean(0.1, 0.3) = 0.4; q: 0.4 − 0.5 = −0.1
    found = matched["metrics"]["word_jaccard"]
    assert found["mean"] == pytest.approx(0.15)
    assert (found["higher"], found["lower"], found["equal"]) == (1, 1, 0)
    assert (found["low"], found["high"]) == (None, None), f"under {FEWEST} prompts there is no interval"
    assert matched["metrics"]["length_ratio"] == {
        "mean": 0.0, "low": None, "high": None, "higher": 0, "lower": 0, "equal": 1,
    }  # fmt: skip


def test_the_interval_is_students() -> None:
    differences = [0.1, -0.2, 0.3, 0.05, 0.2, 0.0, 0.15, -0.05]
    prompts = [str(n) for n in range(8)]
    table = compare(
        [Measured("a", prompts, [row(0.5)] * 8), Measured("b", prompts, [row(0.5 + d) for d in differences])]
    )
    found = table["matched"][0]["metrics"]["word_jaccard"]
    half = 2.3646 * statistics.stdev(differences) / 8**0.5  # Student's t, 7 degrees of freedom, from a printed table
    mean = statistics.fmean(differences)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((mean, mean - half, mean + half), rel=1e-3)
    assert (found["higher"], found["lower"], found["equal"]) == (5, 2, 1)


def test_sets_without_a_common_prompt_match_nothing() -> None:
    [matched] = compare([Measured("a", ["p"], [row()]), Measured("b", ["q"], [row()])])["matched"]
    assert (matched["prompts"], matched["metrics"]) == (0, {})


def test_outlines_are_shares_over_the_same_edges() -> None:
    svg = outlines([0, 1, 2], [Outline("s1", [1, 1], 0.5), Outline("s2", [30, 10])], label="x")
    lines = {part.get("class"): part.get("points", "").split() for part in ET.fromstring(svg).iter("polyline")}
    middle = (LEFT + RIGHT) / 2
    height = {share: BOTTOM - share / 0.8 * (BOTTOM - TOP) for share in (0, 0.25, 0.5, 0.75)}
    at = {name: [(x, height[y]) for x, y in points] for name, points in {
        "outline s1": [(LEFT, 0), (LEFT, 0.5), (middle, 0.5), (middle, 0.5), (RIGHT, 0.5), (RIGHT, 0)],
        "outline s2": [(LEFT, 0), (LEFT, 0.75), (middle, 0.75), (middle, 0.25), (RIGHT, 0.25), (RIGHT, 0)],
    }.items()}  # fmt: skip
    for name, points in at.items():
        assert [tuple(map(float, point.split(","))) for point in lines[name]] == [
            pytest.approx(point, abs=0.06) for point in points
        ]
    [median] = [part for part in ET.fromstring(svg).iter("line") if "middle" in part.get("class", "")]
    assert float(median.get("x1", "nan")) == pytest.approx(LEFT + (RIGHT - LEFT) / 4, abs=0.06)


@pytest.mark.parametrize(
    ("edges", "counts"), [([0, 1], [0]), ([0, 0], [3]), ([], []), ([0, float("nan")], [1]), ([0, 1], [1, 2])]
)
def test_outlines_of_nothing_are_nothing(edges: list[float], counts: list[int]) -> None:
    assert outlines(edges, [Outline("s1", counts)], label="x") == ""


HOSTILE = "</style><script>alert(1)</script>{{ 7*7 }}\u202e"


def table_of(names: list[str]) -> dict[str, Any]:
    sets = [
        Measured(name, ["p", "q"], [row(0.1 * n), row(0.5)], [[HOSTILE], []]) for n, name in enumerate(names, start=1)
    ]
    table = compare(sets)
    for one in table["sets"]:
        one["left_out"] = [f"{HOSTILE}:1: bad"] * 60
    return table


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_set_and_runs_nothing(tmp_path: Path) -> None:
    page = write_measure_page(tmp_path / "a.html", table_of(["clair", HOSTILE])).read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert not {"script", "img", "link", "iframe"} & set(tags.found)
    assert "\u202e" not in page and "⟨U+202E⟩" in page and "{{ 7*7 }}" in tags.text
    assert page.count('class="outline s1"') == page.count('class="outline s2"') >= 4
    assert "minus" in tags.text and "2 shared prompts" in tags.text and "and 10 more" in tags.text
    assert "http" not in page.replace("http-equiv", "")


def test_the_page_of_one_set_compares_with_nothing() -> None:
    page = build_measure_page(compare([Measured("clair", ["p"], [row()])]))
    assert "shared prompt" not in page and "How contrastive these pairs are" in page


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, words in {"clair": "It left today.", "stronger": "No idea, sorry.", "run/pairs": "It left now."}.items():
        rows = [
            {"prompt": f"question {n}", "chosen": f"{words} {n}", "rejected": f"It left today! {n}"} for n in range(8)
        ]
        Path(f"{name}.jsonl").parent.mkdir(exist_ok=True)
        Path(f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["measure", *words])


def test_the_command_with_several_sets(place: Path) -> None:
    done = call("clair.jsonl", "--against", "stronger.jsonl", "run", "--json", "--out", "page.html")
    assert (done.exit_code, done.stderr) == (0, "")
    table = json.loads(done.stdout)
    assert [one["name"] for one in table["sets"]] == ["clair", "stronger", "run"]
    assert [(m["name"], m["prompts"]) for m in table["matched"]] == [("stronger", 8), ("run", 8)]
    assert table["matched"][0]["metrics"]["word_jaccard"]["lower"] == 8
    assert "<h1>Pairs side by side</h1>" in (place / "page.html").read_text(encoding="utf-8")


def test_the_page_of_a_run_folder_alone(place: Path) -> None:
    done = call("run", "--json", "--out", "page.html")
    assert (done.exit_code, done.stderr) == (0, "") and json.loads(done.stdout)["pairs"] == 8
    assert "How contrastive these pairs are" in (place / "page.html").read_text(encoding="utf-8")


def test_the_command_for_people(place: Path) -> None:
    with (place / "clair.jsonl").open("a") as file:
        file.write('{"prompt": "[red]x"}\n')
    done = call("clair.jsonl", "--against", "stronger.jsonl")
    assert done.exit_code == 0
    assert "stronger minus clair on 8 shared prompts" in done.stdout and "left out: clair.jsonl:9:" in done.stdout


def test_sets_of_one_name_are_told_apart(place: Path) -> None:
    (place / "other").mkdir()
    (place / "other" / "clair.jsonl").write_bytes((place / "clair.jsonl").read_bytes())
    names = lambda *words: [one["name"] for one in json.loads(call(*words, "--json").stdout)["sets"]]  # noqa: E731
    assert names("clair.jsonl", "--against", "other/clair.jsonl") == ["clair.jsonl", "other/clair.jsonl"]
    assert names("clair.jsonl", "--against", "clair.jsonl") == ["1: clair.jsonl", "2: clair.jsonl"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["clair.jsonl", "stronger.jsonl"], "put --against before the second one"),
        (["clair.jsonl", *(["--against", "run"] * 6)], "7 sets of pairs were given, at most 6"),
        (["clair.jsonl", "--out", "a.txt"], "expected a file .html"),
        (["clair.jsonl", "--against", "none.jsonl"], "none.jsonl: no such file"),
        (["clair.jsonl", "--layout", "x"], "is 'x', expected one of trl, distilabel"),
        (["run", "clair.jsonl"], "put --against before the second one"),
        (["run", "--layout", "trl"], "--layout is for a file of pairs"),
        (["recipe.yaml", "--out", "page.html"], "of a recipe it is the run folder"),
    ],
)
def test_mistakes_of_the_command(place: Path, words: list[str], says: str) -> None:
    done = call(*words)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1
