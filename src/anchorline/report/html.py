"""From the files of a run folder to one HTML page that opens anywhere and sends nothing.

Rendering (`build_report`) is pure; `files` reads and writes. What a stage has not written yet is None, and the page says
so; a figure that is missing or not a number is shown as "–".

>>> page = build_report(ReportData(name="harbour", summary={"pairs": 290, "failures": 10}))
>>> "<h1>harbour</h1>" in page, "<script" in page
(True, False)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup

from anchorline.report.charts import bucket_size, histogram, interval_plot, is_number, share_bar, signed_bar
from anchorline.report.diff import Diff, visible, word_diff
from anchorline.report.figures import MISSING, change, duration, factor, interval, number, objective_text, percent
from anchorline.report.files import ReportData, mapping, read_run_folder, write_page
from anchorline.report.making import making, share, usd
from anchorline.report.training import displacement_rows, life_of, training_charts

KEPT_SAMPLES, FAILED_SAMPLES, PAIR_SAMPLES = 4, 2, 3
MEASURES = {
    "word_jaccard": ("Word overlap", "Distinct words in both answers ÷ words in either. Higher: more contrastive."),
    "token_jaccard": ("Token overlap", "The same with the policy's own tokens."),
    "character_levenshtein": ("Characters changed", "Insertions, deletions and replacements. Lower: more contrastive."),
    "token_levenshtein": ("Tokens changed", "The same, counted in the policy's tokens."),
    "normalised_distance": ("Share changed", "Characters changed ÷ length of the longer answer. 0: the same text."),
    "length_ratio": ("Length ratio", "Length of chosen ÷ length of rejected. Far from 1: length itself is taught."),
    "shared_prefix": ("Shared beginning", "How much of the shorter answer both begin with."),
}


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run folder, whole or not at all, and return its path."""
    return write_page(run_folder / "report.html", build_report(read_run_folder(run_folder)))


def build_report(data: ReportData) -> str:
    """The whole page. The same data give the same page, byte for byte."""
    rows = data.pairs or ()
    pairs, labelled = ([row for row in rows if ("completion" in row) is alone] for alone in (False, True))
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            summary=data.summary or {},
            manifest=data.manifest or {},
            making=making(data.manifest or {}),
            style=data.style or {},
            rules=list(_rules(data.style or {})),
            samples=[_sample(row) for row in choose_samples(data.samples or ())],
            pairs=[(row.get("prompt"), _diff(row, "rejected", "chosen")) for row in pairs[:PAIR_SAMPLES]],
            labelled=[(row.get("prompt"), _message(row.get("completion")), row.get("label")) for row in labelled],
            turned=sum(map(_is_turned, pairs)),
            measures=list(_measures(data.measure or {})),
            touched=sorted(
                mapping((data.measure or {}).get("rules")).items(), key=lambda item: (-_order(item[1]), item[0])
            ),
            charts=list(training_charts(data.training or ())),
            moved=list(displacement_rows(data.diagnostics or {})),
            life=life_of(data.diagnostics or {}),
            per_point=bucket_size(len(data.training or ())),
            dropped=_dropped(data.failures or ()),
            stages=_stages(data),
        )
    )


def choose_samples(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Up to 4 answers that keep every rule after training and up to 2 that do not, spread evenly over the file."""
    kept = [row for row in rows if not _broken(row)]
    failed = [row for row in rows if _broken(row)]
    return [*_spread(kept, KEPT_SAMPLES), *_spread(failed, FAILED_SAMPLES)]


def environment() -> Environment:
    """Of the report's HTML templates: every text is escaped and made visible, every gap is shown as one."""
    environment = Environment(
        loader=PackageLoader("anchorline.report"),
        autoescape=True,
        undefined=ChainableUndefined,  # a missing file leaves a gap, which _printed shows as one
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration, "objective": objective_text}
    environment.filters |= {
        "bar": share_bar,
        "signed": signed_bar,
        "factor": factor,
        "interval": interval,
        "change": change,
        "usd": usd,
        "share": share,
        "message": _message,
        "turns": _turns,
        "pretty": _pretty,
    }
    environment.tests |= {"shown": is_number}
    return environment


def _printed(value: Any) -> Any:
    if value is None or isinstance(value, ChainableUndefined) or (isinstance(value, float) and not is_number(value)):
        return MISSING
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


class _Rule(NamedTuple):
    name: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    points: float | None
    plot: Markup


def _rules(style: Mapping[str, Any]) -> Iterator[_Rule]:
    before, after = mapping(style.get("before")), mapping(style.get("after"))
    sides = [
        (name, *(mapping(mapping(side.get("rules")).get(name)) for side in (before, after)))
        for name in style.get("rules") or ()
    ]
    if style:
        sides.append(("All rules together", mapping(before.get("all")), mapping(after.get("all"))))
    for name, old, new in sides:
        low, high = old.get("share"), new.get("share")
        points = 100 * (high - low) if low is not None and high is not None else None
        label = f"{name}: before {percent(low)}, after {percent(high)}"
        yield _Rule(name, old, new, points, interval_plot(old, new, label=label))


class _Sample(NamedTuple):
    id: str
    prompt: Any
    diff: Diff
    before_kept: Mapping[str, bool]
    after_kept: Mapping[str, bool]
    broken: list[str]


def _sample(row: Mapping[str, Any]) -> _Sample:
    return _Sample(
        id=row.get("id", ""),
        prompt=row.get("prompt"),
        diff=_diff(row, "before", "after"),
        before_kept=mapping(row.get("before_kept")),
        after_kept=mapping(row.get("after_kept")),
        broken=_broken(row),
    )


def _is_turned(row: Mapping[str, Any]) -> bool:
    return mapping(row.get("details")).get("turned") is True


def _diff(row: Mapping[str, Any], old: str, new: str) -> Diff:
    return word_diff(_message(row.get(old)), _message(row.get(new)))


def _broken(row: Mapping[str, Any]) -> list[str]:
    return [name for name, kept in mapping(row.get("after_kept")).items() if not kept]


def _spread(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    if len(rows) <= count:
        return list(rows)
    return [rows[index * (len(rows) - 1) // (count - 1)] for index in range(count)]


def _measures(measure: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], Markup]]:
    metrics = mapping(measure.get("metrics"))
    for name in [
        *(known for known in MEASURES if known in metrics),
        *(other for other in metrics if other not in MEASURES),
    ]:
        figures, (title, meaning) = mapping(metrics[name]), MEASURES.get(name, (name, ""))
        bins = mapping(figures.get("histogram"))
        chart = histogram(bins.get("edges") or (), bins.get("counts") or (), label=title, median=figures.get("p50"))
        yield title, meaning, figures, chart


class _Dropped(NamedTuple):
    stage: str
    kind: str
    rows: list[Mapping[str, Any]]


def _dropped(failures: Sequence[Mapping[str, Any]]) -> list[_Dropped]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in failures:
        groups.setdefault((str(row.get("stage", "")), str(row.get("kind", ""))), []).append(row)
    groups_in_order = sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]), item[0][1]))
    return [_Dropped(stage, kind, rows) for (stage, kind), rows in groups_in_order]


def _stages(data: ReportData) -> list[tuple[str, Mapping[str, Any]]]:
    seconds = mapping((data.summary or {}).get("seconds"))
    stages = mapping((data.manifest or {}).get("stages"))
    return [
        (name, {"seconds": seconds.get(name), **mapping(stages.get(name))})
        for name in dict.fromkeys([*stages, *seconds])
        if name != "report"  # it is still at work while the page is written
    ]


def _message(value: Any) -> str:
    """An answer's text: the text itself, or the last turn of a list of messages."""
    if isinstance(value, str):
        return value
    turns = _turns(value)
    return turns[-1][1] if turns else ""


def _turns(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [("user", value)]
    messages = [message for message in value or () if isinstance(message, Mapping)]
    return [(str(message.get("role", "")), str(message.get("content", ""))) for message in messages]


def _pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def _order(value: Any) -> float:
    return value if is_number(value) else 0.0
