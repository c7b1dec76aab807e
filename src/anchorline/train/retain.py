"""Behaviour that is to stay: the reference's own answers, as examples that the trainer holds the policy to.

>>> kept = Retained(answers, RetainSettings(prompts="prompts/unstyled.jsonl", weight=1.0))  # doctest: +SKIP
>>> train(pairs, model, settings, folder, retain=kept)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anchorline.objectives.retain import kept_terms
from anchorline.train.config import RetainSettings
from anchorline.train.tokenise import BoundaryError, Example, Template, Tokenised, encode, response_key
from anchorline.types import Answer, Failure


class Retained(NamedTuple):
    """What is to stay: answers that the reference itself has drawn at temperature 1, and how hard they are held."""

    answers: Sequence[Answer]
    settings: RetainSettings


def own_answer(answer: Answer, template: Template) -> Example:
    """The tokens of a model's own answer: of a cut one without the end of turn, which the model has not written.

    Raises:
        BoundaryError: its tokens cannot be told from the prompt's, or it has none.

    """
    prompt, response = encode(answer.prompt, answer.text, template)
    response = response[:-1] if answer.finish == "length" else response
    if not response:
        raise BoundaryError("the response has no tokens")
    return Example(answer.id, prompt, (response,), (None,))


def tokenise_retained(answers: Sequence[Answer], template: Template, *, max_tokens: int) -> Tokenised:
    """The answers as examples; an over-long one is dropped, whatever becomes of over-long pairs."""
    examples: list[Example] = []
    failures: list[Failure] = []
    for answer in answers:
        try:
            example = own_answer(answer, template)
        except BoundaryError as error:
            failures.append(Failure(answer.id, "train", "boundary", str(error)))
            continue
        if example.longest > max_tokens:
            reason = f"{example.longest} tokens, the limit is {max_tokens} (train.max_tokens)"
            failures.append(Failure(answer.id, "train", "overlong", reason))
            continue
        examples.append(example)
    return Tokenised(examples, failures)


def retain_kl(
    tokens: Sequence[Float[Tensor, " tokens"]], examples: Sequence[Example], reference: Mapping[str, np.ndarray]
) -> Float[Tensor, " examples"]:
    """KL(reference ‖ policy) in nats a token, estimated along each example's answer.

    Args:
        tokens: the policy's log-prob of each answer's tokens.
        examples: one answer each.
        reference: the reference's log-probs of the same tokens, by `response_key`.

    """
    means = []
    for policy, example in zip(tokens, examples, strict=True):
        kept = torch.from_numpy(reference[response_key(example.prompt, example.responses[0])].copy())
        means.append(kept_terms(policy, kept.to(policy)).mean())
    return torch.stack(means)
