"""A model's tokens without the model: its tokenizer.json through the tokenizers library, so that torch is not needed.

>>> tokenize_with("embedded:smollm2-135m-instruct")("Hello")  # doctest: +SKIP
[19556]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from anchorline.llm.models import resolve


def tokenize_with(model: str) -> Callable[[str], Sequence[int]] | None:
    """A function from a text to the model's token ids, or None where the model has no tokenizer.json."""
    from tokenizers import Tokenizer

    file = resolve(model) / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids
