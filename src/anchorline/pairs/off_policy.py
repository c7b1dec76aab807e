"""Off-policy pairs: the better and the worse of other models' answers, as a judge sees them.

The answers are given with the prompts (`data.candidates_from_row`), or asked of one endpoint each.

>>> import asyncio
>>> from anchorline.llm.fake import FakeEndpoint
>>> from anchorline.types import Message
>>> models = [FakeEndpoint("Hello!", model="a"), FakeEndpoint("Hello.", model="b")]
>>> prompt = Prompt("p1", (Message("user", "Hi"),))
>>> asked = asyncio.run(ask_models(prompt, [(model, Sampling()) for model in models]))
>>> [answer.model for answer in asked.answers]
['a', 'b']
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from anchorline.data.candidates import Candidates
from anchorline.errors import EndpointError
from anchorline.judge import Sampling
from anchorline.judge.sampling import together
from anchorline.judge.thinking import without_thinking
from anchorline.llm.types import Endpoint
from anchorline.pairs.choose import Chooser
from anchorline.pairs.on_policy import STAGE, candidates, judged_pair
from anchorline.types import Failure, Pair, Prompt


async def off_policy(row: Candidates, *, choose: Chooser, policy: str = "") -> Pair | Failure:
    """The pair of one prompt's answers. `policy` is the model that will be trained; none of the answers is its own."""
    return await judged_pair(row, choose=choose, maker="off_policy", policy=policy)


async def ask_models(prompt: Prompt, endpoints: Sequence[tuple[Endpoint, Sampling]]) -> Candidates | Failure:
    """One answer of each model, sampled its own way; what a model thinks before it is no part of it.

    One that cannot be asked fails the row: its absence would choose the others' pair.
    """
    asked = [(endpoint, how.request(prompt.messages, row=prompt.id, stage="others")) for endpoint, how in endpoints]
    try:
        replies = await together(endpoint.complete(request) for endpoint, request in asked)
    except EndpointError as error:
        return Failure(prompt.id, STAGE, error.kind, str(error))
    said = [replace(reply, text=without_thinking(reply.text).text.strip()) for reply in replies]
    return candidates(prompt, [(endpoint.model, reply) for (endpoint, _), reply in zip(endpoints, said, strict=True)])
