"""The policy's answers from a server (vLLM, say): through the request cache, so that no prompt is asked twice.

>>> ask_policy(run, run.prompts("prompts.jsonl"), run.recipe.sample, "answers.jsonl")  # doctest: +SKIP
[]
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from anchorline.data import answer_to_row
from anchorline.judge import Sampling
from anchorline.judge.thinking import without_thinking
from anchorline.llm.types import Endpoint, SampleSettings
from anchorline.pairs import make
from anchorline.recipe.batching import Wrap, by_batches
from anchorline.recipe.context import RunContext
from anchorline.recipe.desk import open_desk
from anchorline.types import Answer, Failure, Prompt

STAGE, RESAMPLE = "sample", "resample"
SEED = 2**32
"""From the samples' numbers of one seed to the next seed's: more than there are samples and salts."""


def ask_policy(
    run: RunContext, prompts: list[Prompt], asked: SampleSettings, name: str, stage: str = STAGE, *, salt: int = 0
) -> list[Failure]:
    """Write the answers of the endpoint `llm.policy` into the file `name`; the rows without one.

    Samples are numbered from another number for each of the recipe's seeds, for seed 0 from 0. `salt` is added to each
    sample's index: with another one the cache knows no answer to the same prompts.
    """
    return asyncio.run(_ask_all(run, prompts, asked, name, stage, salt + SEED * run.recipe.seed))


async def _ask_all(
    run: RunContext, prompts: list[Prompt], asked: SampleSettings, name: str, stage: str, salt: int
) -> list[Failure]:
    served = run.need(run.recipe.llm.policy, "llm.policy")
    how = Sampling(asked.max_new_tokens, asked.temperature, asked.top_p)
    answers: list[Answer] = []
    failures: list[Failure] = []
    async with open_desk(run) as desk:
        with run.progress.task(
            f"answers: {name.removesuffix('.jsonl')}", total=len(prompts), unit="answers"
        ) as advance:

            def take(result: Answer | Failure) -> None:
                if isinstance(result, Failure):
                    failures.append(replace(result, stage=STAGE))
                else:
                    answers.append(result)
                advance(1)

            if run.calls.batch and not served.runs_here:

                async def build(wrap: Wrap) -> Callable[[Prompt], Awaitable[Answer | Failure]]:
                    noted = await wrap("policy")
                    return lambda prompt: _ask(prompt, noted, how, stage, salt)

                await by_batches(run, desk, prompts, build, on_result=take)
            else:
                policy = await desk.endpoint("policy")
                await make(prompts, lambda prompt: _ask(prompt, policy, how, stage, salt), on_result=take)
    run.write(name, answers, answer_to_row)
    return failures


async def _ask(prompt: Prompt, policy: Endpoint, how: Sampling, stage: str, salt: int) -> Answer | Failure:
    # there "p1#2" is the third sample of p1: the same messages, told apart by their index
    index = int(prompt.id.rpartition("#")[2]) if stage == RESAMPLE else 0
    request = how.request(prompt.messages, row=prompt.id, stage=stage, index=index + salt)
    reply = await policy.complete(request)
    if reply.finish == "filter":
        return Failure(prompt.id, STAGE, "filtered", "the endpoint withheld the answer")
    if reply.finish == "refusal":
        return Failure(prompt.id, STAGE, "refused", "the model declines to answer", {"reply": reply.text})
    text = without_thinking(reply.text).text.strip()
    if not text and reply.finish == "length":
        return Failure(prompt.id, STAGE, "truncated", "the answer was cut before its first word; raise the token limit")
    if not text:
        return Failure(prompt.id, STAGE, "empty", "the model's answer is empty")
    return Answer(prompt.id, prompt.messages, text, reply.finish)
