"""The policy on its way, saved to be evaluated: a training's own checkpoints are gone at its end.

>>> train(pairs, model, settings, folder, callbacks=[SavedAlong(folder / "along", parts=4, model=model)])  # doctest: +SKIP
>>> sorted(place.name for place in (folder / "along").iterdir())  # doctest: +SKIP
['step-10', 'step-20', 'step-30']
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from anchorline.llm.models import resolve
from anchorline.train.forward import plain_attention


class SavedAlong(TrainerCallback):
    """Saves the policy, with the tokenizer of `model`, after each of `parts` equal parts of the steps but the last."""

    def __init__(self, folder: Path, *, parts: int, model: str) -> None:
        self.folder, self.parts, self.model = folder, parts, model

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        del args, control
        ends = {math.ceil(state.max_steps * part / self.parts) for part in range(1, self.parts)}
        if state.global_step not in ends - {state.max_steps} or not state.is_world_process_zero:
            return
        target, scratch = self.folder / f"step-{state.global_step}", self.folder / ".writing"
        shutil.rmtree(scratch, ignore_errors=True)
        with plain_attention(model):
            model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(resolve(self.model)).save_pretrained(scratch)
        shutil.rmtree(target, ignore_errors=True)  # of a training that was killed and has come here again
        scratch.rename(target)
