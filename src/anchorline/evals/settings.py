"""The settings of evaluation, as a recipe names them.

>>> EvalSettings().temperature
0.0
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from anchorline.llm.device import MeasuringDtype
from anchorline.llm.settings import EndpointSettings


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
    dtype: MeasuringDtype = "auto"
    """`auto`: float32 on a CPU, whose answers do not hang on how prompts are batched; on a GPU as in training. `fast`: as
    `train.dtype: auto` finds it."""


class EvaluationSettings(BaseModel):
    """One evaluation of a model outside a run: what is asked, of whom, and who judges."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str
    """What is evaluated: embedded:smollm2-135m-instruct, a hub id, a folder with a model or an adapter."""
    against: str | None = None
    """The model to compare it with; an adapter's base unless given."""
    tasks: tuple[str, ...] = Field(default=("style",), min_length=1)
    """The names of evaluations."""
    prompts: tuple[str, ...] = ()
    """Files of prompts (style, winrate; drift, where `general` names none)."""
    general: tuple[str, ...] = ()
    """Files of prompts that have nothing to do with the style (drift)."""
    style: str | None = None
    """The style's YAML file (style; winrate with the style as judge, or in a model's rubric)."""
    trust_code: bool = False
    """Let the style's rules of kind `python` run."""
    pairs: str | None = None
    """Held-out pairs (preference)."""
    answers: str | None = None
    """Given answers to the prompts, in the place of the other model's (winrate)."""
    data: str | None = None
    """The folder of MixEval-Hard's files."""
    parser: Literal["rules", "judge"] = "rules"
    """What reads MixEval-Hard's answers."""
    lm_tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness."""
    lm_include: str | None = None
    """A folder with task files of one's own for it."""
    judge: EndpointSettings | None = None
    """The model that judges; None: the style's checks."""
    limit: int | None = Field(default=None, ge=1)
    """Use only this many prompts of each file, pairs and items of each kind, the first ones."""
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """Nats of log-prob become rewards by this factor (preference)."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of sampling, bootstrap and lots."""
    eval: EvalSettings = EvalSettings()
    """How the models are asked."""
