"""The run in one small JSON file: what came out, at what drift, from how many pairs, in how long.

>>> write_summary(Path("runs/harbour"), recipe)["style"]["after"]["all"]  # doctest: +SKIP
0.95
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anchorline.data import read_appended, read_json, write_json
from anchorline.recipe.advising import ADVICE, decided
from anchorline.recipe.config import Recipe
from anchorline.recipe.manifest import read_manifest
from anchorline.train.config import AUTO


def write_summary(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Write `summary.json` from the other files of the run folder; what was not measured is null."""
    manifest = read_manifest(folder)
    style, drift, preference = (_read(folder / "evals" / f"{name}.json") for name in ("style", "drift", "preference"))
    failures = read_appended(folder / "failures.jsonl").rows
    summary = {
        "name": recipe.name,
        "style": {
            "before": {"all": _at(style, "before", "all", "share")},
            "after": {"all": _at(style, "after", "all", "share")},
            "n": _at(style, "n"),
        },
        "drift": {"kl_per_token": _at(drift, "kl_per_token"), "prompts": _at(drift, "prompts")},
        "preference": {"accuracy": _at(preference, "accuracy"), "n": _at(preference, "n")},
        "answers": len(read_appended(folder / "answers.jsonl").rows),
        "pairs": len(read_appended(folder / "pairs.jsonl").rows),
        "failures": len(failures),
        "unusable": sum(failure["kind"] == "malformed" for _, failure in failures),
        "sets": {n.removeprefix("sets/"): count for n, count in manifest.counts.items() if n.startswith("sets/")},
        "makers": manifest.makers,
        "costs": manifest.costs,
        "objective": decided(recipe, folder).objective,
        "seconds": {name: record.seconds for name, record in manifest.stages.items()},
        "peak_rss_gib": max((record.peak_rss_gib for record in manifest.stages.values()), default=0.0),
    }
    if recipe.train.objective == AUTO and (folder / ADVICE).is_file():
        summary["advice"] = read_json(folder / ADVICE)
    write_json(folder / "summary.json", summary)
    return summary


def _read(file: Path) -> Any:
    return read_json(file) if file.is_file() else None


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
