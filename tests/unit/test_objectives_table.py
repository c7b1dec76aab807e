"""Objectives by name: parsing weights, the weighted sum over pairs and over answers, and names without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchorline.errors import RecipeError, UserError
from anchorline.objectives.apo import apo_down, apo_up, apo_zero, apo_zero_unpaired
from anchorline.objectives.dpo import dpo
from anchorline.objectives.kto import kto
from anchorline.objectives.logps import PairLogps, pairs_as_answers
from anchorline.objectives.names import DESCRIPTIONS, parse_objective
from anchorline.objectives.sft import sft
from anchorline.objectives.table import OBJECTIVES, loss

GENERATOR = torch.Generator().manual_seed(3)
PAIRS = PairLogps(
    *(-40 - 10 * torch.randn(4, 6, generator=GENERATOR, dtype=torch.float64)),
    torch.tensor([3, 4, 5, 6, 7, 8]),
    torch.tensor([8, 7, 6, 5, 4, 3]),
)
ANSWERS = pairs_as_answers(PAIRS)
POINT = torch.tensor(1.5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("value", "weights"),
    [
        ("apo_zero", {"apo_zero": 1.0}),
        ("apo_zero=1,sft=0.2", {"apo_zero": 1.0, "sft": 0.2}),
        (" apo_down , sft = 2e-1 ", {"apo_down": 1.0, "sft": 0.2}),
        ({"dpo": 1, "sft": 0.5}, {"dpo": 1.0, "sft": 0.5}),
    ],
)
def test_parse(value, weights):
    assert parse_objective(value) == weights
    assert list(parse_objective(value)) == list(weights)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("apo_one", "'apo_one'.*apo_zero, apo_down, apo_up, apo_zero_unpaired, dpo, kto, sft"),
        ("apo_zero:1", "unknown objective 'apo_zero:1'"),
        ("=1", "unknown objective ''"),
        ({3: 1.0}, "unknown objective 3"),
        ("", "empty"),
        (" , ", "empty"),
        ({}, "empty"),
        ("sft=1,sft=2", "given twice"),
        ("sft=", "'sft' has the weight ''"),
        ("sft=much", "'much'"),
        ("sft=0", "above 0"),
        ("sft=-1", "above 0"),
        ("sft=nan", "above 0"),
        ("sft=inf", "above 0"),
        ({"sft": True}, "True"),
        ({"sft": None}, "None"),
        ({"sft": "0.2"}, "'0.2'"),
        ({"sft": 10**400}, "above 0"),
        (["sft"], "is a list"),
        (None, "is a NoneType"),
    ],
)
def test_parse_refuses(value, message):
    with pytest.raises(RecipeError, match=message) as caught:
        parse_objective(value)
    assert "\n" not in str(caught.value)


@given(weights=st.dictionaries(st.sampled_from(sorted(DESCRIPTIONS)), st.floats(1e-6, 1e6), min_size=1))
def test_text_and_mapping_say_the_same(weights):
    text = ",".join(f"{name}={weight!r}" for name, weight in weights.items())
    assert parse_objective(text) == parse_objective(weights) == weights


def test_table_and_names_agree():
    assert (
        list(OBJECTIVES)
        == list(DESCRIPTIONS)
        == ["apo_zero", "apo_down", "apo_up", "apo_zero_unpaired", "dpo", "kto", "sft"]
    )
    for name, objective in OBJECTIVES.items():
        assert objective.function.__name__ == name
        assert objective[1:] == tuple(DESCRIPTIONS[name])


def test_each_pair_objective_by_name():
    for name, function in {"apo_zero": apo_zero, "apo_down": apo_down, "apo_up": apo_up, "dpo": dpo}.items():
        assert torch.equal(loss(name, PAIRS, beta=0.3), function(PAIRS, beta=0.3))
    assert torch.equal(loss("sft", PAIRS), sft(PAIRS))
    assert torch.equal(loss("sft", ANSWERS), sft(ANSWERS))
    assert torch.equal(loss("apo_zero_unpaired", ANSWERS, beta=0.3), apo_zero_unpaired(ANSWERS, beta=0.3))


def test_an_answer_objective_on_pairs_is_the_mean_of_the_two_answers():
    """So the mean over pairs is the mean over answers; and for apo_zero_unpaired it is half of apo_zero."""
    torch.testing.assert_close(loss("apo_zero_unpaired", PAIRS, beta=0.3), apo_zero(PAIRS, beta=0.3) / 2)
    settings = {"reference_point": POINT, "beta": 0.3, "desirable_weight": 2.0, "undesirable_weight": 0.5}
    rows = kto(ANSWERS, **settings)
    torch.testing.assert_close(loss("kto", PAIRS, **settings), (rows[:6] + rows[6:]) / 2)
    torch.testing.assert_close(loss("kto", ANSWERS, **settings), rows)


def test_weighted_sum():
    total = loss({"apo_zero": 2.0, "sft": 0.2, "kto": 0.5}, PAIRS, beta=0.3, reference_point=POINT)
    parts = 2 * apo_zero(PAIRS, beta=0.3) + 0.2 * sft(PAIRS) + 0.5 * loss("kto", PAIRS, beta=0.3, reference_point=POINT)
    torch.testing.assert_close(total, parts)
    assert total.shape == (6,)


def test_no_pairs_no_losses():
    empty = PairLogps(*(tensor[:0] for tensor in PAIRS))
    assert loss("apo_zero=1,apo_zero_unpaired=1,sft=1", empty).shape == (0,)


@pytest.mark.parametrize("name", ["apo_zero", "apo_down", "apo_up", "dpo"])
def test_a_pair_objective_refuses_single_answers(name):
    with pytest.raises(UserError, match=f"^{name} needs pairs.*use one of apo_zero_unpaired, kto, sft"):
        loss({"sft": 0.2, name: 1.0}, ANSWERS)


def test_kto_without_its_reference_point_is_refused():
    with pytest.raises(ValueError, match="kto got no reference_point"):
        loss("kto", ANSWERS)


def test_names_do_not_import_torch():
    code = "import sys, anchorline.objectives as o; o.parse_objective('apo_zero'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
