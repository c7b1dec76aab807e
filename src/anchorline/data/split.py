"""Training and held-out prompts that share no prompt, however the file is ordered.

Two prompts are the same here when their conversations differ only in case, whitespace or Unicode form.

>>> from anchorline.types import Message
>>> ask = lambda id, text: Prompt(id, (Message("user", text),))
>>> parts = split([ask("1", "Where is it?"), ask("2", "where  is IT?"), ask("3", "Thanks")], heldout=0.5)
>>> sorted(len(side) for side in parts)
[1, 2]
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from anchorline.errors import DataError
from anchorline.types import Prompt


class Split(NamedTuple):
    """Both sides keep the order of the rows they came from."""

    train: list[Prompt]
    heldout: list[Prompt]


class Kept(NamedTuple):
    """What `drop_overlap` left of the training prompts, and what it took away."""

    train: list[Prompt]
    dropped: list[Prompt]


def split(
    prompts: Sequence[Prompt], *, heldout: float, seed: int = 0, file: str | None = None, field: str = "heldout"
) -> Split:
    """Hold out a share of the *distinct* prompts, at least one; all copies of a prompt land on the same side.

    Which prompts are held out depends on their texts and on `seed`, not on ids or order. `file` and
    `field`, the setting of the share, are for the message of the DataError.
    """
    if not 0 < heldout < 1:
        raise DataError(f"is {heldout}, expected a share between 0 and 1", field=field)
    keys = [_key(prompt) for prompt in prompts]
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest())
    if len(ranked) < 2:
        raise DataError(
            f"{len(prompts)} rows hold {len(ranked)} distinct prompts, expected at least 2, as some are held out for "
            "evaluation; give more",
            file=file,
            field=field,
        )
    held = set(ranked[: min(max(round(heldout * len(ranked)), 1), len(ranked) - 1)])
    rows = list(zip(keys, prompts, strict=True))
    return Split([p for key, p in rows if key not in held], [p for key, p in rows if key in held])


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Of each prompt the first copy."""
    return list({_key(prompt): prompt for prompt in reversed(prompts)}.values())[::-1]


def drop_overlap(train: Sequence[Prompt], heldout: Sequence[Prompt], *, system: bool = True) -> Kept:
    """Take from the training prompts those that are also held out; DataError if none would be left.

    Without `system` two prompts are also the same where only their system messages differ, or one has none.
    """
    held = {_key(prompt, system=system) for prompt in heldout}
    kept = Kept([], [])
    for prompt in train:
        (kept.dropped if _key(prompt, system=system) in held else kept.train).append(prompt)
    if not kept.train:
        raise DataError(f"all {len(train)} training prompts are also held out, expected at least one that is not")
    return kept


def _key(prompt: Prompt, *, system: bool = True) -> str:
    return json.dumps([[m.role, _normal(m.content)] for m in prompt.messages if system or m.role != "system"])


def _normal(text: str) -> str:
    # Folding can undo a normal form and the other way round (U+0345), so both are applied until nothing moves.
    folded = text
    while (again := unicodedata.normalize("NFKC", folded).casefold()) != folded:
        folded = again
    return " ".join(folded.split())
