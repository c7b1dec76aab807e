"""A loss curve of 50 steps that no refactor may change. Written anew with ANCHORLINE_UPDATE_GOLDEN=1.

In float64, so that another processor's order of sums does not show: what is left is float32 in transformers' rotary
angles, hence the limit of 1e-6, where a wrong mask, order, rate or sum shows in the third digit.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet
import pytest
from test_train_toys import exact_norms, pair, save_tiny

from anchorline.train import policy, run
from anchorline.train.config import LoraSettings, TrainSettings

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_curve.json"
SETTINGS = TrainSettings(
    objective={"apo_zero": 1.0, "sft": 0.05},
    learning_rate=3e-3,
    epochs=10,
    pairs_per_step=4,
    tokens_per_row=40,
    warmup=0.1,
    dtype="float32",
    save_steps=1000,
)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_loss_curve_of_fifty_steps_is_the_golden_one(kind, tmp_path, monkeypatch):
    load = policy.load

    def in_float64(*args, **kwargs):
        loaded = load(*args, **kwargs)
        exact_norms(loaded.model)
        return loaded._replace(model=loaded.model.double())

    monkeypatch.setattr(policy, "load", in_float64)
    lora = LoraSettings(rank=4) if kind == "lora" else None
    rows = [pair(i) for i in range(20)]
    run.train(rows, save_tiny(tmp_path / "model"), SETTINGS.model_copy(update={"lora": lora}), tmp_path / "run")
    by_step = defaultdict(list)
    for row in pyarrow.parquet.read_table(tmp_path / "run" / "train" / "pairs.parquet").to_pylist():
        by_step[row["step"]].append(row["loss"])
    curve = [sum(sorted(by_step[step])) / len(by_step[step]) for step in sorted(by_step)]
    assert len(curve) == 50 and min(curve) < curve[0] - 0.2, "nothing was learned"
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("ANCHORLINE_UPDATE_GOLDEN"):
        golden[kind] = [round(loss, 9) for loss in curve]
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    assert curve == pytest.approx(golden[kind], abs=1e-6, rel=0)
