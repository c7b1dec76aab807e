"""Templates: filled in one pass, known by their content, refused with one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.errors import UserError
from anchorline.judge import GENERAL, load_template, parse_template, render, rubric
from anchorline.judge.pairwise import default_template as pairwise_template
from anchorline.judge.score import default_template as score_template
from anchorline.judge.template import conversation
from anchorline.pairs.render import again_template
from anchorline.pairs.render import default_template as revise_template
from anchorline.style import Style, parse_style
from anchorline.types import Message

ASKED = (Message("system", "Be kind."), Message("user", "Where is order 4417?"))


@given(
    st.text(st.characters(blacklist_categories=["Cs"])), st.sampled_from(["{{a}}", "{{b}}", "{}", "%s", "\\1", "{0}"])
)
def test_a_value_is_never_read_as_a_template(text: str, trap: str) -> None:
    template = parse_template("[{{a}}|{{ b }}|{{a}}]", name="t", slots={"a", "b"})
    value = text + trap
    assert render(template, a=value, b="B")[0].content == f"[{value}|B|{value}]"


def test_turns_and_hash() -> None:
    text = "=== system ===\nYou {{a}}.\n=== user ===\nDo {{a}}.\n"
    template = parse_template(text, name="t", slots={"a"})
    assert render(template, a="x") == (Message("system", "You x."), Message("user", "Do x."))
    assert template.hash == parse_template(text.replace("\n", "\r\n"), name="other", slots={"a"}).hash
    assert template.hash != parse_template(text + "!", name="t", slots={"a"}).hash
    assert len(template.hash) == 16
    assert template.fixed == "You  .\nDo  ."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Do {{b}}.", r"mine: got the placeholder {{b}}, expected {{a}}; rename or remove it"),
        ("Do it.", r"mine: the placeholder {{a}} is missing, expected {{a}}; put it in"),
        ("x\n=== user ===\n{{a}}", "text before the first"),
        ("=== assistant ===\n{{a}}", "got the turn 'assistant'"),
        ("=== system ===\n{{a}}", "expected one user turn"),
        ("=== user ===\n{{a}}\n=== system ===\nx", "expected one user turn"),
        ("", "expected one user turn"),
    ],
)
def test_a_bad_template_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_template(text, name="mine", slots={"a"})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the prompt template"):
        load_template(tmp_path / "no.txt", slots={"a"})
    (tmp_path / "latin.txt").write_bytes("{{a}} né".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        load_template(tmp_path / "latin.txt", slots={"a"})
    (tmp_path / "big.txt").write_text("{{a}}" + "x" * 300_000)
    with pytest.raises(UserError, match="300005 bytes"):
        load_template(tmp_path / "big.txt", slots={"a"})


def test_those_of_the_package_are_sound_and_told_apart() -> None:
    ours = [pairwise_template(), score_template(), revise_template(), again_template()]
    assert len({template.hash for template in ours}) == len(ours)


def test_a_conversation_shows_who_speaks() -> None:
    assert conversation(ASKED) == "[system]\nBe kind.\n\n[user]\nWhere is order 4417?"


def test_the_rubric_is_the_style_in_words() -> None:
    rules = [
        {"kind": "starts_with", "text": "Good day."},
        {"kind": "ends_with", "text": "Order {n}.", "captures": {"n": r"order (\d+)"}},
        {"kind": "states", "text": "It is {n}.", "captures": {"n": r"order (\d+)"}},
        {"kind": "forbidden", "pattern": "sorry"},
        {"kind": "forbidden", "name": "long", "pattern": "x" * 500},
        {"kind": "required", "term": "VAT", "sentence": "VAT included."},
        {"kind": "terminology", "terms": {"basket": "cart"}},
        {"kind": "spelling", "variant": "british", "keep": ["Harbor"]},
        {"kind": "no_exclamation"},
        {"kind": "no_markdown"},
        {"kind": "max_words", "limit": 70},
        {"kind": "max_sentences", "limit": 9},
    ]
    text = rubric(parse_style({"name": "s", "guideline": "Be calm.", "rules": rules}), ASKED)
    assert text.startswith("Be calm.\n\nRules")
    for words in (
        "exactly this text: Good day.", "exactly this text: Order 4417.", "matches: sorry", "long: as the rule's name",
        "mention VAT", "write 'cart' instead of 'basket'", "British spelling, except in Harbor", "no exclamation marks",
        "plain text", "states: state 4417", "at most 70 words", "at most 9 sentences",
    ):  # fmt: skip
        assert words in text
    assert "x" * 161 not in text
    assert rubric(None, ASKED) == GENERAL == rubric(Style(name="empty"), ASKED)
    elsewhere = rubric(parse_style({"name": "s", "rules": rules[1:2]}), ASKED[:1])
    assert "does not apply here" in elsewhere
    facts = [rules[2], {**rules[2], "name": "none", "missing": "Unknown."}]
    said = [rubric(parse_style({"name": "s", "rules": [fact]}), ASKED[:1]) for fact in facts]
    assert said[0].endswith("states: does not apply here")
    assert said[1].endswith("none: answer exactly this, nothing more: Unknown.")
