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
from collections.abc import Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

import anchorline
from anchorline.data import pair_from_row, pair_to_row, read_appended, write_jsonl
from anchorline.data.jsonl import replacing
from anchorline.errors import MissingExtra, RecipeError
from anchorline.llm.cache import RequestCache
from anchorline.llm.costs import known_sum
from anchorline.pairs import match
from anchorline.pairs.settings import MAKERS, Maker
from anchorline.progress import SILENT, Progress
from anchorline.recipe.advising import check_advise
from anchorline.recipe.config import Recipe
from anchorline.recipe.context import AS_USUAL, Calls, RunContext
from anchorline.recipe.counts import SAMPLED, SAMPLING, a_pair
from anchorline.recipe.desk import cache_file, check_endpoints, costs
from anchorline.recipe.making import MORE, check_engine, check_style, check_templates, check_unstyled, needed_endpoints
from anchorline.recipe.manifest import (
    Manifest,
    StageRecord,
    content_hash,
    open_folder,
    read_manifest,
    stage_key,
    write_manifest,
)
from anchorline.recipe.pilot import drawn, pilot
from anchorline.recipe.sources import read_answers, read_given, read_retained, read_sources
from anchorline.recipe.stages import (
    SETS,
    STAGES,
    TRAIN,
    Stage,
    asks_models,
    keep_failures,
    recipe_evaluates,
    remove_outputs,
    rivals,
    set_stage,
    train_together,
)
from anchorline.recipe.summary import write_summary
from anchorline.train.processes import joined, led, rank

Summary = dict[str, Any]
PAGE = "page"
WANT_A_MODEL = ("advise", "retain", "train", "evaluate")
PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "datasets", "rapidfuzz", "pydantic")


def run(
    recipe: Recipe,
    folder: Path,
    *,
    upto: str = "report",
    maker: Maker | None = None,
    calls: Calls = AS_USUAL,
    progress: Progress = SILENT,
) -> Summary:
    """Bring the run folder up to date, through the stage `upto`; the summary as far as it goes.

    `upto` may be "page": the report, and where the recipe names no model, what it can say of the pairs alone.
    `maker` makes a set of pairs by that maker beside the run's own (in sets/MAKER), and matches the sets that are there.
    Everything that the recipe names is looked at first, so that a mistake leaves no folder behind.

    Where a launcher has started several processes, each of them calls this: the first does everything, and the others
    join it for the training.

    Raises:
        UserError: the recipe, a file that it names, the model or the run folder cannot be used.

    """
    with joined():
        if rank() > 0:
            return _follow(recipe, folder)
        summary = _lead(recipe, folder, upto=upto, maker=maker, calls=calls, progress=progress)
        return led(lambda: summary)


def _follow(recipe: Recipe, folder: Path) -> Summary:
    """Train whenever the leading process does; its summary in the end."""
    while (told := led(dict)) == TRAIN:
        train_together(RunContext(recipe, folder))
    return told


def _lead(recipe: Recipe, folder: Path, *, upto: str, maker: Maker | None, calls: Calls, progress: Progress) -> Summary:
    upto = set_stage(maker) if maker else upto
    stages = wanted_stages(recipe, "report" if upto == PAGE else upto)
    if upto == PAGE and recipe.model is None:
        stages = [stage for stage in stages if stage.name not in WANT_A_MODEL]
    check(RunContext(recipe, folder, calls=calls), stages)
    with open_folder(folder):
        manifest = read_manifest(folder)
        context = RunContext(recipe, folder, progress=progress, calls=calls, run_id=manifest.id)
        manifest.name, manifest.seed = recipe.name, recipe.seed
        manifest.anchorline, manifest.versions = anchorline.__version__, versions()
        manifest.stages = {s.name: manifest.stages[s.name] for s in STAGES if s.name in manifest.stages}
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        place = recipe_file(folder, manifest, maker)
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as temporary:
            temporary.write_text(text, encoding="utf-8")
        write_manifest(folder, manifest)  # the report's key holds the versions
        for stage in stages:
            bring_up_to_date(stage, context, manifest)
        if maker:
            others = {name: count for name, count in manifest.counts.items() if not name.startswith(f"{SETS}/")}
            manifest.counts = others | match_sets(folder, of_the_same_answers(manifest, maker))
            write_manifest(folder, manifest)
        return write_summary(folder, recipe)


def try_out(
    recipe: Recipe,
    folder: Path,
    *,
    maker: Maker | None = None,
    rows: int = 20,
    calls: Calls = AS_USUAL,
    progress: Progress = SILENT,
) -> Summary:
    """Make pairs of `rows` rows only, and say what all of them will cost and how many will be kept.

    What the pilot's models reply is kept for the run that follows; its pairs are not written.
    """
    if calls.batch:
        raise RecipeError(
            "--dry-run asks its few rows at once, at the full price; leave out --batch, which halves the estimate"
        )
    upto = set_stage(maker) if maker else "pairs"
    stages = wanted_stages(recipe, upto)
    check(RunContext(recipe, folder), stages)
    with open_folder(folder):
        manifest = read_manifest(folder)
        context = RunContext(recipe, folder, progress=progress, calls=calls, run_id=manifest.id)
        paid = [stage for stage in stages if stage.name in SAMPLING and recipe.llm.policy is not None]
        for stage in stages:
            if stage.name != upto and stage not in paid:
                bring_up_to_date(stage, context, manifest)
        write_manifest(folder, manifest)
        if not paid:
            return pilot(context, maker or recipe.pairs.maker, rows)
        with drawn(context, rows) as part:  # the policy's answers cost, too: only those of the pilot are asked for
            for stage in paid:
                stage.act(part)
            total = len(context.prompts("prompts.jsonl"))
            return pilot(part, maker or recipe.pairs.maker, rows, total=total)


def recipe_file(folder: Path, manifest: Manifest, maker: Maker | None) -> Path:
    """Where the resolved recipe goes. What a set is made with beside pairs that are there must not become their recipe: the
    next command on the folder would make them anew.
    """
    beside = maker is not None and not {"pairs", "given"}.isdisjoint(manifest.stages)
    return folder / SETS / str(maker) / "recipe.yaml" if beside else folder / "recipe.yaml"


def of_the_same_answers(manifest: Manifest, maker: Maker) -> list[Maker]:
    """The makers whose sets are of the very answers of the policy that this one's set is of, or of none of its answers."""
    taken = {maker: _answers_of(manifest, maker) for maker in MAKERS}
    return [other for other in MAKERS if all(taken[maker].get(n, h) == h for n, h in taken[other].items())]


def _answers_of(manifest: Manifest, maker: Maker) -> dict[str, str]:
    record = manifest.stages.get(set_stage(maker))
    return {name: record.inputs[name] for name in ("answers.jsonl", MORE) if name in record.inputs} if record else {}


def match_sets(folder: Path, makers: Sequence[Maker] = MAKERS) -> dict[str, int]:
    """Write sets/MAKER/matched.jsonl: of the sets that are there, the pairs whose prompts all of them have."""
    files = {maker: folder / SETS / maker / "pairs.jsonl" for maker in makers}
    sets = {
        maker: [pair_from_row(row) for _, row in read_appended(file).rows]
        for maker, file in files.items()
        if file.is_file()
    }
    forget_matched(folder)
    if len(sets) < 2:
        return {f"{SETS}/{maker}": len(pairs) for maker, pairs in sets.items()}
    matched = match(sets)
    for maker, pairs in matched.sets.items():
        write_jsonl(files[maker].with_name("matched.jsonl"), map(pair_to_row, pairs))
    counts = {f"{SETS}/{maker}": len(pairs) for maker, pairs in sets.items()}
    return counts | {f"{SETS}/matched": len(next(iter(matched.sets.values())))}


def forget_matched(folder: Path) -> None:
    """Remove what an earlier matching wrote."""
    for file in (folder / SETS).glob("*/matched.jsonl"):
        file.unlink()


def wanted_stages(recipe: Recipe, upto: str) -> list[Stage]:
    """The stage `upto` and those whose outputs it needs, directly or not, in their order.

    Raises:
        RecipeError: the recipe gives what the stage would make, or nothing to make it of.

    """
    if recipe.pairs.file is not None and (upto == "sample" or upto.startswith("pairs")):
        raise RecipeError(
            f"the recipe's pairs are given (pairs.file: {recipe.pairs.file}), so there is nothing to make; to make pairs, "
            "leave it out: --set pairs.file=null"
        )
    if upto == "sample" and recipe.pairs.answers is not None:
        upto = "answers"  # they are there already
    wanted: list[Stage] = []
    needed: set[str] = set()
    for stage in reversed(STAGES):
        if stage.wanted(recipe) and (stage.name == upto or needed & set(stage.outputs)):
            wanted.insert(0, stage)
            needed |= {*stage.inputs, *stage.after}
    if any(stage.name == "prompts" for stage in wanted) and (recipe.prompts is None or recipe.prompts.train is None):
        lacking = "prompts" if recipe.prompts is None else "prompts.train"
        raise RecipeError(
            f"the recipe has neither `{lacking}` (to sample answers for) nor `pairs.answers` nor `pairs.file`; give one of them"
        )
    return wanted


def check(context: RunContext, stages: list[Stage]) -> None:
    """Look at everything that the stages will read from outside.

    Raises:
        UserError: what cannot be used.

    """
    names = {stage.name for stage in stages}
    makers = _checked_makers(context, names)
    sampled = names & {*SAMPLING, "advise"}
    if "advise" in names:
        check_advise(context)
    if sampled and context.recipe.llm.policy is not None:
        check_endpoints(context.recipe, ["policy"])
        sampled = set()
    if (sampled or names & {"baseline", "train"}) and importlib.util.find_spec("torch") is None:
        raise MissingExtra("running a model", "train")
    if "train" in names and context.recipe.train.arguments:
        from anchorline.train.arguments import further_arguments

        further_arguments(context.recipe.train.arguments)
        if recipe_evaluates(context.recipe) and context.recipe.pairs.file is None:
            raise RecipeError(
                "train.arguments.eval_strategy wants held-out pairs, which come with `pairs.file` and `pairs.heldout`; "
                "name a file of pairs, or leave it out (the evaluate stage measures after training)"
            )
    if context.recipe.style and (makers or names & {"evaluate", "advise"}):
        _ = context.style
    if "prompts" in names:
        read_sources(context.recipe)
    if "retain" in names:
        read_retained(context.recipe, [])
    if "given" in names:
        read_given(context.recipe)
    if "answers" in names:
        read_answers(context.recipe, makers)
    if sampled or names & {"baseline", "train"} or ("measure" in names and context.recipe.model):
        _ = context.model_fingerprint


def _checked_makers(context: RunContext, names: Set[str]) -> list[Maker]:
    """The makers of these stages, once each was found to be able to work."""
    recipe = context.recipe
    makers: list[Maker] = [maker for maker in MAKERS if set_stage(maker) in names]
    if "pairs" in names:
        makers.append(recipe.pairs.maker)
        check_unstyled(recipe)
    for maker in makers:
        check_endpoints(recipe, needed_endpoints(recipe, maker))
        check_style(context, maker)
        check_templates(recipe, maker)
        check_engine(recipe, maker, batch=context.calls.batch)
    return makers


def bring_up_to_date(stage: Stage, context: RunContext, manifest: Manifest) -> None:
    """Run the stage unless it is done with these settings and inputs; continue it where it was begun with them."""
    folder = context.folder
    inputs = {name: content_hash(folder / name) for name in stage.inputs}
    key = stage_key(stage.name, stage.settings(context), inputs)
    record = manifest.stages.get(stage.name)
    again = context.calls.retry_failed and asks_models(stage, context.recipe)
    done = record and record.key == key and record.status == "done"
    if done and record and not again and all((folder / n).exists() for n in record.outputs):
        return
    if not record or record.key != key or record.status == "done":
        remove_outputs(stage, folder)
        if stage.name in map(set_stage, MAKERS):
            forget_matched(folder)
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
        manifest.makers |= context.made
        manifest.costs = paid_so_far(context, manifest)
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


def paid_so_far(context: RunContext, manifest: Manifest) -> dict[str, Any]:
    """What the run has paid for, by what for; with all of it, and for each kept pair of each set.

    A pair's part: the calls of its maker, and the policy's answers that the maker took; not what other sets cost.
    """
    file = cache_file(context.recipe, context.folder)
    if not file.is_file():
        return {}
    with RequestCache(file) as cache:
        by_stage, timed_out = costs(cache, context.id), cache.timed_out(context.id)
    if not by_stage and not timed_out:
        return {}
    tokens = sum(cost["prompt_tokens"] + cost["completion_tokens"] for cost in by_stage.values())
    usd = known_sum([cost["usd"] for cost in by_stage.values()])
    kept = {}
    for stage, made in manifest.makers.items():
        sampled = [by_stage[name] for name in SAMPLED[made["maker"]] if name in by_stage]
        parts = [{"tokens": cost["prompt_tokens"] + cost["completion_tokens"], "usd": cost["usd"]} for cost in sampled]
        kept[stage] = a_pair([*parts, *([made["costs"]] if "costs" in made else [])], made["pairs"])
    return {"stages": by_stage, "tokens": tokens, "usd": usd, "kept_pair": kept, "timed_out": timed_out}


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
