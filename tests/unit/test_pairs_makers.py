"""The three other makers, how the best of several is chosen, and sets made comparable."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.data import failure_to_row, pair_to_row
from anchorline.data.candidates import Candidate, Candidates
from anchorline.errors import KeyRefused
from anchorline.judge import Sampling, Scored, pairwise_judge, score_scorer, style_judge, style_scorer
from anchorline.judge.score import default_template
from anchorline.llm.fake import FakeEndpoint, throttled, truncated
from anchorline.llm.types import Reply
from anchorline.pairs import (
    ask_models,
    by_rounds,
    by_score,
    clair_pairs,
    match,
    off_policy,
    on_policy,
    revise,
    sample,
    stronger,
)
from anchorline.pairs.parse import CLOSE, OPEN
from anchorline.style import parse_style
from anchorline.types import Answer, Failure, Message, Messages, Pair, Prompt, Verdict

ASKED = (Message("user", "Where is my order?"),)
PROMPT = Prompt("p1", ASKED)
CALM = parse_style({"name": "calm", "rules": [{"kind": "no_exclamation"}, {"kind": "max_words", "limit": 3}]})


def candidates(*texts: str) -> Candidates:
    return Candidates("p1", ASKED, tuple(Candidate(text, f"m{i}") for i, text in enumerate(texts)))


def result(made: Pair | Failure) -> Pair | Failure:
    json.dumps(pair_to_row(made) if isinstance(made, Pair) else failure_to_row(made))
    return made


async def longer(prompt: Messages, a: str, b: str, *, row: str = "") -> Verdict:
    return Verdict("tie" if len(a) == len(b) else "a" if len(a) > len(b) else "b", judge="longer")


async def length(prompt: Messages, answer: str, *, row: str = "") -> Scored:
    return Scored(float(len(answer)))


@given(st.lists(st.text(max_size=6), min_size=2, max_size=6))
def test_rounds_and_scores_agree_where_the_judge_is_consistent(texts: list[str]) -> None:
    rounds, scores = (asyncio.run(choose(ASKED, texts)) for choose in (by_rounds(longer), by_score(length)))
    lengths = [len(text) for text in texts]
    for choice in (rounds, scores):
        if len(set(lengths)) == 1:
            assert (choice.best, choice.worst) == (None, None)
        else:
            assert choice.best is not None and choice.worst is not None
            assert (lengths[choice.best], lengths[choice.worst]) == (max(lengths), min(lengths))
    assert len(rounds.notes["verdicts"]) == len(texts) * (len(texts) - 1) // 2


def test_no_side_of_a_pair_holds_thinking() -> None:
    """Else the pair would teach to think, or not to, whatever else it is about."""
    thought = Answer("p1", ASKED, "<think>\nHm!\n</think>\n\nIt left! Use a <think> tag.", "stop")
    said, better = "It left! Use a <think> tag.", "It left. Use a <think> tag."
    framed = FakeEndpoint(f"Loud.\n{OPEN}\n<think>Hm.</think>\n{better}\n{CLOSE}")
    quiet = parse_style({"name": "quiet", "rules": [{"kind": "no_exclamation"}]})
    made = (
        asyncio.run(revise(thought, reviser=framed, policy="m")),
        asyncio.run(stronger(thought, model=FakeEndpoint(f"<think>Hm.</think>{better}"), policy="m")),
        *clair_pairs([thought], quiet, policy="m").pairs,
    )
    for pair in made:
        assert isinstance(pair, Pair) and (pair.chosen, pair.rejected) == (better, said)
    nothing = Answer("p1", ASKED, "<think>\nHm!\n</think>\n", "stop")
    for failed in (
        asyncio.run(revise(nothing, reviser=framed, policy="m")),
        *clair_pairs([nothing], quiet, policy="m").failures,
    ):
        assert isinstance(failed, Failure) and failed.kind in ("empty", "empty_answer")
    given = FakeEndpoint(f"<think>Hm.</think>{better}")
    samples = asyncio.run(sample(PROMPT, given, k=2, given=thought))
    assert isinstance(samples, Candidates) and [each.text for each in samples.answers] == [said, better]


def test_a_judge_that_goes_in_a_circle_prefers_nobody() -> None:
    async def circle(prompt: Messages, a: str, b: str, *, row: str = "") -> Verdict:
        return Verdict("a" if a + b in ("rs", "sp", "pr") else "b")

    assert asyncio.run(by_rounds(circle)(ASKED, ["r", "s", "p"]))[:2] == (None, None)


def test_the_best_has_to_beat_the_worst_itself() -> None:
    beaten = {("x", "w"), ("y", "w"), ("b", "x"), ("b", "y"), ("w", "b")}  # b wins most, but not against w

    async def judge(prompt: Messages, a: str, b: str, *, row: str = "") -> Verdict:
        return Verdict("a" if (a, b) in beaten else "b" if (b, a) in beaten else "tie")

    choice = asyncio.run(by_rounds(judge)(ASKED, ["b", "w", "x", "y"]))
    assert choice.notes["points"] == [2.0, 1.0, 1.5, 1.5]
    assert (choice.best, choice.worst) == (None, None)


def test_on_policy_takes_the_better_and_the_worse() -> None:
    row = candidates("It left!", "It left today, at long last!", "It left.")
    pair = result(asyncio.run(on_policy(row, choose=by_rounds(style_judge(CALM)), policy="m")))
    assert isinstance(pair, Pair)
    assert (pair.chosen, pair.rejected) == ("It left.", "It left today, at long last!")
    origin = pair.provenance
    assert (origin.maker, origin.policy) == ("on_policy", "m")
    assert (origin.details["chosen_model"], origin.details["rejected_model"]) == ("m2", "m1")
    assert len(origin.details["verdicts"]) == 3
    scored = asyncio.run(on_policy(row, choose=by_score(style_scorer(CALM)), policy="m"))
    assert isinstance(scored, Pair) and (scored.chosen, scored.rejected) == (pair.chosen, pair.rejected)
    assert scored.provenance.details["points"] == [1.0, 0.0, 2.0]
    assert scored.provenance.details["scores"][0] == {
        "judge": "style:calm",
        "mode": "style",
        "broken": ["no_exclamation"],
    }


def test_a_scored_pair_names_the_judge_its_template_and_every_score() -> None:
    judge = FakeEndpoint(lambda r: f"SCORE: {len(r.messages[-1].content) % 2 + 3 + r.index}", model="j")
    pair = result(
        asyncio.run(on_policy(candidates("no", "yes"), choose=by_score(score_scorer(judge, n=2)), policy="m"))
    )
    assert isinstance(pair, Pair)
    scores = pair.provenance.details["scores"]
    assert {(one["judge"], one["mode"], one["template"]) for one in scores} == {("j", "score", default_template().hash)}
    assert sorted(one["scores"] for one in scores) == [[3.0, 4.0], [4.0, 5.0]]
    assert [sum(one["scores"]) / 2 for one in scores] == pair.provenance.details["points"]


@pytest.mark.parametrize(
    ("texts", "script", "kind"),
    [
        (["one", "two"], "VERDICT: TIE", "tie"),
        (["one", "two"], "VERDICT: A", "tie"),
        (["one"], "VERDICT: A", "truncated"),
        (["one", "one", "one"], "VERDICT: A", "identical"),
        (["one", "two"], "who knows", "unreadable"),
        (["one", "two"], lambda _: throttled(), "throttled"),
    ],
)
def test_what_is_no_judged_pair(texts: Sequence[str], script: object, kind: str) -> None:
    judge = pairwise_judge(FakeEndpoint(script))  # type: ignore[arg-type]
    made = result(asyncio.run(off_policy(candidates(*texts), choose=by_rounds(judge))))
    assert isinstance(made, Failure) and (made.id, made.stage, made.kind) == ("p1", "pairs", kind)
    assert made.details["answers"][0] == "one"


def test_equal_answers_are_judged_once() -> None:
    judge = FakeEndpoint(lambda request: "SCORE: 8" if "<answer>\ntwo" in request.messages[-1].content else "SCORE: 3")
    row = candidates("one", "two", "one", "two")
    pair = asyncio.run(off_policy(row, choose=by_score(score_scorer(judge))))
    assert isinstance(pair, Pair) and pair.chosen == "two" and len(judge.asked) == 2
    assert pair.provenance.maker == "off_policy" and pair.provenance.details["models"] == ["m0", "m1"]


def test_what_other_models_think_is_no_part_of_their_answers() -> None:
    said = {"a": "<think>\nMaybe B!\n</think>\n\nIt left.", "b": "It left!"}
    models = [(FakeEndpoint(text, model=name), Sampling()) for name, text in said.items()]
    found = asyncio.run(ask_models(PROMPT, models))
    assert isinstance(found, Candidates) and [answer.text for answer in found.answers] == ["It left.", "It left!"]
    only = [(FakeEndpoint("<think>Hm.", model=name), Sampling()) for name in said]
    nobody = result(asyncio.run(ask_models(PROMPT, only)))
    assert isinstance(nobody, Failure) and nobody.kind == "empty"


def test_samples_are_told_apart_and_the_given_answer_is_not_asked_for_again() -> None:
    fake = FakeEndpoint(lambda request: f"answer {request.index}", model="m")
    found = asyncio.run(sample(PROMPT, fake, k=3))
    assert isinstance(found, Candidates)
    assert [answer.text for answer in found.answers] == ["answer 0", "answer 1", "answer 2"]
    given_one = Answer("p1", ASKED, "mine", "stop")
    fake = FakeEndpoint(lambda request: f"answer {request.index}", model="m")
    found = asyncio.run(sample(PROMPT, fake, k=3, given=given_one))
    assert isinstance(found, Candidates)
    assert [answer.text for answer in found.answers] == ["mine", "answer 1", "answer 2"]
    assert [(request.index, request.stage) for request in fake.asked] == [(1, "sample"), (2, "sample")]


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (["one", truncated("tw")], "truncated"),
        (["one", " "], "empty"),
        (["one", Reply("", "filter")], "filtered"),
        (["one", Reply("Nein.", "refusal")], "refused"),
        (["one", throttled()], "throttled"),
    ],
)
def test_answers_that_are_no_candidates(script: list[object], kind: str) -> None:
    made = asyncio.run(sample(PROMPT, FakeEndpoint(script), k=2))  # type: ignore[arg-type]
    assert isinstance(made, Failure) and made.kind == kind
    more = asyncio.run(sample(PROMPT, FakeEndpoint([script[1], "two", "three"]), k=3))  # type: ignore[arg-type]
    assert isinstance(more, Failure if kind == "throttled" else Candidates)


def test_other_models_are_asked_once_each() -> None:
    models = [FakeEndpoint("one", model="a"), FakeEndpoint("two", model="b")]
    found = asyncio.run(ask_models(PROMPT, [(model, Sampling()) for model in models]))
    assert isinstance(found, Candidates)
    assert [(answer.model, answer.text) for answer in found.answers] == [("a", "one"), ("b", "two")]
    failed = asyncio.run(
        ask_models(PROMPT, [(model, Sampling()) for model in (models[0], FakeEndpoint([throttled()]))])
    )
    assert isinstance(failed, Failure) and failed.kind == "throttled"


def test_a_stronger_models_answer_is_preferred() -> None:
    answer = Answer("a1", ASKED, "Dunno!", "length")
    fake = FakeEndpoint("<think>Monday?</think>\nIt left.", model="big")
    pair = result(asyncio.run(stronger(answer, model=fake, policy="m")))
    assert isinstance(pair, Pair) and (pair.chosen, pair.rejected) == ("It left.", "Dunno!")
    origin = pair.provenance
    assert (origin.maker, origin.policy, origin.reviser) == ("stronger", "m", "big")
    assert origin.details == {"stronger": "big", "finish": "length"}
    assert fake.asked[0].messages == ASKED and fake.asked[0].stage == "stronger"
    sure = asyncio.run(stronger(answer, model=FakeEndpoint("It left."), policy="m", verify=style_judge(CALM)))
    assert isinstance(sure, Pair) and sure.provenance.details["verdict"]["winner"] == "a"


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (truncated("It le"), "truncated"),
        (Reply("", "filter"), "filtered"),
        (Reply("Nein.", "refusal"), "refused"),
        ("  ", "empty"),
        ("<think>It left.</think>", "empty"),
        ("Dunno! ", "identical"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("So it left! Wow! And it did so at last!", "not_preferred"),
        (throttled(), "throttled"),
    ],
)
def test_a_stronger_models_answer_that_is_none(script: object, kind: str) -> None:
    answer = Answer("a1", ASKED, "Dunno!", "stop")
    made = result(
        asyncio.run(stronger(answer, model=FakeEndpoint([script]), policy="m", verify=style_judge(CALM)))  # type: ignore[list-item]
    )
    assert isinstance(made, Failure) and made.kind == kind
    assert made.details["answer" if kind != "not_preferred" else "rejected"] == "Dunno!"


def test_a_refused_key_ends_the_makers() -> None:
    with pytest.raises(KeyRefused):
        asyncio.run(stronger(Answer("a", ASKED, "x", "stop"), model=FakeEndpoint([KeyRefused("no")]), policy="m"))
    with pytest.raises(KeyRefused):
        asyncio.run(sample(PROMPT, FakeEndpoint([throttled(), KeyRefused("no")]), k=2))


def pair_of(name: str, number: int) -> Pair:
    return Pair(f"{name}{number}", (Message("user", name),), "c", "r")


names = st.lists(st.sampled_from("abcd"), max_size=8).map(lambda ns: [pair_of(n, i) for i, n in enumerate(ns)])


@given(st.dictionaries(st.sampled_from(["clair", "on", "off"]), names, min_size=1))
def test_matched_sets_have_the_same_prompts_in_the_same_order(sets: dict[str, list[Pair]]) -> None:
    matched = match(sets)
    prompts = {tuple(pair.prompt[0].content for pair in pairs) for pairs in matched.sets.values()}
    assert len(prompts) == 1
    [order] = prompts
    for name, pairs in sets.items():
        assert all(pair in pairs for pair in matched.sets[name])
        assert len({pair.id for pair in matched.sets[name]}) == len(matched.sets[name])
        assert matched.dropped[name] == len(pairs) - len(order)
    for name in "abcd":
        least = min(sum(pair.prompt[0].content == name for pair in pairs) for pairs in sets.values())
        assert order.count(name) == least
