"""The files of a run folder that the report and the card are made from, and writing a page beside them.

A file that its stage has not written yet is None; a file that is there but cannot be read is an error that names it.

>>> read_run_folder(Path("runs/harbour")).pairs  # doctest: +SKIP
[{'id': 'harbour-001', 'prompt': [...], 'chosen': [...], ...}, ...]
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchorline.data import read_appended, read_json
from anchorline.errors import DataError, RunFolderError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """What a page shows. Each field is one file of the run folder, as it was read; None where there is no file."""

    name: str
    summary: Mapping[str, Any] | None = None
    manifest: Mapping[str, Any] | None = None
    recipe: str | None = None
    sampled: int | None = None
    """Answers of the policy that the pairs were made of; None where there were none."""
    pairs: Sequence[Mapping[str, Any]] | None = None
    failures: Sequence[Mapping[str, Any]] | None = None
    measure: Mapping[str, Any] | None = None
    training: Sequence[Mapping[str, Any]] | None = None
    diagnostics: Mapping[str, Any] | None = None
    style: Mapping[str, Any] | None = None
    samples: Sequence[Mapping[str, Any]] | None = None
    preference: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None

    @property
    def evaluated(self) -> bool:
        """Whether the evaluation is done. What it had nothing to measure on has no file all the same."""
        record = mapping(mapping(mapping(self.manifest).get("stages")).get("evaluate"))
        return record.get("status") == "done"


def read_run_folder(run_folder: Path) -> ReportData:
    """Read what a run has written so far."""
    if not run_folder.is_dir():
        raise RunFolderError(f"{run_folder}: no such folder; give the folder that a run has written")
    manifest, recipe = _json(run_folder / "manifest.json"), _text(run_folder / "recipe.yaml")
    if manifest is None and recipe is None:
        raise RunFolderError(f"{run_folder}: has neither recipe.yaml nor manifest.json; give the folder of a run")
    return ReportData(
        name=str((manifest or {}).get("name") or run_folder.resolve().name),
        summary=_json(run_folder / "summary.json"),
        manifest=manifest,
        recipe=recipe,
        sampled=_sampled(run_folder, mapping(manifest)),
        pairs=_table(run_folder / "pairs.jsonl"),
        failures=_table(run_folder / "failures.jsonl"),
        measure=_json(run_folder / "measure.json"),
        training=_table(run_folder / "train" / "metrics.jsonl"),
        diagnostics=_json(run_folder / "train" / "diagnostics.json"),
        style=_json(run_folder / "evals" / "style.json"),
        samples=_table(run_folder / "evals" / "answers.jsonl"),
        preference=_json(run_folder / "evals" / "preference.json"),
        drift=_json(run_folder / "evals" / "drift.json"),
    )


def _sampled(run_folder: Path, manifest: Mapping[str, Any]) -> int | None:
    """The policy's answers that the pairs' maker took; those of an earlier recipe may still lie beside them."""
    maker = mapping(mapping(manifest.get("makers")).get("pairs")).get("maker")
    if "given" in mapping(manifest.get("stages")) or maker == "off_policy":
        return None
    names = ["answers.jsonl", "unstyled-answers.jsonl", *(["more-answers.jsonl"] if maker == "on_policy" else [])]
    return sum(len(_table(run_folder / name) or ()) for name in names) or None


def write_page(target: Path, page: str) -> Path:
    """Write a text file, whole or not at all, and return its path."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunFolderError(f"{target}: cannot be written ({error.strerror}); make the folder writable") from error
    return target


def mapping(value: Any) -> Mapping[str, Any]:
    """The value, or an empty mapping where a damaged file holds something else."""
    return value if isinstance(value, Mapping) else {}


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
