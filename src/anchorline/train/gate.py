"""The gate before the first step: a run that would not start at reward 0, or would train nothing, does not start.

    something trains              at least one parameter has a gradient
    the policy is the reference   fresh adapters change nothing: |r| < 1e-3, computed beside one another
    the file is the reference's   kept log-probs, computed again on a sample, are the same

>>> check_start(policy, examples, reference, settings, place, pad=0).parameters  # doctest: +SKIP
4884480
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from anchorline.errors import TrainingError
from anchorline.train.config import TrainSettings
from anchorline.train.forward import example_logps, rounds_to_half
from anchorline.train.reference import HALF_NATS, HALF_SHARE
from anchorline.train.tokenise import Example, response_key

LARGEST_REWARD = 1e-3
SAMPLE = 4
"""Examples that are computed again."""


class Start(NamedTuple):
    """What the gate saw."""

    parameters: int
    """Numbers that train."""
    all_parameters: int
    largest_reward: float
    """|r| of the policy against the reference in the same row; 0 is exact."""
    reference_error: float
    """The most that a kept log-prob of the sample is off, in nats."""
    sample: int
    """Answers that were computed again."""


def check_start(
    policy: Any,
    examples: Sequence[Example],
    reference: Mapping[str, float],
    settings: TrainSettings,
    place: Path,
    *,
    pad: int,
) -> Start:
    """Compute a sample of the examples with the policy as it starts; call it under the arithmetic of training.

    `place` is where the reference's log-probs are kept.

    Raises:
        TrainingError: nothing trains, a reward is not 0, or the kept log-probs are not this model's.

    """
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    if not trained:
        raise TrainingError("no parameter of the policy trains; look at train.lora (target, last_layers)")
    sample = spread(examples, SAMPLE)
    with torch.no_grad(), _in_eval(policy):
        ours = example_logps(policy, sample, packed=settings.forward == "packed", pad=pad)
        theirs = ours
        if hasattr(policy, "disable_adapter"):
            with policy.disable_adapter():
                theirs = example_logps(policy, sample, packed=settings.forward == "packed", pad=pad)
    reward = float(settings.beta * (ours - theirs).abs().max())
    if not reward < LARGEST_REWARD:
        raise TrainingError(
            f"the policy is not the reference before the first step: a reward is {reward:.3g} where 0 was expected "
            f"(within {LARGEST_REWARD:g}); an adapter must start without effect"
        )
    keys = [response_key(e.prompt, response) for e in sample for response in e.responses]
    kept = theirs.new_tensor([reference[key] for key in keys])
    error = (theirs - kept).abs()
    allowed = (theirs.abs() * 1e-5).clamp(min=min(1e-3 / settings.beta, 1e-2))
    if rounds_to_half(policy):
        allowed = theirs.abs() * HALF_SHARE + HALF_NATS
    if not bool((error <= allowed).all()):
        worst = int((error - allowed).nan_to_num(torch.inf).argmax())
        owner = [e.id for e in sample for _ in e.responses][worst]
        raise TrainingError(
            f"the kept reference log-probs are not this model's: row {owner} has {float(kept[worst]):.3f}, computed again "
            f"{float(theirs[worst]):.3f}; delete {place} and start again"
        )
    whole = sum(p.numel() for p in policy.parameters())
    return Start(trained, whole, reward, float(error.max()), len(keys))


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` of the examples, evenly over their order."""
    if len(examples) <= count:
        return list(examples)
    return [examples[k * (len(examples) - 1) // (count - 1)] for k in range(count)]


@contextmanager
def _in_eval(model: Any) -> Any:
    """Without dropout inside, as it was after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
