"""CLAIR with the style's own repairs as the reviser: (rejected, chosen) = (the policy's answer, that answer repaired).

Only a real improvement becomes a pair. An answer that keeps all rules already, whose repair does not pass, or of which
nothing is left, is a failure that says so. Of an answer that the token limit cut, the torn last sentence is not repaired
but left out of the chosen side.

>>> from anchorline.style import parse_style
>>> from anchorline.types import Message
>>> style = parse_style({"name": "calm", "rules": [{"kind": "no_exclamation"}]})
>>> answer = Answer("a1", (Message("user", "Hi"),), "Hello! Here it is.", "stop")
>>> clair_pairs([answer], style, policy="m").pairs[0].chosen
'Hello. Here it is.'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from anchorline.errors import UNANSWERED, DataError
from anchorline.judge.thinking import said_alone
from anchorline.style import Style, repair, without_torn_end
from anchorline.types import Answer, Failure, Pair, Provenance

STAGE = "pairs"


class Made(NamedTuple):
    """The pairs, and the answers that did not become one."""

    pairs: list[Pair]
    failures: list[Failure]


def clair_pairs(answers: Iterable[Answer], style: Style, *, policy: str) -> Made:
    """One pair or one failure for each answer, in the order of the answers.

    Failure kinds: `empty` (there was no answer), `unchanged` (it keeps every rule already), `broken` (its repair still
    breaks a rule), `too_long` (a style does not read it), `emptied` (the repair left nothing of the answer's own words).
    """
    made = Made([], [])
    for answer in answers:
        pair = _revise(answer, style, policy)
        if isinstance(pair, Pair):
            made.pairs.append(pair)
        else:
            made.failures.append(pair)
    return made


def no_pair(failures: Sequence[Failure]) -> str:
    """What to say where not one answer became a pair."""
    counts = Counter(failure.kind for failure in failures)
    most = max(counts, key=counts.__getitem__, default="")
    reason = next((f"; the first {most}: {failure.reason}" for failure in failures if failure.kind == most), "")
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    advice = (
        "--retry-failed asks again where the endpoint gave no answer"
        if counts.keys() & UNANSWERED
        else "look at the answers and the style"
    )
    return f"none of {len(failures)} answers became a pair ({kinds}){reason}; {advice}"


def _revise(answer: Answer, style: Style, policy: str) -> Pair | Failure:
    answer = replace(answer, text=said_alone(answer.text))  # the rules are about what is said
    if not answer.text.strip():
        return Failure(answer.id, STAGE, "empty", "the model's answer is empty")
    # an answer that the token limit cut ends in half a sentence, which nobody should learn to write
    whole = without_torn_end(answer.text) if answer.finish == "length" else answer.text
    try:
        repaired = repair(style, answer.prompt, whole)
    except DataError as error:
        return Failure(answer.id, STAGE, "too_long", str(error))
    details = {"answer": answer.text, "repaired": repaired.text, "touched": list(repaired.touched)}
    if repaired.text == answer.text:
        return Failure(answer.id, STAGE, "unchanged", "the answer keeps every rule already", details)
    broken = [name for name, kept in repaired.kept.items() if not kept]
    if broken:
        reason = f"the repaired answer still breaks: {', '.join(broken)}"
        return Failure(answer.id, STAGE, "broken", reason, details | {"broken": broken})
    if repaired.own_words == 0:
        return Failure(answer.id, STAGE, "emptied", "the repair left nothing of the answer's own words", details)
    origin = Provenance("clair", policy, "rules", {"touched": list(repaired.touched), "finish": answer.finish})
    return Pair(answer.id, answer.prompt, chosen=repaired.text, rejected=answer.text, provenance=origin)
