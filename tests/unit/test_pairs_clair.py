"""CLAIR by rules: every answer becomes a pair that is a real improvement, or a failure that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.pairs import clair_pairs, no_pair
from anchorline.style import MAX_TEXT, Style, check, load_style, parse_style
from anchorline.types import Answer, Message, Messages, Pair

HARBOUR = load_style(Path(__file__).parents[2] / "styles" / "harbour.yaml")
GREETING = {"kind": "starts_with", "name": "greeting", "text": "Good day."}
CALM = {"kind": "no_exclamation", "name": "calm"}
UNSORRY = {"kind": "forbidden", "name": "f", "pattern": "Sorry", "repair": "drop_sentence"}
SHORT = {"kind": "max_words", "name": "short", "limit": 5}
ASKED = (Message("system", "Be kind."), Message("user", "Where is order 4417?"))


def never_happy(prompt: Messages, answer: str) -> str:
    """A repair that its own check refuses."""
    return answer + " and"


def style(*rules: dict[str, object]) -> Style:
    return parse_style({"name": "s", "rules": rules}, trust_code=True)


def answer(text: str, *, cut: bool = False, number: int = 0) -> Answer:
    return Answer(f"a{number}", ASKED, text, "length" if cut else "stop")


def only(text: str, *rules: dict[str, object], cut: bool = False) -> Pair:
    made = clair_pairs([answer(text, cut=cut)], style(*rules), policy="m")
    assert made.failures == []
    return made.pairs[0]


def test_the_pair_is_the_answer_and_its_repair() -> None:
    pair = only("It left! Today!", GREETING, CALM)
    assert (pair.id, pair.prompt) == ("a0", ASKED)
    assert (pair.rejected, pair.chosen) == ("It left! Today!", "Good day. It left. Today.")


def test_provenance_says_who_made_it_and_how() -> None:
    origin = only("It left!", GREETING, CALM, SHORT).provenance
    assert (origin.maker, origin.policy, origin.reviser) == ("clair", "m", "rules")
    assert origin.details == {"touched": ["greeting", "calm"], "finish": "stop"}
    assert only("It left! Tomo", CALM, cut=True).provenance.details == {"touched": ["calm"], "finish": "length"}


def test_a_cut_answer_loses_its_torn_sentence_on_the_chosen_side_only() -> None:
    pair = only("It left! It will arr", CALM, cut=True)
    assert (pair.rejected, pair.chosen) == ("It left! It will arr", "It left.")
    assert only("It left! It will arr", CALM).chosen == "It left. It will arr"


@pytest.mark.parametrize(
    ("text", "rules", "kind", "says"),
    [
        ("", [CALM], "empty", "is empty"),
        (" \n", [CALM], "empty", "is empty"),
        ("It left.", [CALM, SHORT], "unchanged", "keeps every rule"),
        ("It left!", [CALM, {"kind": "python", "name": "odd", "function": f"{__name__}:never_happy"}], "broken", "odd"),
        ("Sorry.", [UNSORRY], "emptied", "own"),
        ("Sorry.", [UNSORRY, GREETING], "emptied", "own"),
        ("a! " * (MAX_TEXT // 3 + 1), [CALM], "too_long", str(MAX_TEXT)),
    ],
)  # fmt: skip
def test_what_is_no_pair(text: str, rules: list[dict[str, object]], kind: str, says: str) -> None:
    made = clair_pairs([answer(text)], style(*rules), policy="m")
    assert made.pairs == []
    [failure] = made.failures
    assert (failure.id, failure.stage, failure.kind) == ("a0", "pairs", kind)
    assert says in failure.reason
    if kind in ("unchanged", "broken", "emptied"):
        assert failure.details["answer"] == text and "repaired" in failure.details
    if kind == "broken":
        assert failure.details["broken"] == ["odd"]


def test_one_bad_answer_does_not_stop_the_others() -> None:
    answers = [answer(text, number=n) for n, text in enumerate(["It left!", "", "It came!", "Fine."])]
    made = clair_pairs(answers, style(CALM), policy="m")
    assert [pair.id for pair in made.pairs] == ["a0", "a2"]
    assert [(f.id, f.kind) for f in made.failures] == [("a1", "empty"), ("a3", "unchanged")]


def test_what_is_said_where_nothing_became_a_pair() -> None:
    failures = clair_pairs([answer(""), answer("Fine."), answer("Good.")], style(CALM), policy="m").failures
    assert no_pair(failures).startswith("none of 3 answers became a pair (2 unchanged, 1 empty)")
    assert "the first unchanged: the answer keeps every rule already" in no_pair(failures)


SENTENCES = st.sampled_from(
    [
        "I am so sorry!", "It left today.", "Wow!!", "Thank you for contacting Harbour.", "Reference: order 1.",
        "We apologise, e.g. for the delay.", "- a list", "It costs 3.50 EUR.", "É ok", "so torn", "?!", "```\ncode!\n```",
        "word " * 75,
    ]
)  # fmt: skip


@given(st.lists(SENTENCES, max_size=6).map(" ".join), st.booleans(), st.sampled_from(["Order 4417?", "Hello!"]))
def test_chosen_keeps_all_rules_and_rejected_is_the_answer(text: str, cut: bool, question: str) -> None:
    asked = (Message("user", question),)
    made = clair_pairs([Answer("a", asked, text, "length" if cut else "stop")], HARBOUR, policy="m")
    assert len(made.pairs) + len(made.failures) == 1
    for pair in made.pairs:
        assert pair.rejected == text != pair.chosen
        assert all(check(HARBOUR, asked, pair.chosen).values())
        assert cut or not all(check(HARBOUR, asked, text).values())
