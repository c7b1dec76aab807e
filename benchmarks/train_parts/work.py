"""The pairs of the training benchmark: real revisions where they are at hand, and pairs of our own of chosen lengths.

>>> pairs = works(count_tokens)["real"]  # doctest: +SKIP
>>> len(pairs)  # doctest: +SKIP
20
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).parents[2].parent / "shared" / "data" / "clair_gpt4_revisions.jsonl"
MARKER = "{corrected_student_solution}"

SUBJECTS = ["the tide", "a slack halyard", "the compass", "every knot", "the mainsail", "a second anchor", "our log"]
VERBS = ["changes", "holds", "answers", "explains", "decides", "follows", "limits", "shows"]
OBJECTS = "how far the hull drifts,the speed over ground,what the crew sees at night,the load on the mast,the next turn"
ENDS = [
    "after an hour",
    "in a light wind",
    "when the water is shallow",
    "as the table says",
    "unless the current is strong",
]


class Lengths(NamedTuple):
    """Tokens of a work's prompts and answers, and its number of pairs."""

    prompt: int
    answer: int
    pairs: int


OWN = {"long prompts": Lengths(1500, 300, 6), "short": Lengths(60, 60, 20)}
LIKE_REAL = Lengths(135, 415, 10)


def works(count: Callable[[str], int]) -> dict[str, list[dict[str, str]]]:
    """Name of a work to its pairs (prompt, chosen, rejected). `count` gives a text's tokens."""
    real = _real()
    own = _own(LIKE_REAL._replace(pairs=20 - len(real)), count, seed=7)
    return {"real": real + own} | {name: _own(lengths, count, seed=11) for name, lengths in OWN.items()}


def _real() -> list[dict[str, str]]:
    """Ten revisions by a large model; none where the file is absent."""
    if not FILE.is_file():
        return []
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"].split(MARKER)[1].removeprefix(":").strip(),
            "rejected": row["rejected"].strip(),
        }
        for row in rows
    ]


def _own(lengths: Lengths, count: Callable[[str], int], *, seed: int) -> list[dict[str, str]]:
    """Pairs whose chosen answer is the rejected one with some sentences said otherwise."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(lengths.pairs):
        spread = rng.uniform(0.7, 1.3)
        prompt = _text(rng, round(lengths.prompt * (spread if lengths.prompt < 1000 else 1)), count)
        rejected = _text(rng, round(lengths.answer * spread), count)
        chosen = [s if rng.random() < 0.7 else _sentence(rng) for s in rejected]
        pairs.append({"prompt": " ".join(prompt), "chosen": " ".join(chosen), "rejected": " ".join(rejected)})
    return pairs


def _text(rng: random.Random, tokens: int, count: Callable[[str], int]) -> list[str]:
    """Sentences of about so many tokens together."""
    sentences = [_sentence(rng)]
    while count(" ".join(sentences)) < tokens:
        sentences.append(_sentence(rng))
    return sentences


def _sentence(rng: random.Random) -> str:
    words = (rng.choice(SUBJECTS), rng.choice(VERBS), rng.choice(OBJECTS.split(",")), rng.choice(ENDS))
    return " ".join(words).capitalize() + "."
