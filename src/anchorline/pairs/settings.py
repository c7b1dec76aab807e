"""The settings of making pairs, as a recipe names them.

>>> PairSettings().reviser
'rules'
>>> PairSettings().gates.attempts
2
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Maker = Literal["clair", "on_policy", "off_policy", "stronger"]
MAKERS: tuple[Maker, ...] = get_args(Maker)


class GateSettings(BaseModel):
    """What a model's revision has to pass. The defaults let ten published GPT-4 revisions of the paper's pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: int = Field(default=2, ge=1, le=10)
    """How often a row is asked for at most: a revision that cannot be used is asked for again with the reason."""
    max_change: float = Field(default=0.9, gt=0, le=1)
    """The most of an answer that may change: character Levenshtein distance as a share of the longer text. Below 1, a text
    that keeps nearly none of the answer's longer words is refused too."""
    min_length_ratio: float = Field(default=0.2, ge=0, le=1)
    """The fewest words of a revision for each word of the answer; short answers have 30 words of leeway."""
    max_length_ratio: float = Field(default=4.0, ge=1)
    """The most words of a revision for each word of the answer; short answers have 30 words of leeway."""
    language: bool = True
    """Refuse a revision in another language than the answer's, where both are long enough to tell."""
    leak: bool = True
    """Refuse a revision that repeats eight words of the instructions in a row, or one of their markers."""
    rules: bool = True
    """Refuse a revision that breaks a rule of the style."""


class PairSettings(BaseModel):
    """Which maker makes the pairs, or which file holds them already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    maker: Maker = "clair"
    """clair: the policy's own answer and its minimal revision. on_policy: the worse and the better of the policy's
    samples. off_policy: the worse and the better of other models' answers. stronger: the policy's answer and a stronger
    model's."""
    reviser: Literal["rules", "llm"] = "rules"
    """rules: the style's own minimal repairs. llm: a model that reads the style's guideline and rules."""
    judge: Literal["style", "llm"] = "style"
    """What on_policy and off_policy judge with. style: the style's checks. llm: a model that reads the style."""
    judge_mode: Literal["pairwise", "score"] = "pairwise"
    """pairwise: the model compares two answers, in both orders. score: it rates each answer alone, from 1 to 10."""
    judge_samples: int = Field(default=1, ge=1, le=100)
    """With judge_mode score: replies a score is the mean of."""
    samples: int = Field(default=2, ge=2, le=64)
    """on_policy: answers of the policy to each prompt. The paper judges two."""
    prompt: str | None = None
    """The reviser's prompt template, a text file of your own."""
    judge_prompt: str | None = None
    """The judge's prompt template, a text file of your own."""
    gates: GateSettings = GateSettings()
    verify: Literal["none", "style", "llm"] = "none"
    """What must prefer the chosen answer of clair and stronger: nothing, the style's checks, or the judge model."""
    engine: Literal["local", "ray"] = "local"
    """Where makers that ask models run. local: in this process. ray: over workers of a Ray cluster."""
    workers: int | None = Field(default=None, ge=1, le=10_000)
    """With engine ray: how many workers; null: one for each core of the cluster (or GPU, for models that run in them)."""
    answers: str | None = None
    """Answers to make pairs of instead of sampling them: a file or hub id of rows with a prompt and a `text`, or for
    on_policy and off_policy with several `completions`."""
    file: str | None = None
    """Pairs (or single labelled answers) to train on instead of making them: a file or a hub id."""
    heldout: float = Field(default=0.1, gt=0, lt=1)
    """With `file`: the share of its prompts that is held out for evaluation."""
