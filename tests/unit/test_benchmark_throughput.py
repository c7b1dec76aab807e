"""The throughput benchmark's arithmetic and its count of right rows. What it measures is not tested here."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.measure import normalised_distance

FILE = Path(__file__).parents[2] / "benchmarks" / "throughput.py"


def load() -> ModuleType:
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("throughput_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


MODULE = load()
Run = MODULE.Run


def run(rate: float, process_rate: float, *, cpu_ms: float = 1.0, peak: float = 100.0, right: int = 1000):
    seconds = cpu_ms * right / 1000
    return Run(right, right / rate, right / process_rate, right, seconds, peak, 2 * seconds)


def test_figures_by_hand() -> None:
    ours = [run(300, 250, cpu_ms=2.0), run(310, 260, cpu_ms=2.5), run(316, 200, cpu_ms=9.0)]
    peers = {"distilabel": [run(100, 50)], "curator": [run(200, 190), run(202, 180)]}
    memory = (run(300, 100, peak=90.0), run(310, 300, peak=97.5))
    figures = MODULE.summary(ours, peers, ideal=320.0, memory=memory)
    assert figures["share_of_ideal"] == pytest.approx(310 / 320, abs=1e-4)
    assert figures["cpu_ms_per_row"] == pytest.approx(2.5)
    assert figures["rss_growth_mib"] == pytest.approx(7.5)
    assert figures["vs_distilabel"] == pytest.approx(3.1)  # by the time of asking; by the whole process it is 5.0
    assert figures["vs_curator"] == pytest.approx(250 / 185, abs=0.01)  # by the whole process; by asking 1.54
    assert figures["rows_per_s"] == {"ours": 310.0, "distilabel": 100.0, "curator": 201.0}
    assert figures["process_cpu_ms_per_row"] == {"ours": 5.0, "distilabel": 2.0, "curator": 2.0}
    assert figures["process_rows_per_s"] == {"ours": 250.0, "distilabel": 50.0, "curator": 185.0}


def test_what_was_left_out_is_null() -> None:
    figures = json.loads(json.dumps(MODULE.summary([run(300, 250)], {}, ideal=320.0, memory=None)))
    assert figures["vs_distilabel"] is figures["vs_curator"] is figures["rss_growth_mib"] is None
    assert set(figures) >= {"share_of_ideal", "cpu_ms_per_row", "rss_growth_mib", "vs_distilabel", "vs_curator"}


@given(*[st.floats(1, 1000) for _ in range(4)])
def test_the_ratio_is_the_one_kinder_to_the_peer(ours: float, whole: float, theirs: float, their_whole: float) -> None:
    figures = MODULE.summary([run(ours, whole)], {"curator": [run(theirs, their_whole)]}, ideal=320.0, memory=None)
    assert figures["vs_curator"] == pytest.approx(min(ours / theirs, whole / their_whole), abs=0.0051)


def test_rows_that_are_missing_lower_the_rate_and_raise_the_cost() -> None:
    whole, half = Run(1000, 4.0, 5.0, 1000, 2.0, 90.0), Run(500, 4.0, 5.0, 1000, 2.0, 90.0)
    assert (whole.rate, half.rate) == (250.0, 125.0)
    assert (whole.process_rate, half.process_rate) == (200.0, 100.0)
    assert MODULE.summary([half], {}, ideal=320.0, memory=None)["cpu_ms_per_row"] == 4.0


def test_only_a_row_with_its_own_revision_is_right(tmp_path: Path) -> None:
    rows = sys.modules["rows"]
    out = tmp_path / "out.jsonl"
    good = rows.revision(0)
    rows.write_revisions(out, iter([(0, good), (1, rows.revision(2)), (2, None), (3, rows.answer(3)), (0, good)]))
    assert rows.count_right(out) == 1


def test_each_row_is_another_and_its_revision_is_a_small_edit(tmp_path: Path) -> None:
    rows = sys.modules["rows"]
    rows.write_rows(tmp_path / "rows.jsonl", 50)
    made = list(rows.read_rows(tmp_path / "rows.jsonl"))
    assert [row["number"] for row in made] == list(range(50))
    assert len({row["answer"] for row in made}) == len({rows.revision(n) for n in range(50)}) == 50
    without_number = {row["answer"].partition("\n\n")[2] for row in made}
    assert len(without_number) == 50
    for row in made:
        assert 0 < normalised_distance(row["answer"], rows.revision(row["number"])) < 0.5
        assert 1_400 < len(row["answer"]) < 2_400
