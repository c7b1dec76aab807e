"""What to look at in a set of pairs before training on it. Numbers in, warnings out; each names its figure and n.

>>> pair = Pair("a", (Message("user", "Be brief: where is it?"),), "It left today, and more words.", "It left.")
>>> [warning.kind for warning in warnings_of([pair])]
['few_pairs', 'low_contrast', 'style_words']
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from anchorline.evals.paired import mcnemar
from anchorline.measure import measure_pair
from anchorline.types import Message, Pair, prompt_id

FEW = 100
"""Pairs below which a held-out gain is hardly told from luck; our own rule of thumb."""
LOW_OVERLAP = 0.2
"""Mean word overlap (Jaccard) below which pairs differ in nearly everything. The paper's GPT-4 revisions have 0.28."""
ALPHA = 0.01
LONGER = 0.6
"""Share of pairs with the longer chosen answer from which, if the sign test agrees, length is told of."""
ALIKE = 0.995
"""Cosine of the mean hidden states from which an embedding hardly tells chosen from rejected; set by us."""
STYLE_WORDS = re.compile(
    r"\b(brief(ly)?|concise(ly)?|short(er)? answer|in (one|two|three|\d{1,3}) (words?|sentences?|lines?)|bullet points?"
    r"|step by step|politely|formal(ly)?|tone|in the style of|exclamation|markdown|poem|as a list)\b",
    re.IGNORECASE,
)


class Warned(NamedTuple):
    """One warning: a short word, a sentence, and its figures with n."""

    kind: str
    text: str
    figures: Mapping[str, Any]


def warnings_of(pairs: Sequence[Pair], *, hidden: Sequence[Mapping[str, float]] = ()) -> list[Warned]:
    """All warnings of a set. `hidden`: of each sampled pair `cosine` and `ches` (`train.hidden`)."""
    n = len(pairs)
    found: list[Warned] = []
    if n < FEW:
        found.append(
            Warned("few_pairs", f"{n} pairs are few: expect wide intervals, and look at overfitting", {"n": n})
        )
    found += _contrast(pairs)
    found += _length(pairs)
    found += _repeats(pairs)
    found += _style_words(pairs)
    found += _hidden(hidden)
    return found


def _contrast(pairs: Sequence[Pair]) -> list[Warned]:
    if not pairs:
        return []
    overlap = sum(measure_pair(p.chosen, p.rejected).word_jaccard for p in pairs) / len(pairs)
    if overlap >= LOW_OVERLAP:
        return []
    text = f"low contrast: the answers share {overlap:.2f} of their words (n = {len(pairs)})"
    return [Warned("low_contrast", text, {"word_jaccard": overlap, "n": len(pairs)})]


def _length(pairs: Sequence[Pair]) -> list[Warned]:
    lengths = [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]
    chosen_longer, rejected_longer = [w > x for w, x in lengths], [w < x for w, x in lengths]
    longer, shorter = sum(chosen_longer), sum(rejected_longer)
    n = longer + shorter
    p = mcnemar(chosen_longer, rejected_longer)  # on who is longer it is the sign test
    if n == 0 or p >= ALPHA or max(longer, shorter) / n < LONGER:
        return []
    which, count = ("longer", longer) if longer > shorter else ("shorter", shorter)
    text = f"length: chosen is {which} in {count} of {n} pairs of unequal length (sign test, p = {p:.2g})"
    return [Warned("length_bias", text, {"longer": longer, "shorter": shorter, "n": n, "p": p})]


def _repeats(pairs: Sequence[Pair]) -> list[Warned]:
    keys = [(prompt_id(p.prompt), p.chosen, p.rejected) for p in pairs]
    ordered = set(keys)
    against = sum((prompt, b, a) in ordered for prompt, a, b in keys)
    twice = sum(count - 1 for count in Counter(keys).values())
    found = []
    if against:
        text = f"conflict: {against} of {len(pairs)} pairs stand there the other way round too"
        found.append(Warned("conflicts", text, {"conflicting": against, "n": len(pairs)}))
    if twice:
        text = f"{twice} of {len(pairs)} pairs are there already"
        found.append(Warned("duplicates", text, {"duplicates": twice, "n": len(pairs)}))
    prompts = len({key[0] for key in keys})
    if prompts < len(pairs) / 2:
        text = f"{len(pairs)} pairs have {prompts} different prompts only"
        found.append(Warned("few_prompts", text, {"prompts": prompts, "n": len(pairs)}))
    return found


def _style_words(pairs: Sequence[Pair]) -> list[Warned]:
    hits = [words for p in pairs if (words := _words_of(p.prompt))]
    if not pairs or len(hits) / len(pairs) < 0.05:
        return []
    common = ", ".join(word for word, _ in Counter(w for words in hits for w in words).most_common(3))
    text = f"{len(hits)} of {len(pairs)} prompts ask for a form themselves ({common}), beside the style"
    return [Warned("style_words", text, {"prompts": len(hits), "n": len(pairs)})]


def _words_of(prompt: Sequence[Message]) -> set[str]:
    return {match[0].lower() for turn in prompt if turn.role == "user" for match in STYLE_WORDS.finditer(turn.content)}


def _hidden(hidden: Sequence[Mapping[str, float]]) -> list[Warned]:
    alike = sum(row["cosine"] > ALIKE for row in hidden)
    if not hidden or alike / len(hidden) < 0.1:
        return []
    text = (
        f"displacement: in {alike} of {len(hidden)} pairs the policy's hidden states hardly tell chosen from rejected "
        f"(cosine over {ALIKE}); lowering the one may lower the other, look at r_w"
    )
    return [Warned("displacement", text, {"alike": alike, "n": len(hidden)})]
