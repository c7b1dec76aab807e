"""Answers from a model in this process: batched, seeded, sorted by length, and the same after a restart.

Batches are planned from the whole list of prompts, so a run that was killed and continues writes the very answers that
it would have written. A row that has ended leaves its batch, so nobody computes for it any more. What a batch's prompts
begin with in common is read once, and so is a prompt that is in it several times.

>>> for batch in answer_batches(loaded, prompts, SampleSettings(), seed=0):  # doctest: +SKIP
...     print(len(batch), batch[0].text)
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch

from anchorline.llm.cache_room import can_repeat, roomy_cache
from anchorline.llm.chat import chat_text
from anchorline.llm.models import Loaded, end_of_turn
from anchorline.llm.types import SampleSettings
from anchorline.types import Answer, Messages, Prompt

SHRINK_BELOW = 0.8
"""A batch is cut down to its unfinished rows when this share or less of it is unfinished."""
ENDLESS = 1 << 31
"""Positions of a model that names no number of them, or none that could ever be filled."""
ROOM = 512
"""Tokens by which the key/value cache grows: a high token limit must not take memory that no answer needs."""


def answer_batches(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    settings: SampleSettings,
    *,
    seed: int,
    done: Collection[str] = (),
) -> Iterator[list[Answer]]:
    """Answer every prompt whose id is not in `done`, a batch at a time, longest prompts first.

    A batch of which only a part is in `done` is answered again as a whole, and only the missing part is given out. The
    answer to a prompt that fills the model's window is empty, and cut.
    """
    rows = [prompt_tokens(loaded, prompt) for prompt in prompts]
    first = {tuple(row): i for i, row in reversed(list(enumerate(rows)))}
    # samples of one prompt lie together, so that a batch reads it once
    order = sorted(range(len(prompts)), key=lambda i: (-len(rows[i]), first[tuple(rows[i])], i))
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        if all(prompts[i].id in done for i in batch):
            continue
        # the seed belongs to the batch's place, so that a batch does not depend on those before it
        digest = hashlib.sha256(f"{seed}:{start}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        # drawn for every row and step before the first, so that a row's luck does not depend on who else is still open
        luck = torch.rand(len(batch), settings.max_new_tokens, generator=generator)
        fitting = [n for n, i in enumerate(batch) if len(rows[i]) < window_of(loaded)]
        answers: list[list[int]] = [[] for _ in batch]
        if fitting:
            decoded = _decode(loaded, [rows[batch[n]] for n in fitting], settings, luck[fitting])
            for n, tokens in zip(fitting, decoded, strict=True):
                answers[n] = tokens
        ends = end_of_turn(loaded)
        yield [
            _answer(loaded, prompts[i], tokens, ends)
            for i, tokens in zip(batch, answers, strict=True)
            if prompts[i].id not in done
        ]


def prompt_tokens(loaded: Loaded, prompt: Prompt) -> list[int]:
    """The prompt under the model's chat template, up to where the assistant starts."""
    return message_tokens(loaded, prompt.messages)


def message_tokens(loaded: Loaded, messages: Messages) -> list[int]:
    """A conversation's tokens, as for `prompt_tokens`."""
    tokenizer: Any = loaded.tokenizer
    text = chat_text(tokenizer, messages, to_answer=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def window_of(loaded: Loaded) -> int:
    """How many tokens, a prompt and its answer together, the model has positions for."""
    return min(getattr(loaded.model.config, "max_position_embeddings", None) or ENDLESS, ENDLESS)


def _answer(loaded: Loaded, prompt: Prompt, tokens: list[int], ends: frozenset[int]) -> Answer:
    text, ended = _text(loaded, tokens, ends)
    return Answer(prompt.id, prompt.messages, text, "stop" if ended else "length")


def _text(loaded: Loaded, tokens: list[int], ends: frozenset[int]) -> tuple[str, bool]:
    """The text of new tokens, and whether they end where the model ended."""
    ended = bool(tokens) and tokens[-1] in ends
    text = loaded.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip(), ended


def reply_batch(
    loaded: Loaded, rows: list[list[int]], settings: SampleSettings, seeds: Sequence[int]
) -> list[tuple[str, bool, int]]:
    """Answer rows of prompt tokens together, each with luck of its own seed: text, whether it ended, and its tokens."""
    luck = torch.stack(
        [torch.rand(settings.max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    ends = end_of_turn(loaded)
    replies = []
    for tokens in _decode(loaded, rows, settings, luck):
        text, ended = _text(loaded, tokens, ends)
        replies.append((text, ended, len(tokens)))
    return replies


@torch.inference_mode()
def _decode(loaded: Loaded, rows: list[list[int]], settings: SampleSettings, luck: torch.Tensor) -> list[list[int]]:
    """The new tokens of each row, the end-of-turn token included where one came. `luck` [rows, steps] lies in [0, 1).

    A row ends where the model has no more positions for it.
    Letters: B rows still open, T tokens so far, V vocabulary.
    """
    model, device = loaded.model, loaded.model.device
    ends = torch.tensor(sorted(end_of_turn(loaded)), device=device)
    cache = roomy_cache(model.config, room=min(settings.max_new_tokens, ROOM))
    # rows that are the same are read once
    kinds, kind_of = _kinds(rows) if can_repeat(cache) else (rows, [])
    shared = _shared_opening(kinds) if can_repeat(cache) else 0
    if shared:  # what all prompts begin with (the template, a system message) is computed once
        opening = torch.tensor([kinds[0][:shared]], device=device)
        model(input_ids=opening, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(kinds))
    own = [row[shared:] for row in kinds]
    width = max(len(row) for row in own)
    pad = loaded.tokenizer.pad_token_id
    tokens_BT = torch.tensor([[pad] * (width - len(row)) + row for row in own], device=device)
    mask_BT = torch.tensor([[1] * shared + [0] * (width - len(row)) + [1] * len(row) for row in own], device=device)
    luck = luck.to(device)
    window = window_of(loaded)
    room = torch.tensor([window - len(row) for row in rows], device=device)
    answers: list[list[int]] = [[] for _ in rows]
    open_rows = torch.arange(len(rows), device=device)
    finished = torch.zeros(len(rows), dtype=torch.bool, device=device)

    for step in range(settings.max_new_tokens):
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0, max=window - 1)[:, -tokens_BT.shape[1] :]
        logits_BV = model(
            input_ids=tokens_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if step == 0 and len(kinds) < len(rows):
            which = torch.tensor(kind_of, device=device)
            cache.batch_select_indices(which)
            logits_BV, mask_BT = logits_BV[which], mask_BT[which]
        chosen_B = _pick(logits_BV.float(), settings, luck[open_rows, step])
        for row, token, over in zip(open_rows.tolist(), chosen_B.tolist(), finished.tolist(), strict=True):
            if not over:
                answers[row].append(token)
        finished = finished | torch.isin(chosen_B, ends) | (room[open_rows] <= step + 1)
        if bool(finished.all()):
            break
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(open_rows), 1)], dim=1)
        if int((~finished).sum()) <= SHRINK_BELOW * len(open_rows):
            keep = (~finished).nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            open_rows, chosen_B, mask_BT, finished = open_rows[keep], chosen_B[keep], mask_BT[keep], finished[keep]
        tokens_BT = chosen_B[:, None]
    return answers


def _kinds(rows: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The rows without repetition, and of each row its place among them.

    >>> _kinds([[1, 2], [3], [1, 2]])
    ([[1, 2], [3]], [0, 1, 0])
    """
    places: dict[tuple[int, ...], int] = {}
    kind_of = [places.setdefault(tuple(row), len(places)) for row in rows]
    return [list(kind) for kind in places], kind_of


def _shared_opening(rows: list[list[int]]) -> int:
    """How many tokens all rows begin with; each row keeps at least one of its own. 0 where there is nobody to share."""
    if len(rows) == 1:
        return 0
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    return min(sum(1 for _ in same), min(map(len, rows)) - 1)


def _pick(logits_BV: torch.Tensor, settings: SampleSettings, luck_B: torch.Tensor) -> torch.Tensor:
    """One token a row: the likeliest at temperature 0, else where the row's luck falls in the distribution."""
    if settings.temperature == 0:
        return logits_BV.argmax(-1)
    probs_BV = (logits_BV / settings.temperature).softmax(-1)
    if settings.top_p < 1:
        sorted_BV, order_BV = probs_BV.sort(-1, descending=True)
        # a token stays while those before it have not reached top_p together
        sorted_BV = sorted_BV * ((sorted_BV.cumsum(-1) - sorted_BV) < settings.top_p)
        probs_BV = torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV)
    sums_BV = probs_BV.double().cumsum(-1)
    return torch.searchsorted(sums_BV, (luck_B.double() * sums_BV[:, -1])[:, None], right=True).squeeze(-1)
