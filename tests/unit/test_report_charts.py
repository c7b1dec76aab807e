"""Checks the charts' coordinates by hand, and what they do with gaps, single points and figures that are no numbers."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.report.charts import (
    BOTTOM,
    LEFT,
    MARKS,
    MAX_POINTS,
    RIGHT,
    TOP,
    Dot,
    Line,
    bucket_size,
    dot_chart,
    histogram,
    interval_plot,
    line_chart,
    log_ticks,
    share_bar,
    tick_text,
    ticks,
)


def parts(svg: str, tag: str, kind: str) -> list[ET.Element]:
    return [part for part in ET.fromstring(svg).iter(tag) if kind in part.get("class", "").split()]


def points(line: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.get("points", "").split())]


def test_a_line_runs_from_its_first_to_its_last_value() -> None:
    svg = line_chart([Line("loss", "chosen", [1.0, 0.5, 0.0])], steps=[10, 20, 30], label="Loss")
    (line,) = parts(svg, "polyline", "chosen")
    assert points(line) == [(LEFT, TOP), ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2), (RIGHT, BOTTOM)]


def test_larger_is_higher_and_zero_is_marked() -> None:
    svg = line_chart(
        [Line("r_w", "chosen", [0.0, 4.0]), Line("r_l", "rejected", [0.0, -6.0])], steps=[1, 2], label="Rewards"
    )
    (up,), (down,), (axis,) = (parts(svg, *what) for what in (
        ("polyline", "chosen"), ("polyline", "rejected"), ("line", "axis")))  # fmt: skip
    zero = float(axis.get("y1", "nan"))
    assert points(up)[0][1] == points(down)[0][1] == zero
    assert points(up)[1][1] == TOP < zero < points(down)[1][1] == BOTTOM


def test_percentages_have_the_whole_scale() -> None:
    svg = line_chart([Line("accuracy", "chosen", [0.5, 0.5])], steps=[1, 2], label="Accuracy", percent=True)
    assert [part.text for part in parts(svg, "text", "y")] == [f"{p}\u00a0%" for p in (0, 25, 50, 75, 100)]
    assert points(parts(svg, "polyline", "chosen")[0])[0][1] == (TOP + BOTTOM) / 2


@pytest.mark.parametrize("gap", [None, math.nan, math.inf, "x"])
def test_a_gap_splits_the_line(gap: Any) -> None:
    svg = line_chart([Line("loss", "chosen", [3, 2, gap, 1, 0, gap, 1])], steps=list(range(1, 8)), label="Loss")
    assert [len(points(line)) for line in parts(svg, "polyline", "line")] == [2, 2]
    assert len(parts(svg, "circle", "dot")) == 1
    assert "nan" not in svg and "inf" not in svg


def test_one_step_is_a_dot_and_no_step_is_no_chart() -> None:
    assert len(parts(line_chart([Line("loss", "chosen", [0.7])], steps=[1], label="Loss"), "circle", "dot")) == 1
    assert line_chart([Line("loss", "chosen", [])], steps=[], label="Loss") == ""
    assert line_chart([Line("loss", "chosen", [None, math.nan])], steps=[1, 2], label="Loss") == ""


def test_a_long_run_is_thinned_to_means() -> None:
    count = 3 * MAX_POINTS
    svg = line_chart([Line("loss", "chosen", [0.0, 1.0, 2.0] * MAX_POINTS)], steps=list(range(count)), label="Loss")
    drawn = points(parts(svg, "polyline", "chosen")[0])
    assert bucket_size(count) == 3 and len(drawn) == MAX_POINTS
    assert {y for _, y in drawn} == {TOP}  # each mean is 1, and the axis ends there


def test_a_bar_is_as_wide_as_its_edges_and_as_high_as_its_count() -> None:
    svg = histogram([0.0, 0.5, 1.0], [10, 20], label="Overlap", median=0.75)
    first, second = parts(svg, "rect", "bar")
    middle = (LEFT + RIGHT) / 2
    assert [float(first.get(key, "nan")) for key in ("x", "y", "height")] == pytest.approx(
        [LEFT + 0.5, (TOP + BOTTOM) / 2, (BOTTOM - TOP) / 2], abs=0.06
    )
    assert [float(second.get(key, "nan")) for key in ("x", "y", "height")] == pytest.approx(
        [middle + 0.5, TOP, BOTTOM - TOP], abs=0.06
    )
    assert first[0].text == "0 to 0.5: 10"
    assert float(parts(svg, "line", "median")[0].get("x1", "nan")) == (middle + RIGHT) / 2


def test_a_histogram_of_one_value_and_of_nothing() -> None:
    (bar,) = parts(histogram([2.0, 2.0], [5], label="Ratio"), "rect", "bar")
    assert float(bar.get("width", "0")) > 100
    assert histogram([], [], label="Ratio") == ""
    assert histogram([0.0, math.nan], [1], label="Ratio") == ""
    assert histogram([0.0, 1.0], [1, 2], label="Ratio") == ""


def test_intervals_stand_where_their_shares_are() -> None:
    svg = interval_plot({"share": 0.0, "low": 0.0, "high": 0.5}, {"share": 1.0, "low": 0.5, "high": 1.0}, label="x")
    (before,), (after,) = parts(svg, "circle", "neutral"), parts(svg, "circle", "chosen")
    assert (before.get("cx"), after.get("cx")) == ("6.0", "194.0")
    assert float(before.get("cy", "0")) < float(after.get("cy", "0"))
    (line,) = parts(svg, "line", "neutral")
    assert (line.get("x1"), line.get("x2")) == ("6.0", "100.0")
    assert not parts(interval_plot({}, {"share": None, "low": math.nan}, label="x"), "circle", "dot")


def test_a_bar_is_filled_to_the_share() -> None:
    widths = [parts(share_bar(share, label="x"), "rect", "bar")[0].get("width") for share in (0.25, 1.7, None)]
    assert widths == ["25.0", "100.0", "0.0"]


def test_a_label_is_text() -> None:
    svg = share_bar(0.5, label='"><script>\u202e\ud800')
    assert ET.fromstring(svg).get("aria-label") == '"><script>⟨U+202E⟩⟨U+D800⟩'


@given(st.floats(-1e4, 1e4), st.floats(1e-2, 1e6) | st.floats(1, 10).map(lambda width: width * 1e-6))
def test_ticks_enclose_the_range_in_equal_steps(low: float, width: float) -> None:
    low = low if width > 1e-3 else 0.0  # narrower than the twelve digits of a tick: only around zero
    high = low + width
    values = ticks(low, high, about=4)
    assert values[0] <= low + 1e-6 * width and values[-1] >= high - 1e-6 * width
    assert 2 <= len(values) <= 8
    gaps = [b - a for a, b in pairwise(values)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-3)


def test_axis_numbers_are_short() -> None:
    assert [tick_text(value) for value in (0.0, 0.25, -10.0, 12000.0, 5e-5)] == ["0", "0.25", "−10", "12000", "5e−05"]


def test_a_long_last_label_of_the_dot_chart_ends_inside_the_picture():
    svg = dot_chart([Dot(0.0146, 0.5, "s1", "m1", "a")], among=[], label="a")
    at = {text: float(x) for x, text in re.findall(r'<text class="x" x="([\d.]+)" y="\d+">([^<]+)<', svg)}
    assert at["0.02"] + 4 * 3.3 <= 360, "four characters, half a digit's width each side"


def test_a_print_in_grey_keeps_the_series_of_the_dot_chart_apart():
    svg = dot_chart([Dot(0.1, 0.5, "s1", mark, "a") for mark in MARKS], among=[], label="a")
    drawn = [path.get("d", "").split("m", 1)[1] for path in parts(svg, "path", "point")]
    assert len(set(drawn)) == 6


def test_the_dot_chart_is_logarithmic_and_has_the_axis_of_its_neighbours():
    def places(*xs, among):
        svg = dot_chart([Dot(x, 0.5, "s1", "m1", "a") for x in xs], among=among, label="a")
        return [float(path.get("d", "")[1:].split()[0]) for path in parts(svg, "path", "point")]

    assert places(0.1, 1, 10, among=[0.1, 10]) == [LEFT, (LEFT + RIGHT) / 2, RIGHT]
    assert places(1, among=[0.1, 10, math.nan]) == places(1, among=[0.1, 10]) == [(LEFT + RIGHT) / 2]
    assert places(0.0, -3, 1e-9, 1, among=[]) == [LEFT, LEFT, LEFT, RIGHT]


@given(st.lists(st.floats(1e-6, 1e6), min_size=1))
def test_logarithmic_ticks_enclose_three_decades_and_are_few(values):
    found = log_ticks(values)
    assert found[0] <= max(min(values), max(values) / 1000) and max(values) <= found[-1]
    assert 2 <= len(found) <= 10 and all(one < other for one, other in pairwise(found))
