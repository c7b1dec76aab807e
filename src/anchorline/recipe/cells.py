"""One cell of the grid: trained, evaluated, and then one JSON file that is never written again.

    cells/NAME/key       what the cell depends on; another key empties the folder
    cells/NAME/train/    as in a run folder; a killed training continues
    cells/NAME/along/    the policy on its way, where `checkpoints` asks for it
    cells/NAME/cell.json the result, or why it "failed"; the trained weights are not kept
    cells/NAME.lock      held by the process that is at the cell

>>> run_cell(cell, run, pairs, folder)["share"]  # doctest: +SKIP
0.75
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anchorline.data import answer_from_row, pair_to_row, read_json, read_jsonl, write_json
from anchorline.errors import DataError, Diverged, RunFolderError
from anchorline.evals.paired import spread
from anchorline.llm.device import measuring_dtype
from anchorline.objectives.names import parse_objective
from anchorline.recipe.context import RunContext
from anchorline.recipe.grid import Cell, CompareSettings, mean
from anchorline.recipe.stages import RETAINED, code_of, eval_sampling
from anchorline.style import Style, check
from anchorline.types import Answer, Pair

RESULT = "cell.json"
CURVES = ("step", "chosen_reward", "rejected_reward", "retain_kl")
DRIFT = {"drift": "kl_per_token", "drift_low": "low", "drift_high": "high", "drift_n": "prompts"}
"""What is kept of drift, under which names."""
POINT = ("step", "share", "rules_kept", "drift")
"""What is kept of each point of a training that is evaluated."""
NO_MATTER = {
    "save_steps",
    "save_total_limit",
    "reference_cache",
    "merge",
    "profile_steps",
    "objective",
    "learning_rate",
}
"""Settings of a training that change no cell: the last two are the cell's own."""


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether the folder is this process's own inside; a process that ends lets go of it, however it ends.

    Raises:
        RunFolderError: nothing can be written beside it.

    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock").open("w")
    except OSError as error:
        raise RunFolderError(
            f"{folder.parent} cannot be written ({error.strerror}); name another folder with --out"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def finished(cell: Cell, run: RunContext, pairs: Sequence[Pair], folder: Path) -> dict[str, Any] | None:
    """The cell's result, where it was made of these pairs with these settings."""
    file = folder / RESULT
    if not file.is_file() or not _same_key(cell, run, pairs, folder):
        return None
    return read_json(file)


def run_cell(cell: Cell, run: RunContext, pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    """Train and evaluate; `run` is the context of the shared folder, with the answers from before.

    A cell that was killed goes on from its newest checkpoint. One whose loss is not a number has that for its result: it
    would come to the same end again, and the grid goes on.
    """
    from anchorline.train.along import SavedAlong
    from anchorline.train.retain import Retained
    from anchorline.train.run import train

    if not _same_key(cell, run, pairs, folder):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key").write_text(_key(cell, run, pairs), encoding="utf-8")
    recipe, grid = run.recipe, _grid(run)
    update = {"objective": parse_objective(cell.objective), "learning_rate": cell.learning_rate}
    settings = recipe.train.model_copy(update=update)
    retain = None
    if recipe.retain and cell.weight:
        held = recipe.retain.model_copy(update={"weight": cell.weight})
        retain = Retained(run.read(RETAINED, answer_from_row), held)
    along, model = folder / "along", folder / "model"
    if not model.is_dir():  # else it was killed while it was evaluated: the model is whole once it is there
        saved = [SavedAlong(along, parts=grid.checkpoints, model=run.model)]
        how = {"retain": retain, "callbacks": saved, "seed": cell.seed, "progress": run.progress}
        try:
            train(pairs, run.model, settings, folder, **how)
        except Diverged as error:
            return _kept(folder, {**cell._asdict(), "failed": error.what}, along, *folder.glob("train/checkpoint-*"))
    steps = [row for _, row in read_jsonl(folder / "train" / "metrics.jsonl")]
    places = {int(place.name.removeprefix("step-")): place for place in along.glob("step-*")}
    before = [
        _evaluated(run, folder, places[step], f"after-step-{step}.jsonl") | {"step": step} for step in sorted(places)
    ]
    after = _evaluated(run, folder, model, "after.jsonl")
    points = [{name: point[name] for name in POINT} for point in (*before, after | {"step": steps[-1]["step"]})]
    curves = [{name: row.get(name) for name in CURVES if name in row} for row in steps]
    return _kept(folder, {**cell._asdict(), **after, "checkpoints": points, "curves": curves}, along, model)


def _kept(folder: Path, result: dict[str, Any], *weights: Path) -> dict[str, Any]:
    write_json(folder / RESULT, result)  # first: what is left of the weights by a kill after it is in nobody's way
    for place in weights:
        shutil.rmtree(place, ignore_errors=True)
    return result


def _evaluated(run: RunContext, folder: Path, model: Path, answers: str) -> dict[str, Any]:
    """What a trained model answers to the held-out prompts, and how far it drifted on the general ones."""
    from anchorline.evals.drift import drift
    from anchorline.evals.subject import attend, load_subject

    recipe = run.recipe
    packed = recipe.train.forward == "packed"
    subject = load_subject(model, run.model, dtype=measuring_dtype(recipe.eval.dtype), packed=packed)
    here = RunContext(recipe, folder, progress=run.progress)
    after = here.answer(subject.policy, run.prompts("evals/prompts.jsonl"), eval_sampling(recipe), answers)
    attend(subject, "packed")
    general = run.read("evals/general.jsonl", answer_from_row)
    # the reference is the same in every cell; without packing, logits would be kept
    theirs = run.reference_states if packed else None
    moved = drift(subject, general, seed=recipe.seed, theirs=theirs, progress=run.progress).table
    if moved.get("kl_per_token") is None:
        raise DataError(
            "the model's answers to the general prompts are empty, and drift is measured on them; take others"
        )
    drifted = {name: moved[of] for name, of in DRIFT.items()}
    return answered(run.style, after, _grid(run).tone) | drifted


def _grid(run: RunContext) -> CompareSettings:
    return run.recipe.compare or CompareSettings()


def answered(style: Style, answers: Sequence[Answer], tone: Sequence[str]) -> dict[str, Any]:
    """How answers keep the style, prompt by prompt, and what they are like beside it."""
    kept = [check(style, answer.prompt, answer.text) for answer in answers]
    rules = [sum(row.values()) / len(row) for row in kept]
    low, high = spread(rules, seed=0)
    texts = [answer.text for answer in answers]
    return {
        "n": len(answers),
        "kept": [all(row.values()) for row in kept],
        "share": mean([all(row.values()) for row in kept]),
        "rules_kept": mean(rules),
        "rules_low": low,
        "rules_high": high,
        "words": mean([len(text.split()) for text in texts]),
        "cut": mean([answer.finish == "length" for answer in answers]),
        "beside": {
            "markdown": mean([re.search(r"\*\*|^\s*([-*#]|\d+\.) ", text, re.MULTILINE) is not None for text in texts]),
            **{word: mean([word.lower() in text.lower() for text in texts]) for word in tone},
        },
    }


def _key(cell: Cell, run: RunContext, pairs: Sequence[Pair]) -> str:
    recipe = run.recipe
    files = ("evals/prompts.jsonl", "evals/general.jsonl", *([RETAINED] if cell.weight else []))
    parts = [
        cell._asdict(),
        recipe.train.model_dump(exclude=NO_MATTER),
        recipe.retain.model_dump(include={"per_step"}) if recipe.retain and cell.weight else None,
        recipe.eval.model_dump(),
        recipe.seed,
        _grid(run).tone,
        run.model_fingerprint,
        run.style.model_dump(mode="json"),
        list(map(pair_to_row, pairs)),
        [hashlib.sha256(run.path(name).read_bytes()).hexdigest() for name in files if run.path(name).is_file()],
    ]
    if code := code_of(run.style):
        parts.append(code)
    if _grid(run).checkpoints > 1:
        parts.append(_grid(run).checkpoints)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _same_key(cell: Cell, run: RunContext, pairs: Sequence[Pair], folder: Path) -> bool:
    file = folder / "key"
    return file.is_file() and file.read_text(encoding="utf-8") == _key(cell, run, pairs)
