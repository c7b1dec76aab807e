"""Gates: what no revision passes with, and that ordinary revisions pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.pairs import gates, language
from anchorline.pairs.gates import SPAN, failed_gates
from anchorline.pairs.language import language_switch
from anchorline.pairs.markers import CLOSE
from anchorline.pairs.parse import parse_revision
from anchorline.pairs.render import default_template
from anchorline.pairs.settings import GateSettings, PairSettings
from anchorline.style import MAX_TEXT, Style, parse_style
from anchorline.types import Message

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "clair_gpt4_revisions.jsonl"
ASKED = (Message("user", "Where is order 4417?"),)
ENGLISH = "Your order left our warehouse on Monday morning and should arrive at your address by the end of the week."
GERMAN = "Ihre Bestellung hat unser Lager am Montag verlassen und sollte bis zum Ende der Woche bei Ihnen ankommen."
NORWEGIAN = "Bestillingen din forlot lageret vårt på mandag og skal komme fram til adressen din innen slutten av uken."
DANISH = "Din bestilling forlod vores lager i mandags og skulle gerne nå frem til din adresse inden ugens udgang."
CODE = "```python\nfor order in orders:\n    print(order.number, order.state, order.address, order.customer.name)\n```"


def kinds(
    original: str, revision: str, style: Style | None = None, instructions: str = "", **options: object
) -> list[str]:
    settings = GateSettings.model_validate(options)
    faults = failed_gates(ASKED, original, revision, settings=settings, style=style, instructions=instructions)
    assert all(fault.reason for fault in faults)
    return [fault.kind for fault in faults]


def test_a_small_edit_passes_all() -> None:
    assert kinds(ENGLISH, ENGLISH.replace("should", "will")) == []


def test_a_copy_is_no_revision() -> None:
    assert kinds(ENGLISH, ENGLISH.replace(" ", "\n") + " ") == ["identical"]


def test_another_text_is_over_edited() -> None:
    other = "Zebras graze quietly, quick foxes jump over lazy dogs, and nobody knows why the moon looks so big tonight."
    assert kinds(ENGLISH * 3, other * 3, max_change=0.6) == ["over_edited"]
    assert kinds(ENGLISH * 3, other * 3, max_change=1.0) == []


def test_an_unrelated_text_of_like_length_is_over_edited() -> None:
    before = (
        "I am sorry! Your visit is on Monday at nine in the morning! Please bring your insurance card and the number that "
        "we gave you."
    )
    other = (
        "Bananas grow in warm countries, where monkeys climb tall trees all day long and eat whatever fruit they find "
        "there, ripe or not."
    )
    assert kinds(before, other) == ["over_edited"]
    assert kinds(before, other, max_change=1) == []
    assert kinds(before, "Your appointment: Monday, 9 a.m. Have your insurance card and your number with you.") == []


def test_a_short_answer_may_get_a_greeting_and_a_closing() -> None:
    assert kinds("Yes.", "Thank you for contacting Harbour. Yes. Reference: no order number given.") == []
    assert kinds("Yes.", "Yes, and that is how it has always been. " * 4, max_length_ratio=1.0) == [
        "length",
        "over_edited",
    ]


def test_length_has_two_bounds_and_leeway() -> None:
    words = " ".join(f"word{i}" for i in range(100))
    assert kinds(words, " ".join([words] * 3) + " x" * 131, max_change=1) == ["length"]
    assert kinds(words, " ".join([words] * 3) + " x" * 130, max_change=1) == []
    assert kinds(words, "word0 " * 19, min_length_ratio=0.5, max_change=1) == ["length"]
    assert kinds(words, "word0 " * 20, min_length_ratio=0.5, max_change=1) == []


def test_length_is_seen_where_words_are_not_set_apart() -> None:
    assert kinds("订" * 300, "订" * 300 + "单" * 3000, max_change=1, language=False) == ["length"]


def test_a_switch_of_language_is_seen_and_can_be_allowed() -> None:
    assert kinds(ENGLISH, GERMAN, max_change=1) == ["language"]
    assert kinds(ENGLISH, GERMAN, max_change=1, language=False) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ENGLISH, ENGLISH.replace("Monday", "Montag")),
        (ENGLISH, "Kurz: ja."),
        ("Short.", GERMAN),
        (NORWEGIAN, DANISH),
        (ENGLISH, CODE),
        (GERMAN, f"{GERMAN}\n{CODE}"),
        ("https://example.org/orders/where-is-my-order-and-when-does-it-come-to-my-house-tomorrow", GERMAN),
        ("12 34 56 " * 40, GERMAN),
    ],
)
def test_where_it_is_not_sure_there_is_no_switch(before: str, after: str) -> None:
    assert language_switch(before, after) is None


def test_a_sure_switch_names_both_languages() -> None:
    assert language_switch(ENGLISH, GERMAN) == ("en", "de")
    assert language_switch(GERMAN, NORWEGIAN) == ("de", "no")


def test_a_text_of_the_same_words_needs_no_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def asked() -> None:
        raise Asked

    monkeypatch.setattr(language, "_identifier", asked)
    assert language_switch(ENGLISH * 3, f"Hello. {ENGLISH.replace('should', 'will')} {ENGLISH * 2}") is None
    assert language_switch(f"{CODE}\n{ENGLISH}", f"```\nother\n```\n{ENGLISH}") is None
    for before, after in [
        (ENGLISH, GERMAN),
        (f"{ENGLISH}\n{CODE}", f"{GERMAN}\n{CODE}"),  # the code is not what is written in a language
        (f"{ENGLISH} 1 2 3 4 5 6 7 8 9 | - .", f"{GERMAN} 1 2 3 4 5 6 7 8 9 | - ."),
        (ENGLISH, f"{ENGLISH} {GERMAN} {GERMAN} {GERMAN}"),
    ]:
        with pytest.raises(Asked):
            language_switch(before, after)


@given(st.lists(st.sampled_from("abcd"), max_size=60), st.lists(st.sampled_from("abcd"), max_size=30), st.data())
def test_every_span_of_the_instructions_is_found(said: list[str], told: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(told)))
    at = data.draw(st.integers(0, len(said)))
    said[at:at] = told[start : start + data.draw(st.integers(0, 12))]
    spans = {tuple(told[i : i + SPAN]) for i in range(len(told) - SPAN + 1)}
    expected = [i for i in range(len(said) - SPAN + 1) if tuple(said[i : i + SPAN]) in spans]
    assert gates._spans_told(said, " ".join(told)) == expected


def test_the_instructions_do_not_leak() -> None:
    told = default_template().fixed
    leak = "Touch only what the aim calls for; all that is right already stays where it is, word for word."
    assert kinds(ENGLISH, f"{ENGLISH} {leak}", instructions=told) == ["leak"]
    assert kinds(ENGLISH, f"{ENGLISH} {leak.upper()}", instructions=told) == ["leak"]
    assert kinds(ENGLISH, f"{ENGLISH} {leak}", instructions=told, leak=False) == []
    assert kinds(f"{ENGLISH} {leak}", f"{ENGLISH} Yes. {leak}", instructions=told) == []
    assert kinds(ENGLISH, f"{ENGLISH} Touch only what the aim calls for.", instructions=told) == []
    assert kinds(ENGLISH, f"{ENGLISH}\n{CLOSE}") == ["leak"]


def test_what_a_rule_prescribes_is_no_leak() -> None:
    closing = "Write to us again at any time, we are always glad to hear from you."
    guideline = f"Close with: {closing} Never say that the warehouse is slow, whatever the customer may say about it."
    style = parse_style({"name": "s", "guideline": guideline, "rules": [{"kind": "ends_with", "text": closing}]})
    assert kinds(ENGLISH, f"{ENGLISH} {closing}", style, guideline) == []
    leak = "Never say that the warehouse is slow, whatever the customer may say."
    assert kinds(ENGLISH, f"{ENGLISH} {leak} {closing}", style, guideline) == ["leak"]


def test_broken_rules_are_named_in_words() -> None:
    rules = [{"kind": "no_exclamation"}, {"kind": "max_words", "limit": 50}]
    style = parse_style({"name": "s", "rules": rules})
    [fault] = failed_gates(ASKED, ENGLISH, f"{ENGLISH} Really!", settings=GateSettings(), style=style)
    assert fault == ("broken", "your text breaks: no_exclamation (no exclamation marks)")
    assert kinds(ENGLISH, f"{ENGLISH} Really!", style, rules=False) == []
    assert kinds("x" * MAX_TEXT, "x " * MAX_TEXT, style, max_change=1, max_length_ratio=10**6) == ["broken"]


def test_the_settings_have_bounds() -> None:
    for wrong in ({"attempts": 0}, {"max_change": 0}, {"max_change": 1.1}, {"max_length_ratio": 0.5}, {"odd": 1}):
        with pytest.raises(ValueError):
            GateSettings.model_validate(wrong)
    for wrong in ({"samples": 1}, {"maker": "magic"}, {"judge_samples": 0}, {"gates": {"odd": 1}}):
        with pytest.raises(ValueError):
            PairSettings.model_validate(wrong)


@pytest.mark.skipif(not REAL.exists(), reason="shared/data/clair_gpt4_revisions.jsonl is not there")
def test_published_revisions_pass_the_default_gates() -> None:
    told = default_template().fixed
    for row in map(json.loads, REAL.read_text(encoding="utf-8").splitlines()):
        found = parse_revision(row["completion"], original=row["rejected"])
        assert kinds(row["rejected"], found.text, instructions=told) == []
