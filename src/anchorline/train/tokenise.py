"""From conversations to token ids, with the checks that keep training and use in step.

A response is what the chat template adds to the prompt when the assistant's turn follows, up to and with the end-of-turn
token. A row is refused, with its reason, where the prompt's tokens are not the start of the whole conversation's, where
the end-of-turn token is not there exactly once, or where the template makes another text of the answer.

>>> example = pair_example(pair, template)  # doctest: +SKIP
>>> len(example.prompt), [len(r) for r in example.responses]  # doctest: +SKIP
(31, [64, 92])
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from anchorline.errors import DataError, ModelError
from anchorline.llm.chat import chat_text
from anchorline.objectives.names import DESCRIPTIONS
from anchorline.types import Failure, Message, Messages, Pair, Unpaired


class Template(NamedTuple):
    """A tokenizer with its chat template, and the ids at which the model ends its turn."""

    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt's tokens and one or more responses to it: (chosen, rejected) of a pair, or one labelled answer.

    `labels` says of each response whether it is wanted; None marks a response that only estimates kto's reference point.
    """

    id: str
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    labels: tuple[bool | None, ...]
    objective: str | None = None
    """A pair's own objective, in the place of the settings'."""

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, once, and of all responses."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest response."""
        return len(self.prompt) + max(len(r) for r in self.responses)


class Tokenised(NamedTuple):
    """The rows that can be trained on, and those that cannot, with reasons."""

    examples: list[Example]
    failures: list[Failure]


class BoundaryError(ValueError):
    """A conversation whose tokens cannot be trained on."""


def encode(prompt: Messages, response: str, template: Template) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the prompt (up to where the assistant starts) and of the response (end of turn included).

    Raises:
        BoundaryError: they would not be the tokens of the whole conversation, the turn does not end exactly once, or the
            template changes the answer, or refuses the conversation.

    """
    tokenizer: Any = template.tokenizer
    try:
        start = chat_text(tokenizer, prompt, to_answer=True)
        whole = chat_text(tokenizer, (*prompt, Message("assistant", response)), to_answer=False)
    except ModelError as error:
        raise BoundaryError(str(error)) from error
    prompt_ids = tokenizer(start, add_special_tokens=False)["input_ids"]
    whole_ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    if whole_ids[: len(prompt_ids)] != prompt_ids:
        raise BoundaryError("the prompt's tokens are not the start of the whole conversation's tokens")
    response_ids = whole_ids[len(prompt_ids) :]
    ends = [i for i, token in enumerate(response_ids) if token in template.ends]
    if len(ends) != 1:
        raise BoundaryError(f"the end-of-turn token stands {len(ends)} times in the response, expected once")
    if ends[0] == 0:
        raise BoundaryError("the response has no tokens")
    # what the model would learn to write must be the answer; only the blank space around it is the template's affair
    written, _, _ = whole[len(start) :].partition(str(tokenizer.convert_ids_to_tokens(response_ids[ends[0]])))
    if written.strip() != response.strip():
        raise BoundaryError("the chat template puts text of its own into the response, or leaves out a part of it")
    return tuple(prompt_ids), tuple(response_ids[: ends[0] + 1])


def tokenise(
    rows: Sequence[Pair | Unpaired],
    template: Template,
    *,
    max_tokens: int,
    overlong: Literal["drop", "truncate", "error"],
) -> Tokenised:
    """Tokenise pairs or labelled answers.

    Raises:
        DataError: a row is longer than `max_tokens` and `overlong` is "error".

    """
    examples: list[Example] = []
    failures: list[Failure] = []
    for row in rows:
        responses = (row.chosen, row.rejected) if isinstance(row, Pair) else (row.completion,)
        labels = (True, False) if isinstance(row, Pair) else (row.label,)
        try:
            encoded = [encode(row.prompt, response, template) for response in responses]
        except BoundaryError as error:
            failures.append(Failure(row.id, "train", "boundary", str(error)))
            continue
        own = row.objective if isinstance(row, Pair) else None
        example = Example(row.id, encoded[0][0], tuple(response for _, response in encoded), labels, own)
        if example.longest > max_tokens:
            reason = f"{example.longest} tokens, the limit is {max_tokens} (train.max_tokens)"
            if overlong == "error":
                raise DataError(f"row {row.id}: {reason}; raise the limit, or set train.overlong to drop or truncate")
            cut = _truncated(example, max_tokens) if overlong == "truncate" else None
            if cut is None or _same_answers(cut):
                uncut = _why_uncut(example, cut, max_tokens) if overlong == "truncate" else ""
                failures.append(Failure(row.id, "train", "overlong", reason + uncut))
                continue
            example = cut
        examples.append(example)
    return Tokenised(examples, failures)


def _truncated(example: Example, max_tokens: int) -> Example | None:
    """All responses cut to what fits, or None where that would cut only some of them, or leave nothing."""
    room = max_tokens - len(example.prompt)
    if room < 1 or any(len(response) <= room for response in example.responses):
        return None
    return replace(example, responses=tuple(response[:room] for response in example.responses))


def _same_answers(cut: Example) -> bool:
    """Whether truncation has left a pair without the tokens in which its answers differ."""
    return len(set(cut.responses)) < len(cut.responses)


def _why_uncut(example: Example, cut: Example | None, max_tokens: int) -> str:
    if cut is not None:
        return ", and cut to it both answers are the same"
    full = len(example.prompt) >= max_tokens
    return ", and the prompt alone fills it" if full else ", and only one answer would be cut"


def needs_mismatched(examples: Sequence[Example], objective: Iterable[str]) -> bool:
    """Whether the settings' objective, or the own one of an example, asks for kto's reference point."""
    names = {*objective, *(e.objective for e in examples)}
    return any(name in names and described.needs_reference_point for name, described in DESCRIPTIONS.items())


def with_mismatched(examples: Sequence[Example], *, max_tokens: int) -> list[Example]:
    """Each example with a further response that belongs to another prompt: kto's reference point is estimated on it.

    It is the first one of the next example with another prompt (of the next one where all have the same), cut to what
    fits into `max_tokens` behind this prompt, at least one token.
    """
    count = len(examples)
    other = [(i + 1) % count for i in range(count)]
    several = len({e.prompt for e in examples}) > 1
    for i in reversed(range(2 * count if several else 0)):  # around twice: behind the last one the first follows
        here, following = i % count, (i + 1) % count
        if examples[following].prompt == examples[here].prompt:
            other[here] = other[following]
    borrowed = [examples[i].responses[0] for i in other]
    return [
        replace(e, responses=(*e.responses, new[: max(max_tokens - len(e.prompt), 1)]), labels=(*e.labels, None))
        for e, new in zip(examples, borrowed, strict=True)
    ]


def response_key(prompt: Sequence[int], response: Sequence[int]) -> str:
    """A short hash of a prompt with one response, under which its reference log-prob is kept."""
    text = ",".join(map(str, prompt)) + "|" + ",".join(map(str, response))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
