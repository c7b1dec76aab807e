"""Drift and preference on a tiny model: nothing where nothing changed, and hand-worked figures where something did."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anchorline.evals.drift import BATCH, MOST, drift
from anchorline.evals.preference import preference
from anchorline.evals.subject import Subject, attend, load_subject
from anchorline.llm.models import Loaded, load
from anchorline.train.config import LoraSettings, TrainSettings
from anchorline.train.policy import load_policy, with_adapter
from anchorline.train.tokenise import encode
from anchorline.types import Answer, Message, Pair
from tiny_chat import save_tiny_chat

SETTINGS = TrainSettings(dtype="float32", forward="plain", beta=0.5)
ANSWERS = [
    Answer("a", (Message("user", "where is my hat"),), "Boats sail. the map", "stop"),
    Answer("b", (Message("user", "a lamp"),), "box", "length"),
]
PAIRS = [
    Pair("p", (Message("user", "where is my hat"),), "good day. Boats sail.", "box left twice"),
    Pair("q", (Message("user", "a lamp"),), "Maps help.", "nobody rang"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More threads only get in each other's way with so small a model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("model"))


@pytest.fixture
def loaded(folder: Path) -> Loaded:
    return load(str(folder), dtype="float32")


def subject(policy: Loaded, reference: Any) -> Subject:
    return Subject(policy, reference, nullcontext, packed=False)


def flat(model: Any) -> Any:
    """The model with a head of zeros: every token is as likely as every other."""
    other = copy.deepcopy(model)
    other.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    return other


def log_probs(loaded: Loaded, answer: Answer) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Log-probs [tokens, vocabulary] along the answer, and its tokens, straight from the model."""
    prompt, response = encode(answer.prompt, answer.text, subject(loaded, None).template)
    response = response[:-1] if answer.finish == "length" else response
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1), response


def test_a_model_has_not_drifted_from_itself(loaded: Loaded) -> None:
    table = drift(subject(loaded, loaded.model), ANSWERS, seed=0).table
    assert table["kl_per_token"] == table["logprob_change_per_token"] == 0 and table["prompts"] == 2
    assert table["low"] is table["high"] is table["change_low"] is None, "all the same: there is no spread"


def test_a_cut_answer_counts_without_the_end_of_turn(loaded: Loaded) -> None:
    table = drift(subject(loaded, loaded.model), ANSWERS, seed=0).table
    assert {row["id"]: row["tokens"] for row in table["most"]} == {"a": 5, "b": 1}
    assert table["tokens"] == 6


def test_kl_from_a_flat_reference_is_log_v_minus_the_entropy(loaded: Loaded) -> None:
    """KL(π ‖ uniform) = log V + Σ π log π, over all tokens; the change of a token is log π + log V."""
    table = drift(subject(loaded, flat(loaded.model)), ANSWERS, seed=0).table
    kl, change, by_prompt = [], [], {}
    for answer in ANSWERS:
        logp, tokens = log_probs(loaded, answer)
        log_v = math.log(logp.shape[1])
        each = log_v + (logp.exp() * logp).sum(-1)
        by_prompt[answer.id] = float(each.mean())
        kl += each.tolist()
        change += [float(logp[i, token]) + log_v for i, token in enumerate(tokens)]
    assert table["kl_per_token"] == pytest.approx(sum(kl) / 6, rel=1e-5)
    assert table["logprob_change_per_token"] == pytest.approx(sum(change) / 6, rel=1e-5)
    assert {row["id"]: row["kl_per_token"] for row in table["most"]} == pytest.approx(by_prompt, rel=1e-5)
    assert [row["id"] for row in table["most"]] == sorted(by_prompt, key=lambda id: -by_prompt[id])


def test_kl_is_of_the_policy_from_the_reference_not_the_other_way(loaded: Loaded) -> None:
    """KL(uniform ‖ π) = −log V − mean log π."""
    uniform = loaded._replace(model=flat(loaded.model))
    table = drift(subject(uniform, loaded.model), ANSWERS[1:], seed=0).table
    logp, _ = log_probs(loaded, ANSWERS[1])
    expected = float((-math.log(logp.shape[1]) - logp.mean(-1)).mean())
    assert table["kl_per_token"] == pytest.approx(expected, rel=1e-5)
    assert table["kl_per_token"] != pytest.approx(
        drift(subject(loaded, uniform.model), ANSWERS[1:], seed=0).table["kl_per_token"], rel=0.05
    )


def test_one_prompt_has_no_interval(loaded: Loaded) -> None:
    table = drift(subject(loaded, flat(loaded.model)), ANSWERS, seed=0, groups={"a": "x", "b": "y"}).table
    assert table["low"] is not None and table["groups"]["x"]["kl_per_token"] > 0
    names = ("low", "high", "change_low", "change_high")
    assert [table["groups"]["x"][name] for name in names] == [None] * 4


def test_only_the_most_drifted_prompts_are_kept(loaded: Loaded) -> None:
    words = ["hat", "map", "key", "bag", "cup", "lamp", "tent", "rope"]
    many = [Answer(w, (Message("user", f"the {w}"),), "Boats sail.", "stop") for w in words]
    table = drift(subject(loaded, flat(loaded.model)), many, seed=0).table
    assert table["prompts"] == 8 and len(table["most"]) == MOST
    figures = [row["kl_per_token"] for row in table["most"]]
    assert figures == sorted(figures, reverse=True)


def test_what_the_reference_made_of_the_answers_serves_the_next_policy(loaded: Loaded) -> None:
    texts = [("hat", "Boats sail."), ("map", "Boats sail. the map"), ("key", "box")]
    asked = [(Message("user", f"the {word}"),) for word, _ in texts]
    many = [Answer(str(n), asked[n % 3], texts[n % 3][1], "stop") for n in range(BATCH + 3)]
    flattened, theirs = subject(loaded._replace(model=flat(loaded.model)), loaded.model), {}
    alone = [drift(each, many, seed=0).rows for each in (subject(loaded, loaded.model), flattened)]
    kept = [drift(each, many, seed=0, theirs=theirs).rows for each in (subject(loaded, loaded.model), flattened)]
    assert kept == alone and kept[0] != kept[1]
    assert [len(states) for states in theirs.values()] == [BATCH, 3]
    others = [
        replace(answer, text=texts[n % 3][1].replace("Boats", "Maps").replace("box", "hat"))
        for n, answer in enumerate(many)
    ]
    assert drift(flattened, others, seed=0, theirs=theirs).rows == drift(flattened, others, seed=0).rows


def test_no_general_prompt_no_figure(loaded: Loaded) -> None:
    table = drift(subject(loaded, loaded.model), [], seed=0).table
    assert (table["prompts"], table["kl_per_token"], table["low"], table["most"]) == (0, None, None, [])


def test_an_untrained_model_prefers_nothing(loaded: Loaded) -> None:
    scored = preference(subject(loaded, loaded.model), PAIRS, SETTINGS)
    names = ("accuracy", "margin", "chosen_reward", "rejected_reward", "both_fell")
    assert {name: scored.table[name] for name in names} == dict.fromkeys(names, 0.0)
    assert [row["id"] for row in scored.rows] == ["p", "q"]


def test_rewards_are_beta_times_the_log_ratio(loaded: Loaded) -> None:
    scored = preference(subject(loaded, flat(loaded.model)), PAIRS, SETTINGS)
    for pair, row in zip(PAIRS, scored.rows, strict=True):
        rewards = []
        for text in (pair.chosen, pair.rejected):
            logp, tokens = log_probs(loaded, Answer("", pair.prompt, text, "stop"))
            log_ratio = sum(float(logp[i, t]) + math.log(logp.shape[1]) for i, t in enumerate(tokens))
            rewards.append(SETTINGS.beta * log_ratio)
        assert [row["chosen_reward"], row["rejected_reward"]] == pytest.approx(rewards, rel=1e-4)
        assert row["margin"] == pytest.approx(rewards[0] - rewards[1], rel=1e-4)
    assert scored.table["accuracy"] == sum(row["margin"] > 0 for row in scored.rows) / 2
    assert scored.table["margin"] == pytest.approx(sum(row["margin"] for row in scored.rows) / 2)


def test_swapped_pairs_have_the_opposite_margin(loaded: Loaded) -> None:
    compared = subject(loaded, flat(loaded.model))
    margin = preference(compared, PAIRS, SETTINGS).table["margin"]
    assert preference(compared, [p.swap() for p in PAIRS], SETTINGS).table["margin"] == pytest.approx(-margin)


def test_a_pair_that_cannot_be_scored_is_reported(loaded: Loaded) -> None:
    tight = SETTINGS.model_copy(update={"max_tokens": 11})
    long = Pair("long", PAIRS[0].prompt, "good day. " * 9, "box")
    scored = preference(subject(loaded, loaded.model), [long, PAIRS[1]], tight)
    assert [row["id"] for row in scored.rows] == ["q"] and scored.table["n"] == 1
    assert [(f.id, f.stage, f.kind) for f in scored.failures] == [("long", "evaluate", "overlong")]


def test_no_pair_no_figure(loaded: Loaded) -> None:
    table = preference(subject(loaded, loaded.model), [], SETTINGS).table
    assert (table["n"], table["accuracy"], table["margin"], table["both_fell"]) == (0, None, None, None)


def save_adapter(folder: Path, target: Path, layers: str | list[str] = "all-linear") -> None:
    """An adapter that does something."""
    settings = TrainSettings(dtype="float32", lora=LoraSettings(rank=2, target=layers))
    policy = with_adapter(load_policy(str(folder), settings), settings, str(folder))
    torch.manual_seed(1)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    policy.save_pretrained(target)
    load(str(folder), dtype="float32").tokenizer.save_pretrained(target)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("layers", ["all-linear", ["q_proj", "lm_head"]], ids=["layers", "head"])
def test_packed_and_plain_say_the_same_of_an_adapter(folder: Path, tmp_path: Path, layers: str | list[str]) -> None:
    save_adapter(folder, tmp_path / "trained", layers)
    figures = []
    for forward in ("plain", "packed"):
        settings = SETTINGS.model_copy(update={"forward": forward})
        compared = load_subject(tmp_path / "trained", str(folder), dtype="float32", packed=forward == "packed")
        attend(compared, "packed")
        assert compared.packed == (forward == "packed")
        scored = preference(compared, PAIRS, settings)
        table = drift(compared, ANSWERS, seed=0).table
        figures.append([table["kl_per_token"], table["logprob_change_per_token"], scored.table["margin"]])
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)
    assert figures[0][0] > 0.01


def test_the_reference_of_an_adapter_is_the_model_without_it(folder: Path, tmp_path: Path, loaded: Loaded) -> None:
    save_adapter(folder, tmp_path / "trained")
    compared = load_subject(tmp_path / "trained", str(folder), dtype="float32", packed=False)
    tokens = torch.tensor([[7, 8, 9]])
    with torch.no_grad(), compared.switched_off():
        assert torch.equal(compared.reference(input_ids=tokens).logits, loaded.model(input_ids=tokens).logits)
    with torch.no_grad():
        assert not torch.equal(compared.policy.model(input_ids=tokens).logits, loaded.model(input_ids=tokens).logits)


def test_the_reference_of_whole_weights_is_the_model_that_was_named(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_chat(tmp_path / "trained", seed=1)
    compared = load_subject(other, str(folder), dtype="float32", packed=False)
    tokens = torch.tensor([[7, 8, 9]])
    for model, where in ((compared.policy.model, other), (compared.reference, folder)):
        with torch.no_grad():
            expected = load(str(where), dtype="float32").model(input_ids=tokens).logits
            assert torch.equal(model(input_ids=tokens).logits, expected)


@pytest.mark.parametrize("forward", ["plain", "packed"])
def test_whole_weights_that_did_not_change_have_not_drifted_in_bfloat16(
    folder: Path, tmp_path: Path, forward: str
) -> None:
    same = save_tiny_chat(tmp_path / "trained")
    compared = load_subject(same, str(folder), dtype="bfloat16", packed=forward == "packed")
    attend(compared, "packed")
    table = drift(compared, ANSWERS, seed=0).table
    scored = preference(compared, PAIRS, SETTINGS.model_copy(update={"forward": forward})).table
    assert table["kl_per_token"] == table["logprob_change_per_token"] == 0
    assert scored["chosen_reward"] == scored["rejected_reward"] == 0


def test_groups_of_prompts_have_figures_of_their_own(tmp_path: Path) -> None:
    model = save_tiny_chat(tmp_path / "a", seed=0)
    other = save_tiny_chat(tmp_path / "b", seed=1)
    subject = load_subject(other, str(model), dtype="float32", packed=False)
    table = drift(subject, ANSWERS, seed=0, groups={"a": "hats", "b": "lamps"}).table
    alone = drift(subject, ANSWERS[:1], seed=0).table
    hats, lamps = table["groups"]["hats"], table["groups"]["lamps"]
    assert hats["logprob_change_per_token"] == pytest.approx(alone["logprob_change_per_token"], abs=1e-5)
    assert hats["tokens"] + lamps["tokens"] == table["tokens"] and hats["prompts"] == 1
    whole = sum(part["tokens"] * part["logprob_change_per_token"] for part in (hats, lamps)) / table["tokens"]
    assert whole == pytest.approx(table["logprob_change_per_token"])
    assert drift(subject, ANSWERS, seed=0).table["groups"] == {}
