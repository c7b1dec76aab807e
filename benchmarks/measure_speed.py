"""How long `anchorline measure` takes for 32,000 pairs of 400 words: the command itself, file and tables included.

The pairs are revision-like: some words of the answer are replaced, a passage is rewritten and grows. Prints one JSON line.

    python benchmarks/measure_speed.py [--pairs 32000] [--words 400] [--model embedded:smollm2-135m-instruct]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SYLLABLES = ("an", "ber", "con", "de", "er", "for", "ing", "la", "men", "or", "per", "re", "sta", "tion", "ver", "y")
REPLACED, REWRITTEN, GROWTH = 0.15, 0.15, 1.6


def vocabulary(chance: random.Random, size: int = 6000) -> list[str]:
    """Words of one to four syllables."""
    return ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(size)]


def revise(words: Sequence[str], vocabulary: Sequence[str], chance: random.Random) -> list[str]:
    """The words with some of them replaced, and one passage written anew and longer."""
    revised = [chance.choice(vocabulary) if chance.random() < REPLACED else word for word in words]
    length = int(len(words) * REWRITTEN)
    at = chance.randrange(len(words) - length + 1)
    revised[at : at + length] = chance.choices(vocabulary, k=int(length * GROWTH))
    return revised


def write_pairs(file: Path, *, pairs: int, words: int) -> None:
    """The same pairs for the same numbers."""
    chance = random.Random(0)
    known = vocabulary(chance)
    with file.open("w", encoding="utf-8") as lines:
        for n in range(pairs):
            rejected = chance.choices(known, k=words)
            chosen = revise(rejected, known, chance)
            row = {"prompt": f"question {n}", "chosen": " ".join(chosen), "rejected": " ".join(rejected)}
            lines.write(json.dumps(row) + "\n")


def main() -> None:
    """Make the pairs, measure them with the command, and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=32_000)
    parser.add_argument("--words", type=int, default=400)
    parser.add_argument("--model", help="also in this model's tokens")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        write_pairs(file, pairs=given.pairs, words=given.words)
        command = [sys.executable, "-m", "anchorline", "measure", str(file), "--json"]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, *(["--model", given.model] if given.model else [])], check=True, stdout=subprocess.PIPE
        )
        seconds = time.perf_counter() - start
    table = json.loads(done.stdout)
    assert table["pairs"] == given.pairs
    spent = os.times()
    figures = {
        "seconds": round(seconds, 2),
        "pairs": given.pairs,
        "words": given.words,
        "cores": len(os.sched_getaffinity(0)),
        "cpu_seconds": round(spent.children_user + spent.children_system, 2),
        "word_jaccard": round(table["metrics"]["word_jaccard"]["mean"], 3),
        "tokens": bool(given.model),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
