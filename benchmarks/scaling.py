"""How time and memory of one forward and backward grow with tokens, with the vocabulary, and with the length of answers.

Small random models, in bfloat16 where the processor has it; each measurement in a process of its own. Its last line is
JSON: seconds, the fastest of three steps after the first; `gb`, the peak above what the model took; and how both grew from
the size before (`seconds_growth`, `gb_growth`: 1 is in proportion, 0 not at all).

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only tokens
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).with_name("train_parts")))
BASE = {"pairs": 4, "prompt": 100, "answer": 200, "vocabulary": 32_000}
SERIES: dict[str, list[dict[str, int]]] = {
    # the budget of a row is 2,048 tokens: with more pairs there are more rows, and memory should stop growing
    "tokens": [{"pairs": 1}, {"pairs": 4}, {"pairs": 16}, {"pairs": 64}],
    "vocabulary": [{"vocabulary": v} for v in (32_000, 128_000, 256_000)],
    "length": [{"pairs": 1, "prompt": 16, "answer": n} for n in (256, 1024, 4096, 8192)],
}
CHANGED = {"tokens": "pairs", "vocabulary": "vocabulary", "length": "answer"}
"""What a series changes."""


def measure(sizes: dict[str, int]) -> dict[str, Any]:
    """Seconds of the fastest step but the first, and peak memory above what the model took."""
    import torch
    from measure import forget_peak, peak_gb  # pyright: ignore[reportMissingImports]
    from transformers import LlamaConfig, LlamaForCausalLM

    from anchorline.llm.device import pick_device
    from anchorline.llm.models import torch_dtype
    from anchorline.train.arithmetic import multiplying_in
    from anchorline.train.attention import PACKED
    from anchorline.train.forward import example_logps
    from anchorline.train.layout import rows_of
    from anchorline.train.tokenise import Example

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=20_000,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    model.set_attn_implementation(PACKED)
    model.get_input_embeddings().weight.requires_grad_(False)  # as under an adapter

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, sizes["vocabulary"], (count,)).tolist())

    examples = [
        Example(str(i), tokens(sizes["prompt"]), (tokens(sizes["answer"]), tokens(sizes["answer"])), (True, False))
        for i in range(sizes["pairs"])
    ]
    dtype = torch_dtype(pick_device())  # first: its trial products take more than a small step
    took: list[float] = []
    forget_peak()
    before = peak_gb()
    for _ in range(4):
        start = time.perf_counter()
        model.zero_grad()
        with multiplying_in(model, dtype):
            for row in rows_of(examples, 2048):
                example_logps(model, row, packed=True, pad=0).sum().backward()
        took.append(time.perf_counter() - start)
    return {"seconds": round(min(took[1:]), 3), "gb": round(peak_gb() - before, 3)}


def growth(before: dict[str, Any], after: dict[str, Any], changed: str) -> dict[str, float]:
    """Exponents: how many times both figures doubled where the size doubled once."""
    doublings = math.log(after[changed] / before[changed])
    return {f"{name}_growth": round(math.log(after[name] / before[name]) / doublings, 2) for name in ("seconds", "gb")}


def main() -> None:
    """Measure each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SERIES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(json.loads(asked.one))))
        return
    found: dict[str, Any] = {}
    for name, series in SERIES.items():
        if asked.only in (None, name):
            for changes in series:
                command = [sys.executable, __file__, "--one", json.dumps(BASE | changes)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                here = changes | json.loads(out.strip().splitlines()[-1])
                done = found.setdefault(name, [])
                done.append(here | (growth(done[-1], here, CHANGED[name]) if done else {}))
                print(name, done[-1], file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
