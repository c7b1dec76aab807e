"""On-policy pairs: the better and the worse of several samples of the policy, as a judge sees them.

>>> import asyncio
>>> from anchorline.judge import style_judge
>>> from anchorline.pairs.choose import by_rounds
>>> from anchorline.style import parse_style
>>> from anchorline.types import Message
>>> judge = style_judge(parse_style({"name": "calm", "rules": [{"kind": "no_exclamation"}]}))
>>> given = Candidates("p1", (Message("user", "Hi"),), (Candidate("Hello!", "m"), Candidate("Hello.", "m")))
>>> asyncio.run(on_policy(given, choose=by_rounds(judge), policy="m")).chosen
'Hello.'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from anchorline.data.candidates import Candidate, Candidates
from anchorline.errors import EndpointError
from anchorline.judge import Sampling
from anchorline.judge.sampling import together
from anchorline.judge.thinking import said_alone
from anchorline.llm.types import Endpoint, Reply
from anchorline.pairs.choose import Chooser
from anchorline.types import Answer, Failure, Pair, Prompt, Provenance

STAGE = "pairs"


async def on_policy(row: Candidates, *, choose: Chooser, policy: str) -> Pair | Failure:
    """The pair of one prompt's samples. Failure kinds as in `judged_pair`."""
    return await judged_pair(row, choose=choose, maker="on_policy", policy=policy)


async def sample(
    prompt: Prompt, endpoint: Endpoint, *, k: int, sampling: Sampling | None = None, given: Answer | None = None
) -> Candidates | Failure:
    """`k` answers of the policy. `given` is its first one where it has been asked already: it is not asked for again.

    An answer that the token limit cut, or that is blank, is no candidate. Failure kinds: the endpoint's error,
    `truncated`, `filtered`, `refused` or `empty` where fewer than two candidates are left.
    """
    sampling = sampling or Sampling()
    start = 0 if given is None else 1
    asked = [sampling.request(prompt.messages, row=prompt.id, stage="sample", index=i) for i in range(start, k)]
    try:
        replies = await together(endpoint.complete(request) for request in asked)
    except EndpointError as error:
        return Failure(prompt.id, STAGE, error.kind, str(error))
    if given is not None:
        replies = [Reply(given.text, given.finish, model=endpoint.model), *replies]
    # some answers come with the model's thinking and some without: judged and learnt is what is said
    said = [replace(reply, text=said_alone(reply.text)) for reply in replies]
    return candidates(prompt, [(endpoint.model, reply) for reply in said])


def candidates(prompt: Prompt, replies: Sequence[tuple[str, Reply]]) -> Candidates | Failure:
    """The replies of models, by name, that can be chosen from."""
    whole = [Candidate(reply.text, model) for model, reply in replies if reply.finish == "stop" and reply.text.strip()]
    if len(whole) >= 2:
        return Candidates(prompt.id, prompt.messages, tuple(whole))
    finishes = [reply.finish for _, reply in replies]
    kinds = {"length": "truncated", "filter": "filtered", "refusal": "refused"}
    kind = next((kind for finish, kind in kinds.items() if finish in finishes), "empty")
    reason = f"{len(whole)} of {len(replies)} answers are whole and not empty, two are needed"
    return Failure(
        prompt.id, STAGE, kind, reason, {"answers": [reply.text for _, reply in replies], "finish": finishes}
    )


async def judged_pair(row: Candidates, *, choose: Chooser, maker: str, policy: str) -> Pair | Failure:
    """The best and the worst of a row's answers.

    Failure kinds: `truncated` (fewer than two answers were whole), `identical` (all are the same text), `tie` (none is
    better than another), the kind of the endpoint's error, `unreadable` (the judge's reply).
    """
    if len(row.answers) < 2:
        few = (
            f"{len(row.answers)} answers are whole and not empty, two are needed; raise the token limit of the answers"
        )
        return Failure(row.id, STAGE, "truncated", few, {"answers": [answer.text for answer in row.answers]})
    distinct = list({answer.text: answer for answer in reversed(row.answers)}.values())[::-1]
    if len(distinct) < 2:
        details = {"answers": [answer.text for answer in row.answers]}
        return Failure(row.id, STAGE, "identical", f"all {len(row.answers)} answers are the same text", details)
    try:
        choice = await choose(row.prompt, [answer.text for answer in distinct], row=row.id)
    except EndpointError as error:
        details = {"answers": [answer.text for answer in distinct]}
        return Failure(row.id, STAGE, error.kind, str(error), details)
    notes = {"models": [answer.model for answer in distinct], **choice.notes}
    if choice.best is None or choice.worst is None:
        details = {"answers": [answer.text for answer in distinct], **notes}
        return Failure(row.id, STAGE, "tie", f"the judge finds none of {len(distinct)} answers the better", details)
    best, worst = distinct[choice.best], distinct[choice.worst]
    notes |= {"chosen_model": best.model, "rejected_model": worst.model, "best": choice.best, "worst": choice.worst}
    return Pair(row.id, row.prompt, best.text, worst.text, Provenance(maker, policy, "", notes))
