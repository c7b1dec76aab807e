"""A run: its stages one after the other, each only if it has to be.

>>> summary = run(load_recipe("recipes/harbour.yaml"), Path("runs/harbour"))  # doctest: +SKIP
>>> summary["style"]["after"]["all"]  # doctest: +SKIP
0.95
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

import anchorline
from anchorline.data import read_appended
from anchorline.data.jsonl import replacing
from anchorline.errors import MissingExtra, RecipeError
from anchorline.progress import SILENT, Progress
from anchorline.recipe.config import Recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.manifest import (
    Manifest,
    StageRecord,
    content_hash,
    open_folder,
    read_manifest,
    stage_key,
    write_manifest,
)
from anchorline.recipe.sources import read_given, read_sources
from anchorline.recipe.stages import STAGES, Stage, keep_failures, remove_outputs, rivals
from anchorline.recipe.summary import write_summary

Summary = dict[str, Any]
PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "datasets", "rapidfuzz", "pydantic")


def run(recipe: Recipe, folder: Path, *, upto: str = "report", progress: Progress = SILENT) -> Summary:
    """Bring the run folder up to date, through the stage `upto`; the summary as far as it goes.

    Everything that the recipe names is looked at first, so that a mistake leaves no folder behind.

    Raises:
        UserError: the recipe, a file that it names, the model or the run folder cannot be used.

    """
    context = RunContext(recipe, folder, progress=progress)
    stages = wanted_stages(recipe, upto)
    check(context, stages)
    with open_folder(folder):
        manifest = read_manifest(folder)
        manifest.name, manifest.seed = recipe.name, recipe.seed
        manifest.anchorline, manifest.versions = anchorline.__version__, versions()
        manifest.stages = {s.name: manifest.stages[s.name] for s in STAGES if s.name in manifest.stages}
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        with replacing(folder / "recipe.yaml") as temporary:
            temporary.write_text(text, encoding="utf-8")
        for stage in stages:
            bring_up_to_date(stage, context, manifest)
        return write_summary(folder, recipe)


def wanted_stages(recipe: Recipe, upto: str) -> list[Stage]:
    """The stage `upto` and those whose outputs it needs, directly or not, in their order."""
    wanted: list[Stage] = []
    needed: set[str] = set()
    for stage in reversed(STAGES):
        if stage.wanted(recipe) and (stage.name == upto or needed & set(stage.outputs)):
            wanted.insert(0, stage)
            needed |= set(stage.inputs)
    if any(stage.name == "prompts" for stage in wanted) and recipe.prompts is None:
        raise RecipeError("the recipe has neither `prompts` (to sample answers for) nor `pairs.file`; give one of them")
    return wanted


def check(context: RunContext, stages: list[Stage]) -> None:
    """Look at everything that the stages will read from outside.

    Raises:
        UserError: what cannot be used.

    """
    names = {stage.name for stage in stages}
    if names & {"sample", "baseline", "train"} and importlib.util.find_spec("torch") is None:
        raise MissingExtra("running a model", "train")
    if "pairs" in names or ("evaluate" in names and context.recipe.style):
        _ = context.style
    if "prompts" in names:
        read_sources(context.recipe)
    if "given" in names:
        read_given(context.recipe)
    if names & {"sample", "baseline", "train"} or ("measure" in names and context.recipe.model):
        _ = context.model_fingerprint


def bring_up_to_date(stage: Stage, context: RunContext, manifest: Manifest) -> None:
    """Run the stage unless it is done with these settings and inputs; continue it where it was begun with them."""
    folder = context.folder
    inputs = {name: content_hash(folder / name) for name in stage.inputs}
    key = stage_key(stage.name, stage.settings(context), inputs)
    record = manifest.stages.get(stage.name)
    if record and record.key == key and record.status == "done" and all((folder / n).exists() for n in record.outputs):
        return
    if not record or record.key != key or record.status == "done":
        remove_outputs(stage, folder)
        for other in rivals(stage):
            if manifest.stages.pop(other.name, None):
                keep_failures(folder, other.name, [])
        record = StageRecord(key=key, status="running", started=datetime.now(UTC).isoformat(timespec="seconds"))
    record.inputs = inputs
    manifest.stages[stage.name] = record
    write_manifest(folder, manifest)
    started = time.monotonic()
    try:
        failures = stage.act(context)
    finally:
        record.seconds = round(record.seconds + time.monotonic() - started, 2)
        record.peak_rss_gib = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
        write_manifest(folder, manifest)
    keep_failures(folder, stage.name, failures)
    manifest.machine |= machine()
    record.outputs = {name: content_hash(folder / name) for name in stage.outputs if (folder / name).exists()}
    record.status = "done"
    manifest.counts |= {
        Path(name).stem: len(read_appended(folder / name).rows)
        for name in ("prompts.jsonl", "answers.jsonl", "pairs.jsonl", "failures.jsonl")
    }
    write_manifest(folder, manifest)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the outcome, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What ran it."""
    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    if "torch" in sys.modules:  # else nothing ran on a device
        from anchorline.llm.device import pick_device

        device = pick_device()
        facts |= {"device": device.name, "dtype": device.dtype}
    return facts


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
