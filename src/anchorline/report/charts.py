"""The report's charts, as small SVG that the page's style sheet colours.

Drawn here and not by plotly: its script weighs 4.8 MB, the report would need scripts allowed, and the charts would
neither follow the reader's dark mode nor print. These are a few kilobytes each, and a report with them is pure text.

>>> chart = line_chart([Line("loss", "chosen", [1.0, 0.4, 0.1])], steps=[1, 2, 3], label="Loss by step")
>>> chart.startswith('<svg class="chart"'), "polyline" in chart
(True, True)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from anchorline.report.diff import visible

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 352, 10, 164
HALF_CHARACTER = 3.3  # of an axis label: half the width of a digit
MAX_POINTS = 200  # more than a chart of this width can show
Colour = Literal["chosen", "rejected", "neutral"]


class Line(NamedTuple):
    """One curve: its name, the colour class that the style sheet gives it, and a value (or None) for each step."""

    name: str
    colour: Colour
    values: Sequence[float | None]


def is_number(value: Any) -> bool:
    """Whether the value can be drawn or printed: a finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def line_chart(lines: Sequence[Line], *, steps: Sequence[float], label: str, percent: bool = False) -> Markup:
    """Curves over the training steps. The vertical axis always includes zero; a gap is a step without a value.

    Each point is the mean of as many neighbouring steps as keeps the curve under `MAX_POINTS` points.
    """
    size = bucket_size(len(steps))
    xs = _thin(steps, size)
    curves = [_thin(line.values, size) for line in lines]
    drawn = [y for curve in curves for y in curve if y is not None]
    known = [x for x in xs if x is not None]
    if not drawn or not known:
        return Markup("")
    y_ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if percent else ticks(min(0.0, *drawn), max(0.0, *drawn), about=5)
    x_scale, y_scale, parts = _frame(known, y_ticks, percent=percent)
    return _svg([*parts, *_curves(lines, xs, size, x_scale, y_scale)], label)


def _frame(
    known: Sequence[float], y_ticks: Sequence[float], *, percent: bool = False
) -> tuple[_Scale, _Scale, list[str]]:
    """Both axes of a chart over the training steps: their scales, and what is drawn of them."""
    first, last = min(known), max(known)
    x_scale = _Scale(first, last, LEFT, RIGHT) if last > first else _Scale(first - 1, first + 1, LEFT, RIGHT)
    y_scale = _Scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP)
    x_ticks = [x for x in ticks(first, last, about=5) if first <= x <= last and x == int(x)] or [first]
    return x_scale, y_scale, [*_y_axis(y_ticks, y_scale, percent=percent), *_x_axis(x_ticks, x_scale)]


def _curves(
    lines: Sequence[Line], xs: Sequence[float | None], size: int, x_scale: _Scale, y_scale: _Scale
) -> Iterator[str]:
    for line in lines:
        for run in _runs(xs, _thin(line.values, size)):
            at = [f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in run]
            if len(at) == 1:
                x, y = at[0].split(",")
                yield f'<circle class="dot {line.colour}" cx="{x}" cy="{y}" r="2.5"/>'
            else:
                yield f'<polyline class="line {line.colour}" points="{" ".join(at)}"/>'


class Band(NamedTuple):
    """A span over the steps, drawn as a shade: its colour class, its lower and its upper values."""

    colour: Colour
    low: Sequence[float | None]
    high: Sequence[float | None]


def band_chart(lines: Sequence[Line], bands: Sequence[Band], *, steps: Sequence[float], label: str) -> Markup:
    """As `line_chart`, with shades behind the curves; wider bands come first, so that narrower ones lie on them."""
    edges = [Line("", band.colour, values) for band in bands for values in (band.low, band.high)]
    size = bucket_size(len(steps))
    xs = _thin(steps, size)
    drawn = [y for line in [*lines, *edges] for y in _thin(line.values, size) if y is not None]
    known = [x for x in xs if x is not None]
    if not drawn or not known:
        return Markup("")
    x_scale, y_scale, parts = _frame(known, ticks(min(0.0, *drawn), max(0.0, *drawn), about=5))
    for band in bands:
        pairs = zip(_thin(band.low, size), _thin(band.high, size), strict=True)
        both = [(x, low, high) for x, (low, high) in zip(xs, pairs, strict=True) if None not in (x, low, high)]
        there = [f"{x_scale(x):.1f},{y_scale(high):.1f}" for x, _, high in both]  # pyright: ignore[reportArgumentType]
        back = [f"{x_scale(x):.1f},{y_scale(low):.1f}" for x, low, _ in reversed(both)]  # pyright: ignore[reportArgumentType]
        if len(both) > 1:
            parts.append(f'<polygon class="band {band.colour}" points="{" ".join(there + back)}"/>')
    return _svg([*parts, *_curves(lines, xs, size, x_scale, y_scale)], label)


def histogram(edges: Sequence[float], counts: Sequence[int], *, label: str, median: float | None = None) -> Markup:
    """Bars of how many pairs fall between each two edges, and a dashed line at the median."""
    if len(edges) != len(counts) + 1 or not counts or not all(map(is_number, [*edges, *counts])):
        return Markup("")
    y_ticks = [y for y in ticks(0, max(1, *counts), about=3) if y == int(y)]
    # All values alike: the edges may coincide, and the one bar still needs a width.
    low, high = (edges[0], edges[-1]) if edges[-1] > edges[0] else (edges[0] - 0.5, edges[0] + 0.5)
    x_scale, y_scale = _Scale(low, high, LEFT, RIGHT), _Scale(0, y_ticks[-1], BOTTOM, TOP)
    parts = [*_y_axis(y_ticks, y_scale), *_x_axis([x for x in ticks(low, high, about=5) if low <= x <= high], x_scale)]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        if not count:
            continue
        start, end = (x_scale(left), x_scale(right)) if right > left else (LEFT, RIGHT)
        top = y_scale(count)
        parts.append(
            f'<rect class="bar" x="{start + 0.5:.1f}" y="{top:.1f}" width="{max(end - start - 1, 0.5):.1f}" '
            f'height="{BOTTOM - top:.1f}"><title>{tick_text(left)} to {tick_text(right)}: {count}</title></rect>'
        )
    if median is not None and is_number(median) and low <= median <= high:
        x = f"{x_scale(median):.1f}"
        parts.append(f'<line class="median" x1="{x}" x2="{x}" y1="{TOP}" y2="{BOTTOM}"/>')
    return _svg(parts, label)


class Outline(NamedTuple):
    """The distribution of one set: the colour class that the page's style sheet gives it, and its bars."""

    colour: str
    counts: Sequence[int]
    median: float | None = None


def outlines(edges: Sequence[float], sets: Sequence[Outline], *, label: str) -> Markup:
    """Distributions over one another, as the outlines of their bars: the share of each set between each two edges.

    Shares and not counts, so that sets of different size compare; a dashed line at each median.
    """
    drawn = [one for one in sets if len(one.counts) == len(edges) - 1 and sum(one.counts)]
    if len(edges) < 2 or not drawn or not all(map(is_number, edges)) or not edges[-1] > edges[0]:
        return Markup("")
    highest = max(max(one.counts) / sum(one.counts) for one in drawn)
    y_ticks = ticks(0, highest, about=4)
    x_scale, y_scale = _Scale(edges[0], edges[-1], LEFT, RIGHT), _Scale(0, y_ticks[-1], BOTTOM, TOP)
    x_ticks = [x for x in ticks(edges[0], edges[-1], about=5) if edges[0] <= x <= edges[-1]]
    parts = [*_y_axis(y_ticks, y_scale, percent=True), *_x_axis(x_ticks, x_scale)]
    for one in drawn:
        points = [(edges[0], 0.0)]
        for left, right, count in zip(edges, edges[1:], one.counts, strict=False):
            points += [(left, count / sum(one.counts)), (right, count / sum(one.counts))]
        points.append((edges[-1], 0.0))
        at = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="outline {one.colour}" points="{at}"/>')
        if one.median is not None and is_number(one.median) and edges[0] <= one.median <= edges[-1]:
            x = f"{x_scale(one.median):.1f}"
            parts.append(f'<line class="middle {one.colour}" x1="{x}" x2="{x}" y1="{TOP}" y2="{BOTTOM}"/>')
    return _svg(parts, label)


MARKS = {
    "m1": "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",  # round
    "m2": "m-3.5 -3.5h7v7h-7z",  # square
    "m3": "m0 -4.6l4.6 8h-9.2z",  # triangle
    "m4": "m0 -5l5 5l-5 5l-5 -5z",  # diamond
    "m5": "m0 4.6l4.6 -8h-9.2z",  # triangle on its point
    "m6": "m-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",  # cross
}
"""The shapes, each drawn around its point: a page printed in grey keeps its series apart, and there may be more series than
colours. The style sheet gives the keys the same shapes."""


class Dot(NamedTuple):
    """A point: where it lies (x, and a share y), its colour class, its shape of `MARKS`, and what stands there."""

    x: float
    y: float
    colour: str
    mark: str
    title: str


def dot_chart(dots: Sequence[Dot], *, among: Sequence[float], label: str) -> Markup:
    """Shares from 0 to 100 % over a quantity on a logarithmic axis; each point says what it is.

    The axis spans `among`, so that charts side by side have the same one. What is below a thousandth of the largest, or not
    above 0, lies at its left end.
    """
    drawn = [dot for dot in dots if is_number(dot.x) and is_number(dot.y)]
    if not drawn:
        return Markup("")
    x_ticks = log_ticks([x for x in [*among, *(dot.x for dot in drawn)] if is_number(x)])
    low, high = math.log10(x_ticks[0]), math.log10(x_ticks[-1])
    x_scale, y_scale = _Scale(low, high, LEFT, RIGHT), _Scale(0.0, 1.0, BOTTOM, TOP)
    parts = list(_y_axis([0.0, 0.25, 0.5, 0.75, 1.0], y_scale, percent=True))
    for x in x_ticks:
        at = f"{x_scale(math.log10(x)):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{BOTTOM}"/>')
    parts += _x_axis(x_ticks, lambda x: x_scale(math.log10(x)))
    for dot in drawn:
        at = f"M{x_scale(math.log10(max(dot.x, x_ticks[0]))):.1f} {y_scale(dot.y):.1f}{MARKS[dot.mark]}"
        shape = Markup('<path class="point {}" d="{}"><title>{}</title></path>')
        parts.append(str(shape.format(dot.colour, at, visible(dot.title))))
    return _svg(parts, label)


def interval_plot(before: Mapping[str, Any], after: Mapping[str, Any], *, label: str) -> Markup:
    """Two shares on one scale of 0 to 100 %: a dot with its interval as a line, before above after."""
    scale = _Scale(0, 1, 6, 194)
    parts = [f'<line class="grid" x1="{x}" x2="{x}" y1="1" y2="25"/>' for x in (6, 100, 194)]
    for share, y, colour in ((before, 8, "neutral"), (after, 18, "chosen")):
        if is_number(share.get("low")) and is_number(share.get("high")):
            x1, x2 = scale(share["low"]), scale(share["high"])
            parts.append(f'<line class="range {colour}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y}" y2="{y}"/>')
        if is_number(share.get("share")):
            parts.append(f'<circle class="dot {colour}" cx="{scale(share["share"]):.1f}" cy="{y}" r="3.5"/>')
    return _svg(parts, label, kind="intervals", size=(200, 26))


def share_bar(share: float | None, *, label: str) -> Markup:
    """One horizontal bar, filled to the share."""
    width = 100 * min(max(share, 0.0), 1.0) if share is not None and is_number(share) else 0.0
    parts = ['<rect class="track" width="100" height="8"/>', f'<rect class="bar" width="{width:.1f}" height="8"/>']
    return _svg(parts, label, kind="share", size=(100, 8), stretch=True)


def signed_bar(share: float | None, *, side: Colour, label: str) -> Markup:
    """A bar from the middle, to the right for a gain and to the left for a loss; 1 fills its half."""
    width = 50 * min(abs(share), 1.0) if share is not None and is_number(share) else 0.0
    start = 50 - width if share is not None and share < 0 else 50
    parts = ['<rect class="track" width="100" height="8"/>']
    parts.append(f'<rect class="bar {side}" x="{start:.1f}" width="{width:.1f}" height="8"/>')
    parts.append('<line class="axis" x1="50" x2="50" y1="0" y2="8"/>')
    return _svg(parts, label, kind="share", size=(100, 8), stretch=True)


def ticks(low: float, high: float, *, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose low to high.

    >>> ticks(0, 0.93, about=5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not high > low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # 12 digits hide the last bit of binary fractions: 0.6000000000000001 is 0.6.
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose the values, or three decades up to the largest; powers alone for many.

    >>> log_ticks([0.06, 1.3]), log_ticks([0.1]), log_ticks([0.0, 30])
    ([0.05, 0.1, 0.2, 0.5, 1.0, 2.0], [0.05, 0.1], [0.01, 0.1, 1.0, 10.0, 100.0])
    """
    high = max(values) if max(values) > 0 else 1.0
    low = max(min(values), high / 1000)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [float(f"{factor}e{power}") for power in (powers[0] - 1, *powers) for factor in (1, 2, 5)]
    last = next(index for index, step in enumerate(steps) if step >= high)
    first = min(max(index for index, step in enumerate(steps) if step <= low), last - 1)
    found = steps[first : last + 1]
    return found if len(found) <= 10 else [float(f"1e{power}") for power in powers]


def tick_text(value: float) -> str:
    """A short form for an axis.

    >>> tick_text(-0.5), tick_text(20.0), tick_text(2e-05)
    ('−0.5', '20', '2e−05')
    """
    return (f"{value:z.4g}" if abs(value) < 9999.5 else f"{value:.0f}").replace("-", "−")


def bucket_size(count: int) -> int:
    """How many steps one drawn point stands for."""
    return max(1, math.ceil(count / MAX_POINTS))


def _thin(values: Sequence[Any], size: int) -> list[float | None]:
    buckets = [[v for v in values[at : at + size] if is_number(v)] for at in range(0, len(values), size)]
    return [sum(bucket) / len(bucket) if bucket else None for bucket in buckets]


def _runs(xs: Sequence[float | None], ys: Sequence[float | None]) -> Iterator[list[tuple[float, float]]]:
    run: list[tuple[float, float]] = []
    for x, y in [*zip(xs, ys, strict=True), (None, None)]:
        if x is not None and y is not None:
            run.append((x, y))
        elif run:
            yield run
            run = []


class _Scale(NamedTuple):
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _y_axis(values: Sequence[float], scale: _Scale, *, percent: bool = False) -> Iterator[str]:
    for value in values:
        y = scale(value)
        text = f"{value:.0%}".replace("%", "\u00a0%") if percent else tick_text(value)
        kind = "axis" if value == 0 else "grid"
        yield f'<line class="{kind}" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="y" x="{LEFT - 6}" y="{y + 3.5:.1f}">{text}</text>'


def _x_axis(values: Sequence[float], scale: Callable[[float], float]) -> Iterator[str]:
    for value in values:
        text = tick_text(value)
        x = min(scale(value), WIDTH - HALF_CHARACTER * len(text))  # else a long last one is cut off
        yield f'<text class="x" x="{x:.1f}" y="{BOTTOM + 16}">{text}</text>'


def _svg(
    parts: Sequence[str],
    label: str,
    *,
    kind: str = "chart",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    stretch: bool = False,
) -> Markup:
    # `parts` are numbers and constants only; the label is the one text that may come from a file.
    ratio = ' preserveAspectRatio="none"' if stretch else ""
    head = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"').format(kind, *size, visible(label))
    return head + Markup(f"{ratio}>{''.join(parts)}</svg>")  # noqa: S704 - see above
