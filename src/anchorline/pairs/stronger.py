"""Stronger-preferred pairs: (rejected, chosen) = (the policy's answer, a stronger model's own answer to the prompt).

>>> import asyncio
>>> from anchorline.llm.fake import FakeEndpoint
>>> from anchorline.types import Message
>>> answer = Answer("a1", (Message("user", "When did it leave?"),), "Dunno.", "stop")
>>> asyncio.run(stronger(answer, model=FakeEndpoint("On Monday."), policy="m")).chosen
'On Monday.'
"""

from __future__ import annotations

from dataclasses import replace

from anchorline.errors import EndpointError
from anchorline.judge import Judge, Sampling
from anchorline.judge.thinking import said_alone
from anchorline.llm.types import Endpoint, Reply
from anchorline.pairs.phrases import is_refusal
from anchorline.pairs.verify import STAGE, verified
from anchorline.types import Answer, Failure, Pair, Provenance


async def stronger(
    answer: Answer,
    *,
    model: Endpoint,
    policy: str,
    sampling: Sampling | None = None,
    verify: Judge | None = None,
) -> Pair | Failure:
    """The pair of one prompt.

    Failure kinds: `empty_answer` (the policy's is), `truncated`, `filtered`, `empty`, `identical`, `refused`, the kind of
    the endpoint's error, and those of `verify`.
    """
    answer = replace(answer, text=said_alone(answer.text))  # as the stronger model's
    if not answer.text.strip():
        return Failure(answer.id, STAGE, "empty_answer", "the model's answer is empty")
    request = (sampling or Sampling()).request(answer.prompt, row=answer.id, stage="stronger")
    try:
        reply = await model.complete(request)
        text = said_alone(reply.text).strip()
        details = {"answer": answer.text, "stronger": reply.text, "finish": reply.finish}
        wrong = _wrong(answer, reply, text)
        if wrong is not None:
            kind, reason = wrong
            return Failure(answer.id, STAGE, kind, f"{model.model}: {reason}", details)
        notes = {"stronger": model.model, "finish": answer.finish}
        origin = Provenance("stronger", policy, model.model, notes)
        pair = Pair(answer.id, answer.prompt, text, answer.text, origin)
        return pair if verify is None else await verified(pair, verify)
    except EndpointError as error:
        return Failure(answer.id, STAGE, error.kind, str(error), {"answer": answer.text})


def _wrong(answer: Answer, reply: Reply, text: str) -> tuple[str, str] | None:
    """The kind and the reason of a reply that nobody should learn from."""
    if reply.finish == "length":
        return "truncated", "the answer was cut at the token limit; raise max_tokens"
    if reply.finish == "filter":
        return "filtered", "the endpoint withheld the answer"
    if not text:
        return "empty", "the answer is empty"
    if text.split() == answer.text.split():
        return "identical", "the answer is the policy's own"
    if reply.finish == "refusal" or is_refusal(text, answer.text):
        return "refused", "the answer declines, the policy's does not"
    return None
