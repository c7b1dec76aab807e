"""How a model is asked: the settings of sampling, as a recipe names them.

>>> SampleSettings(temperature=0.0).max_new_tokens
256
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SampleSettings(BaseModel):
    """Sampling of one answer a prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=256, ge=1, le=32768)
    """Where an answer is cut; a cut answer is marked "length"."""
    temperature: float = Field(default=0.7, ge=0.0, le=5.0)
    """0 takes the most likely token each time. The paper samples at 0.7."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """The smallest set of tokens with at least this probability is sampled from."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Answers written at the same time."""
