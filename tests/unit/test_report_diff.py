"""Checks the word diff and that no text reaches the page unescaped or disguised."""

from __future__ import annotations

import regex
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from anchorline.report.diff import visible, word_diff

TEXTS = st.text(st.sampled_from("ab <>&'\"!.\n⟨\u202e\u2028é👩\u200d🚀\ud800"), max_size=30) | st.text(max_size=40)


def unmarked(side: Markup, tag: str) -> str:
    return Markup(regex.sub(f"</?{tag}>", "", str(side))).unescape()


def outside(side: Markup, tag: str) -> str:
    return regex.sub(f"<{tag}>.*?</{tag}>", "", str(side), flags=regex.DOTALL)


@given(TEXTS, TEXTS)
def test_both_sides_keep_their_text_and_share_what_is_unmarked(before: str, after: str) -> None:
    diff = word_diff(before, after)
    assert unmarked(diff.before, "del") == visible(before)
    assert unmarked(diff.after, "ins") == visible(after)
    assert outside(diff.before, "del") == outside(diff.after, "ins")


@given(TEXTS)
def test_equal_texts_have_no_mark_and_no_tag(text: str) -> None:
    diff = word_diff(text, text)
    assert diff.before == diff.after
    assert "<" not in diff.before and ">" not in diff.before


@given(TEXTS)
def test_visible_text_can_be_stored_and_reads_in_order(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ufeff\0")


def test_whole_words_are_marked() -> None:
    diff = word_diff("Your parcel left today.", "Your parcels left today.")
    assert diff[:2] == ("Your <del>parcel</del> left today.", "Your <ins>parcels</ins> left today.")


def test_a_space_between_two_changes_joins_them() -> None:
    assert word_diff("so sorry, friend", "Hello Harbour, friend").after == "<ins>Hello Harbour</ins>, friend"


def test_markup_in_an_answer_is_text() -> None:
    diff = word_diff("<script>alert(1)</script>", "</ins><img src=x onerror=\"alert('1')\">")
    assert regex.findall("<[^>]*>", str(diff.before)) == ["<del>", "</del>"] * str(diff.before).count("<del>")
    assert regex.findall("<[^>]*>", str(diff.after)) == ["<ins>", "</ins>"] * str(diff.after).count("<ins>")
    assert '"' not in str(diff.after).replace("<ins>", "")


def test_joined_emoji_and_line_breaks_stay() -> None:
    assert visible("👩\u200d🚀\r\nnext\tcolumn") == "👩\u200d🚀\nnext\tcolumn"
    assert visible("a\u202eb\u2066c\ud800") == "a⟨U+202E⟩b⟨U+2066⟩c⟨U+D800⟩"


def test_long_repetitive_answers_are_compared_in_time() -> None:
    # A model that loops: character by character, or with a quadratic matcher in Python, this takes minutes.
    diff = word_diff("the order the parcel " * 1500, "the parcel " * 2500)
    assert unmarked(diff.after, "ins") == "the parcel " * 2500
