"""How many tokens a text may have, without the model's tokenizer: a guess that errs on the high side.

English has about four and a half bytes a token, Chinese three: a token for three bytes is more than most texts need.

>>> guess_tokens("Where is my order?")
7
"""

from __future__ import annotations

from anchorline.llm.types import Reply, Request

PER_TURN = 8
"""Tokens that a chat template puts around a turn."""


def guess_tokens(text: str) -> int:
    """The tokens of a text."""
    return len(text.encode()) // 3 + 1


def guess_prompt_tokens(request: Request) -> int:
    """The tokens of a request's messages."""
    return sum(guess_tokens(m.content) + PER_TURN for m in request.messages)


def used_tokens(request: Request, reply: Reply) -> tuple[int, int, bool]:
    """Prompt and reply tokens, and whether one of them had to be guessed because the endpoint did not tell."""
    prompt, completion = reply.prompt_tokens, reply.completion_tokens
    return (
        guess_prompt_tokens(request) if prompt is None else prompt,
        guess_tokens(reply.text) if completion is None else completion,
        prompt is None or completion is None,
    )
