"""The training benchmark's arithmetic. What it measures is not tested here."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "train_vs_trl.py"


def load() -> ModuleType:
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("training_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


MODULE = load()


def job(folder: Path, **changes) -> dict:
    (folder / "config.json").write_text(
        json.dumps(
            {
                "hidden_size": 4,
                "intermediate_size": 6,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 2,
                "vocab_size": 10,
            }
        )
    )
    pairs = [
        {"prompt": "a b", "chosen": "c d e", "rejected": "f"},
        {"prompt": "a b", "chosen": "c d e", "rejected": "f"},
    ]
    return {"model": str(folder), "pairs": pairs, "lora": False, "pairs_per_step": 1, **changes}


def test_the_operations_of_a_step_by_hand(tmp_path):
    weights = 2 * (
        2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 6
    )  # two layers: queries and output, keys and values, the three of the MLP
    seen = 2 + (3 * 2 + 4.5) + (1 * 2 + 0.5)
    forward = 2 * 6 * weights + 4 * seen * 4 * 2 + 2 * 4 * 4 * 10
    count = lambda text: len(text.split())  # noqa: E731
    assert MODULE.flops_per_step(job(tmp_path), count) == pytest.approx(3 * forward)
    assert MODULE.flops_per_step(job(tmp_path, lora=True, pairs_per_step=2), count) == pytest.approx(2 * 2 * forward)


def test_the_figures_by_hand(tmp_path):
    def run(step_s, *, reference_s=0.0, peak_gb=1.0, losses=(1.0, 0.5)):
        return {"step_s": step_s, "reference_s": reference_s, "peak_gb": peak_gb, "losses": losses}

    ours = {"reference_s": 2.0, "peak_gb": 1.5, "losses": (1.0, 0.52)}
    runs = {
        "ours": run(1.0, **ours) | {"flops_per_step": 50.0},
        "trl": run(10.0, peak_gb=5.0),
        "ours, after trl": run(1.0, **ours | {"peak_gb": 2.0}),
        "trl, no checkpointing": run(8.0, peak_gb=8.0),
        "ours, after trl, no checkpointing": run(1.0, **ours),
        "trl, precomputed": run(7.0, reference_s=4.0),
        # the host has slowed down: with 14 s on one side and 6 on the other, 10 s are ours
        "ours, after trl, precomputed": run(3.0, **ours),
        "trl, precomputed, no checkpointing": run(9.0, reference_s=4.0),
        "ours, after trl, precomputed, no checkpointing": run(3.0, **ours),
        "trl, rebatched": run(4.0, reference_s=4.0, losses=(1.0, 0.53)),
        "ours, after trl, rebatched": run(3.0, **ours),
        "trl, float32": run(0.1, losses=(1.0, 0.51)),  # however fast, it is no rival
    }
    figures = MODULE.summary(runs, job(tmp_path), peak_flops=100.0)
    # two epochs of two steps each: 6 s of ours, 32 s of the faster default, 32 and 40 s of the precomputed
    assert figures["ratio_default"] == pytest.approx(32 / 6)
    assert figures["ratio_precomputed"] == pytest.approx(min(32 / 10, 40 / 14))
    assert figures["ratio_best"] == pytest.approx(20 / 14)
    peers = [name for name in MODULE.CONTENDERS if name != "trl, float32"]
    assert figures["from_float32"] == pytest.approx(dict.fromkeys(peers, 0.01) | {"trl, rebatched": 0.02})
    assert figures["memory_ratio"] == pytest.approx(2 / 8) and figures["memory_ratio_checkpointed"] == pytest.approx(
        2 / 5
    )
    assert figures["peak_share"] == pytest.approx(0.25)
    assert figures["max_loss_difference"] == pytest.approx(0.02)
    assert figures["trl_own_difference"] == pytest.approx(0.03)
    # of two steps the first is equal
    assert figures["rms_loss_difference"] == pytest.approx(0.02 / 2**0.5)
    assert figures["trl_own_rms_difference"] == pytest.approx(0.03 / 2**0.5)
    assert figures["rms_from_float32"]["trl, rebatched"] == pytest.approx(0.02 / 2**0.5)


def test_own_pairs_are_of_the_asked_lengths_and_the_answers_differ():
    sys.path.insert(0, str(FILE.with_name("train_parts")))
    import work

    sys.path.pop(0)
    made = work._own(work.OWN["long prompts"], lambda text: len(text.split()), seed=1)
    assert len(made) == 6 and all(1500 <= len(p["prompt"].split()) < 1520 for p in made)
    assert all(p["chosen"] != p["rejected"] for p in made)
    assert work._own(work.OWN["short"], len, seed=1) == work._own(work.OWN["short"], len, seed=1)
