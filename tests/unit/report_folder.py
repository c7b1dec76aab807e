"""A run folder as a run of the Harbour recipe would leave it, made without a model, for the tests of the report."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

RULES = ["greeting", "no_apologies", "no_exclamation_marks", "at_most_70_words", "closing_reference"]
QUESTIONS = [
    "Hi, my parcel was meant to come on Tuesday and it still isn't here. Order {order}. Can you check?",
    "order {order} arrived with a cracked lid!!! what now",
    "Could you please tell me whether I can still change the delivery address of my order, number {order}?",
    "Ich habe die falsche Größe bestellt (Bestellung {order}). Kann ich umtauschen?",
    "You lot are useless. {order}. Where. Is. It.",
    "I ordered two lamps under {order} but only one was in the box. The invoice says two.",
]
OPENINGS = ["I'm so sorry to hear about that!", "Thank you for reaching out!", "I apologize for the inconvenience."]
MIDDLES = [
    "I can see that it left our warehouse on Monday, and the carrier expects to deliver it by Friday.",
    "Please keep the packaging and send us a photo of the damage, e.g. of the lid and of the box.",
    "The address can be changed until the parcel is handed to the carrier, which happens tomorrow at noon.",
    "You can exchange it free of charge within 30 days; the label is in your account under Returns.",
]
VERSIONS = {"accelerate": "1.14.0", "peft": "0.21.1", "torch": "2.13.0", "transformers": "5.9.0"}
RECIPE = """name: harbour
seed: 7
policy:
  model: embedded:smollm2-135m-instruct
  dtype: bfloat16
style: styles/harbour.yaml
sample:
  prompts: prompts/harbour.jsonl
  max_new_tokens: 128
  temperature: 0.7
train:
  objective: {apo_zero: 1.0, sft: 0.2}
  beta: 0.1
  epochs: 2
  learning_rate: 0.0003
  lora: {rank: 16, target: all-linear}
evaluate:
  general_prompts: prompts/general.jsonl
"""


MAKERS = {
    "pairs": {
        "maker": "clair",
        "rows": 299,
        "pairs": 290,
        "failures": {"unchanged": 6, "emptied": 3},
    },
    "pairs:clair": {
        "maker": "clair",
        "rows": 299,
        "pairs": 271,
        "failures": {"not_preferred": 17, "truncated": 6, "server": 5},
        "replies": {"clean": 288, "tolerated:marker+no_end": 21, "truncated": 9, "no_marker": 4},
        "gates": {"broken": 23, "over_edited": 2},
        "asked_again": 31,
        "judge": {"judged": 288, "ties": 12, "flips": 9},
        "costs": {"calls": 899, "tokens": 512_344, "usd": 0.2113},
    },
    "pairs:stronger": {
        "maker": "stronger",
        "rows": 299,
        "pairs": 297,
        "failures": {"refused": 2},
        "costs": {"calls": 299, "tokens": 71_212, "usd": None},
    },
}
COSTS = {
    "stages": {
        "judge": {"calls": 577, "prompt_tokens": 301_244, "completion_tokens": 34_012, "guessed": 0, "usd": 0.0656},
        "revise": {"calls": 322, "prompt_tokens": 141_020, "completion_tokens": 36_068, "guessed": 0, "usd": 0.1457},
        "stronger": {"calls": 299, "prompt_tokens": 21_212, "completion_tokens": 50_000, "guessed": 0, "usd": None},
    },
    "tokens": 583_556,
    "usd": None,
    "kept_pair": {
        "pairs": {"tokens": 0.0, "usd": 0.0},
        "pairs:clair": {"tokens": 1890.6, "usd": 0.00078},
        "pairs:stronger": {"tokens": 239.8, "usd": None},
    },
}


def build_run_folder(folder: Path, *, steps: int = 72, held_out: int = 60, pairs: int = 290) -> Path:
    """Write every file of a finished run. The figures are made up; the same call writes the same bytes."""
    chance = random.Random(7)
    failures = _failures()
    answers = [_held_out(index, chance) for index in range(held_out)]
    _write(
        folder / "summary.json",
        {
            "style": {
                "before": {"all": 0.0},
                "after": {"all": _share(answers, "after_kept", None)["share"]},
                "n": held_out,
            },
            "drift": {"kl_per_token": 0.0814},
            "preference": {"accuracy": 0.98},
            "pairs": pairs,
            "failures": len(failures),
            "objective": {"apo_zero": 1.0, "sft": 0.2},
            "peak_rss_gib": 3.21,
            "seconds": {"sample": 61.2, "pairs": 0.4, "measure": 1.9, "train": 183.5, "evaluate": 96.0, "report": 0.3},
        },
    )
    _write(
        folder / "manifest.json",
        {
            "name": "harbour",
            "anchorline": "0.1.0",
            "versions": VERSIONS,
            "seed": 7,
            "machine": {"cpu": "2 × 2.7 GHz", "cores": 2, "memory_gib": 7.7, "device": "cpu", "dtype": "bfloat16"},
            "costs": COSTS,
            "makers": MAKERS,
            "stages": {
                name: _stage(name, seconds)
                for name, seconds in (
                    ("sample", 61.2),
                    ("pairs", 0.4),
                    ("measure", 1.9),
                    ("train", 183.5),
                    ("evaluate", 96.0),
                )
            },
        },
    )
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    _write_rows(
        folder / "answers.jsonl",
        [
            {"id": f"a{index}", "prompt": _prompt(index), "text": _answer(index, chance), "finish": "stop"}
            for index in range(pairs + len(failures))
        ],
    )
    _write_rows(
        folder / "pairs.jsonl",
        [
            {
                "id": f"a{index}",
                "prompt": _prompt(index),
                "chosen": [{"role": "assistant", "content": _styled(index)}],
                "rejected": [{"role": "assistant", "content": _answer(index, chance)}],
            }
            for index in range(pairs)
        ],
    )
    _write_rows(folder / "failures.jsonl", failures)
    _write(folder / "measure.json", _measure(pairs, chance))
    _write_rows(folder / "train" / "metrics.jsonl", [_step(index, steps, chance) for index in range(steps)])
    _write(folder / "train" / "diagnostics.json", _diagnostics(pairs))
    _write(
        folder / "evals" / "style.json",
        {
            "n": held_out,
            "rules": RULES,
            **{
                side: {
                    "all": _share(answers, f"{side}_kept", None),
                    "rules": {rule: _share(answers, f"{side}_kept", rule) for rule in RULES},
                    "words": words,
                }
                for side, words in (
                    ("before", {"mean": 61.4, "p50": 58.0, "p95": 104.0}),
                    ("after", {"mean": 47.8, "p50": 46.0, "p95": 66.0}),
                )
            },
        },
    )
    _write_rows(folder / "evals" / "answers.jsonl", answers)
    _write(
        folder / "evals" / "preference.json",
        {
            "n": 58,
            "accuracy": 0.9828,
            "low": 0.9086,
            "high": 0.9969,
            "margin": 7.9,
            "chosen_reward": 3.4,
            "rejected_reward": -4.5,
            "both_fell": 0.0172,
        },
    )
    _write(
        folder / "evals" / "drift.json",
        {
            "prompts": 100,
            "tokens": 12840,
            "kl_per_token": 0.0814,
            "low": 0.0702,
            "high": 0.0951,
            "logprob_change_per_token": -0.061,
            "groups": {
                "letters": {
                    "prompts": 60,
                    "kl_per_token": 0.1203,
                    "low": 0.101,
                    "high": 0.142,
                    "logprob_change_per_token": -0.085,
                    "change_low": -0.11,
                    "change_high": -0.06,
                },
                "sums": {"prompts": 1, "kl_per_token": 0.0205, "low": None, "high": None},
            },
            "most": [
                {
                    "id": f"g{index}",
                    "prompt": [{"role": "user", "content": text}],
                    "kl_per_token": 0.31 - 0.04 * index,
                    "logprob_change_per_token": -0.22 + 0.03 * index,
                }
                for index, text in enumerate(
                    [
                        "Write a short apology from a dog to a cat.",
                        "List five exclamations used by sailors.",
                        "How do I close a letter to a bank?",
                        "Explain tides to a child. " * 12,
                    ]
                )
            ],
        },
    )
    return folder


def _prompt(index: int) -> list[dict[str, str]]:
    system = [{"role": "system", "content": "You answer for Harbour, an online shop."}] if index % 3 == 0 else []
    question = QUESTIONS[index % len(QUESTIONS)].format(order=4400 + index)
    return [*system, {"role": "user", "content": question}]


def _answer(index: int, chance: random.Random) -> str:
    middle = MIDDLES[index % len(MIDDLES)]
    ending = chance.choice(["Let me know if there is anything else!", "I hope this helps!", "Have a great day!"])
    return f"{chance.choice(OPENINGS)} {middle} {ending}"


def _styled(index: int) -> str:
    return f"Hello from Harbour. {MIDDLES[index % len(MIDDLES)]}\n\nReference: order {4400 + index}."


def _held_out(index: int, chance: random.Random) -> dict[str, Any]:
    after = {rule: not (rule == "closing_reference" and index % 20 == 9) for rule in RULES}
    text = _styled(index) if after["closing_reference"] else f"Hello from Harbour. {MIDDLES[index % 4]}"
    before = _answer(index, chance) if index != 17 else " ".join(_answer(index, chance) for _ in range(9))
    kept = {
        "greeting": False,
        "no_apologies": "sorry" not in before and "apolog" not in before,
        "no_exclamation_marks": "!" not in before,
        "at_most_70_words": len(before.split()) <= 70,
        "closing_reference": False,
    }
    return {
        "id": f"h{index}",
        "prompt": _prompt(index),
        "before": before,
        "after": text,
        "before_kept": kept,
        "after_kept": after,
    }


def _share(answers: list[dict[str, Any]], side: str, rule: str | None) -> dict[str, Any]:
    from anchorline.evals.stats import wilson

    kept = sum(all(row[side].values()) if rule is None else row[side][rule] for row in answers)
    return {"kept": kept, **wilson(kept, len(answers))._asdict()}


def _stage(name: str, seconds: float) -> dict[str, Any]:
    key = f"{sum(map(ord, name)):04x}" * 16
    return {
        "key": key,
        "status": "done",
        "seconds": seconds,
        "started": "2026-11-23T18:02:11+00:00",
        "inputs": {"recipe.yaml": key},
        "outputs": {f"{name}.jsonl": key[::-1]},
    }


def _failures() -> list[dict[str, Any]]:
    unchanged = [
        {
            "id": f"f{index}",
            "stage": "pairs",
            "kind": "unchanged",
            "details": {},
            "reason": "the repair changed nothing: the answer keeps every rule",
        }
        for index in range(6)
    ]
    emptied = [
        {
            "id": f"f{index}",
            "stage": "pairs",
            "kind": "emptied",
            "reason": "the repair left no text",
            "details": {"rejected": "Sorry! Sorry! Sorry!"},
        }
        for index in range(6, 9)
    ]
    return [
        *unchanged,
        *emptied,
        {
            "id": "f9",
            "stage": "train",
            "kind": "too_long",
            "details": {"tokens": 1103},
            "reason": "has 1,103 tokens; the limit is 1,024",
        },
    ]


def _measure(pairs: int, chance: random.Random) -> dict[str, Any]:
    shapes = {
        "word_jaccard": (0.62, 0.11),
        "token_jaccard": (0.58, 0.1),
        "character_levenshtein": (141.0, 38.0),
        "token_levenshtein": (33.0, 9.0),
        "normalised_distance": (0.47, 0.1),
        "length_ratio": (0.84, 0.12),
        "shared_prefix": (0.012, 0.02),
    }
    return {
        "pairs": pairs,
        "metrics": {
            name: _distribution([max(0.0, chance.gauss(*shape)) for _ in range(pairs)])
            for name, shape in shapes.items()
        },
        "rules": {
            "greeting": pairs,
            "closing_reference": pairs - 4,
            "no_exclamation_marks": pairs * 3 // 4,
            "no_apologies": pairs // 2,
            "at_most_70_words": pairs // 9,
        },
    }


def _distribution(values: list[float]) -> dict[str, Any]:
    values = sorted(round(value, 4) for value in values)
    low, high, bins = values[0], values[-1], 20
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins)) if high > low else 0] += 1
    at = {f"p{p}": values[(len(values) - 1) * p // 100] for p in (5, 25, 50, 75, 95)}
    edges = [round(low + (high - low) * index / bins, 6) for index in range(bins + 1)]
    return {
        "mean": round(sum(values) / len(values), 4),
        "min": low,
        **at,
        "max": high,
        "histogram": {"edges": edges, "counts": counts},
    }


def _step(index: int, steps: int, chance: random.Random) -> dict[str, Any]:
    done = index / max(1, steps - 1)
    learned = 1 / (1 + math.exp(-(done - 0.3) * 12)) - 1 / (1 + math.exp(3.6))
    noise = chance.gauss(0, 0.25) if index else 0.0
    chosen, rejected = 3.6 * learned + noise, -4.9 * learned + noise
    return {
        "step": index + 1,
        "epoch": round(2 * done, 3),
        "loss": round(1.6 - 1.4 * learned + noise / 8, 4),
        "learning_rate": 3e-4 * min(1, (index + 1) / 8) * (1 - 0.9 * done),
        "grad_norm": round(2.4 - 1.5 * learned + abs(noise), 3),
        "chosen_reward": round(chosen, 4),
        "rejected_reward": round(rejected, 4),
        "margin": round(chosen - rejected, 4),
        **_quantiles("chosen_reward", chosen, 0.9 * learned + 0.02),
        **_quantiles("rejected_reward", rejected, 1.3 * learned + 0.02),
        "chosen_weight": round(1 - 0.62 * learned, 3),
        "rejected_weight": round(1 - 0.81 * learned, 3),
        "accuracy": round(min(1.0, 0.5 + 0.62 * learned), 3),
        "both_fell": round(max(0.0, 0.12 - done * 0.3), 3),
        "seconds": 2.5,
    }


def _quantiles(name: str, middle: float, width: float) -> dict[str, float]:
    at = {"p10": -1.3, "p25": -0.65, "p50": 0.05, "p75": 0.7, "p90": 1.2}
    return {f"{name}_{key}": round(middle + width * place, 4) for key, place in at.items()}


def _diagnostics(pairs: int) -> dict[str, Any]:
    def region(change: float, tokens: int) -> dict[str, Any]:
        return {
            "change_per_pair": change,
            "change_per_token": round(change / tokens, 4) if tokens else None,
            "tokens": pairs * tokens,
            "pairs": pairs if tokens else 0,
        }

    stranded = [
        {
            "id": f"a{index}",
            "step": 72 - index % 7,
            "chosen_reward": -3.9 - index / 40,
            "rejected_reward": -6.1,
            "margin": 2.2,
        }
        for index in (17, 101)
    ]
    live = pairs - pairs // 3 - len(stranded)
    return {
        "start": {
            "parameters": 4884480,
            "all_parameters": 139399488,
            "largest_reward": 0.0,
            "reference_error": 0.000031,
            "sample": 8,
        },
        "rows": pairs,
        "life": {
            "counts": {"won": pairs // 3, "live": live, "stranded": len(stranded)},
            "won": [f"a{index}" for index in range(0, pairs, 3)][: pairs // 3],
            "live": [],
            "stranded": [row["id"] for row in stranded],
        },
        "stranded": stranded,
        "displacement": {
            "chosen": {
                "prefix": region(0.0, 0),
                "edited": region(35.2, 21),
                "common": region(-1.4, 24),
                "end": region(0.6, 1),
            },
            "rejected": {
                "prefix": region(0.0, 0),
                "edited": region(-47.1, 32),
                "common": region(-2.2, 24),
                "end": region(-0.3, 1),
            },
        },
        "weight_left": {"chosen": 0.41, "rejected": 0.2},
    }


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
