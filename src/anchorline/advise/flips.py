"""What wrong labels do to an objective: its expected pull at the start of training when a share p of the pairs is turned.

A turned pair's chosen answer is what should have been rejected. With g_w and g_l the slopes of the loss on the two
rewards, the expected slope on an answer that truly is better is (1 − p) g_w + p g_l, and on a worse one
(1 − p) g_l + p g_w. Their difference, the pull on the true margin, is 1 − 2p of the clean one, whatever the objective.
Their sum, by which both answers move together, does not change at all. The slopes are those where policy is reference.

>>> [round(row["margin"], 3) for row in flip_table("apo_zero")]
[1.0, 0.9, 0.8, 0.6]
>>> flip_table("apo_down")[2]["better"]
0.025
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

STARTS = {"apo_zero": (-0.25, 0.25), "apo_down": (0.0, 0.25), "apo_up": (-0.25, 0.0), "dpo": (-0.5, 0.5)}
"""d loss / d r of chosen and of rejected where policy is reference; below 0 the answer is raised."""
SHARES = (0.0, 0.05, 0.1, 0.2)


def flip_table(objective: str, shares: Sequence[float] = SHARES) -> list[dict[str, Any]]:
    """For each p: the expected slopes on the truly better and worse answer, and the margin's pull, clean = 1.

    `target` is the reward margin that dpo converges to with such labels, log((1 − p)/p); the anchored objectives are
    bounded and have none: their rewards go to the side where most labels point. None without flips.
    """
    chosen, rejected = STARTS[objective]
    return [
        {
            "p": p,
            "better": (1 - p) * chosen + p * rejected,
            "worse": (1 - p) * rejected + p * chosen,
            "margin": 1 - 2 * p,
            "target": math.log((1 - p) / p) if objective == "dpo" and p > 0 else None,
        }
        for p in shares
    ]
