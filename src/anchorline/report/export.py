"""A data set for others: pairs in TRL's columns with their card, in one folder, pushed to the Hub when asked.

>>> export("runs/harbour", Path("release"), licence="cc-by-4.0").pairs  # doctest: +SKIP
290
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from anchorline.data import (
    Form,
    PairLayout,
    check_folder,
    check_repository,
    licence_id,
    push_folder,
    read_pairs,
    write_pairs,
)
from anchorline.data.export import CARD, DATA
from anchorline.data.jsonl import writing
from anchorline.errors import DataError
from anchorline.measure import measure_pairs, summarise
from anchorline.progress import SILENT, Progress
from anchorline.report.data_card import CardFacts, build_data_card
from anchorline.report.files import ReportData, read_run_folder, write_page


class Exported(NamedTuple):
    """What was written, and where it was pushed to ("" where it was not)."""

    pairs: int
    file: Path
    card: Path
    problems: list[str]
    address: str


def export(
    source: str,
    folder: Path,
    *,
    licence: str | None,
    form: Form = "parquet",
    layout: PairLayout | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    strict: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Write the pairs of a run folder, a file or a hub id, with a card, into `folder`.

    What the user has to mend is said before anything is written or sent.
    """
    stated = licence_id(licence)
    if push_to_hub is not None:
        check_repository(push_to_hub)
    check_folder(folder)
    file_in, folder_in, stage = _origin(Path(source)) if Path(source).exists() else (source, None, "")
    run = _of_stage(read_run_folder(folder_in), stage) if folder_in else None
    loaded = read_pairs(file_in, strict=strict, layout=layout)
    texts = [(pair.chosen, pair.rejected) for pair in loaded.rows]
    rows = []
    with progress.task("measure", total=len(texts), unit="pairs") as advance:
        for row in measure_pairs(texts):
            rows.append(row)
            advance(1)
    measured = summarise(rows, touched=[pair.provenance.details.get("touched", []) for pair in loaded.rows])
    named = f"{run.name}{stage.removeprefix('pairs').replace(':', '-')}" if run else Path(source).stem
    name = (push_to_hub or named).rpartition("/")[2]
    text = build_data_card(CardFacts(name, stated, DATA.format(form), loaded.rows, measured, run))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    card = write_page(folder / CARD, text)  # before the rows: by it the folder is known as an export
    file = write_pairs(loaded.rows, folder, form=form)
    address = push_folder(folder, push_to_hub, private=private) if push_to_hub else ""
    return Exported(len(loaded.rows), file, card, [str(problem) for problem in loaded.problems], address)


def _origin(source: Path) -> tuple[str, Path | None, str]:
    """The file of pairs, the run folder that it belongs to, and the stage that made it: `pairs`, or `pairs:MAKER` for a set."""
    if source.is_dir():
        sets = sorted(source.glob("sets/*/pairs.jsonl"))
        if not (source / "pairs.jsonl").is_file() and sets:
            raise DataError(
                f"has no pairs of its own, but sets of makers; name one of them, such as {sets[0]}", file=source
            )
        return str(source / "pairs.jsonl"), source, "pairs"
    run = source.resolve().parent.parent.parent
    if source.resolve().parent.parent.name == "sets" and (run / "manifest.json").is_file():
        return str(source), run, f"pairs:{source.resolve().parent.name}"
    return str(source), None, ""


def _of_stage(run: ReportData, stage: str) -> ReportData:
    """The run without the failures of other sets of pairs."""
    failures = run.failures
    if failures is not None:
        failures = [
            row for row in failures if not str(row.get("stage", "")).startswith("pairs") or row.get("stage") == stage
        ]
    return replace(run, failures=failures)
