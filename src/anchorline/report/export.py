"""A data set for others: pairs in TRL's columns with their card, in one folder, pushed to the Hub when asked.

>>> export("runs/harbour", Path("release"), licence="cc-by-4.0").pairs  # doctest: +SKIP
290
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from anchorline.data import (
    Form,
    PairLayout,
    check_repository,
    licence_id,
    push_folder,
    read_pairs,
    write_pairs,
)
from anchorline.data.export import CARD
from anchorline.measure import measure_pairs, summarise
from anchorline.progress import SILENT, Progress
from anchorline.report.data_card import CardFacts, build_data_card
from anchorline.report.files import read_run_folder, write_page


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
    run = read_run_folder(Path(source)) if Path(source).is_dir() else None
    loaded = read_pairs(Path(source) / "pairs.jsonl" if run else source, strict=strict, layout=layout)
    texts = [(pair.chosen, pair.rejected) for pair in loaded.rows]
    rows = []
    with progress.task("measure", total=len(texts), unit="pairs") as advance:
        for row in measure_pairs(texts):
            rows.append(row)
            advance(1)
    measured = summarise(rows, touched=[pair.provenance.details.get("touched", []) for pair in loaded.rows])
    file = write_pairs(loaded.rows, folder, form=form)
    name = (push_to_hub or (run.name if run else Path(source).stem)).rpartition("/")[2]
    facts = CardFacts(name, stated, str(file.relative_to(folder)), loaded.rows, measured, run)
    card = write_page(folder / CARD, build_data_card(facts))
    address = push_folder(folder, push_to_hub, private=private) if push_to_hub else ""
    return Exported(len(loaded.rows), file, card, [str(problem) for problem in loaded.problems], address)
