"""The settings of training, as a recipe names them. Imports no engine.

>>> TrainSettings(objective="apo_zero=1,sft=0.2").objective
{'apo_zero': 1.0, 'sft': 0.2}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from anchorline.llm.settings import holds_key
from anchorline.objectives.names import parse_objective

AUTO = {"auto": 1.0}
"""The objective that the advisor decides on before training: what stands in a recipe for it."""


def _objective(value: Any) -> dict[str, float]:
    return AUTO if value in ("auto", AUTO) else parse_objective(value)


class LoraSettings(BaseModel):
    """Low-rank adapters on the policy; the frozen weights under them are the reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """An adapter's output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """On the adapters' inputs. Above 0 the rewards at step 0 are still 0, but both branches see different noise."""
    target: str | list[str] = "all-linear"
    """The modules that get one: "all-linear", names such as [q_proj, v_proj], or a pattern of whole names."""
    last_layers: int | None = Field(default=None, ge=1)
    """Adapt only the last N layers: the backward ends at the first of them, so N of 2N save a quarter of the time."""

    @model_validator(mode="after")
    def _layers_of_named_modules(self) -> Self:
        if self.last_layers is not None and isinstance(self.target, str) and self.target != "all-linear":
            raise ValueError(
                f"target is the pattern {self.target!r}, but last_layers asks for all-linear or a list of names, "
                "such as [q_proj, v_proj]; or put the layers into the pattern"
            )
        return self


class RetainSettings(BaseModel):
    """Prompts whose answers are to stay as the reference gives them, beside any objective."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: str
    """The prompts: a file or a hub id. The reference answers each once, at temperature 1."""
    weight: float = Field(default=1.0, ge=0, le=1000)
    """The loss gains this times KL(reference ‖ policy) in nats a token, the mean over a step's answers; 0 does without."""
    per_step: int = Field(default=4, ge=1, le=65536)
    """Of these answers behind one optimizer step, on all processes together."""
    max_new_tokens: int = Field(default=64, ge=1, le=32768)
    """Where the reference's answer is cut."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Answers written at the same time."""


class TrainSettings(BaseModel):
    """One training run on pairs or on single labelled answers."""

    # a refused argument may be a key: it must not stand in the message
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    objective: Annotated[dict[str, float], BeforeValidator(_objective)] = {"apo_zero": 1.0}
    """A name, or names with weights: `{apo_zero: 1, sft: 0.2}`, `apo_zero=1,sft=0.2`. `auto`: the advisor decides."""
    beta: float = Field(default=0.1, gt=0, le=10)
    """How far the policy may go from the reference before a pair's gradient fades; the paper uses 0.1."""
    learning_rate: float = Field(default=2e-7, gt=0, le=1)
    """The paper trains all weights at 2e-7; LoRA wants a hundred to a thousand times as much."""
    epochs: float = Field(default=1.0, gt=0, le=1000)
    """Passes over the pairs."""
    pairs_per_step: int = Field(default=8, ge=1, le=65536)
    """Pairs behind one optimizer step, on all processes together."""
    tokens_per_row: int = Field(default=3072, ge=1)
    """Tokens packed into one row of one forward, a pair longer than that excepted; lower it when memory runs out."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0; the last step is not one of them."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    """How the learning rate goes after that."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them."""
    lora: LoraSettings | None = LoraSettings()
    """`null` trains all weights."""
    max_tokens: int = Field(default=2048, ge=8)
    """Longest prompt with answer."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """What becomes of a pair over `max_tokens`. Truncation cuts both answers or, where it would cut one only, drops."""
    forward: Literal["packed", "plain"] = "packed"
    """`plain` pads whole conversations: slower, for architectures that the packed forward refuses."""
    gradient_checkpointing: bool = False
    """Less memory, a third more arithmetic."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 where the hardware multiplies it clearly faster, else float32; measured at the start."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """kto: weight of wanted answers."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """kto: weight of unwanted answers."""
    save_steps: int = Field(default=10, ge=1)
    """Optimizer steps between checkpoints, from which a killed run continues."""
    reference_cache: str | None = None
    """A folder of the reference's log-probs, shared by runs; `null`: `reference` in anchorline's cache folder."""
    save_total_limit: int = Field(default=1, ge=1)
    """How many checkpoints are kept, the newest; a new one is whole before an old one goes."""
    arguments: dict[str, Any] = {}
    """Further arguments of transformers.TrainingArguments, such as `{eval_strategy: epoch, report_to: tensorboard}`."""
    profile_steps: int = Field(default=0, ge=0)
    """Steps after the first of which the share of time in matrix products is measured; each takes a little longer."""
    merge: bool = False
    """Also write `model/merged`, the adapter folded into the weights; not with one on a head that is the embedding, too."""

    @field_validator("arguments")
    @classmethod
    def _no_key(cls, value: dict[str, Any]) -> dict[str, Any]:
        keys = [name for name, inner in value.items() if holds_key(inner, name)]
        if keys:
            raise ValueError(
                f"{keys[0]} holds what looks like a key, and a recipe is kept in the run folder and shown in its report; "
                "leave it out, and put the key in the environment, where the Trainer and its loggers look for it "
                "(HF_TOKEN for the Hub)"
            )
        return value
