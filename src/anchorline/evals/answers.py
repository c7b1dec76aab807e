"""A model's answers to many prompts in one file, batch by batch, so that what is answered is never answered again.

>>> answer_all(Path("after.jsonl"), loaded, prompts, SampleSettings(temperature=0), seed=0)  # doctest: +SKIP
[Answer(id='a1', ...), ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anchorline.data import answer_from_row, answer_to_row, append_jsonl, read_appended, read_jsonl, write_jsonl
from anchorline.llm.types import SampleSettings
from anchorline.progress import SILENT, Progress
from anchorline.types import Answer, Prompt

if TYPE_CHECKING:
    from anchorline.llm.models import Loaded


def answer_all(
    file: Path,
    loaded: Loaded,
    prompts: Sequence[Prompt],
    settings: SampleSettings,
    *,
    seed: int,
    progress: Progress = SILENT,
) -> list[Answer]:
    """Answer the prompts into `file`, keeping every finished batch in `file`.partial until all are there.

    A file that is there already was finished before, with the same prompts and settings: its name, or its stage, says so.
    """
    from anchorline.llm.hf_local import answer_batches
    from anchorline.train.answering import answering

    partial = file.with_name(file.name + ".partial")
    if file.is_file():
        partial.unlink(missing_ok=True)
        return [answer_from_row(row) for _, row in read_jsonl(file)]
    partial.parent.mkdir(parents=True, exist_ok=True)
    done = {row["id"]: answer_from_row(row) for _, row in read_appended(partial).rows}
    with progress.task(f"answers: {file.stem}", total=len(prompts), unit="answers") as advance, answering(loaded):
        advance(len(done))
        for batch in answer_batches(loaded, prompts, settings, seed=seed, done=done.keys()):
            append_jsonl(partial, [answer_to_row(answer) for answer in batch])
            done |= {answer.id: answer for answer in batch}
            advance(len(batch))
    answers = [done[prompt.id] for prompt in prompts]
    write_jsonl(file, [answer_to_row(answer) for answer in answers])
    partial.unlink(missing_ok=True)
    return answers
