"""CLAIR with a model: asked, parsed, gated, asked again with the reason, verified; every attempt kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from anchorline.data import failure_to_row, pair_to_row
from anchorline.data.jsonl import dumps
from anchorline.errors import BudgetReached, CircuitOpen, KeyRefused, UserError
from anchorline.judge import GENERAL, Sampling, pairwise_judge, style_judge
from anchorline.llm.fake import FakeEndpoint, throttled, truncated
from anchorline.llm.types import Reply
from anchorline.pairs import GateSettings, revise, user_template
from anchorline.pairs.parse import CLOSE, OPEN
from anchorline.pairs.render import again_request, default_template, revision_request
from anchorline.style import parse_style
from anchorline.types import Answer, Failure, Message, Pair

ASKED = (Message("system", "Be kind."), Message("user", "Where is {order} 4417?"))
ANSWER = Answer("a1", ASKED, "It left! {{aim}} Soon.", "stop")
CALM = parse_style({"name": "calm", "guideline": "Stay calm.", "rules": [{"kind": "no_exclamation", "name": "calm"}]})
LOUD = "It left on Monday! {{aim}} Soon."
GOOD = "It left on Monday. {{aim}} Soon."


def framed(text: str) -> str:
    return f"Too loud.\n{OPEN}\n{text}\n{CLOSE}"


def made(script: object, answer: Answer = ANSWER, **options: object) -> tuple[Pair | Failure, FakeEndpoint]:
    fake = FakeEndpoint(script, model="big")  # type: ignore[arg-type]
    result = asyncio.run(revise(answer, reviser=fake, policy="small", **options))  # type: ignore[arg-type]
    json.dumps(pair_to_row(result) if isinstance(result, Pair) else failure_to_row(result))  # goes into a file
    return result, fake


def failure(script: object, **options: object) -> Failure:
    result, _ = made(script, **options)
    assert isinstance(result, Failure)
    assert (result.id, result.stage) == ("a1", "pairs")
    return result


def test_the_request_holds_everything_as_it_is() -> None:
    system, user = revision_request(ASKED, ANSWER.text, style=CALM, template=default_template())
    assert (system.role, user.role) == ("system", "user")
    for part in (
        "[system]\nBe kind.", "[user]\nWhere is {order} 4417?", f"<answer>\n{ANSWER.text}\n</answer>", "Stay calm.",
        "calm: no exclamation marks", f"\n{OPEN}\n", f"\n{CLOSE}\n",
    ):  # fmt: skip
        assert part in user.content
    assert GENERAL in revision_request(ASKED, "x", style=None, template=default_template())[-1].content


def test_the_pair_and_where_it_comes_from() -> None:
    pair, fake = made(framed(GOOD), style=CALM, sampling=Sampling(500, 0.3, 0.9))
    assert isinstance(pair, Pair)
    assert (pair.id, pair.prompt, pair.chosen, pair.rejected) == ("a1", ASKED, GOOD, ANSWER.text)
    origin = pair.provenance
    assert (origin.maker, origin.policy, origin.reviser) == ("clair", "small", "big")
    assert origin.details["template"] == default_template().hash
    assert origin.details["touched"] == ["calm"]
    [attempt] = origin.details["attempts"]
    assert attempt == {"text": framed(GOOD), "finish": "stop", "status": "clean", "faults": [], "reason": ""}
    [request] = fake.asked
    assert (request.max_tokens, request.temperature, request.top_p, request.index) == (500, 0.3, 0.9, 0)
    assert (request.row, request.stage) == ("a1", "revise")


def test_half_a_character_in_json_fails_its_row_alone() -> None:
    """An escape may hold half a surrogate pair, and no file can: written, it ended the run."""
    half, whole = (
        '{"revision": "It left on Monday \\ud83d"}',
        '{"reasoning": "\\ud83d", "revision": "It left \\ud83d\\ude00"}',
    )
    failed = failure(half)
    assert failed.kind == "bad_json"
    dumps(failure_to_row(failed), "failures.jsonl")
    pair, _ = made([half, whole])
    assert isinstance(pair, Pair) and pair.chosen == "It left 😀"
    dumps(pair_to_row(pair), "pairs.jsonl")


def test_a_failed_gate_is_asked_again_with_the_reason() -> None:
    pair, fake = made([framed(LOUD), framed(GOOD)], style=CALM)
    assert isinstance(pair, Pair) and pair.chosen == GOOD
    first, second = fake.asked
    assert (first.index, second.index) == (0, 1)
    assert second.messages[: len(first.messages)] == first.messages
    attempt, again = second.messages[len(first.messages) :]
    assert attempt == Message("assistant", framed(LOUD))
    assert again.role == "user" and "- your text breaks: calm (no exclamation marks)" in again.content
    assert OPEN in again.content and CLOSE in again.content
    kept = pair.provenance.details["attempts"]
    assert [(attempt["status"], attempt["faults"]) for attempt in kept] == [("clean", ["broken"]), ("clean", [])]
    assert "again_template" in pair.provenance.details


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("said", ["\r\n", "\n"])
def test_a_revision_has_the_line_ends_of_the_answer(end: str, said: str) -> None:
    answer = Answer("a1", ASKED, f"It left!{end}{end}Bye.", "stop")
    pair, _ = made(framed(f"It left.{said}{said}Bye.{said}Now."), answer)
    assert isinstance(pair, Pair) and pair.chosen == f"It left.{end}{end}Bye.{end}Now."


@pytest.mark.parametrize("text", ["It left!", "It left!\r\nFor good!\nBye."])
def test_line_ends_stay_where_the_answer_has_none_or_several_kinds(text: str) -> None:
    pair, _ = made(framed("It left.\r\nNow.\nBye."), Answer("a1", ASKED, text, "stop"))
    assert isinstance(pair, Pair) and pair.chosen == "It left.\r\nNow.\nBye."


def test_only_the_last_attempt_is_shown_and_there_is_a_limit() -> None:
    result, fake = made([framed(LOUD), "no marker", framed(LOUD)], style=CALM, gates=GateSettings(attempts=3))
    assert isinstance(result, Failure) and result.kind == "broken"
    assert "after 3 of 3 attempts" in result.reason
    assert [len(request.messages) for request in fake.asked] == [2, 4, 4]
    assert fake.asked[2].messages[2].content == "no marker"
    assert [attempt["status"] for attempt in result.details["attempts"]] == ["clean", "no_marker", "clean"]
    assert result.details["attempts"][1]["text"] == "no marker"
    assert result.details["answer"] == ANSWER.text


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (truncated(f"Why.\n{OPEN}\nIt le"), "truncated"),
        (framed(""), "empty"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("It left on Monday.", "no_marker"),
        (framed("In this revised answer it left."), "self_referring"),
        (f"{OPEN}\nIt left on Monday, at noon.\n{OPEN}\nBye.", "ambiguous"),
        (framed(f"It left.\n{OPEN.title()} here"), "marker_inside"),
        (framed("word " * 200), "length"),
    ],
)
def test_what_cannot_be_used_is_asked_again_and_then_a_failure(reply: str | Reply, kind: str) -> None:
    result, fake = made([reply, reply])
    assert isinstance(result, Failure) and result.kind == kind
    assert len(fake.asked) == len(result.details["attempts"]) == 2
    assert made([reply, framed(GOOD)])[0].id == "a1"
    assert isinstance(made([reply, framed(GOOD)])[0], Pair)


def test_an_empty_attempt_is_not_shown_as_an_empty_turn() -> None:
    _, fake = made(["", framed(GOOD)])
    assert [turn.role for turn in fake.asked[1].messages] == ["system", "user"]
    assert "the lines <<<REVISED ANSWER>>>" in fake.asked[1].messages[-1].content
    assert all(turn.content.strip() for turn in again_request(fake.asked[0].messages, " \n", ["x"]))


def test_a_copy_is_final_unless_the_answer_breaks_a_rule() -> None:
    copy = framed(ANSWER.text)
    result, fake = made([copy, framed(GOOD)])
    assert isinstance(result, Failure) and result.kind == "identical" and len(fake.asked) == 1
    result, fake = made([copy, framed(GOOD)], style=CALM)
    assert isinstance(result, Pair) and "breaks: calm" in fake.asked[1].messages[-1].content


def test_a_withheld_reply_is_not_asked_again() -> None:
    result, fake = made([Reply("", "filter")])
    assert isinstance(result, Failure) and result.kind == "filtered" and len(fake.asked) == 1


def test_an_empty_answer_costs_nothing() -> None:
    result, fake = made([], answer=Answer("a1", ASKED, " \n", "stop"))
    assert isinstance(result, Failure) and result.kind == "empty_answer" and not fake.asked


def test_an_error_of_the_endpoint_is_this_rows_and_keeps_the_attempts() -> None:
    assert failure([throttled()]).kind == "throttled"
    later = failure(["no marker", throttled()])
    assert later.kind == "throttled" and [a["text"] for a in later.details["attempts"]] == ["no marker"]


@pytest.mark.parametrize("error", [KeyRefused("no"), BudgetReached("spent"), CircuitOpen("down")])
def test_what_ends_a_run_comes_through(error: Exception) -> None:
    with pytest.raises(type(error)):
        made([error])


def test_verification_sets_losers_aside() -> None:
    won, _ = made(framed(GOOD), verify=style_judge(CALM))
    assert isinstance(won, Pair)
    assert won.provenance.details["verdict"]["winner"] == "a" and won.provenance.details["attempts"]
    lost, _ = made(framed(LOUD), verify=style_judge(CALM))
    assert isinstance(lost, Failure) and lost.kind == "not_preferred" and "prefers neither" in lost.reason
    assert (lost.details["chosen"], lost.details["rejected"]) == (LOUD, ANSWER.text)
    assert lost.details["attempts"] and lost.details["verdict"]["winner"] == "tie"
    flips, _ = made(framed(GOOD), verify=pairwise_judge(FakeEndpoint("VERDICT: A")))
    assert isinstance(flips, Failure) and "changed its mind" in flips.reason
    unread, _ = made(framed(GOOD), verify=pairwise_judge(FakeEndpoint("Both are nice.")))
    assert isinstance(unread, Failure) and unread.kind == "unreadable" and unread.details["attempts"]


def test_a_template_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("{{conversation}}|{{answer}}|{{aim}}|{{open}}|{{close}}")
    pair, fake = made(framed(GOOD), template=user_template(file))
    assert isinstance(pair, Pair) and pair.provenance.details["template"] == user_template(file).hash
    assert fake.asked[0].messages[0].content.split("|")[1] == ANSWER.text
    file.write_text("{{conversation}} {{answer}} {{aim}} {{open}}")
    with pytest.raises(UserError, match=r"the placeholder \{\{close\}\} is missing"):
        user_template(file)
