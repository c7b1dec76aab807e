"""Shares of answers that keep the style: counted by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from anchorline.errors import StyleError
from anchorline.evals.style import share_kept, side_by_side, style_table
from anchorline.evals.tasks_answers import style_needs
from anchorline.style import parse_style
from anchorline.types import Answer, Message

STYLE = parse_style(
    {
        "name": "s",
        "rules": [
            {"kind": "no_exclamation", "name": "calm"},
            {"kind": "ends_with", "name": "order", "text": "Order {n}.", "captures": {"n": r"(\d+)"}},
        ],
    }
)


def answers(*texts: str, cut: int = 0) -> list[Answer]:
    """One answer each to prompts that name orders 0, 1, 2, …"""
    return [
        Answer(f"a{n}", (Message("user", f"where is {n}"),), text, "length" if n < cut else "stop")
        for n, text in enumerate(texts)
    ]


def test_shares() -> None:
    table = share_kept(STYLE, answers("Yes. Order 0.", "Yes! Order 1.", "Yes. Order 1.", "No!", cut=3))
    assert (table["all"]["kept"], table["all"]["share"]) == (1, 0.25)
    assert {name: rule["kept"] for name, rule in table["rules"].items()} == {"calm": 2, "order": 2}
    assert table["words"] == {"mean": 2.5, "p50": 3.0, "p95": 3.0}
    assert table["cut"] == 3


def test_intervals_are_wilsons() -> None:
    everything = share_kept(STYLE, answers(*(f"Order {n}." for n in range(4))))["all"]
    assert (everything["share"], everything["high"]) == (1.0, 1.0)
    assert everything["low"] == pytest.approx(4 / (4 + 1.959964**2), abs=1e-6)


def test_both_sides() -> None:
    before, after = answers("No!", "No!"), answers("Order 0.", "Order 7.")
    table = style_table(STYLE, before, after)
    assert (table["n"], table["rules"]) == (2, ["calm", "order"])
    assert (table["before"]["all"]["share"], table["after"]["all"]["share"]) == (0.0, 0.5)
    assert table["before"]["rules"]["calm"]["share"] == 0.0 and table["after"]["rules"]["calm"]["share"] == 1.0


def test_side_by_side() -> None:
    rows = side_by_side(STYLE, answers("No!", "Order 1."), answers("Order 0.", "Yes!"))
    assert rows[0] == {
        "id": "a0",
        "prompt": [{"role": "user", "content": "where is 0"}],
        "before": "No!",
        "after": "Order 0.",
        "before_kept": {"calm": False, "order": False},
        "after_kept": {"calm": True, "order": True},
    }
    assert (rows[1]["before_kept"]["order"], rows[1]["after_kept"]["order"]) == (True, False)


def test_sides_that_do_not_answer_the_same_prompts_are_our_bug() -> None:
    with pytest.raises(ValueError, match="shorter"):
        side_by_side(STYLE, answers("a", "b"), answers("a"))


def test_a_style_without_rules_is_refused_before_a_model_answers() -> None:
    work: Any = SimpleNamespace(
        style=parse_style({"name": "g", "guideline": "Be calm."}), asked=SimpleNamespace(prompts=[])
    )
    with pytest.raises(StyleError, match="'g' has no rules to count by"):
        style_needs(work)
