"""The measures of many pairs on all cores, in the pairs' order and exactly as `measure_pair` has them.

Edits are counted a block of pairs at a time in C++, and texts are cut into tokens in Rust, both without Python's lock:
while one thread does that, another compares words.

>>> [row.character_levenshtein for row in measure_pairs([("It left today.", "It left today!"), ("Yes.", "No.")])]
[1, 3]
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from anchorline.measure.summary import PairMeasures, with_distances

BLOCK = 64
"""Pairs in one block: long enough to be worth a hand-over, short enough for a smooth progress bar."""

TokenizeMany = Callable[[Sequence[str]], Sequence[Sequence[int]]]


def measure_pairs(
    pairs: Sequence[tuple[str, str]], *, tokenize: TokenizeMany | None = None, threads: int | None = None
) -> Iterator[PairMeasures]:
    """Measures of each (chosen, rejected), one after the other; `threads` is the number of cores unless given.

    `tokenize` turns several texts into token ids, and is called from several threads at a time.
    """
    threads = threads or os.cpu_count() or 1
    waiting: deque[Future[list[PairMeasures]]] = deque()
    with ThreadPoolExecutor(threads, "measure") as pool:
        try:
            for at in range(0, len(pairs), BLOCK):
                waiting.append(pool.submit(_block, pairs[at : at + BLOCK], tokenize))
                if len(waiting) > 2 * threads:  # enough to keep the threads at work, and few to hold
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:  # a reader that stops early waits for the blocks that have begun, and for no other
            pool.shutdown(wait=False, cancel_futures=True)


def _block(pairs: Sequence[tuple[str, str]], tokenize: TokenizeMany | None) -> list[PairMeasures]:
    chosen, rejected = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    distances = _distances(chosen, rejected)
    if tokenize is None:
        return [with_distances(*pair, edits) for pair, edits in zip(pairs, distances, strict=True)]
    tokens = tokenize([*chosen, *rejected])
    ours, theirs = tokens[: len(pairs)], tokens[len(pairs) :]
    both = zip(ours, theirs, strict=True)
    edited = zip(pairs, distances, both, _distances(ours, theirs), strict=True)
    return [with_distances(*pair, edits, ids, token_edits) for pair, edits, ids, token_edits in edited]


def _distances(a: Sequence[str] | Sequence[Sequence[int]], b: Sequence[str] | Sequence[Sequence[int]]) -> list[int]:
    import numpy as np
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    return process.cpdist(a, b, scorer=Levenshtein.distance, dtype=np.int64).tolist()
