r"""A conversation as the text of a model's chat template, the same for sampling, asking and training.

A template without a place for a system message (Gemma's first ones) refuses one: it then opens the first user turn.

>>> chat_text(tokenizer, (Message("user", "Hi"),), to_answer=True)  # doctest: +SKIP
'<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
"""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from anchorline.errors import ModelError
from anchorline.types import Message, Messages


def chat_text(tokenizer: Any, messages: Messages, *, to_answer: bool) -> str:
    """The conversation's text; with `to_answer` up to where the assistant starts.

    Raises:
        ModelError: the template refuses the conversation, also with the system message in the user's turn.

    """
    try:
        return _render(tokenizer, messages, to_answer)
    except TemplateError as error:
        if [m.role for m in messages[:2]] != ["system", "user"]:
            raise _refused(messages, error) from error
    system, first, *rest = messages
    merged = (Message("user", f"{system.content}\n\n{first.content}"), *rest)
    try:
        return _render(tokenizer, merged, to_answer)
    except TemplateError as error:
        raise _refused(messages, error) from error


def _render(tokenizer: Any, messages: Messages, to_answer: bool) -> str:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=to_answer, tokenize=False)


def _refused(messages: Messages, error: TemplateError) -> ModelError:
    roles = ", ".join(m.role for m in messages)
    said = " ".join(str(error).split())[:200]
    return ModelError(
        f"the model's chat template refuses a conversation with the turns {roles} ({said}); change the conversation, or take "
        "a model whose template takes it"
    )
