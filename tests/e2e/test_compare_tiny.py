"""A small grid with the real engines on the tiny model: what is run, what is kept, what is run again, and its files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from chat import Running

from anchorline.data import pair_from_row, read_json, read_jsonl
from anchorline.errors import RecipeError, RunFolderError
from anchorline.recipe import cells, load_recipe
from anchorline.recipe import compare as module
from anchorline.recipe.cells import claimed
from anchorline.recipe.compare import compare, voices
from anchorline.recipe.grid import Voice
from tiny_chat import save_tiny_chat, write_recipe

pytestmark = pytest.mark.e2e

VOICE = {"system": "please help", "max_new_tokens": 8, "samples": 2}
GRID = {
    "sets": ["clair", "stronger"],
    "objectives": ["apo_zero", "dpo"],
    "learning_rates": [0.01, 0.001],
    "seeds": [0, 1],
    "pairs": 2,
    "stronger": VOICE,
    "tone": ["<b>please"],
}
TRAIN = {"learning_rate": 0.01, "pairs_per_step": 1, "epochs": 2, "lora": {"rank": 2}, "dtype": "float32"}
FIRST = [f"{s}-{o}-lr0.01-seed0" for s in ("clair", "stronger") for o in ("apo_zero", "dpo")]
SECOND = [name.replace("0.01", "0.001") for name in FIRST]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole grid in `out`, its recipe in `r`."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("compare")
    write_recipe(folder / "r", str(save_tiny_chat(folder / "model")), train=TRAIN, compare=GRID)
    compare(load_recipe(folder / "r/recipe.yaml"), folder / "out")
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the cells that are trained from here on."""
    names: list[str] = []
    real = module.run_cell

    def counted(cell: Any, *rest: Any) -> dict[str, Any]:
        names.append(cell.name)
        return real(cell, *rest)

    monkeypatch.setattr(module, "run_cell", counted)
    return names


def again(place: Path, *changes: str, **how: Any) -> dict[str, Any]:
    return compare(load_recipe(place / "r/recipe.yaml", list(changes)), place / "out", **how)


def files(place: Path) -> dict[str, int]:
    return {f.parent.name: f.stat().st_mtime_ns for f in (place / "out/cells").glob("*/cell.json")}


def test_every_cell_is_there_in_order_and_further_seeds_take_the_best_rate(place: Path) -> None:
    table = read_json(place / "out/compare.json")
    assert set(table) == {"name", "todo", "before", "sets", "rows", "contrasts", "retain", "cells", "failed", "budgets"}
    names = [f"{c['maker']}-{c['objective']}-lr{c['learning_rate']:g}-seed{c['seed']}" for c in table["cells"]]
    assert [*names[:7], names[-1]] == [*FIRST, *SECOND] and table["todo"] == 0
    best = {(row["maker"], row["objective"]): row["learning_rate"] for row in table["rows"]}
    assert names[7:-1] == [f"{s}-{o}-lr{best[s, o]:g}-seed1" for s, o in [*best][:3]]
    assert {row["n"] for row in table["rows"]} == {3} and table["before"]["n"] == 3
    assert all(cell["drift"] > 0 and cell["drift_n"] > 0 for cell in table["cells"])
    assert f"nats a token on {table['rows'][0]['drift_n']} general prompts" in (place / "out/compare.html").read_text()
    assert {name: row["pairs"] for name, row in zip(("clair", "stronger"), table["sets"], strict=True)} == {
        "clair": 2,
        "stronger": 2,
    }
    drifts = {name: cell["drift"] for name, cell in zip(names, table["cells"], strict=True)}
    assert drifts["clair-dpo-lr0.01-seed0"] > drifts["clair-dpo-lr0.001-seed0"], "the rate reaches the training"
    assert len(set(drifts.values())) == len(drifts), "set, objective, rate and seed each make another training"


def test_the_page_holds_names_and_words_escaped(place: Path) -> None:
    page = (place / "out/compare.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;please" in page and "<b>" not in page and "<script" not in page


def test_a_finished_grid_is_not_run_again(place: Path, trained: list[str]) -> None:
    before = read_json(place / "out/compare.json")
    assert again(place)["cells"] == before["cells"] and trained == []


def test_changed_training_settings_run_the_cells_anew_and_the_tables_rows_alone_do_not(
    place: Path, trained: list[str]
) -> None:
    shutil.copytree(place / "out", place / "kept")
    again(place, "compare.objectives=[apo_zero]", "train.save_steps=3", "train.learning_rate=0.5", "train.merge=true")
    assert trained == []
    again(place, "train.beta=0.3", "compare.sets=[clair]", "compare.objectives=[dpo]", "compare.seeds=[0]")
    assert trained == ["clair-dpo-lr0.01-seed0", "clair-dpo-lr0.001-seed0"]
    shutil.rmtree(place / "out")
    (place / "kept").rename(place / "out")


def test_only_the_cell_without_a_result_is_run_and_comes_out_the_same(place: Path, trained: list[str]) -> None:
    cell = place / "out/cells" / FIRST[1]
    first = read_json(cell / "cell.json")
    others = {name: time for name, time in files(place).items() if name != cell.name}
    (cell / "cell.json").unlink()  # killed after the training, before the result was there
    again(place)
    assert trained == [cell.name] and read_json(cell / "cell.json") == first
    assert others.items() <= files(place).items()


def test_no_cell_begins_that_would_not_end_in_time(place: Path, trained: list[str]) -> None:
    for name in (FIRST[1], FIRST[2], SECOND[0]):
        (place / "out/cells" / name / "cell.json").unlink()
    table = again(place, max_minutes=0)
    assert trained == [FIRST[1]], "a first one always begins"
    # two have no result, and of two further seeds the best rate has to be found again
    assert table["todo"] == 4 and len(table["cells"]) >= 6, "what was finished behind it is in the table"
    assert "4 to go" in (place / "out/compare.txt").read_text(encoding="utf-8")
    assert again(place)["todo"] == 0 and trained[1:] == [FIRST[2], SECOND[0]]


def test_a_cell_that_another_process_is_at_is_left_to_it(place: Path, trained: list[str]) -> None:
    for name in (FIRST[0], FIRST[3]):
        (place / "out/cells" / name / "cell.json").unlink()
    with claimed(place / "out/cells" / FIRST[0]) as ours:
        assert ours and again(place, max_minutes=0)["todo"] == 2
        assert trained == [FIRST[3]], "the next one is taken"
    assert again(place)["todo"] == 0 and trained == [FIRST[3], FIRST[0]]


def test_processes_share_the_cells_and_write_one_table(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "out", tmp_path / "out")
    for name in (FIRST[1], FIRST[2], SECOND[0]):
        (tmp_path / "out/cells" / name / "cell.json").unlink()
    (tmp_path / "old.txt").hardlink_to(tmp_path / "out/compare.txt")
    words = ["compare", str(place / "r/recipe.yaml"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "anchorline", *words, "--processes", "2"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "out/compare.json")["todo"] == 0
    table = (tmp_path / "out/compare.txt").read_text(encoding="utf-8")
    assert table in done.stdout and table in (tmp_path / "out/process-2.log").read_text(encoding="utf-8")
    assert not (tmp_path / "old.txt").samefile(tmp_path / "out/compare.txt"), "replaced in one step"


def test_further_processes_end_with_the_first_also_by_kill(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "out", tmp_path / "out")
    for name in FIRST:
        (tmp_path / "out/cells" / name / "cell.json").unlink()
    words = ["compare", str(place / "r/recipe.yaml"), "--out", str(tmp_path / "out"), "--processes", "2"]
    first = subprocess.Popen([sys.executable, "-m", "anchorline", *words], stderr=subprocess.PIPE, text=True)
    further = wait_until(lambda: psutil.Process(first.pid).children(), 60)
    first.terminate()
    try:
        assert "stopped; what is finished is kept" in first.communicate(timeout=60)[1] and first.returncode == 1
        _, left = psutil.wait_procs(further, timeout=0)
        assert not left
    finally:
        for process in further:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def wait_until(found: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def test_what_another_process_ends_after_this_ones_last_cell_is_in_the_table(place: Path, trained: list[str]) -> None:
    late = place / "out/cells" / FIRST[2] / "cell.json"
    kept = late.read_text(encoding="utf-8")
    for name in (FIRST[1], FIRST[2]):
        (place / "out/cells" / name / "cell.json").unlink()

    @contextmanager
    def another(_minutes: float) -> Iterator[None]:
        yield
        late.write_text(kept, encoding="utf-8")

    table = again(place, max_minutes=0, beside=another)
    assert trained == [FIRST[1]], "time was up for the second"
    assert table["todo"] == 0 and FIRST[2] in {
        f"{c['maker']}-{c['objective']}-lr{c['learning_rate']:g}-seed{c['seed']}" for c in table["cells"]
    }


def test_a_training_is_evaluated_along_its_way_where_that_is_asked_for(tmp_path: Path, place: Path) -> None:
    shutil.copytree(place / "out", tmp_path / "out")
    small = ["compare.sets=[clair]", "compare.objectives=[dpo]", "compare.learning_rates=[0.01]", "compare.seeds=[0]"]
    recipe = load_recipe(place / "r/recipe.yaml", [*small, "compare.checkpoints=2"])
    (row,) = compare(recipe, tmp_path / "out")["rows"]
    (before,) = (c for c in read_json(place / "out/compare.json")["cells"] if c["drift"] == row["drift"])
    assert before["objective"] == "dpo", "to the same end as without looking at it on the way"
    half, end = row["checkpoints"]
    assert (half["step"], end["step"]) == (2, 4) and 0 < half["drift"] != end["drift"] == row["drift"]
    assert row["mean_over_checkpoints"] == (half["share"] + end["share"]) / 2
    assert sorted(p.name for p in (tmp_path / f"out/cells/{FIRST[1]}").iterdir()) == [
        "after-step-2.jsonl", "after.jsonl", "cell.json", "key", "train"
    ]  # fmt: skip


def test_a_point_behind_the_last_step_is_the_end_and_counts_once(tmp_path: Path, place: Path) -> None:
    shutil.copytree(place / "out", tmp_path / "out")
    small = ["compare.sets=[clair]", "compare.objectives=[dpo]", "compare.learning_rates=[0.01]", "compare.seeds=[0]"]
    (row,) = compare(load_recipe(place / "r/recipe.yaml", [*small, "compare.checkpoints=9"]), tmp_path / "out")["rows"]
    assert [point["step"] for point in row["checkpoints"]] == [1, 2, 3, 4]


def test_a_kill_while_the_weights_are_thrown_away_leaves_a_finished_cell(
    place: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = place / "out/cells" / FIRST[1]
    first = read_json(cell / "cell.json")
    (cell / "cell.json").unlink()
    real = shutil.rmtree

    def killed(path: Path, **how: Any) -> None:
        config = Path(path) / "adapter_config.json"
        if path.name != "model" or not config.is_file():  # training itself makes room for a model that is not there
            return real(path, **how)
        config.unlink()  # half of it is gone
        raise KeyboardInterrupt

    monkeypatch.setattr(cells.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        again(place)
    monkeypatch.undo()
    assert again(place)["todo"] == 0 and read_json(cell / "cell.json") == first


@pytest.mark.parametrize(("broken", "left"), [({0.01}, [0.001, 0.001]), ({0.01, 0.001}, [])], ids=["one rate", "each"])
def test_a_cell_whose_loss_is_not_a_number_is_said_and_the_grid_goes_on(
    place: Path,
    tmp_path: Path,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    broken: set[float],
    left: list[float],
) -> None:
    from anchorline.train import trainer

    loss, rate = trainer.loss, lambda: float(trained[-1].split("-")[2].removeprefix("lr"))
    monkeypatch.setattr(trainer, "loss", lambda *a, **k: loss(*a, **k) * (float("nan") if rate() in broken else 1.0))
    shutil.copytree(place / "out", tmp_path / "out")
    changes = ["compare.sets=[clair]", "compare.objectives=[dpo]", "train.beta=0.3", "train.save_steps=1"]
    recipe = load_recipe(place / "r/recipe.yaml", changes)
    table = compare(recipe, tmp_path / "out")
    names = [f"clair-dpo-lr{each:g}-seed0" for each in sorted(broken, reverse=True)]
    assert [one["name"] for one in table["failed"]] == names and table["todo"] == 0
    assert all(one["why"].startswith("the loss is not a number at step 1 (rows ") for one in table["failed"])
    assert [cell["learning_rate"] for cell in table["cells"]] == left, "the seed is of the rate that is left"
    assert [row["rates"] for row in table["rows"]] == [1] * bool(left)
    for name in ("compare.txt", "compare.html"):
        assert f"{names[0]}: the loss is not a number" in (tmp_path / "out" / name).read_text(encoding="utf-8")
    count = len(trained)
    assert compare(recipe, tmp_path / "out") == table and len(trained) == count, "it would fail again"


def test_the_sets_are_made_by_one_process_at_a_time(
    place: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT", 0.01)
    with ThreadPoolExecutor(1) as pool:
        with claimed(place / "out/sets"):
            table = pool.submit(again, place)
            with pytest.raises(TimeoutError):
                table.result(timeout=2)
        assert table.result(timeout=60)["todo"] == 0 and trained == []


def test_a_folder_that_cannot_be_written_is_the_users_to_put_right(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"file/out cannot be written \(Not a directory\)"):
        compare(load_recipe(place / "r/recipe.yaml"), tmp_path / "file/out")


def test_models_that_are_asked_come_before_voices(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "out", tmp_path / "out")
    with Running(lambda body: f"the map is here, {body['messages'][-1]['content']}") as server:
        endpoint = [f"llm.stronger.{name}" for name in ("model=big", f"base_url={server.url}")]
        recipe = load_recipe(place / "r/recipe.yaml", [*endpoint, "compare.objectives=[dpo]"])
        compare(recipe, tmp_path / "out", max_minutes=0)
    pairs = [pair_from_row(row) for _, row in read_jsonl(tmp_path / "out/base/sets/stronger/pairs.jsonl")]
    assert {p.chosen.startswith("the map is here, ") for p in pairs} == {True} and server.calls == len(pairs) > 1
    others = load_recipe(
        place / "r/recipe.yaml", ["compare.others=[{samples: 1}]", "llm.others=[{model: a}, {model: b}]"]
    )
    assert voices(others) == (Voice(**VOICE), ()), "one voice would be too few for off_policy"


def test_who_only_waits_for_other_processes_stops_in_time(
    place: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT", 0.01)
    (place / "out/cells" / FIRST[2] / "cell.json").unlink()
    with claimed(place / "out/cells" / FIRST[2]):
        assert again(place, max_minutes=0)["todo"] == 2 and trained == []
    assert again(place)["todo"] == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("compare.stronger=null", "compare.stronger"),
        ("compare.sets=[clair,off_policy]", "compare.others"),
        ("compare.retain_weights=[0,1]", "retain.prompts"),
        ("prompts.general=null", "prompts.general"),
        ("style=null", "needs `model`, `style` and `prompts.train`"),
        ("prompts.train=null", "needs `model`, `style` and `prompts.train`"),
    ],
)
def test_what_is_lacking_is_said_before_anything_is_run(tmp_path: Path, place: Path, change: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        compare(load_recipe(place / "r/recipe.yaml", [change]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_voices_that_differ_in_nothing_give_other_answers_and_none_the_policys(place: Path) -> None:
    voice = {"max_new_tokens": 16, "temperature": 2.0}
    grid = {**GRID, "sets": ["clair", "stronger", "off_policy"], "stronger": voice, "others": [voice, voice]}
    sample = {"max_new_tokens": 16, "temperature": 2.0, "batch_size": 4}
    write_recipe(place / "v", str(place / "model"), train=TRAIN, compare=grid, sample=sample)
    compare(load_recipe(place / "v/recipe.yaml"), place / "voices", max_minutes=0)
    base = place / "voices/base"
    said = [base / "answers.jsonl", *(base / f"voices/{name}.jsonl" for name in ("stronger", "other0", "other1"))]
    texts = [[row["text"] for _, row in read_jsonl(file)] for file in said]
    assert all(len(set(answers)) == 4 for answers in zip(*texts, strict=True))
