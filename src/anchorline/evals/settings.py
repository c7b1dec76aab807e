"""The settings of evaluation, as a recipe names them.

>>> EvalSettings().temperature
0.0
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from anchorline.llm.device import DtypeName


class EvalSettings(BaseModel):
    """How the model is asked before and after training: the same way both times."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=256, ge=1, le=32768)
    """Where a held-out answer is cut."""
    temperature: float = Field(default=0.0, ge=0.0, le=5.0)
    """0 takes the most likely token each time, so that before and after differ by the training alone."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Answers written at the same time."""
    general_tokens: int = Field(default=64, ge=1, le=4096)
    """Tokens of the reference's answer to each general prompt, along which drift is measured."""
    dtype: DtypeName = "auto"
    """`auto`: float32 on a CPU, whose answers do not hang on how prompts are batched; on a GPU as in training."""
