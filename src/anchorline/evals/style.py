"""Does the model keep the style? The share of held-out answers that keep each rule and all rules, before and after.

>>> from anchorline.style import parse_style
>>> from anchorline.types import Message
>>> style = parse_style({"name": "calm", "rules": [{"kind": "no_exclamation"}]})
>>> answers = [Answer("a", (Message("user", "Hi"),), text, "stop") for text in ("Hello!", "Hello.")]
>>> share_kept(style, answers)["all"]["share"]
0.5
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anchorline.data import messages_to_rows
from anchorline.evals.stats import wilson
from anchorline.style import Style, check
from anchorline.types import Answer


def style_table(style: Style, before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, Any]:
    """Both sides' shares, JSON-ready; `before` and `after` answer the same prompts."""
    return {
        "n": len(after),
        "rules": [rule.name for rule in style.rules],
        "before": share_kept(style, before),
        "after": share_kept(style, after),
    }


def share_kept(style: Style, answers: Sequence[Answer]) -> dict[str, Any]:
    """Share of answers that keep all rules and each rule, with Wilson 95 % intervals, and the answers' lengths in words."""
    kept = [check(style, answer.prompt, answer.text) for answer in answers]
    words = [len(answer.text.split()) for answer in answers]
    return {
        "all": _share([all(row.values()) for row in kept]),
        "rules": {rule.name: _share([row[rule.name] for row in kept]) for rule in style.rules},
        "words": {
            "mean": float(np.mean(words)),
            "p50": float(np.quantile(words, 0.5)),
            "p95": float(np.quantile(words, 0.95)),
        },
        "cut": sum(answer.finish == "length" for answer in answers),
    }


def side_by_side(style: Style, before: Sequence[Answer], after: Sequence[Answer]) -> list[dict[str, Any]]:
    """One row a held-out prompt: both answers, and which rules each keeps."""
    return [
        {
            "id": new.id,
            "prompt": messages_to_rows(new.prompt),
            "before": old.text,
            "after": new.text,
            "before_kept": check(style, old.prompt, old.text),
            "after_kept": check(style, new.prompt, new.text),
        }
        for old, new in zip(before, after, strict=True)
    ]


def _share(kept: Sequence[bool]) -> dict[str, Any]:
    interval = wilson(sum(kept), len(kept))
    return {"kept": sum(kept), "share": interval.share, "low": interval.low, "high": interval.high}
