"""The settings of making pairs, as a recipe names them.

>>> PairSettings().reviser
'rules'
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PairSettings(BaseModel):
    """Which maker makes the pairs, or which file holds them already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    maker: Literal["clair"] = "clair"
    """clair: the rejected answer is the policy's own, the chosen one its minimal revision."""
    reviser: Literal["rules"] = "rules"
    """rules: the style's own minimal repairs."""
    file: str | None = None
    """Pairs (or single labelled answers) to train on instead of making them: a file or a hub id."""
    heldout: float = Field(default=0.1, gt=0, lt=1)
    """With `file`: the share of its prompts that is held out for evaluation."""
