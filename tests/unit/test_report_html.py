"""Checks the page: what it says, that it escapes everything, and what it does with files that are not there."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_folder import RULES, build_run_folder

from anchorline.errors import DataError, RunFolderError
from anchorline.report import ReportData, build_report, read_run_folder, write_report
from anchorline.report.charts import tick_text
from anchorline.report.figures import change, duration, number, objective_text, percent
from anchorline.report.html import choose_samples

FILES = ["summary.json", "manifest.json", "recipe.yaml", "answers.jsonl", "pairs.jsonl", "failures.jsonl",
         "measure.json", "train/metrics.jsonl", "evals/style.json", "evals/answers.jsonl", "evals/preference.json",
         "evals/drift.json"]  # fmt: skip
HOSTILE = "</style></pre><script>window.ran=1</script><img src=//x.test onerror=1>{{ 7*7 }}'\"\u2028\u202egnp\ud800"
SHOWN = HOSTILE.replace("\u2028", "⟨U+2028⟩").replace("\u202e", "⟨U+202E⟩").replace("\ud800", "⟨U+D800⟩")
FIELDS = set(ReportData.__dataclass_fields__) - {"name", "failures"}


class Page(HTMLParser):
    """The page as a browser reads it: tags, their attributes and text, and the text of each section."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.sections: dict[str, str] = {}
        self.words: list[str] = []
        self.at = ""
        self.feed(page)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("section", "header"):
            self.at = dict(attrs).get("id") or self.at

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        self.sections[self.at] = " ".join(f"{self.sections.get(self.at, '')} {data}".split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run_folder(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(build_report(read_run_folder(folder)))


def test_the_headline_has_gain_and_drift_together(page: Page) -> None:
    headline = page.sections["headline"]
    for words in ("went from 0 % to 95 %", "moved by 0.081 nats per token", "Preference accuracy 98.3 %",
                  "Objective apo_zero + 0.2 sft", "Pairs 290", "Dropped 10", "Time 5 min 43 s", "Peak memory 3.2 GiB",
                  "57 of 60 answers, 95 % interval 86.3–98.3 %", "interval 0.070 to 0.095"):  # fmt: skip
        assert words in headline, words


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (["dpo", "dpo", "apo_down"], "apo_zero + 0.2 sft; 3 of 290 pairs by their own: 1 apo_down, 2 dpo"),
        (["dpo"] * 289 + ["kto"], "289 dpo, 1 kto, each pair’s own"),
    ],
)
def test_pairs_with_an_objective_of_their_own_are_counted(folder: Path, own: list[str], says: str) -> None:
    data = read_run_folder(folder)
    pairs = [{**row, "objective": own[n] if n < len(own) else None} for n, row in enumerate(data.pairs or ())]
    sections = Page(build_report(replace(data, pairs=pairs))).sections
    assert f"Objective {says} Pairs 290" in sections["headline"]
    assert f"72 optimizer steps with {says}. " in sections["training"]


def test_each_rule_has_its_figures(page: Page) -> None:
    rules = page.sections["rules"]
    assert [rules.index(rule) for rule in RULES] == sorted(rules.index(rule) for rule in RULES)
    assert "closing_reference 0.0 % 0.0–6.0 % 95.0 % 86.3–98.3 % +95.0" in rules


def test_a_rule_that_got_worse_has_a_minus_sign() -> None:
    side = {"before": {"rules": {"a": {"share": 0.9}}}, "after": {"rules": {"a": {"share": 0.75}}}}
    section = Page(build_report(ReportData(name="x", style={"n": 20, "rules": ["a"], **side}))).sections["rules"]
    assert "a 90.0 % – 75.0 % – −15.0" in section


def test_training_pairs_drops_and_settings_are_there(page: Page) -> None:
    for section, words in {
        "training": ["72 optimizer steps", "Rewards", "r_w (chosen)", "r_l (rejected)", "both fell", "Gradient norm"],
        "pairs": ["290 pairs from 300 answers", "Word overlap", "Length ratio", "286 98.6 %"],
        "dropped": ["10 rows", "pairs unchanged 6", "pairs emptied 3", "train too_long 1", "has 1,103 tokens"],
        "preference": ["58 pairs", "7.90", "−4.50", "1.7 %"],
        "drift": [
            "12,840 tokens",
            "1.08 times",
            "Write a short apology",
            "0.310",
            "letters 60 0.120 0.101 to 0.142 −0.085 −0.110 to −0.060",
            "sums 1 0.021 –",
        ],
        "length": ["61.4", "47.8"],
        "settings": ["peft", "0.21.1", "learning_rate: 0.0003", "Seed 7", "bfloat16", "3.21 GiB"],
    }.items():
        for word in words:
            assert word in page.sections[section], (section, word)


def test_each_curve_draws_its_own_column() -> None:
    # Each column goes its own way, so that a curve drawn from another one's figures shows.
    ends = {"loss": (2.0, 1.0), "chosen_reward": (0.0, 1.0), "rejected_reward": (0.0, -1.0), "margin": (0.0, 2.0),
            "accuracy": (0.25, 1.0), "both_fell": (0.5, 0.0), "grad_norm": (1.0, 2.0),
            "learning_rate": (4.0, 0.0)}  # fmt: skip
    rows = [{"step": at + 1, **{key: pair[at] for key, pair in ends.items()}} for at in (0, 1)]
    page = build_report(ReportData(name="x", training=rows))
    drawn = [[float(y) for y in found] for found in
             re.findall(r'<polyline class="line \w+" points="\S+,(\S+) \S+,(\S+)"/>', page)]  # fmt: skip
    top, middle, bottom = 10.0, 87.0, 164.0
    assert drawn == [[top, middle], [middle, top], [middle, bottom], [bottom, top], [125.5, top], [middle, bottom],
                     [middle, top], [top, bottom]]  # fmt: skip


def test_a_failed_answer_is_among_the_samples(page: Page) -> None:
    assert page.sections["answers"].count("still breaks 1 rule") == 2
    assert page.sections["answers"].count("keeps every rule") == 5


def test_samples_are_spread_and_failures_never_left_out() -> None:
    rows = [{"id": index, "after_kept": {"a": index != 50}} for index in range(101)]
    assert [row["id"] for row in choose_samples(rows)] == [0, 33, 67, 100, 50]
    assert choose_samples(rows[:1]) == rows[:1]
    assert choose_samples([]) == []


def test_a_long_answer_can_be_folded(folder: Path) -> None:
    row = {"id": "1", "prompt": "Q", "before": "word " * 400, "after": "short", "after_kept": {}}
    section = build_report(ReportData(name="x", samples=[row]))
    assert "all 2,000 characters" in section and section.count("<details") == 1


def test_the_length_of_a_folded_text_is_the_readers_not_the_markups(folder: Path) -> None:
    pair = {"id": "1", "prompt": "Q", "chosen": "<&> " * 300, "rejected": "a&b " * 220}
    section = build_report(ReportData(name="x", pairs=[pair]))
    assert "all 1,200 characters" in section and section.count("<details") == 1


def test_labelled_answers_are_shown_with_their_labels() -> None:
    answer = {"prompt": [{"role": "user", "content": "Where is it?"}]}
    rows = [
        {**answer, "id": f"u{n}", "completion": [{"role": "assistant", "content": f"Answer {n}."}], "label": n % 2 == 0}
        for n in range(5)
    ]
    measure = {"pairs": 0, "metrics": {}, "rules": {}}
    page = Page(build_report(ReportData(name="x", summary={"pairs": 5}, pairs=rows, measure=measure)))
    section = page.sections["pairs"]
    for words in (
        "The labelled answers",
        "5 labelled answers: 3 wanted, 2 unwanted",
        "Wanted Answer 0.",
        "Unwanted Answer 1.",
    ):
        assert words in section, words
    assert "(empty)" not in section and "has not run" not in section and "Answer 3" not in section
    assert "Labelled answers 5" in page.sections["headline"]


def test_the_page_needs_nothing_else(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not {"src", "srcset", "onload", "onerror", "onclick", "style"} & {name for name, _ in page.attributes}
    assert all((value or "").startswith("#") for name, value in page.attributes if name == "href")
    ids = [value for name, value in page.attributes if name == "id"]
    assert {f"#{value}" for value in ids} >= {value for name, value in page.attributes if name == "href"}
    assert len(ids) == len(set(ids))


def test_all_text_is_escaped() -> None:
    page_text = build_report(hostile())
    page = Page(page_text)
    page_text.encode("utf-8")
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert "49" not in page.text and "\u202e" not in page_text and "\u2028" not in page_text
    expected = ("headline", "rules", "answers", "drift", "pairs", "dropped", "settings")
    for section in expected:
        assert "window.ran=1" in page.sections[section], section
    assert SHOWN in page.text
    assert SHOWN in [value for name, value in page.attributes if name == "aria-label"]


def hostile() -> ReportData:
    """Every text that comes from a file, hostile."""
    prompt = [{"role": HOSTILE, "content": HOSTILE}]
    kept, share = {HOSTILE: False}, {"kept": 1, "share": 0.5, "low": 0.1, "high": 0.9}
    side = {"all": share, "rules": {HOSTILE: share}}
    figures = {"mean": 1.0, "histogram": {"edges": [0.0, 1.0], "counts": [3]}}
    stage = {"key": HOSTILE, "status": HOSTILE, "started": HOSTILE, "inputs": {HOSTILE: HOSTILE}}
    return ReportData(
        name=HOSTILE,
        summary={"objective": {HOSTILE: 0.5}, "seconds": {HOSTILE: 1.0}},
        manifest={"anchorline": HOSTILE, "versions": {HOSTILE: HOSTILE}, "seed": HOSTILE,
                  "machine": {"cpu": HOSTILE}, "stages": {HOSTILE: stage}},
        recipe=HOSTILE,
        pairs=[{"id": HOSTILE, "prompt": prompt, "chosen": HOSTILE, "rejected": [{"content": HOSTILE * 20}]}],
        failures=[{"id": HOSTILE, "stage": HOSTILE, "kind": HOSTILE, "reason": HOSTILE, "details": {"x": HOSTILE}}],
        measure={"pairs": 3, "metrics": {HOSTILE: figures}, "rules": {HOSTILE: 2}},
        style={"n": 2, "rules": [HOSTILE], "before": side, "after": side},
        samples=[{"id": HOSTILE, "prompt": prompt, "before": HOSTILE, "after": HOSTILE * 20, "before_kept": kept,
                  "after_kept": kept}],
        drift={"prompts": 1, "kl_per_token": 0.1, "groups": {HOSTILE: figures, "items": figures},
               "most": [{"prompt": prompt, "kl_per_token": 0.1}]},
    )  # fmt: skip


def test_a_rule_may_be_called_like_a_dictionary_method() -> None:
    names = ["items", "values", "keys", "get"]
    side = {"all": {"share": 1.0}, "rules": {name: {"share": 0.25} for name in names}}
    kept = dict.fromkeys(names, True)
    row = {"id": "1", "prompt": "Q", "before": "a", "after": "b", "before_kept": kept, "after_kept": kept}
    page = Page(build_report(ReportData(
        name="x", style={"n": 4, "rules": names, "before": side, "after": {}}, samples=[row],
        measure={"pairs": 4, "metrics": {"items": {"mean": 1.0}}, "rules": dict.fromkeys(names, 1)})))  # fmt: skip
    for name in names:
        assert f"{name} 25.0 % – – – –" in page.sections["rules"]
        assert f"✓ {name}" in page.sections["answers"]


@pytest.mark.parametrize("missing", FILES)
def test_each_file_may_be_missing(missing: str, tmp_path: Path) -> None:
    folder = build_run_folder(tmp_path, held_out=5, pairs=8, steps=4)
    (folder / missing).unlink()
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert set(page.sections) >= {"headline", "rules", "answers", "drift", "training", "pairs", "dropped", "settings"}
    unrun = {"measure.json": "pairs", "train/metrics.jsonl": "training", "failures.jsonl": "dropped"}
    told = {name for name, text in page.sections.items() if "This stage has not run" in text}
    assert told == ({unrun[missing]} if missing in unrun else set())


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "The evaluation has not run yet" in page.sections["headline"]
    assert page.sections["training"].endswith("This stage has not run: training.")


def test_an_evaluation_without_rules_to_count_has_run(tmp_path: Path) -> None:
    folder = build_run_folder(tmp_path, held_out=5, pairs=8, steps=4)
    for name in ("style.json", "answers.jsonl"):
        (folder / "evals" / name).unlink()
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "has not run" not in page.text and "Not evaluated" not in page.text
    assert "No rule was counted" in page.sections["headline"] and "0.081 nats" in page.sections["headline"]
    assert all("No rule was counted" in page.sections[name] for name in ("rules", "answers", "length"))
    for name in ("preference.json", "drift.json"):
        (folder / "evals" / name).unlink()
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "has not run" not in page.text and "Not evaluated" not in page.text
    assert "There are no general prompts" in page.sections["drift"]
    assert "There are no held-out pairs" in page.sections["preference"]


def test_nothing_held_out_no_general_prompts_one_pair(tmp_path: Path) -> None:
    folder = build_run_folder(tmp_path, held_out=0, pairs=1, steps=1)
    (folder / "failures.jsonl").write_text("")
    for name, value in {
        "preference": {"n": 0, "accuracy": None},
        "drift": {"prompts": 0, "kl_per_token": None},
    }.items():
        (folder / "evals" / f"{name}.json").write_text(json.dumps(value))
    page = Page(build_report(read_run_folder(folder)))
    assert "There are no held-out prompts" in page.sections["answers"]
    assert "There are no held-out pairs" in page.sections["preference"]
    assert "There are no general prompts" in page.sections["drift"]
    assert "Nothing was dropped" in page.sections["dropped"]
    assert "1 optimizer step with" in page.sections["training"]
    assert "The first pair" in page.sections["pairs"]


def test_no_figure_is_ever_nan_or_none(folder: Path) -> None:
    data = read_run_folder(folder)
    spoiled = {field: spoil(getattr(data, field)) for field in FIELDS}
    page = Page(build_report(ReportData(name="x", **spoiled)))
    # The details of a failure are printed as they are in the file, so failures stay out of this.
    words = set(page.text.replace("\u00a0", " ").split())
    assert not words & {"nan", "NaN", "None", "inf", "Undefined", "null", "nan%"}
    assert "–" in words


def spoil(value: Any) -> Any:
    """The same shape, with no figure left: not a number, or none at all, by turns."""
    if isinstance(value, dict):
        return {key: spoil(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [spoil(inner) for inner in value]
    return math.nan if isinstance(value, float) else None if isinstance(value, int) else value


def test_a_torn_last_line_is_owed_and_an_earlier_one_is_an_error(tmp_path: Path) -> None:
    folder = build_run_folder(tmp_path, held_out=2, pairs=2, steps=3)
    path = folder / "train" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-30])
    assert len(read_run_folder(folder).training or ()) == 2
    path.write_text("{oops\n" + whole)
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: is not JSON"):
        read_run_folder(folder)


@pytest.mark.parametrize(("content", "message"), [
    (b"[1]", "is not a JSON object"), (b'{"a": ', "is not JSON"), (b'{"a": "\xff"}', "is not UTF-8")])  # fmt: skip
def test_a_broken_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    folder = build_run_folder(tmp_path, held_out=1, pairs=1, steps=1)
    (folder / "measure.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"measure\.json.*{message}"):
        write_report(folder)
    assert not list(folder.glob("*report.html*"))


def test_a_folder_that_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"neither recipe\.yaml nor manifest\.json"):
        write_report(tmp_path)
    with pytest.raises(RunFolderError, match="no such folder"):
        write_report(tmp_path / "nowhere")


def test_a_page_that_cannot_be_written_leaves_nothing_half_written(tmp_path: Path) -> None:
    folder = build_run_folder(tmp_path, held_out=1, pairs=1, steps=1)
    (folder / "report.html").mkdir()
    before = sorted(folder.iterdir())
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_report(folder)
    assert sorted(folder.iterdir()) == before


def test_the_same_run_gives_the_same_page(folder: Path) -> None:
    assert build_report(read_run_folder(folder)) == build_report(read_run_folder(folder))


def test_figures_as_they_are_printed() -> None:
    assert [percent(share) for share in (0, 0.07, 0.5666, 0.9996, 1, True)] == [
        "0\u00a0%", "7\u00a0%", "56.7\u00a0%", "99.96\u00a0%", "100\u00a0%", "–"]  # fmt: skip
    shares = (0.00004, 0.0004, 0.99996, 1.0, 1 - 1e-15, 0.5004, 0)
    assert [percent(share, digits=1).removesuffix("\u00a0%") for share in shares] == [
        "0.004", "0.04", "99.996", "100.0", "100.0", "50.0", "0.0"]  # fmt: skip
    assert [number(value) for value in (999.4, 999.5, 999.7, 1000.0, -999.7, -0.0, 0.00001)] == [
        "999", "1,000", "1,000", "1,000", "−1,000", "0", "1e−05"]  # fmt: skip
    assert [tick_text(value) for value in (9999.4, 9999.7, 12345.6, -0.0)] == ["9999", "10000", "12346", "0"]
    assert [change(value, 1) for value in (0.04, 0.05001, -0.04, -3, 95.0, None)] == [
        "0.0", "+0.1", "0.0", "−3.0", "+95.0", "–"]  # fmt: skip
    assert [number(value) for value in (0, 1234, 0.05, 1234.5, -0.5, None)] == [
        "0",
        "1,234",
        "0.05",
        "1,234",
        "−0.5",
        "–",
    ]
    assert [duration(value) for value in (0.04, 59.96, 3600, math.nan)] == [
        "0.0\u00a0s", "1\u00a0min 00\u00a0s", "1\u00a0h 00\u00a0min", "–"]  # fmt: skip
    assert [objective_text(value) for value in ({"dpo": 1}, {"a": 0.5, "b": 2.0}, {}, None)] == [
        "dpo", "0.5 a + 2 b", "–", "–"]  # fmt: skip


def test_what_pairs_cost_and_how_judges_judged(folder: Path) -> None:
    section = Page(build_report(read_run_folder(folder))).sections["making"].replace("\u00a0", " ")
    for said in ("288 clean", "9 3.1 %", "unknown", "0.00078", "17", "23 broken"):
        assert said in " ".join(section.split())


def test_a_run_that_asked_nobody_has_no_such_section(folder: Path) -> None:
    data = replace(read_run_folder(folder), manifest={"name": "x"})
    assert "making" not in Page(build_report(data)).sections


def test_calls_that_timed_out_are_told_beside_what_is_paid(folder: Path) -> None:
    data = read_run_folder(folder)
    assert "timed out" not in Page(build_report(data)).sections["making"]
    manifest = {**data.manifest, "costs": {**data.manifest["costs"], "timed_out": 7}}
    assert "Unknown cost: 7 calls timed out" in Page(build_report(replace(data, manifest=manifest))).sections["making"]


def test_a_makers_name_from_a_damaged_file_is_only_text(folder: Path) -> None:
    made = {
        "pairs:<b>": {"maker": "<script>", "failures": {"<i>": "x"}, "replies": [], "judge": {"judged": "many"}},
        "y": 3,
    }
    page = build_report(replace(read_run_folder(folder), manifest={"makers": made, "costs": {"stages": {"<u>": None}}}))
    assert "<script>" not in page and "<i>" not in page and "&lt;u&gt;" in page
