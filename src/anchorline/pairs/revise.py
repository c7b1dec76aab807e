r"""CLAIR with a model as the reviser: (rejected, chosen) = (the policy's answer, its minimal revision by the model).

A reply is parsed and its revision goes through the gates. One that cannot be used is asked for again, with the reason
and the attempt in sight, a few times at most. Every attempt is kept with the pair, or with the failure.

>>> import asyncio
>>> from anchorline.llm.fake import FakeEndpoint
>>> from anchorline.types import Message
>>> fake = FakeEndpoint(f"It lacks the day.\n{OPEN}\nIt left on Monday.\n{CLOSE}")
>>> answer = Answer("a1", (Message("user", "When did it leave?"),), "It left.", "stop")
>>> asyncio.run(revise(answer, reviser=fake, policy="m")).chosen
'It left on Monday.'
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from anchorline.errors import DataError, EndpointError
from anchorline.judge import GENERAL, Judge, Sampling, Template
from anchorline.judge.thinking import said_alone
from anchorline.llm.types import Endpoint, Reply
from anchorline.pairs.gates import Fault, broken_rules, failed_gates
from anchorline.pairs.parse import CLOSE, OPEN, Parsed, parse_revision
from anchorline.pairs.render import again_request, again_template, default_template, revision_request
from anchorline.pairs.settings import GateSettings
from anchorline.pairs.verify import verified
from anchorline.style import Style, check
from anchorline.types import Answer, Failure, Pair, Provenance

STAGE = "pairs"

_LINE_END = re.compile(r"\r\n|\r|\n")
_WHY = {
    "truncated": "the reply was cut at the token limit; reason in fewer words",
    "filtered": "the endpoint withheld the reply",
    "refused": "the reply declines; edit the answer, or change as little of it as you can justify",
    "empty": "there is no answer between the two lines; give all of it, not only what has changed",
    "identical": "your text is the answer as it was; make the change that the aim calls for",
    "no_marker": f"the lines {OPEN} and {CLOSE} are missing, so that your text cannot be told from your reasoning",
    "ambiguous": "where your text starts or ends cannot be told: it holds several, or a line such as [END] within; give one, "
    f"and the lines {OPEN} and {CLOSE} once each, exactly so",
    "marker_inside": "one of the two framing lines stands within your text",
    "bad_json": "it is JSON that cannot be read; give plain text between the two lines",
    "dressed": "your text stands in quotation marks, backticks, tags, JSON, edit marks, behind a label or above an "
    f"explanation; give the answer alone, and end it with the line {CLOSE}",
    "self_referring": "your text speaks of being an edit, or of another answer",
}
"""What the reviser is told about each status."""


async def revise(
    answer: Answer,
    *,
    reviser: Endpoint,
    policy: str,
    style: Style | None = None,
    template: Template | None = None,
    sampling: Sampling | None = None,
    gates: GateSettings | None = None,
    verify: Judge | None = None,
) -> Pair | Failure:
    """The pair of one answer, or why there is none.

    Failure kinds: `empty_answer` (nothing to revise), a status of `parse`, a gate of `gates`, the kind of the endpoint's
    error, `not_preferred` (the judge of `verify` does not prefer the revision), `unreadable` (that judge's reply). Errors
    that end a run come through.
    """
    template, sampling, gates = template or default_template(), sampling or Sampling(), gates or GateSettings()
    answer = replace(answer, text=said_alone(answer.text))  # a revision has no thinking either
    if not answer.text.strip():
        return Failure(answer.id, STAGE, "empty_answer", "the model's answer is empty")
    instructions = f"{template.fixed}\n{style.guideline if style else GENERAL}"
    first = messages = revision_request(answer.prompt, answer.text, style=style, template=template)
    attempts: list[dict[str, Any]] = []
    details: dict[str, Any] = {"template": template.hash, "attempts": attempts, "finish": answer.finish}
    faults: list[Fault] = []
    try:
        for index in range(gates.attempts):
            reply = await reviser.complete(sampling.request(messages, row=answer.id, stage="revise", index=index))
            parsed = parse_revision(reply.text, reply.finish, original=answer.text, prompt=answer.prompt, style=style)
            parsed = parsed._replace(text=_ended_alike(parsed.text, answer.text))
            faults = _faults(answer, parsed, style, gates, instructions)
            attempts.append(_attempt(reply, parsed, faults))
            if not faults:
                if style is not None and style.rules:
                    details["touched"] = _touched(answer, parsed.text, style)
                origin = Provenance("clair", policy, reviser.model, details)
                pair = Pair(answer.id, answer.prompt, parsed.text, answer.text, origin)
                return pair if verify is None else await verified(pair, verify)
            if faults[0].kind == "filtered" or [fault.kind for fault in faults] == ["identical"]:
                break  # asking again mends no filter, and what the reviser finds nothing to change in is good
            messages = again_request(first, reply.text, [fault.reason for fault in faults])
            details["again_template"] = again_template().hash
    except EndpointError as error:
        return Failure(answer.id, STAGE, error.kind, str(error), details | {"answer": answer.text})
    details |= {"answer": answer.text, "faults": [fault.kind for fault in faults]}
    reason = f"after {len(attempts)} of {gates.attempts} attempts: {'; '.join(fault.reason for fault in faults)}"
    return Failure(answer.id, STAGE, faults[0].kind, reason, details)


def _faults(answer: Answer, parsed: Parsed, style: Style | None, gates: GateSettings, instructions: str) -> list[Fault]:
    """What is wrong with a reply: its status, else the gates. A copy of an answer that breaks rules is told which."""
    if parsed.usable:
        return failed_gates(
            answer.prompt, answer.text, parsed.text, settings=gates, style=style, instructions=instructions
        )
    faults = [Fault(parsed.status, _WHY[parsed.status])]
    if parsed.status == "identical" and gates.rules:
        broken = broken_rules(answer.prompt, parsed.text, style)
        faults += [broken] if broken else []
    return faults


def _ended_alike(revision: str, original: str) -> str:
    """The revision with the original's line ends, where those are all of one kind: a difference that no one means."""
    ends = set(_LINE_END.findall(original))
    return _LINE_END.sub(ends.pop(), revision) if len(ends) == 1 else revision


def _attempt(reply: Reply, parsed: Parsed, faults: list[Fault]) -> dict[str, Any]:
    """An attempt as JSON."""
    return {
        "text": reply.text,
        "finish": reply.finish,
        "status": parsed.status,
        "faults": [fault.kind for fault in faults],
        "reason": "; ".join(fault.reason for fault in faults),
    }


def _touched(answer: Answer, revision: str, style: Style) -> list[str]:
    """The rules that the answer breaks and its revision keeps."""
    try:
        before, after = check(style, answer.prompt, answer.text), check(style, answer.prompt, revision)
    except DataError:  # longer than a style reads
        return []
    return [name for name, kept in after.items() if kept and not before[name]]
