"""The measures on ten real GPT-4 revisions, against plain versions of each; skipped where the data are absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anchorline.measure import measure_pair, summarise

FILE = Path(__file__).parents[2].parent / "shared" / "data" / "clair_gpt4_revisions.jsonl"
MARKER = "{corrected_student_solution}"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="shared/data/clair_gpt4_revisions.jsonl is not there")


@pytest.fixture(scope="module")
def pairs():
    """(revised answer, student's answer). Each completion has the marker once, with or without a colon after it."""
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    return [(row["completion"].split(MARKER)[1].removeprefix(":").strip(), row["rejected"]) for row in rows]


def plain_levenshtein(a, b):
    """The textbook table, a row at a time: insertions run along the row, so they are a running minimum."""
    codes, steps = np.array(b), np.arange(len(b) + 1)
    row = steps
    for i, item in enumerate(a, start=1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (codes != item))
        row = np.minimum.accumulate(np.concatenate([[i], changed]) - steps) + steps
    return int(row[-1])


def prefix_length(a, b):
    same = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        same += 1
    return same


def plain_jaccard(a, b):
    both = [item for item in dict.fromkeys(a) if item in b]
    return len(both) / len(dict.fromkeys([*a, *b]))


def test_each_measure_is_the_plain_one(pairs):
    for chosen, rejected in pairs:
        words = chosen.split(), rejected.split()
        ids = {word: i for i, word in enumerate(dict.fromkeys(words[0] + words[1]))}
        measures = measure_pair(chosen, rejected, tokenize=lambda text, ids=ids: [ids[word] for word in text.split()])
        distance = plain_levenshtein(list(chosen), list(rejected))
        assert measures.word_jaccard == measures.token_jaccard == pytest.approx(plain_jaccard(*words))
        assert measures.character_levenshtein == distance
        assert measures.token_levenshtein == plain_levenshtein(*words)
        assert measures.normalised_distance == pytest.approx(distance / max(len(chosen), len(rejected)))
        assert measures.length_ratio == pytest.approx(len(words[0]) / len(words[1]))
        assert measures.shared_prefix == pytest.approx(
            prefix_length(chosen, rejected) / min(len(chosen), len(rejected))
        )


def test_the_set_is_as_contrastive_as_it_was_measured(pairs):
    """Figures of the plain versions above on these ten. Real minimal revisions rewrite the opening."""
    metrics = summarise([measure_pair(chosen, rejected) for chosen, rejected in pairs])["metrics"]
    assert {name: round(spread["mean"], 4) for name, spread in metrics.items()} == {
        "word_jaccard": 0.2845,
        "character_levenshtein": 1539.7,
        "normalised_distance": 0.6488,
        "length_ratio": 1.4022,
        "shared_prefix": 0.0138,
    }
    assert metrics["shared_prefix"]["p50"] < 0.01
