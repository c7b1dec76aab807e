"""How fast anchorline trains on pairs, and in how much memory, beside TRL's DPOTrainer.

The same model, pairs, steps, objective (apo_zero), threads and bfloat16 for both; every contender in a process of its own.
TRL runs as it comes and with `precompute_ref_log_probs`, each also without gradient checkpointing, and the faster of the
two counts. Ours runs before and after each contender, which is held against the mean of the two: a host that slows down
slows both. A process's first step is warm-up. The last line is JSON on stdout; progress goes to stderr.

    python benchmarks/train_vs_trl.py --results runs/vs-trl                    # everything: hours on two cores
    python benchmarks/train_vs_trl.py --results runs/vs-trl --only real/full   # a part; --results keeps what was measured
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

PARTS = Path(__file__).with_name("train_parts")
sys.path.insert(0, str(PARTS))
from work import works  # noqa: E402  # pyright: ignore[reportMissingImports]  (PARTS is on the path)

EPOCHS = 2
"""Over which a reference pass that is made once is spread."""
WORKS = ("real", "long prompts", "short")
KINDS = ("full", "lora")
EXACT = "trl, float32"
CONTENDERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "trl": {"checkpointing": True, "precompute": False},
    "trl, no checkpointing": {"checkpointing": False, "precompute": False},
    "trl, precomputed": {"checkpointing": True, "precompute": True},
    "trl, precomputed, no checkpointing": {"checkpointing": False, "precompute": True},
    # the same again with one pair a forward: how far TRL's losses are from its own
    "trl, rebatched": {"checkpointing": False, "precompute": True, "micro_batch": 1},
    # and how far all are from float32: no rival, as it is asked for its losses alone
    EXACT: {"checkpointing": True, "precompute": True, "micro_batch": 1, "exact": True},
}


def seconds(run: dict[str, Any], *, steps: int) -> float:
    """Of `EPOCHS` epochs of so many steps, the reference pass included.

    >>> seconds({"step_s": 2.0, "reference_s": 4.0}, steps=2)
    12.0
    """
    return run["reference_s"] + EPOCHS * steps * run["step_s"]


def summary(runs: dict[str, dict[str, Any]], job: dict[str, Any], *, peak_flops: float) -> dict[str, Any]:
    """The figures of one work, of one kind of training; `runs` in the order in which they ran."""
    pairs, steps = len(job["pairs"]), -(-len(job["pairs"]) // job["pairs_per_step"])
    took = {name: seconds(run, steps=steps) for name, run in runs.items()}
    order = list(runs)
    ratios = {
        name: 2 * took[name] / (took[order[order.index(name) - 1]] + took[order[order.index(name) + 1]])
        for name in CONTENDERS
        if name not in ("ours", EXACT)
    }
    default = min(("trl", "trl, no checkpointing"), key=ratios.__getitem__)
    own = [run for name, run in runs.items() if name.startswith("ours")]
    ours, trl = runs["ours"], runs["trl, precomputed, no checkpointing"]
    memory = max(run["peak_gb"] for run in own)
    return {
        "ratio_default": ratios[default],
        "ratio_precomputed": min(ratios["trl, precomputed"], ratios["trl, precomputed, no checkpointing"]),
        "ratio_best": min(ratios.values()),
        "memory_ratio": memory / runs[default]["peak_gb"],
        "memory_ratio_checkpointed": memory / runs["trl"]["peak_gb"],
        "peak_share": ours["flops_per_step"] / mean(run["step_s"] for run in own) / peak_flops,
        "max_loss_difference": furthest(ours["losses"], trl["losses"]),
        "trl_own_difference": furthest(runs["trl, rebatched"]["losses"], trl["losses"]),
        "rms_loss_difference": rms(ours["losses"], trl["losses"]),
        "trl_own_rms_difference": rms(runs["trl, rebatched"]["losses"], trl["losses"]),
        "from_float32": {n: furthest(runs[n]["losses"], runs[EXACT]["losses"]) for n in CONTENDERS if n != EXACT},
        "rms_from_float32": {n: rms(runs[n]["losses"], runs[EXACT]["losses"]) for n in CONTENDERS if n != EXACT},
        "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "pairs_per_s": {name: round(EPOCHS * pairs / took[name], 4) for name in runs if name != EXACT},
        "peak_gb": {name: round(runs[name]["peak_gb"], 2) for name in CONTENDERS},
    }


def furthest(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two loss curves."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def rms(one: Sequence[float], other: Sequence[float]) -> float:
    """The root mean square of their differences, which hangs less on one step.

    >>> rms([1.0, 1.0], [1.3, 0.6])
    0.3535533905932738
    """
    return mean((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


def flops_per_step(job: dict[str, Any], count: Callable[[str], int]) -> float:
    """The arithmetic that a step of ours cannot do without, on average: each prompt once, each product once.

    Multiplications and additions in the linear layers, in attention (half of the square), and in the head for answer
    tokens; twice again for the backward, once again where the weights are frozen. Nothing that is computed again counts.
    """
    config = json.loads((Path(job["model"]) / "config.json").read_text())
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    weights = layers * (2 * width * queries + 2 * width * keys + 3 * width * inner)
    total = 0.0
    for pair in job["pairs"]:
        prompt, *answers = (count(pair[name]) for name in ("prompt", "chosen", "rejected"))
        tokens = prompt + sum(answers)
        seen = prompt**2 / 2 + sum(a * prompt + a**2 / 2 for a in answers)
        total += 2 * tokens * weights + 4 * seen * queries * layers + 2 * sum(answers) * width * config["vocab_size"]
    passes = 2 if job["lora"] else 3
    return passes * total / len(job["pairs"]) * job["pairs_per_step"]


def measured_peak(threads: int) -> float:
    """The machine's bfloat16 matrix products a second, in operations: the best of several large ones."""
    code = (
        "import time, torch\n"
        f"torch.set_num_threads({threads})\n"
        "best = 0.0\n"
        "a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))\n"
        "for _ in range(30):\n"
        "    start = time.perf_counter(); a @ b; best = max(best, 2 * 2048**3 / (time.perf_counter() - start))\n"
        "print(best)"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def run(name: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One contender in its own process, or what an earlier call measured."""
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
    (folder / "job.json").write_text(json.dumps({**job, "folder": str(folder / "run"), **CONTENDERS[name]}))
    script = PARTS / ("ours.py" if name == "ours" else "trl_side.py")
    start = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(
            [sys.executable, str(script), str(folder / "job.json")],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{folder}: the contender failed; see log.txt there")
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    result.write_text(json.dumps(figures))
    print(f"{folder}: {figures['step_s']:.2f} s a step, {time.perf_counter() - start:.0f} s in all", file=sys.stderr)
    return figures


def _file_name(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def _wanted(place: str, only: Sequence[str]) -> list[str]:
    """The contenders of a work and kind that were asked for; ours goes first, for its order of the pairs.

    >>> _wanted("real/full", ["real/full/trl"]), _wanted("short/full", ["real"])
    (['ours', 'trl'], [])
    """
    names = [n for n in CONTENDERS if not only or any(f"{place}/{n}/".startswith(f"{o}/") for o in only)]
    return ["ours", *(n for n in names if n != "ours")] if names else []


def main() -> None:
    """Measure what was asked for and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--results", type=Path, required=True, help="folder that keeps each contender's figures")
    parser.add_argument(
        "--only", nargs="*", default=[], help="work/kind or work/kind/contender, such as real/lora/ours"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pairs", type=int, help="take only so many pairs of each work")
    asked = parser.parse_args()

    from transformers import AutoTokenizer

    from anchorline.llm.models import resolve

    model = resolve(asked.model)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    peak = measured_peak(asked.threads)
    figures: dict[str, Any] = {"threads": asked.threads}
    for work, pairs in works(count).items():
        for kind in KINDS:
            job = {
                "model": str(model),
                "pairs": pairs[: asked.pairs],
                "lora": kind == "lora",
                "threads": asked.threads,
                "pairs_per_step": 2,
                "beta": 0.1,
                "learning_rate": 2e-4 if kind == "lora" else 2e-6,
            }
            runs: dict[str, dict[str, Any]] = {}
            place = asked.results / work.replace(" ", "-") / kind
            for name in _wanted(f"{work}/{kind}", asked.only):
                if name != "ours":  # the same pairs in the same steps
                    job["order"] = runs["ours"]["order"]
                runs[name] = run(name, job, place / _file_name(name))
                if name not in ("ours", EXACT):
                    runs[f"ours, after {name}"] = run("ours", job, place / _file_name(f"ours, after {name}"))
            if not runs:
                continue
            runs["ours"]["flops_per_step"] = flops_per_step(job, count)
            peak = max(peak, measured_peak(asked.threads))  # whatever was busy the first time may be done
            figures["peak_gflops"] = round(peak / 1e9)
            if runs.keys() >= CONTENDERS.keys():
                figures[f"{work}, {kind}"] = summary(runs, job, peak_flops=peak)
    first = figures.get("real, full", {})
    print(json.dumps({**{k: v for k, v in first.items() if not isinstance(v, dict)}, **figures}))


if __name__ == "__main__":
    main()
