"""The grid: which cells it has and when, which is the best, and what they say together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anchorline.evals.stats import wilson
from anchorline.recipe.config import load_recipe
from anchorline.recipe.contrasts import tabled
from anchorline.recipe.grid import Cell, CompareSettings, best, planned, to_come
from anchorline.report.compare_page import build_compare_page, compare_text
from anchorline.types import Message, Messages, Pair

RECIPES = Path(__file__).parents[2] / "recipes"
GRID = CompareSettings(
    sets=("clair", "stronger"),
    objectives=("apo_zero", "dpo"),
    learning_rates=(1e-3, 1e-4),
    seeds=(0, 1),
    retain_weights=(0.0, 2.0),
)


def test_the_recipe_that_comes_along_asks_for_what_a_comparison_has_to_show():
    recipe = load_recipe(RECIPES / "compare_harbour.yaml")
    grid = recipe.compare
    assert grid is not None and recipe.prompts is not None
    assert set(grid.sets) == {"clair", "on_policy", "off_policy", "stronger"} and len(grid.seeds) >= 3
    assert set(grid.objectives) == {"apo_zero", "apo_down", "dpo", "kto", "sft"} and len(grid.learning_rates) > 1
    assert grid.stronger is not None and len(grid.others) > 1 and len(planned(grid, {})) == 4 * 5 + 8
    named = [recipe.style, recipe.prompts.train, recipe.prompts.heldout, recipe.prompts.general, recipe.retain.prompts]  # pyright: ignore[reportOptionalMemberAccess]
    assert all(Path(str(file)).is_file() for file in named), named


def result(cell: Cell, kept: list[bool], drift: float = 0.1, rules: float = 0.5) -> dict:
    words = {"words": 9.0, "cut": 0.0, "beside": {"markdown": 0.0, "<b>": 0.5}}
    curves = [{"step": 1, "chosen_reward": 0.0, "rejected_reward": 0.0}]
    shares = {"n": len(kept), "kept": kept, "share": sum(kept) / len(kept), "rules_kept": rules}
    spans = {"rules_low": rules / 2, "rules_high": (1 + rules) / 2}
    return {
        **cell._asdict(),
        **shares,
        **spans,
        **words,
        "drift": drift,
        "drift_low": None,
        "drift_high": None,
        "checkpoints": [
            {"step": 1, "share": 0.25, "rules_kept": rules, "drift": 0.05},
            {"step": 2, "share": sum(kept) / len(kept), "rules_kept": rules, "drift": drift},
        ],
        "curves": curves,
    }


def keeps(prompt: Messages, answer: str) -> bool:
    return prompt[-1].content in answer


def run_through(keep=lambda cell: [True, False]) -> tuple[dict, list[Cell]]:
    done: dict = {}
    while todo := [cell for cell in planned(GRID, done) if cell not in done]:
        done[todo[0]] = result(todo[0], keep(todo[0]))
    return done, list(done)


def test_the_useful_cells_come_first_and_every_cell_once():
    _, order = run_through(lambda cell: [cell.learning_rate < 1e-3])
    rates = [(c.maker, c.objective, c.learning_rate) for c in (*order[:7], order[-1])]
    first = [("clair", "apo_zero"), ("clair", "dpo"), ("stronger", "apo_zero"), ("stronger", "dpo")]
    assert rates == [(s, o, rate) for rate in (1e-3, 1e-4) for s, o in first]
    assert [(c.maker, c.objective, c.learning_rate, c.seed) for c in order[7:10]] == [(*p, 1e-4, 1) for p in first[:3]]
    assert [(c.maker, c.objective, c.weight, c.seed) for c in order[10:12]] == [(*p, 2.0, 0) for p in first[:2]]
    assert len({cell.name for cell in order}) == len(order) == 13


def test_what_is_to_come_counts_the_seeds_and_weights_that_no_rate_is_chosen_for_yet():
    done: dict = {}
    left = [to_come(GRID, done)]
    while todo := [cell for cell in planned(GRID, done) if cell not in done]:
        done[todo[0]] = result(todo[0], [True])
        left.append(to_come(GRID, done))
    assert left == [*range(13, -1, -1)]


def test_other_rates_can_be_left_to_the_cells_that_the_contrasts_rest_on():
    grid, done = GRID.model_copy(update={"sweep": "contrasts"}), {}
    left = [to_come(grid, done)]
    while todo := [cell for cell in planned(grid, done) if cell not in done]:
        done[todo[0]] = result(todo[0], [True])
        left.append(to_come(grid, done))
    _, order = run_through(lambda cell: [True])
    assert list(done) == order[:-1] and left == [*range(12, -1, -1)]
    assert order[-1] == Cell("stronger", "dpo", 1e-4, 0)
    rates = {(row["maker"], row["objective"]): row["rates"] for row in tabled(grid, {}, done, keeps=keeps)["rows"]}
    assert rates.pop(("stronger", "dpo")) == 1 and set(rates.values()) == {2}


def test_the_best_keeps_most_answers_then_most_rules_then_drifts_least():
    a, b, c = (Cell("clair", "dpo", rate, 0) for rate in (1.0, 0.1, 0.01))
    assert best({a: result(a, [True]), b: result(b, [False], rules=0.9)}) == a
    assert best({a: result(a, [True], rules=0.1), b: result(b, [True], rules=0.2)}) == b
    assert best({a: result(a, [True], 0.3), b: result(b, [True], 0.1), c: result(c, [True], 0.2)}) == b
    assert best({}) is None


def test_the_table_pairs_the_prompts_and_says_the_gain_at_equal_drift():
    done, _ = run_through(lambda cell: [cell.maker == "clair" and cell.learning_rate == 1e-3] * 5 + [True])
    pair = Pair("1", (Message("user", "y"),), "x y", "x z")
    other = Pair("2", (Message("user", "a"),), "x y", "x z")
    table = tabled(GRID, {"clair": [pair, other], "stronger": [other]}, done, keeps=keeps)
    assert [(s["pairs"], s["chosen_kept"], s["rejected_kept"]) for s in table["sets"]] == [(2, 0.5, 0.0), (1, 0.0, 0.0)]
    contrast = table["contrasts"][0]
    assert (contrast["one"], contrast["other"]) == ("clair-apo_zero", "stronger-apo_zero")
    assert contrast["difference"] == pytest.approx(5 / 6) and contrast["p"] == pytest.approx(2 / 32)
    row = table["rows"][0]
    assert (row["share"], row["rates"], row["seeds"]) == (1.0, 2, 1)
    assert row["mean_over_rates"] == pytest.approx((1 + 1 / 6) / 2)
    assert (row["mean_over_checkpoints"], row["best_checkpoint"]) == (0.625, 1.0)
    assert row["at_drift"] == [None, None, 1.0, 1.0, 1.0]
    assert row["within"] == [0, 0, 2, 2, 2], "both rates; the further seed is no further chance"
    assert [(r["objective"], r["weight"]) for r in table["retain"]] == [
        ("apo_zero", 0.0), ("dpo", 0.0), ("apo_zero", 2.0), ("dpo", 2.0)
    ]  # fmt: skip
    assert {(r["n"], r["low"], r["high"]) for r in table["retain"]} == {(6, *wilson(6, 6)[1:])}
    before = {"share": 0.0, "n": 6, "words": 8.0, "beside": {"markdown": 0.0, "<b>": 0.0}}
    page = build_compare_page({"name": "<i>", "todo": 0, "before": before, **table})
    table_of_retain = page.partition("With answers held in place")[2].partition("</table>")[0]
    assert table_of_retain.count("100\u00a0% <small>61.0\u00a0% to 100\u00a0%</small>") == 4, table_of_retain
    assert "50\u00a0% <small>25\u00a0% to 75\u00a0%</small>" in page, "rules kept"
    assert "<i>" not in page and "<b>" not in page and "<script" not in page and 'class="point s1"' in page
    text = compare_text({"name": "x", "todo": 0, "before": before, **table})
    assert "clair-apo_zero minus stronger-apo_zero: +83" in text
    assert text.splitlines()[3].endswith("  0.001 of 2"), "the best of two rates"


def test_more_objectives_than_colours_are_told_apart_by_their_shapes():
    names = ("apo_zero", "apo_down", "apo_up", "dpo", "kto", "sft", "apo_zero=1,sft=0.2", "dpo=1,sft=0.1")
    grid = CompareSettings(sets=("clair",), objectives=names, learning_rates=(1e-3,), seeds=(0,))
    done = {cell: result(cell, [True, False]) for cell in planned(grid, {})}
    before = {"share": 0.0, "n": 2, "words": 8.0, "beside": {}}
    table = tabled(grid, {"clair": []}, done, keeps=keeps)
    page = build_compare_page({"name": "x", "todo": 0, "before": before, **table})
    points = re.findall(r'class="point (s\d)" d="M\S+ [\d.]+(m[^"]+)"', page)
    assert len(set(points)) == len(names) == len({shape for _, shape in points}) + 2
    assert len(set(re.findall(r'class="key (s\d m\d)"', page))) == len(names)


def test_the_text_keeps_its_columns_and_shows_no_share_as_all_that_is_not():
    grid = CompareSettings(
        sets=("clair",), objectives=("dpo", "apo_zero_unpaired=1,sft=0.25"), learning_rates=(1e-3,), seeds=(0,)
    )
    done = {cell: result(cell, [True] * 299 + [False]) for cell in planned(grid, {})}
    before = {"share": 0.0, "n": 300, "words": 8.0, "beside": {}}
    text = compare_text({"name": "x", "todo": 0, "before": before, **tabled(grid, {"clair": []}, done, keeps=keeps)})
    head, *rows = text.splitlines()[2:5]
    assert [line.index(end) + len(end) for line, end in ((head, "best"), *((row, "99.7") for row in rows))] == [47] * 3


def test_a_contrast_is_between_learning_rates_that_both_sides_have():
    one, other = Cell("clair", "apo_zero", 1e-3, 0), Cell("stronger", "apo_zero", 1e-3, 0)
    done = {
        one: result(one, [True, False, False, False]),
        other: result(other, [False, True, False, False]),
        one._replace(learning_rate=1e-4): result(one._replace(learning_rate=1e-4), [True] * 4),
    }
    (contrast,) = (c for c in tabled(GRID, {}, done, keeps=keeps)["contrasts"] if c["other"] == "stronger-apo_zero")
    assert (contrast["difference"], contrast["rates"], contrast["n"]) == (0.0, 1, 4)


def test_a_contrast_without_spread_has_no_interval():
    cells = [Cell(s, "apo_zero", 1e-3, 0) for s in GRID.sets]
    table = tabled(GRID, {}, {cell: result(cell, [True, False]) for cell in cells}, keeps=keeps)
    assert [(c["low"], c["high"], c["p"]) for c in table["contrasts"]] == [(None, None, 1.0)]
    shown = {"name": "x", "todo": 0, "before": {"share": 0.0, "n": 2, "words": 1.0, "beside": {}}, **table}
    shown["rows"][0]["drift"] = shown["contrasts"][0]["drift_difference"] = -0.0001
    text = compare_text(shown)
    assert "(no spread), McNemar p 1, n 2, best of 1, drift +0.000" in text
    assert "-0.000" not in text and "−0.000" not in build_compare_page(shown)
    assert f"x: {len(cells)} cells, " in text and "x: 1 cell, " in compare_text({**shown, "cells": shown["cells"][:1]})
    assert "None" not in build_compare_page(shown)
    shown["rows"][0] |= {"drift": 0.25, "drift_low": 0.2, "drift_high": 0.3, "drift_n": 100}
    assert "0.250    0.200-0.300  100" in compare_text(shown), "drift with its interval and n"
    assert "nats a token on 100 general prompts" in build_compare_page(shown)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rates": (-1.0,)},
        {"learning_rates": (float("nan"),)},
        {"seeds": (-1,)},
        {"retain_weights": (0.0, -1.0)},
        {"objectives": ("apo_zero", "apo")},
    ],
)
def test_a_grid_that_could_not_be_trained_is_refused_before_anything_is_made(wrong):
    with pytest.raises(ValueError, match=r"learning_rates|seeds|retain_weights|unknown objective"):
        CompareSettings(**wrong)


def test_an_objective_spelled_in_two_ways_is_one_cell():
    grid = CompareSettings(objectives=("apo_zero=1, sft=1", "sft=1,apo_zero=1", "dpo=1"))
    assert grid.objectives == ("apo_zero=1,sft=1", "dpo")


def test_what_shares_a_folder_is_one_cell_so_that_further_seeds_are_not_waited_for_in_vain():
    grid = CompareSettings(
        sets=("clair", "clair"), objectives=("dpo",), learning_rates=(1e-4, 1.0000001e-4, 1e-3), seeds=(0, 1, 0)
    )
    assert (grid.sets, grid.learning_rates, grid.seeds) == (("clair",), (1e-4, 1e-3), (0, 1))
