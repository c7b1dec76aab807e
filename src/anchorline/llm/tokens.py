"""A model's tokens without the model: its tokenizer.json through the tokenizers library, so that torch is not needed.

>>> tokenize_with("embedded:smollm2-135m-instruct")("Hello")  # doctest: +SKIP
[19556]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from anchorline.llm.models import resolve

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenize_with(model: str) -> Callable[[str], Sequence[int]] | None:
    """A function from a text to the model's token ids, or None where the model has no tokenizer.json."""
    tokenizer = _tokenizer(model)
    return None if tokenizer is None else lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def tokenize_many_with(model: str) -> Callable[[Sequence[str]], list[Sequence[int]]] | None:
    """As `tokenize_with`, for many texts at a time: on all cores, and without Python's lock."""
    tokenizer = _tokenizer(model)
    if tokenizer is None:
        return None
    return lambda texts: [found.ids for found in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _tokenizer(model: str) -> Tokenizer | None:
    from tokenizers import Tokenizer

    file = resolve(model) / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(file))
    # the file may say how its model's batches are made; a text is counted as it is
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
