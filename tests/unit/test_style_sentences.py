"""Sentence splitting: nothing is lost, and what looks like an end of a sentence but is none does not end one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorline.style.sentences import begins_block, count_sentences, drop, ends_properly, split


def sentences(text):
    return [piece.text for piece in split(text) if piece.is_content]


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(), st.text(alphabet="aB1. !?…\n\r\t-*_`~#>[]()'\"。！:")))
def test_the_pieces_joined_are_the_text_and_gaps_are_exactly_the_white_space(text):
    pieces = split(text)
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text for piece in pieces)
    for piece in pieces:
        assert (piece.kind == "gap") == piece.text.isspace()
        assert piece.kind != "sentence" or piece.text == piece.text.strip()
    assert drop(pieces, ()) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It left. It comes soon.", ["It left.", "It comes soon."]),
        ("No end", ["No end"]),
        ("", []),
        (" \r\n\t ", []),
        ("Ask Dr. Hall or Mrs. Poe. Thanks.", ["Ask Dr. Hall or Mrs. Poe.", "Thanks."]),
        ("Use soap, e.g. Marseille, i.e. a mild one. Rinse.", ["Use soap, e.g. Marseille, i.e. a mild one.", "Rinse."]),
        ("It costs 3.14 or $1,000.50. Fine.", ["It costs 3.14 or $1,000.50.", "Fine."]),
        ("The U.S. Office opens at 9 a.m. Monday. Come.", ["The U.S. Office opens at 9 a.m. Monday.", "Come."]),
        ("We open at 9 a.m. Please come.", ["We open at 9 a.m.", "Please come."]),
        ("Pens, cups, etc. We have all.", ["Pens, cups, etc.", "We have all."]),
        ("See No. 5 there. No. Never.", ["See No. 5 there.", "No.", "Never."]),
        ("J. R. Smith wrote. He left.", ["J. R. Smith wrote.", "He left."]),
        ("Well... maybe. So... Yes.", ["Well... maybe.", "So...", "Yes."]),
        ("Well… maybe… Yes.", ["Well… maybe…", "Yes."]),
        ('"Stop!" he said. "Go."', ['"Stop!" he said.', '"Go."']),
        ("Really?! Yes! ok", ["Really?!", "Yes!", "ok"]),
        (
            "See https://a.example/x.y?z! Then www.b.example. End",
            ["See https://a.example/x.y?z!", "Then www.b.example.", "End"],
        ),
        ("Run `a. B` now. Bye.", ["Run `a. B` now.", "Bye."]),
        ("谢谢！订单已发出。请等待", ["谢谢！", "订单已发出。", "请等待"]),
        ("**Done.** Next.", ["**Done.**", "Next."]),
        ("(See below.) Next.", ["(See below.)", "Next."]),
        ("Steps: 1. Open it. 2. Close it.", ["Steps: 1. Open it.", "2. Close it."]),
        ("Your total is: 45. Thank you.", ["Your total is: 45.", "Thank you."]),
        ("1. Open it\n2. Close it. Wait.\n- a\n* b", ["Open it", "Close it.", "Wait.", "a", "b"]),
        ("A line that\ngoes on. Next\nNew", ["A line that\ngoes on.", "Next", "New"]),
        ("A.\r\n\r\nB.\r\n", ["A.", "B."]),
        ("# Title\nText.", ["Title", "Text."]),
        ("Run:\n```py\nx. Y. z!\n\n- a\n```\nDone.", ["Run:", "```py\nx. Y. z!\n\n- a\n```", "Done."]),
        ("```\nnever closed. No.", ["```\nnever closed. No."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected
    assert count_sentences(text) == len(expected)


@pytest.mark.parametrize(
    ("text", "dropped", "expected"),
    [
        ("One. Two. Six.", 1, "One. Six."),
        ("One. Two.\n\nSix.", 1, "One.\n\nSix."),
        ("One.\n\nTwo. Six.", 1, "One.\n\nSix."),
        ("One.\nTwo.\n\nSix.", 1, "One.\n\nSix."),
        ("- A\n- B\n- C", 1, "- A\n- C"),
        ("- A\n  - B\n- C", 1, "- A\n- C"),
        ("- One\n- Two. Six\n", 1, "- One\n- Six\n"),
        ("I:\n\n- A\n\nE.", 1, "I:\n\nE."),
        ("A.\n```\nx\n```\nB.", 1, "A.\nB."),
        ("A.\r\n\r\nB.\r\nC.", 1, "A.\r\n\r\nC."),
        ("-\n- A\n- B", 1, "-\n- A\n"),
    ],
)
def test_drop(text, dropped, expected):
    pieces = split(text)
    content = [index for index, piece in enumerate(pieces) if piece.is_content]
    assert drop(pieces, [content[dropped]]) == expected


def test_where_the_next_text_may_stand():
    assert ends_properly('He said "yes."')
    assert not ends_properly("cut in the")
    assert not ends_properly("A.\n- item.")
    assert not ends_properly("```\nx.\n```")
    assert begins_block("- a") and begins_block("2. a") and begins_block("```\nx\n```") and begins_block("## a")
    assert not begins_block("#4417 left") and not begins_block("3.14 is pi") and not begins_block("-5 degrees")
