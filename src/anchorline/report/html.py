"""From the files of a run folder to one HTML page that opens anywhere and sends nothing.

Reading (`read_run_folder`), rendering (`build_report`, pure) and writing (`write_report`) are apart. A file that its
stage has not written yet is None, and the page says so; a figure that is missing or not a number is shown as "–".

>>> page = build_report(ReportData(name="harbour", summary={"pairs": 290, "failures": 10}))
>>> "<h1>harbour</h1>" in page, "<script" in page
(True, False)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup

from anchorline.data import read_appended, read_json
from anchorline.errors import DataError, RunFolderError
from anchorline.report.charts import (
    Colour,
    Line,
    bucket_size,
    histogram,
    interval_plot,
    is_number,
    line_chart,
    share_bar,
)
from anchorline.report.diff import Diff, visible, word_diff

MISSING = "–"
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

SHARES = "Told apart, both fell"
CURVES: Mapping[str, tuple[str, *tuple[tuple[str, str, Colour], ...]]] = {
    "Loss": ("Mean over the pairs of a step.", ("loss", "loss", "chosen")),
    "Rewards": (
        "β times the log-probability gained since the reference, summed over the answer. 0 at the start.",
        ("r_w (chosen)", "chosen_reward", "chosen"),
        ("r_l (rejected)", "rejected_reward", "rejected"),
    ),
    "Margin": ("r_w − r_l: how far the two answers have been told apart.", ("margin", "margin", "chosen")),
    SHARES: (
        "Share of pairs with r_w above r_l, and share where both answers became less likely.",
        ("r_w above r_l", "accuracy", "chosen"),
        ("both fell", "both_fell", "rejected"),
    ),
    "Gradient norm": ("Before clipping. Spikes mean unsteady steps.", ("norm", "grad_norm", "neutral")),
    "Learning rate": ("The schedule as it was run.", ("rate", "learning_rate", "neutral")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """What the page shows. Each field is one file of the run folder, as it was read; None where there is no file."""

    name: str
    summary: Mapping[str, Any] | None = None
    manifest: Mapping[str, Any] | None = None
    recipe: str | None = None
    sampled: int | None = None
    pairs: Sequence[Mapping[str, Any]] | None = None
    failures: Sequence[Mapping[str, Any]] | None = None
    measure: Mapping[str, Any] | None = None
    training: Sequence[Mapping[str, Any]] | None = None
    style: Mapping[str, Any] | None = None
    samples: Sequence[Mapping[str, Any]] | None = None
    preference: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run folder, whole or not at all, and return its path."""
    page = build_report(read_run_folder(run_folder))
    target = run_folder / "report.html"
    partial = run_folder / f".report.html.{os.getpid()}"
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunFolderError(f"{target}: cannot be written ({error.strerror}); make the folder writable") from error
    return target


def read_run_folder(run_folder: Path) -> ReportData:
    """Read what a run has written so far."""
    if not run_folder.is_dir():
        raise RunFolderError(f"{run_folder}: no such folder; give the folder that a run has written")
    manifest, recipe = _json(run_folder / "manifest.json"), _text(run_folder / "recipe.yaml")
    if manifest is None and recipe is None:
        raise RunFolderError(f"{run_folder}: has neither recipe.yaml nor manifest.json; give the folder of a run")
    answers = _table(run_folder / "answers.jsonl")
    return ReportData(
        name=str((manifest or {}).get("name") or run_folder.resolve().name),
        summary=_json(run_folder / "summary.json"),
        manifest=manifest,
        recipe=recipe,
        sampled=None if answers is None else len(answers),
        pairs=_table(run_folder / "pairs.jsonl"),
        failures=_table(run_folder / "failures.jsonl"),
        measure=_json(run_folder / "measure.json"),
        training=_table(run_folder / "train" / "metrics.jsonl"),
        style=_json(run_folder / "evals" / "style.json"),
        samples=_table(run_folder / "evals" / "answers.jsonl"),
        preference=_json(run_folder / "evals" / "preference.json"),
        drift=_json(run_folder / "evals" / "drift.json"),
    )


def build_report(data: ReportData) -> str:
    """The whole page. The same data give the same page, byte for byte."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            summary=data.summary or {},
            manifest=data.manifest or {},
            style=data.style or {},
            rules=list(_rules(data.style or {})),
            samples=[_sample(row) for row in choose_samples(data.samples or ())],
            pairs=[(row.get("prompt"), _diff(row, "rejected", "chosen")) for row in (data.pairs or ())[:PAIR_SAMPLES]],
            measures=list(_measures(data.measure or {})),
            touched=sorted(
                _mapping((data.measure or {}).get("rules")).items(), key=lambda item: (-_order(item[1]), item[0])
            ),
            charts=list(_training_charts(data.training or ())),
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


def percent(value: Any, *, digits: int | None = None) -> str:
    r"""A share in per cent: whole where it is whole, else with one digit, so that 99.7 % is never shown as 100 %.

    >>> percent(0.95), percent(0.997), percent(0.95, digits=1), percent(None)
    ('95\xa0%', '99.7\xa0%', '95.0\xa0%', '–')
    """
    if not is_number(value):
        return MISSING
    if digits is None:
        digits = 0 if abs(value * 100 - round(value * 100)) < 1e-9 else 1
    return f"{value * 100:.{digits}f}\u00a0%".replace("-", "−")


def number(value: Any, digits: int | None = None) -> str:
    """A number with that many digits after the point, or with three significant ones; a count in full.

    >>> number(12345), number(0.0812), number(-7.4, 2), number(float("nan"))
    ('12,345', '0.0812', '−7.40', '–')
    """
    if not is_number(value):
        return MISSING
    if digits is None and isinstance(value, int):
        text = f"{value:,}"
    elif digits is None:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    else:
        text = f"{value:,.{digits}f}"
    return text.replace("-", "−")


def duration(value: Any) -> str:
    r"""Seconds as a reader says them.

    >>> duration(4.21), duration(372), duration(7380)
    ('4.2\xa0s', '6\xa0min 12\xa0s', '2\xa0h 03\xa0min')
    """
    if not is_number(value):
        return MISSING
    if value < 59.95:
        return f"{value:.1f}\u00a0s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes:02d}\u00a0min" if hours else f"{minutes}\u00a0min {seconds:02d}\u00a0s"


def objective_text(weights: Any) -> str:
    """The objective as it is written in the text: a weighted sum, a weight of 1 left out.

    >>> objective_text({"apo_zero": 1.0, "sft": 0.2})
    'apo_zero + 0.2 sft'
    """
    if not isinstance(weights, Mapping) or not weights:
        return MISSING
    return " + ".join(name if weight == 1 else f"{number(weight)} {name}" for name, weight in weights.items())


def _environment() -> Environment:
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
        "factor": _factor,
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
    before, after = _mapping(style.get("before")), _mapping(style.get("after"))
    sides = [
        (name, *(_mapping(_mapping(side.get("rules")).get(name)) for side in (before, after)))
        for name in style.get("rules") or ()
    ]
    if style:
        sides.append(("All rules together", _mapping(before.get("all")), _mapping(after.get("all"))))
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
    lengths: tuple[int, int]


def _sample(row: Mapping[str, Any]) -> _Sample:
    return _Sample(
        id=row.get("id", ""),
        prompt=row.get("prompt"),
        diff=_diff(row, "before", "after"),
        before_kept=_mapping(row.get("before_kept")),
        after_kept=_mapping(row.get("after_kept")),
        broken=_broken(row),
        lengths=(len(_message(row.get("before"))), len(_message(row.get("after")))),
    )


def _diff(row: Mapping[str, Any], old: str, new: str) -> Diff:
    return word_diff(_message(row.get(old)), _message(row.get(new)))


def _broken(row: Mapping[str, Any]) -> list[str]:
    return [name for name, kept in _mapping(row.get("after_kept")).items() if not kept]


def _spread(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    if len(rows) <= count:
        return list(rows)
    return [rows[index * (len(rows) - 1) // (count - 1)] for index in range(count)]


def _measures(measure: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], Markup]]:
    metrics = _mapping(measure.get("metrics"))
    for name in [
        *(known for known in MEASURES if known in metrics),
        *(other for other in metrics if other not in MEASURES),
    ]:
        figures, (title, meaning) = _mapping(metrics[name]), MEASURES.get(name, (name, ""))
        bins = _mapping(figures.get("histogram"))
        chart = histogram(bins.get("edges") or (), bins.get("counts") or (), label=title, median=figures.get("p50"))
        yield title, meaning, figures, chart


class _Chart(NamedTuple):
    title: str
    meaning: str
    lines: Sequence[Line]
    svg: Markup


def _training_charts(rows: Sequence[Mapping[str, Any]]) -> Iterator[_Chart]:
    steps = [row.get("step", index + 1) for index, row in enumerate(rows)]
    for title, (meaning, *curves) in CURVES.items():
        lines = [Line(name, colour, [row.get(key) for row in rows]) for name, key, colour in curves]
        svg = line_chart(lines, steps=steps, label=f"{title} by training step", percent=title == SHARES)
        if svg:
            yield _Chart(title, meaning, lines, svg)


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
    seconds = _mapping((data.summary or {}).get("seconds"))
    stages = _mapping((data.manifest or {}).get("stages"))
    return [
        (name, {"seconds": seconds.get(name), **_mapping(stages.get(name))})
        for name in dict.fromkeys([*stages, *seconds])
    ]


def _factor(kl: Any) -> str:
    return number(math.exp(kl), 2) if is_number(kl) and kl < 20 else MISSING


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


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _order(value: Any) -> float:
    return value if is_number(value) else 0.0


def _json(path: Path) -> Mapping[str, Any] | None:
    if not path.exists():
        return None
    value = read_json(path)
    if not isinstance(value, Mapping):
        raise DataError("is not a JSON object; run the stage again", file=path)
    return value


def _table(path: Path) -> list[dict[str, Any]] | None:
    return [row for _, row in read_appended(path).rows] if path.exists() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else None
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start + 1}); run the stage again", file=path) from None
