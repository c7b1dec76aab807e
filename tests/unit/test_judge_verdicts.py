"""Judges: asked in both orders, flips told from ties, and what cannot be read is an error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.errors import BadReply, EndpointTimeout, KeyRefused, StyleError
from anchorline.judge import (
    Judge,
    Sampling,
    Unreadable,
    count_verdicts,
    judge_pair,
    pairwise_judge,
    score_answer,
    score_judge,
    score_scorer,
    style_judge,
    style_scorer,
    verdict_to_row,
)
from anchorline.judge.pairwise import parse_verdict
from anchorline.judge.sampling import together
from anchorline.judge.score import parse_score
from anchorline.judge.thinking import said_alone, without_thinking
from anchorline.llm.fake import FakeEndpoint, truncated
from anchorline.llm.types import Request
from anchorline.style import parse_style
from anchorline.types import Message, Verdict

ASKED = (Message("user", "Where is my order?"),)
CALM = parse_style({"name": "calm", "rules": [{"kind": "no_exclamation"}, {"kind": "max_words", "limit": 3}]})


def shown(request: Request) -> tuple[str, str]:
    """The two answers in the order in which the judge sees them."""
    text = request.messages[-1].content
    first = text.split("<answer_a>\n")[1].split("\n</answer_a>")[0]
    return first, text.split("<answer_b>\n")[1].split("\n</answer_b>")[0]


def prefers(better: str) -> Callable[[Request], str]:
    return lambda request: f"VERDICT: {'AB'[shown(request).index(better)]}"


def judged(script: object, **options: object) -> tuple[Verdict, FakeEndpoint]:
    fake = FakeEndpoint(script, model="j")  # type: ignore[arg-type]
    return asyncio.run(judge_pair(ASKED, "one", "two", judge=fake, row="r1", **options)), fake  # type: ignore[arg-type]


def test_both_orders_are_asked_and_agree() -> None:
    verdict, fake = judged(prefers("two"))
    assert (verdict.winner, verdict.flip, verdict.judge) == ("b", False, "j")
    assert [shown(request) for request in fake.asked] == [("one", "two"), ("two", "one")]
    assert verdict.details["orders"] == ["b", "b"] and len(verdict.details["template"]) == 16
    assert {(request.row, request.stage) for request in fake.asked} == {("r1", "judge")}
    assert judged(prefers("one"))[0].winner == "a"


@pytest.mark.parametrize("place", ["A", "B"])
def test_a_judge_that_prefers_a_place_is_a_flip(place: str) -> None:
    verdict, _ = judged(f"VERDICT: {place}")
    assert (verdict.winner, verdict.flip) == ("tie", True)


def test_a_tie_in_both_orders_is_no_flip_and_half_a_tie_is() -> None:
    assert judged("VERDICT: TIE")[0] == Verdict("tie", False, "j", judged("VERDICT: TIE")[0].details)
    assert judged(["VERDICT: A", "VERDICT: TIE"])[0].flip


def test_equal_answers_tie_without_a_call() -> None:
    fake = FakeEndpoint([])
    assert asyncio.run(judge_pair(ASKED, "x", "x", judge=fake)).winner == "tie"
    assert fake.asked == []


def test_the_rubric_and_the_sampling_reach_the_judge() -> None:
    _, fake = judged("VERDICT: TIE", style=CALM, sampling=Sampling(77, 0.0, 0.5))
    request = fake.asked[0]
    assert "no exclamation marks" in request.messages[-1].content
    assert (request.max_tokens, request.temperature, request.top_p) == (77, 0.0, 0.5)


@pytest.mark.parametrize("script", ["I like both.", "", "VERDICT: C", "VERDICT: A\nVERDICT: B", "The verdict: A is"])
def test_a_reply_without_a_verdict_is_an_error(script: str) -> None:
    with pytest.raises(BadReply, match="expected one line such as") as caught:
        judged(["VERDICT: A", script])
    assert caught.value.kind == "unreadable"


def test_a_reply_that_was_cut_is_an_error() -> None:
    with pytest.raises(Unreadable, match="'length'"):
        judged([truncated("VERDICT: A"), "VERDICT: B"])


@pytest.mark.parametrize(
    ("reply", "winner"),
    [
        ("VERDICT: A", "a"),
        ("Both are fine.\n**Verdict: B**", "b"),
        ("**VERDICT**: tie.", "tie"),
        ("## Verdict: Answer B", "b"),
        ("verdict： [[A]]", "a"),
        ('{"verdict": "B"}', "b"),
        ("Final verdict: A\r\n", "a"),
        ("VERDICT: A\nSo:\nVERDICT: A", "a"),
        ("<think>VERDICT: A\n</think>VERDICT: B", "b"),
        ("VERDICT: A\n</think>\nVERDICT: B", "b"),
    ],
)
def test_dressed_verdicts_are_read(reply: str, winner: str) -> None:
    assert parse_verdict(reply, "stop") == winner


@pytest.mark.parametrize(
    ("reply", "score"),
    [("SCORE: 7", 7), ("**Score:** 8/10", 8), ("Score: 7.5 out of 10.", 7.5), ("Overall score: 10", 10)],
)
def test_scores_are_read(reply: str, score: float) -> None:
    assert parse_score(reply, "stop") == score


@pytest.mark.parametrize("reply", ["SCORE: 0", "SCORE: 11", "SCORE: -3", "SCORE: good", "Seven.", "SCORE: 7\nSCORE: 8"])
def test_a_score_off_the_scale_is_an_error(reply: str) -> None:
    with pytest.raises(Unreadable):
        parse_score(reply, "stop")


@given(st.text(max_size=300))
def test_noise_is_a_verdict_or_an_error(text: str) -> None:
    for read in (parse_verdict, parse_score):
        with contextlib.suppress(Unreadable):
            assert read(text, "stop") is not None


def test_a_score_is_the_mean_of_samples_that_the_cache_tells_apart() -> None:
    fake = FakeEndpoint(lambda request: f"SCORE: {6 + request.index}")
    score = asyncio.run(score_answer(ASKED, "x", judge=fake, n=3))
    assert (score.mean, score.values) == (7.0, (6.0, 7.0, 8.0))
    assert [request.index for request in fake.asked] == [0, 1, 2]
    assert asyncio.run(score_scorer(fake, n=3)(ASKED, "x")).points == 7.0
    with pytest.raises(Unreadable):
        asyncio.run(score_answer(ASKED, "x", judge=FakeEndpoint(["SCORE: 7", "?"]), n=2))


def test_score_mode_compares_the_means() -> None:
    fake = FakeEndpoint(lambda request: "SCORE: 9" if "<answer>\ntwo" in request.messages[-1].content else "SCORE: 4")
    judge = score_judge(fake, n=2)
    verdict = asyncio.run(judge(ASKED, "one", "two", row="r"))
    assert (verdict.winner, verdict.details["scores"]) == ("b", [[4.0, 4.0], [9.0, 9.0]])
    assert asyncio.run(judge(ASKED, "two", "one")).winner == "a"
    assert asyncio.run(judge(ASKED, "one", "uno")).winner == "tie"


def test_the_style_judges_by_rules_kept() -> None:
    judge = style_judge(CALM)
    verdict = asyncio.run(judge((), "It left.", "It left at last!"))
    assert (verdict.winner, verdict.judge) == ("a", "style:calm")
    assert verdict.details["broken"] == [[], ["no_exclamation", "max_words"]]
    assert asyncio.run(judge((), "Now!", "It left.")).winner == "b"
    assert asyncio.run(judge((), "Now!", "It has left at last.")).winner == "tie"
    assert asyncio.run(style_scorer(CALM)((), "Now!")).points == 1.0
    for needs_rules in (style_judge, style_scorer):
        with pytest.raises(StyleError, match="has no rules to judge by"):
            needs_rules(parse_style({"name": "free", "guideline": "Be kind."}))


def test_all_judges_are_called_alike() -> None:
    judges: list[Judge] = [pairwise_judge(FakeEndpoint(prefers("one"))), style_judge(CALM)]
    assert [asyncio.run(judge(ASKED, "one", "two at last!", row="r")).winner for judge in judges[1:]] == ["a"]
    assert asyncio.run(judges[0](ASKED, "one", "two")).winner == "a"


def test_verdicts_are_counted() -> None:
    verdicts = [Verdict("a"), Verdict("b"), Verdict("tie"), Verdict("tie", flip=True)]
    assert count_verdicts(verdicts) == {"judged": 4, "a": 1, "b": 1, "ties": 2, "flips": 1}
    assert verdict_to_row(Verdict("a", judge="j", details={"x": 1})) == {
        "winner": "a",
        "flip": False,
        "judge": "j",
        "x": 1,
    }


def test_a_failed_call_waits_for_the_others_and_the_graver_error_comes_first() -> None:
    done: list[int] = []

    async def call(number: int, error: Exception | None) -> int:
        await asyncio.sleep(0)
        if error:
            raise error
        await asyncio.sleep(0)
        done.append(number)
        return number

    async def run(*errors: Exception | None) -> list[int]:
        return await together(call(i, error) for i, error in enumerate(errors))

    assert asyncio.run(run(None, None)) == [0, 1]
    with pytest.raises(EndpointTimeout):
        asyncio.run(run(EndpointTimeout("late"), None))
    assert done == [0, 1, 1]
    with pytest.raises(KeyRefused):
        asyncio.run(run(EndpointTimeout("late"), KeyRefused("no")))


@pytest.mark.parametrize(
    ("text", "said", "thought"),
    [
        ("a", "a", ""),
        ("<think>x</think>a", "a", "x"),
        ("x</think>a", "a", "x"),
        ("\n<think>x", "\n", "x"),
        ("<think>x</think>\n[THINK]y", "\n", "xy"),
        ("A.\n<think>x</think>\nB.", "A.\n\nB.", "x"),
        ("A.<think>x</think>B.", "A.B.", "x"),
        ("Use <think>?\n</think>\nA.", "\nA.", "Use <think>?\n"),
        ("a<thinking>x</thinking>b[THINK]y[/THINK]c", "abc", "xy"),
        ("<think>x<think>y</think>a", "a", "xy"),
    ],
)
def test_thinking_is_told_from_speech(text: str, said: str, thought: str) -> None:
    assert without_thinking(text) == (said, thought)


@pytest.mark.parametrize(
    "text",
    ["Use the <think> tag.", "Use <think> and </think>.", "`<think>` opens, `</think>` closes.", "It ends with </think>.",
     "使用<think>和</think>标签。", "a<think>x", "A.\n<think> opens it.", "```\n<think>\nx\n</think>\n```\nDone.",
     "(<thinking>x</thinking>)", "Write [THINK] first.", "<a>\n<reasoning>\nx\n</reasoning>\n</a>"],
)  # fmt: skip
def test_a_tag_that_is_written_about_is_said(text: str) -> None:
    assert without_thinking(text) == (text, "")
    assert without_thinking(f"<think>Or <think>?</think>\n{text}") == (
        f"\n{text}",
        "Or <think>?".replace("<think>", ""),
    )
    assert said_alone(f"{text}\n") == f"{text}\n"
