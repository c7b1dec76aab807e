"""Which stages run: after a change, for a command, after an interruption. The engines are stand-ins, the rest is real.

The stand-ins answer, train and score by hashing what they are given, so that a result changes exactly when what it
depends on does. (The real engines go through the same recipe in tests/e2e.)
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from anchorline.data import read_json, read_jsonl, write_json, write_jsonl
from anchorline.errors import DataError, MissingExtra
from anchorline.evals.drift import Drift
from anchorline.evals.preference import Preference
from anchorline.llm.fake import FakeEndpoint
from anchorline.recipe import load_recipe, run
from anchorline.recipe.context import RunContext
from anchorline.recipe.run import wanted_stages
from anchorline.recipe.sampling import RESAMPLE, ask_policy
from anchorline.recipe.stages import STAGES, Stage
from anchorline.train.run import Trained
from anchorline.types import Answer, Message, Prompt
from tiny_chat import STYLE, write_recipe, write_rows

ALL = ["prompts", "sample", "baseline", "pairs", "measure", "train", "evaluate", "report"]
TRAINED = ["train", "evaluate", "report"]
NEW_BASELINE = ["prompts", "baseline", "evaluate", "report"]
NEW_MODEL = ["sample", "baseline", "measure", "train", "evaluate"]
NEW_PAIRS = ["pairs", "measure", *TRAINED]


def hashed(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:8]


class Engines:
    """The stand-ins, and what was asked of them."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.asked: list[str] = []
        self.stop_after: int | None = None

    def answer_batches(
        self, loaded: Any, prompts: Any, settings: Any, *, seed: int, done: Any
    ) -> Iterator[list[Answer]]:
        for number, prompt in enumerate(p for p in prompts if p.id not in done):
            if self.stop_after is not None and number >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(prompt.id)
            text = f"Box {hashed(loaded, prompt, settings, seed)} left."
            yield [Answer(prompt.id, prompt.messages, text, "stop")]

    def train(
        self, rows: Any, model: str, settings: Any, folder: Path, *, heldout: Any, retain: Any, seed: int, progress: Any
    ) -> Trained:
        unseen = {"save_steps": 1, "save_total_limit": 1, "reference_cache": None}
        trained = hashed(rows, heldout if settings.arguments else None, settings.model_copy(update=unseen), seed)
        (folder / "train").mkdir(exist_ok=True)
        (folder / "model").mkdir(exist_ok=True)
        write_jsonl(folder / "train" / "metrics.jsonl", [{"step": 1, "loss": 1.0, "trained": trained}])
        write_json(folder / "model" / "weights.json", trained)
        return Trained(folder / "model", len(rows), 1, [])

    def load_subject(self, trained: Path, model: str, **_: Any) -> Any:
        return SimpleNamespace(policy=read_json(trained / "weights.json"))

    def score(self, subject: Any, *rest: Any, **_: Any) -> dict[str, Any]:
        return {"n": 1, "prompts": 1, "accuracy": 1.0, "kl_per_token": 0.5, "of": hashed(subject, rest[0])}


@contextmanager
def stood_in() -> Iterator[Engines]:
    """The stand-ins in the places of the engines, and every stage watched."""
    made = Engines()
    stand_ins: dict[str, Callable[..., Any]] = {
        "anchorline.llm.models.load": lambda model, *, dtype: "loaded",
        "anchorline.llm.hf_local.answer_batches": made.answer_batches,
        "anchorline.train.answering.answering": nullcontext,
        "anchorline.train.run.train": made.train,
        "anchorline.evals.subject.load_subject": made.load_subject,
        "anchorline.evals.subject.attend": lambda subject, how: None,
        "anchorline.evals.drift.drift": lambda *a, **k: Drift(made.score(*a, **k), []),
        "anchorline.evals.preference.preference": lambda *a, **k: Preference(made.score(*a, **k), [], []),
        "anchorline.report.write_report": lambda folder: (folder / "report.html").write_text("page"),
        "anchorline.report.write_card": lambda folder: (folder / "README.md").write_text("card"),
        "os.fsync": lambda file: None,  # nobody pulls the plug here
    }

    def watched(stage: Stage) -> Stage:
        return stage._replace(act=lambda context: (made.ran.append(stage.name), stage.act(context))[1])

    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in stand_ins.items():
            patch.setattr(name, stand_in)
        patch.setattr(import_module("anchorline.recipe.run"), "STAGES", tuple(map(watched, STAGES)))
        yield made


@pytest.fixture
def engines() -> Iterator[Engines]:
    with stood_in() as made:
        yield made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe in `r` that was run to its end in `out`."""
    folder = tmp_path_factory.mktemp("finished")
    with stood_in() as engines, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("model").mkdir()
        Path("model/config.json").write_text("{}")
        write_recipe(Path("r"), "../model")
        assert again(engines) == ALL
    return folder


@pytest.fixture
def place(engines: Engines, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished folder, to work in."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def again(engines: Engines, *overrides: str, upto: str = "report") -> list[str]:
    """Run, and the stages that ran."""
    engines.ran.clear()
    engines.asked.clear()
    run(load_recipe("r/recipe.yaml", overrides), Path("out"), upto=upto)
    return list(engines.ran)


def rows(name: str) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(Path("out") / name)]


def test_a_finished_run_runs_nothing(place: Path, engines: Engines) -> None:
    kept = {file: file.stat().st_mtime_ns for file in Path("out").rglob("*.jsonl")}
    manifest = Path("out/manifest.json").read_text()
    assert again(engines) == []
    assert kept == {file: file.stat().st_mtime_ns for file in Path("out").rglob("*.jsonl")}
    assert Path("out/manifest.json").read_text() == manifest
    run(load_recipe("out"), Path("out"))
    assert engines.ran == [], "the run folder's own recipe is the same recipe"


SETTINGS = {
    "name=other": ["report"],
    "seed=1": ["prompts", "sample", "baseline", *NEW_PAIRS],
    "strict=true": ["prompts", "report"],
    "trust_code=true": ["pairs", "evaluate", "report"],
    "prompts.limit=4": ["prompts", "sample", *NEW_PAIRS],
    "prompts.system=be kind": ["prompts", "sample", "baseline", *NEW_PAIRS],
    "prompts.heldout=0.5": ["prompts", "sample", "baseline", *NEW_PAIRS],
    "prompts.general=null": NEW_BASELINE,
    "sample.max_new_tokens=9": ["sample", *NEW_PAIRS],
    "sample.temperature=0.9": ["sample", *NEW_PAIRS],
    "sample.top_p=0.9": ["sample", *NEW_PAIRS],
    "sample.batch_size=3": ["sample", *NEW_PAIRS],
    "train.objective=dpo": TRAINED,
    "train.beta=0.2": TRAINED,
    "train.learning_rate=0.1": TRAINED,
    "train.epochs=2": TRAINED,
    "train.pairs_per_step=3": TRAINED,
    "train.lora.rank=3": TRAINED,
    "train.lora=null": TRAINED,
    "train.max_tokens=99": TRAINED,
    "train.overlong=truncate": TRAINED,
    "train.merge=true": TRAINED,
    "train.dtype=bfloat16": ["sample", *TRAINED],
    "train.save_steps=3": ["report"],
    "train.save_total_limit=3": ["report"],
    "train.reference_cache=elsewhere": ["report"],
    "train.arguments.optim=sgd": ["train", "evaluate", "report"],
    "eval.max_new_tokens=9": ["baseline", "evaluate", "report"],
    "eval.dtype=bfloat16": ["baseline", "evaluate", "report"],
    "eval.temperature=0.5": ["baseline", "evaluate", "report"],
    "eval.general_tokens=9": ["baseline", "evaluate", "report"],
    "eval.batch_size=9": ["baseline", "evaluate", "report"],
    "pairs.heldout=0.2": ["report"],  # only of given pairs
}


@pytest.mark.parametrize("override", SETTINGS)
def test_a_setting_reruns_what_depends_on_it(place: Path, engines: Engines, override: str) -> None:
    assert again(engines, override) == [stage for stage in ALL if stage in SETTINGS[override]]
    assert again(engines, override) == []


def restyle(**changes: Any) -> None:
    Path("r/style.yaml").write_text(yaml.safe_dump(STYLE | changes))


def append(file: str, row: dict[str, Any] | None) -> None:
    """Add a row, or a blank line."""
    with Path(file).open("a") as f:
        f.write("\n" if row is None else json.dumps(row) + "\n")


def edit_pairs() -> None:
    edited = rows("pairs.jsonl")
    edited[0]["chosen"][0]["content"] += " By hand."
    write_rows(Path("out/pairs.jsonl"), edited)


CHANGES: dict[str, tuple[Callable[[], object], list[str]]] = {
    "another rule": (lambda: restyle(rules=[*STYLE["rules"], {"kind": "no_exclamation"}]), ["pairs", "evaluate", "report"]),
    "another greeting": (lambda: restyle(rules=[{"kind": "starts_with", "text": "hi."}]), NEW_PAIRS),
    "a style's guideline": (lambda: restyle(guideline="be kind"), ["pairs", "evaluate"]),
    "one more training prompt": (lambda: append("r/train.jsonl", {"prompt": "the cup"}), ["prompts", "sample", *NEW_PAIRS]),
    "one more held-out prompt": (lambda: append("r/heldout.jsonl", {"prompt": "the cup"}), NEW_BASELINE),
    "one more general prompt": (lambda: append("r/general.jsonl", {"prompt": "the cup"}), NEW_BASELINE),
    "spaces in the prompts' file": (lambda: append("r/train.jsonl", None), ["prompts"]),
    "another model": (lambda: Path("model/config.json").write_text('{"a": 1}'), NEW_MODEL),
    "pairs edited by hand": (edit_pairs, ["measure", *TRAINED]),
    "model deleted": (lambda: shutil.rmtree("out/model"), ["train"]),
    "page deleted": (lambda: Path("out/report.html").unlink(), ["report"]),
    "answers deleted": (lambda: Path("out/answers.jsonl").unlink(), ["sample"]),
    "figures deleted": (lambda: Path("out/evals/drift.json").unlink(), ["evaluate"]),
    "moved prompts": (lambda: shutil.copytree("r", "s"), []),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_outside_the_recipe_reruns_what_depends_on_it(place: Path, engines: Engines, change: str) -> None:
    make, expected = CHANGES[change]
    make()
    assert again(engines) == [stage for stage in ALL if stage in expected]
    assert again(engines) == []


def test_the_same_prompts_in_another_file_are_the_same_prompts(place: Path, engines: Engines) -> None:
    shutil.copy("r/train.jsonl", "elsewhere.jsonl")
    assert again(engines, "prompts.train=elsewhere.jsonl") == ["report"]


def test_a_change_of_prompts_at_home_is_noticed(place: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    assert again(engines, "prompts.train=~/r/train.jsonl") == ["report"], "the same prompts"
    append("r/train.jsonl", {"prompt": "the cup"})
    assert "prompts" in again(engines, "prompts.train=~/r/train.jsonl")


def test_pairs_edited_by_hand_are_trained_on_and_stay(place: Path, engines: Engines) -> None:
    before = read_json(Path("out/model/weights.json"))
    edit_pairs()
    again(engines)
    assert rows("pairs.jsonl")[0]["chosen"][0]["content"].endswith("By hand.")
    assert read_json(Path("out/model/weights.json")) != before


@pytest.mark.parametrize(
    ("upto", "stages"),
    {
        "sample": ["prompts", "sample"],
        "pairs": ["prompts", "sample", "pairs"],
        "measure": ["prompts", "sample", "pairs", "measure"],
        "train": ["prompts", "sample", "pairs", "train"],
        "evaluate": ["prompts", "sample", "baseline", "pairs", "train", "evaluate"],
        "report": ALL,
    }.items(),
)
def test_a_command_does_its_part_and_what_that_needs(
    place: Path, engines: Engines, upto: str, stages: list[str]
) -> None:
    shutil.rmtree("out")
    assert again(engines, upto=upto) == stages
    assert again(engines) == [stage for stage in ALL if stage not in stages], "run does the rest"


def test_given_pairs_need_no_sampling() -> None:
    recipe = load_recipe_of_pairs("p.jsonl")
    names = [stage.name for stage in wanted_stages(recipe, "report")]
    assert names == ["given", "baseline", "measure", "train", "evaluate", "report"]


def load_recipe_of_pairs(file: str) -> Any:
    from anchorline.cli.options import recipe_of_data

    return recipe_of_data("pairs.file", file, ["model=model"])


def test_given_pairs_take_the_place_of_made_ones_and_back(place: Path, engines: Engines) -> None:
    made = rows("pairs.jsonl")
    given = [{"prompt": f"the {w}", "chosen": "good day.", "rejected": "box"} for w in ("cup", "bag", "hat")]
    write_rows(Path("p.jsonl"), given)
    assert again(engines, "pairs.file=p.jsonl") == ["given", "measure", *TRAINED], "the held-out prompts are the same"
    assert len(rows("pairs.jsonl")) == 2
    assert again(engines) == ["prompts", "pairs", "measure", *TRAINED], "the answers are still good"
    assert rows("pairs.jsonl") == made


def test_a_style_without_rules_has_no_share_of_kept_rules(place: Path, engines: Engines) -> None:
    restyle(rules=[], guideline="Be calm.")
    write_rows(
        Path("p.jsonl"), [{"prompt": w, "chosen": "good day.", "rejected": "box"} for w in ("cup", "bag", "hat")]
    )
    assert Path("out/evals/style.json").is_file()
    again(engines, "pairs.file=p.jsonl")
    assert Path("out/evals/after.jsonl").is_file() and not Path("out/evals/style.json").exists()
    assert read_json(Path("out/summary.json"))["style"]["after"] == {"all": None}


def test_an_interrupted_stage_asks_only_for_what_it_lacks(place: Path, engines: Engines) -> None:
    whole = rows("answers.jsonl")
    shutil.rmtree("out")
    engines.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        again(engines)
    assert [row["id"] for row in rows("answers.jsonl.partial")] == engines.asked
    first = list(engines.asked)
    engines.stop_after = None
    assert again(engines) == ALL[1:]
    assert first + engines.asked[:2] == [row["id"] for row in whole]
    assert rows("answers.jsonl") == whole and not Path("out/answers.jsonl.partial").exists()


def test_a_half_written_answer_is_asked_for_again(place: Path, engines: Engines) -> None:
    whole = rows("answers.jsonl")
    shutil.rmtree("out")
    engines.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        again(engines)
    partial = Path("out/answers.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:-20])
    engines.stop_after = None
    again(engines)
    assert engines.asked[:3] == [row["id"] for row in whole[3:]]
    assert rows("answers.jsonl") == whole


def test_a_half_finished_baseline_keeps_its_first_file(place: Path, engines: Engines) -> None:
    write_rows(Path("r/general.jsonl"), [{"prompt": f"the {w}"} for w in ("cup", "bag", "hat", "key")])
    shutil.rmtree("out")
    engines.stop_after = 3  # enough for three training and three held-out prompts, not for four general ones
    with pytest.raises(KeyboardInterrupt):
        again(engines, "prompts.limit=3")
    assert len(rows("evals/before.jsonl")) == 3 == len(rows("evals/general.jsonl.partial"))
    engines.stop_after = None
    again(engines, "prompts.limit=3")
    held = {row["id"] for row in rows("evals/prompts.jsonl")}
    assert [id in held for id in engines.asked] == [False, True, True, True], "one general answer; then evals/after"


def test_unstyled_prompts_are_sampled_and_trained_on_and_can_be_taken_back(place: Path, engines: Engines) -> None:
    before = rows("pairs.jsonl")
    write_rows(Path("r/unstyled.jsonl"), [{"prompt": "the cup"}, {"prompt": "the bag"}])
    new = ["prompts", "sample", *NEW_PAIRS]
    assert again(engines, "prompts.unstyled=r/unstyled.jsonl") == new
    added = [row for row in rows("pairs.jsonl") if row not in before]
    assert len(added) == 2 and all(row["rejected"][0]["content"].startswith("good day. ") for row in added)
    assert again(engines) == new
    assert rows("pairs.jsonl") == before


def test_answers_that_are_all_there_are_not_kept_twice(place: Path, engines: Engines) -> None:
    shutil.rmtree("out")
    engines.stop_after = 5  # enough for the training and the held-out prompts, not for six general ones
    write_rows(Path("r/general.jsonl"), [{"prompt": f"the {w}"} for w in ("cup", "bag", "hat", "key", "map", "lamp")])
    with pytest.raises(KeyboardInterrupt):
        again(engines, "prompts.limit=3")
    shutil.copy("out/evals/before.jsonl", "out/evals/before.jsonl.partial")  # killed before it was removed
    engines.stop_after = None
    again(engines, "prompts.limit=3")
    assert list(Path("out").rglob("*.partial")) == []


def test_a_setting_changed_while_interrupted_starts_the_stage_over(place: Path, engines: Engines) -> None:
    shutil.rmtree("out")
    engines.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        again(engines)
    engines.stop_after = None
    again(engines, "sample.temperature=0.9")
    assert len([id for id in engines.asked if id in {r["id"] for r in rows("prompts.jsonl")}]) == 6


def test_a_stage_that_fails_is_not_done(place: Path, engines: Engines) -> None:
    def fails(*_: Any, **__: Any) -> Trained:
        raise DataError("no row is left")

    with pytest.MonkeyPatch.context() as patch:  # undone here, before the stand-ins are
        patch.setattr("anchorline.train.run.train", fails)
        with pytest.raises(DataError):
            again(engines, "train.beta=0.3")
    assert read_json(Path("out/manifest.json"))["stages"]["train"]["status"] == "running"
    assert again(engines, "train.beta=0.3") == TRAINED


def test_no_answer_becomes_a_pair(place: Path, engines: Engines) -> None:
    restyle(rules=[{"kind": "no_exclamation"}])
    with pytest.raises(DataError, match=r"none of 6 answers became a pair \(6 unchanged\).*failures\.jsonl"):
        again(engines)
    assert [row["kind"] for row in rows("failures.jsonl")] == ["unchanged"] * 6
    assert not Path("out/pairs.jsonl").exists()


def test_good_rows_survive_bad_ones_and_each_bad_one_is_named(place: Path, engines: Engines) -> None:
    file = Path("r/train.jsonl")
    file.write_text(file.read_text() + '{"prompt": " "}\nnot json\n{"prompt": [{"role": "bot", "content": "x"}]}\n')
    again(engines)
    assert len(rows("prompts.jsonl")) == 6
    bad = [row["details"] for row in rows("failures.jsonl") if row["kind"] == "malformed"]
    assert [(Path(row["file"]).name, row["line"], row["field"]) for row in bad] == [
        ("train.jsonl", 7, "prompt"),
        ("train.jsonl", 8, None),
        ("train.jsonl", 9, "prompt[0].role"),
    ]
    assert read_json(Path("out/summary.json"))["failures"] == 3


def test_a_prompt_that_is_held_out_is_not_trained_on(place: Path, engines: Engines) -> None:
    append("r/heldout.jsonl", {"prompt": "  WHERE is my tent Blue "})
    again(engines)
    assert len(rows("prompts.jsonl")) == 5
    assert [row["kind"] for row in rows("failures.jsonl")] == ["heldout"]


def test_the_limit_takes_the_first_training_prompts_and_holds_none_back(place: Path, engines: Engines) -> None:
    before = rows("prompts.jsonl")
    again(engines, "prompts.limit=2")
    assert rows("prompts.jsonl") == before[:2]
    assert len(rows("evals/prompts.jsonl")) == 3


def test_failures_are_those_of_the_last_run_of_their_stage(place: Path, engines: Engines) -> None:
    good = Path("r/train.jsonl").read_text()
    append("r/train.jsonl", {"prompt": " "})
    again(engines)
    assert len(rows("failures.jsonl")) == 1
    Path("r/train.jsonl").write_text(good)
    again(engines)
    assert rows("failures.jsonl") == []


def test_the_manifest_says_what_was_done(place: Path) -> None:
    manifest = read_json(Path("out/manifest.json"))
    assert (manifest["name"], manifest["seed"]) == ("tiny", 0)
    assert list(manifest["stages"]) == ALL
    assert {stage["status"] for stage in manifest["stages"].values()} == {"done"}
    assert manifest["counts"] == {"prompts": 6, "answers": 6, "pairs": 6, "failures": 0}
    assert manifest["stages"]["train"]["outputs"].keys() == {"train", "model"}
    assert manifest["versions"]["torch"] and manifest["machine"]["cores"] >= 1


def test_the_summary_has_every_promised_field(place: Path) -> None:
    summary = read_json(Path("out/summary.json"))
    assert summary["style"]["before"]["all"] == 0.0 and summary["style"]["after"]["all"] == 0.0
    assert (summary["style"]["n"], summary["pairs"], summary["failures"]) == (3, 6, 0)
    assert (summary["drift"]["kl_per_token"], summary["preference"]["accuracy"]) == (0.5, 1.0)
    assert summary["objective"] == {"apo_zero": 1.0}
    assert list(summary["seconds"]) == ALL
    assert summary["peak_rss_gib"] > 0.01


def test_the_advisors_answers_are_not_those_that_the_pairs_were_made_of(place: Path, engines: Engines) -> None:
    assert again(engines, "train.objective=auto", "advise.hidden=false", upto="advise") == ["advise"]
    sampled, fresh = ({row["id"]: row["text"] for row in rows(f"{at}answers.jsonl")} for at in ("", "advise/"))
    assert len(fresh) > 3 and all(sampled[id] != text for id, text in fresh.items())


SERVED = ("train.objective=auto", "llm.policy.model=talker")


@pytest.mark.parametrize(
    ("setting", "counts"),
    [
        (("model=./other",), True),
        (("train.dtype=bfloat16",), True),
        (("train.max_tokens=99",), True),
        (("train.beta=0.2",), False),
        (("advise.hidden=false", "train.max_tokens=99"), False),
        (("advise.hidden=false", "model=./other"), True),  # by its name a pair's rejected answer is its own
    ],
)
def test_the_advice_of_a_served_policy_depends_on_its_weights_here(place: Path, setting: Any, counts: bool) -> None:
    shutil.copytree("model", "other")
    Path("other/config.json").write_text("{ }")
    (advise,) = (stage for stage in STAGES if stage.name == "advise")

    def key(*more: str) -> dict[str, Any]:
        return advise.settings(RunContext(load_recipe("r/recipe.yaml", (*SERVED, *more)), Path("out")))

    same = setting[:-1] if setting[0] == "advise.hidden=false" else ()
    assert (key(*same) != key(*setting)) == counts


def served_by(fake: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fake answer in the place of the served policy."""

    async def endpoint(name: str) -> FakeEndpoint:
        return fake

    @asynccontextmanager
    async def desk(run: RunContext) -> AsyncIterator[Any]:
        yield SimpleNamespace(endpoint=endpoint)

    monkeypatch.setattr("anchorline.recipe.sampling.open_desk", desk)


def test_a_served_policys_samples_are_others_for_another_seed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers(seed: int) -> list[int]:
        fake = FakeEndpoint("fine")
        served_by(fake, monkeypatch)
        run = RunContext(load_recipe("r/recipe.yaml", (*SERVED, f"seed={seed}")), Path("out"))
        asked = [Prompt(f"p#{n}", (Message("user", "where is it"),)) for n in (1, 2)]
        ask_policy(run, asked, run.recipe.sample, "more.jsonl", RESAMPLE)
        ask_policy(run, asked[:1], run.recipe.sample, "answers.jsonl")
        return [request.index for request in fake.asked]

    assert numbers(0) == [1, 2, 0], "requests of seed 0 keep their keys"
    assert len({*numbers(0), *numbers(1), *numbers(2**31 - 1)}) == 9


@pytest.mark.parametrize("name", ["sample", "resample"])
def test_a_served_policy_is_asked_again_for_another_seed(place: Path, name: str) -> None:
    (stage,) = (stage for stage in STAGES if stage.name == name)
    first, same, other = (
        stage.settings(RunContext(load_recipe("r/recipe.yaml", (*SERVED, f"seed={seed}")), Path("out")))
        for seed in (0, 0, 1)
    )
    assert first == same != other


def test_a_served_policys_thinking_is_no_part_of_its_answer(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeEndpoint(["<think>Monday? Tuesday.</think>\n\nOn Tuesday.", "<think>Monday? Tues"])
    served_by(fake, monkeypatch)
    run = RunContext(load_recipe("r/recipe.yaml", SERVED), Path("out"))
    asked = [Prompt(f"p{n}", (Message("user", f"where is {n}"),)) for n in (1, 2)]
    failures = ask_policy(run, asked, run.recipe.sample, "answers.jsonl")
    assert [json.loads(line)["text"] for line in Path("out/answers.jsonl").read_text().splitlines()] == ["On Tuesday."]
    assert [failure.kind for failure in failures] == ["empty"]


def test_without_scipy_the_advisor_asks_nobody(place: Path, engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtra, match=r"constraints.txt .\.\[train\]"):
        again(engines, "train.objective=auto", "advise.hidden=false", upto="advise")
    assert engines.asked == []
