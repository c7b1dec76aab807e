"""Training objectives: pure functions from summed log-probabilities to one loss per row.

An objective says which way each answer's likelihood should move. None of them sees a model, a tokenizer or a device.
The names listed here are free of torch, so that a recipe can be checked where torch is not installed:

>>> parse_objective("apo_zero=1,sft=0.2")
{'apo_zero': 1.0, 'sft': 0.2}

What computes needs torch and is imported from the module that holds it (three of the functions are called like
their module, so they cannot stand here too):

| module | names |
|---|---|
| `logps` | `PairLogps`, `AnswerLogps`, `PairRewards`, `pairs_as_answers`, `rewards`, `pair_rewards`, `answer_rewards` |
| `apo` | `apo_zero`, `apo_down`, `apo_up`, `apo_zero_unpaired` |
| `dpo`, `kto`, `sft` | `dpo`; `kto`, `reference_point`; `sft` |
| `metrics` | `PairMetrics`, `pair_metrics`, `gradient_weight`, `STUCK_REWARD` |
| `table` | `Objective`, `OBJECTIVES`, `loss` |
"""

from __future__ import annotations

from anchorline.objectives.names import DESCRIPTIONS, Description, parse_objective

__all__ = ["DESCRIPTIONS", "Description", "parse_objective"]
