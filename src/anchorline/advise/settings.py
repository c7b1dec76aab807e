"""The settings of the advisor, as a recipe names them.

>>> AdviseSettings().prompts
100
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AdviseSettings(BaseModel):
    """How the policy's fresh answers are compared with the pairs' own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(default=100, ge=1, le=100_000)
    """Pairs, drawn at random, whose prompts the policy answers anew. Each costs four judgements of a model as judge."""
    judge: Literal["style", "llm"] = "style"
    """style: the style's checks. llm: the model `llm.judge`, asked in both orders."""
    level: float = Field(default=0.95, gt=0.5, lt=1)
    """Of the intervals of the two win rates."""
    experimental: bool = False
    """Let `objective: auto` and the pairs' own objectives take apo_up, which is ours and not the paper's."""
    hidden: bool = True
    """Run the policy over the sampled pairs and compare the hidden states of chosen and rejected."""
