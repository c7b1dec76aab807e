"""`anchorline compare`: the data sets against each other, and the objectives, on one's own task.

    OUT/base/         a run folder: prompts, the policy's answers, the answers before, sets/MAKER/
    OUT/cells/NAME/   one training each (cells.py)
    OUT/compare.json, compare.html, compare.txt

>>> table = compare(load_recipe("recipes/compare_harbour.yaml"), Path("runs/compare"))  # doctest: +SKIP
>>> table["cells"][0]["share"]  # doctest: +SKIP
0.75
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from anchorline.data import answer_from_row, pair_from_row, pair_to_row, read_json, read_jsonl, write_json
from anchorline.data.candidates import Candidate, Candidates
from anchorline.data.jsonl import replacing
from anchorline.errors import DataError, RecipeError
from anchorline.judge.style_judge import style_judge
from anchorline.llm.types import SampleSettings
from anchorline.pairs import by_rounds, off_policy
from anchorline.progress import SILENT, Progress
from anchorline.recipe.cells import RESULT, answered, claimed, finished, run_cell
from anchorline.recipe.config import Recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.contrasts import tabled
from anchorline.recipe.grid import Cell, CompareSettings, Voice, planned, to_come
from anchorline.recipe.manifest import content_hash, open_folder
from anchorline.recipe.run import match_sets, run
from anchorline.recipe.stages import AGAIN, SETS, retains
from anchorline.style import check, without_torn_end
from anchorline.types import Message, Messages, Pair, Prompt, Provenance

WAIT = 2.0
"""Seconds after which it is looked again at cells that other processes have."""


def compare(
    recipe: Recipe,
    folder: Path,
    *,
    max_minutes: float | None = None,
    beside: Callable[[float], AbstractContextManager[None]] = lambda _: nullcontext(),
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Bring the grid up to date, cell by cell; what is finished is not run again. Its table, also in files.

    With `max_minutes` no cell begins that the slowest one so far would not let end in time; a first one always begins.
    Other processes may work at the same grid, one for each device: each takes cells that no other one has. `beside` is
    entered when the sets are there and cells are to do, with the minutes that have gone: it may start such processes.

    Raises:
        UserError: the recipe cannot be compared, or what it names cannot be used.

    """
    started = time.monotonic()
    grid = _checked(recipe)
    base = folder / "base"
    if not RunContext(recipe, base).style.rules:
        raise RecipeError("the style has no rules, and by them `compare` counts answers; give it some")
    with _alone(folder / SETS, progress):
        sets = _sets(recipe, grid, base, progress)
    context = RunContext(recipe, base, progress=progress)
    before = answered(context.style, context.read("evals/before.jsonl", answer_from_row), grid.tone)
    with beside((time.monotonic() - started) / 60):
        done = _cells(folder, context, grid, sets, before, started=started, max_minutes=max_minutes, progress=progress)
    while found := _finished(folder, context, grid, sets, done):  # what others have ended meanwhile
        done |= found
    return _write(folder, context, grid, sets, before, done)


@contextmanager
def _alone(place: Path, progress: Progress) -> Iterator[None]:
    """What is inside is done by one process at a time; a lock of its own, as a run folder in use is an error."""
    while True:
        with claimed(place) as ours:
            if ours:
                yield
                return
        with progress.task("waiting for the sets of another process", total=1, unit="looks") as advance:
            time.sleep(WAIT)
            advance(1)


def _finished(
    folder: Path,
    context: RunContext,
    grid: CompareSettings,
    sets: Mapping[str, list[Pair]],
    done: Mapping[Cell, Mapping[str, Any]],
) -> dict[Cell, Mapping[str, Any]]:
    """The results of planned cells that are not among `done`."""
    places = {cell: folder / "cells" / cell.name for cell in planned(grid, done) if cell not in done}
    return {c: r for c, p in places.items() if (r := finished(c, context, sets[c.maker], p))}


def _cells(
    folder: Path,
    context: RunContext,
    grid: CompareSettings,
    sets: Mapping[str, list[Pair]],
    before: Mapping[str, Any],
    *,
    started: float,
    max_minutes: float | None,
    progress: Progress,
) -> dict[Cell, Mapping[str, Any]]:
    """Run what no other process has, until nothing is left or time is up; all that is finished."""
    done: dict[Cell, Mapping[str, Any]] = {}
    slowest, waited = 0.0, False
    while todo := [cell for cell in planned(grid, done) if cell not in done]:
        # also those that another process has finished; finished learning rates tell of further cells
        if found := _finished(folder, context, grid, sets, done):
            done |= found
            continue
        begun = time.monotonic()
        late = max_minutes is not None and begun - started + slowest > 60 * max_minutes
        if late and (slowest or waited):  # a first one always begins
            break
        for cell in todo:
            place = folder / "cells" / cell.name
            with claimed(place) as ours:
                if ours and not finished(cell, context, sets[cell.maker], place):
                    with progress.task(
                        f"cell {cell.name} ({to_come(grid, done)} to go)", total=1, unit="cells"
                    ) as advance:
                        run_cell(cell, context, sets[cell.maker], place)
                        advance(1)
                    slowest = max(slowest, time.monotonic() - begun)
            if ours:
                break
        else:
            waited = True
            with progress.task(f"waiting for {len(todo)} cells of other processes", total=1, unit="looks") as advance:
                time.sleep(WAIT)
                advance(1)
            continue
        _write(folder, context, grid, sets, before, done | {cell: read_json(place / RESULT)})
    return done


def _checked(recipe: Recipe) -> CompareSettings:
    grid = recipe.compare or CompareSettings()
    if recipe.style is None or recipe.prompts is None or recipe.prompts.train is None or recipe.model is None:
        raise RecipeError(
            "`compare` needs `model`, `style` and `prompts.train`: it makes the sets itself and checks answers by rules"
        )
    if recipe.prompts.general is None:
        raise RecipeError("`compare` holds gain against drift; name prompts to measure it on, in `prompts.general`")
    if any(grid.retain_weights) and recipe.retain is None:
        raise RecipeError(
            "compare.retain_weights is above 0, and `retain.prompts` is lacking; name prompts that are to stay"
        )
    if "stronger" in grid.sets and grid.stronger is None and recipe.llm.stronger is None:
        raise RecipeError(
            "the set stronger needs `compare.stronger` (the policy with another system message) or `llm.stronger`"
        )
    if "off_policy" in grid.sets and len(grid.others) < 2 and not recipe.llm.others:
        raise RecipeError("the set off_policy needs two or more of `compare.others`, or `llm.others`")
    return grid


def _sets(recipe: Recipe, grid: CompareSettings, base: Path, progress: Progress) -> dict[str, list[Pair]]:
    """The matched sets; answers that are there are not asked for again."""
    run(recipe, base, upto="baseline", progress=progress)
    if any(grid.retain_weights) and recipe.retain:
        held = recipe.retain if retains(recipe) else recipe.retain.model_copy(update={"weight": 1.0})
        run(recipe.model_copy(update={"retain": held}), base, upto="retain", progress=progress)
    run(recipe, base, upto="sample", progress=progress)
    stronger, others = voices(recipe)
    for maker in grid.sets:
        if not {"stronger": stronger, "off_policy": others}.get(maker):
            run(recipe, base, maker=maker, progress=progress)
    with open_folder(base):
        context = RunContext(recipe, base, progress=progress)
        if "stronger" in grid.sets and stronger:
            _stronger(context, stronger)
        if "off_policy" in grid.sets and others:
            _off_policy(context, others)
        match_sets(base, grid.sets)
    name = "matched.jsonl" if len(grid.sets) > 1 else "pairs.jsonl"
    files = {maker: base / SETS / maker / name for maker in grid.sets}
    sets = {maker: [pair_from_row(row) for _, row in read_jsonl(file)][: grid.pairs] for maker, file in files.items()}
    if not all(sets.values()):
        raise DataError(
            "no prompt has a pair in every set; take more prompts, or more `samples` of them", file=base / SETS
        )
    return sets


def voices(recipe: Recipe) -> tuple[Voice | None, tuple[Voice, ...]]:
    """In which ways the policy itself stands in for a stronger model and for others: where none are asked."""
    grid = recipe.compare or CompareSettings()
    return None if recipe.llm.stronger else grid.stronger, () if recipe.llm.others else grid.others


def _stronger(run: RunContext, voice: Voice) -> None:
    answers = {answer.id: answer for answer in run.read("answers.jsonl", answer_from_row)}
    pairs = []
    for prompt, text in zip(run.prompts("prompts.jsonl"), _spoken(run, voice, "stronger", 0), strict=True):
        old = answers.get(prompt.id)
        if old and old.text.strip() and text and text != old.text:
            origin = Provenance("stronger", run.policy_name, run.policy_name, {"voice": voice.model_dump()})
            pairs.append(Pair(prompt.id, prompt.messages, text, old.text, origin))
    run.write(f"{SETS}/stronger/pairs.jsonl", pairs, pair_to_row)


def _off_policy(run: RunContext, voices: Sequence[Voice]) -> None:
    spoken = [_spoken(run, voice, f"other{n}", n + 1) for n, voice in enumerate(voices)]
    choose = by_rounds(style_judge(run.style))
    pairs = []
    for prompt, *texts in zip(run.prompts("prompts.jsonl"), *spoken, strict=True):
        answers = tuple(Candidate(text, f"{run.policy_name}, voice {n}") for n, text in enumerate(texts) if text)
        if len(answers) > 1:
            row = Candidates(prompt.id, prompt.messages, answers)
            pairs.append(asyncio.run(off_policy(row, choose=choose, policy=run.policy_name)))
    run.write(f"{SETS}/off_policy/pairs.jsonl", [pair for pair in pairs if isinstance(pair, Pair)], pair_to_row)


def _spoken(run: RunContext, voice: Voice, name: str, number: int) -> list[str]:
    """The voice's answer to each training prompt, of several the one that keeps most rules; "" where there is none.

    `number` tells voices apart: two that differ in nothing else still give other answers, and none those of the policy.
    """
    prompts = run.prompts("prompts.jsonl")
    asked = [
        replace(p, id=f"{p.id}#{name}{n}", messages=_with_system(p.messages, voice.system))
        for n in range(voice.samples)
        for p in prompts
    ]
    file = f"voices/{name}.jsonl"
    key = run.path(f"voices/{name}.key")
    batch, dtype = run.recipe.sample.batch_size, run.recipe.train.dtype
    asked_of = (run.model_fingerprint, dtype, content_hash(run.path("prompts.jsonl")), run.recipe.seed, batch)
    salt = AGAIN * (2 + number)
    here = f"{voice!r} {asked_of} {salt}"
    if not key.is_file() or key.read_text(encoding="utf-8") != here:
        for old in (run.path(file), run.path(f"{file}.partial")):
            old.unlink(missing_ok=True)
        key.parent.mkdir(exist_ok=True)
        key.write_text(here, encoding="utf-8")
    how = SampleSettings(max_new_tokens=voice.max_new_tokens, temperature=voice.temperature, batch_size=batch)
    if run.path(file).is_file():  # finished: the model need not be loaded
        answers = run.read(file, answer_from_row)
    else:
        answers = run.answer(run.loaded(dtype), asked, how, file, salt=salt)
    texts = [without_torn_end(a.text) if a.finish == "length" else a.text.strip() for a in answers]
    return [_best_of(run, prompt, texts[k :: len(prompts)]) for k, prompt in enumerate(prompts)]


def _best_of(run: RunContext, prompt: Prompt, texts: Sequence[str]) -> str:
    return max(texts, key=lambda text: (bool(text), sum(check(run.style, prompt.messages, text).values())))


def _with_system(messages: Messages, system: str | None) -> Messages:
    if system is None:
        return messages
    return (Message("system", system), *(m for m in messages if m.role != "system"))


def _write(
    folder: Path,
    context: RunContext,
    grid: CompareSettings,
    sets: Mapping[str, Sequence[Pair]],
    before: Mapping[str, Any],
    done: Mapping[Cell, Mapping[str, Any]],
) -> dict[str, Any]:
    from anchorline.report.compare_page import compare_text, write_compare_page

    def keeps(prompt: Messages, answer: str) -> bool:
        return all(check(context.style, prompt, answer).values())

    found = tabled(grid, sets, done, keeps=keeps)
    table = {"name": context.recipe.name, "todo": to_come(grid, done), "before": before, **found}
    write_json(folder / "compare.json", table)
    write_compare_page(folder / "compare.html", table)
    with replacing(folder / "compare.txt") as temporary:  # other processes write it, too
        temporary.write_text(compare_text(table), encoding="utf-8")
    return table
