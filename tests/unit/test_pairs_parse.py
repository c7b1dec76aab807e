"""The parser of revisions: exact on clean replies, tolerant of what models make of them, and never silently wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anchorline.judge import thinking
from anchorline.pairs import markers, phrases
from anchorline.pairs.markers import find_markers, has_marker
from anchorline.pairs.parse import CLOSE, OPEN, Parsed, parse_revision
from anchorline.style import parse_style, repair
from anchorline.types import Message

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "clair_gpt4_revisions.jsonl"
PAPERS = "{corrected_student_solution}"
ORIGINAL = "Your order left. It arrives soon."
TEXT = "Your order left on Monday. It arrives on Friday."
OTHER = "Your order left on Monday. It arrives by Friday evening."
CODE = "```python\nprint('left')\n```"
STATUSES = {
    "truncated", "filtered", "refused", "empty", "identical", "no_marker", "ambiguous", "marker_inside", "bad_json",
    "self_referring", "dressed",
}  # fmt: skip


def parse(reply: str, finish: str = "stop", *, original: str = ORIGINAL, asked: str = "When?") -> Parsed:
    return parse_revision(reply, finish, original=original, prompt=(Message("user", asked),))


def framed(text: str, before: str = "It lacks the days.\n\n", after: str = "") -> str:
    return f"{before}{OPEN}\n{text}\n{CLOSE}{after}"


def test_a_clean_reply_is_taken_apart_exactly() -> None:
    assert parse(framed(TEXT)) == Parsed("clean", TEXT, "It lacks the days.")
    assert parse(framed(TEXT)).usable


UNDERSTOOD = (
    {
        "no reasoning": (framed(TEXT, before=""), "clean"),
        "blank lines around": (framed(f"\n\n{TEXT}\n\n"), "clean"),
        "white space after the end": (framed(TEXT, after=" \n\n"), "clean"),
        "bold": (f"Why.\n\n**{OPEN}**\n{TEXT}\n**{CLOSE}**", "marker"),
        "heading": (f"Why.\n\n## {OPEN}\n\n{TEXT}\n\n## {CLOSE}", "marker"),
        "quote mark": (f"Why.\n> {OPEN}\n{TEXT}\n> {CLOSE}", "marker"),
        "colon": (f"Why.\n{OPEN}:\n{TEXT}\n{CLOSE}", "marker"),
        "lower case": (f"Why.\n{OPEN.lower()}\n{TEXT}\n{CLOSE.lower()}", "marker"),
        "other brackets": (f"Why.\n[REVISED ANSWER]\n{TEXT}\n[END OF REVISED ANSWER]", "marker"),
        "two angles": (f"Why.\n<<REVISED ANSWER>>\n{TEXT}\n<</REVISED ANSWER>>", "marker"),
        "one angle": (f"Why.\n<revised_answer>\n{TEXT}\n</revised_answer>", "marker"),
        "lenticular": (f"Why.\n【Revised answer】\n{TEXT}", "marker+no_end"),
        "byte order mark": (f"\ufeff{OPEN}\n{TEXT}\n{CLOSE}", "marker"),
        "short end": (f"Why.\n{OPEN}\n{TEXT}\n<<<END>>>", "marker"),
        "on one line": (f"Why.\n{OPEN} {TEXT} {CLOSE}", "marker"),
        "all on the last line": (f"It lacks the days. {OPEN}{TEXT}{CLOSE}", "marker"),
        "end after the text": (f"Why.\n{OPEN}\n{TEXT} {CLOSE}", "marker"),
        "no end": (f"Why.\n{OPEN}\n{TEXT}", "no_end"),
        "half an end": (f"Why.\n{OPEN}\n{TEXT}\n<<<END OF REV", "no_end"),
        "bold name": (f"Why.\n**[Revised]**\n{TEXT}", "marker+no_end"),
        "bold name, text behind": (f"Why.\n**[Revised]** {TEXT}", "marker+no_end"),
        "plain heading": (f"Why.\n## Revised answer\n{TEXT}", "loose_marker+no_end"),
        "heading, colon": (f"Why.\n### Revised Answer:\n\n{TEXT}", "loose_marker+no_end"),
        "heading, underlined": (f"Why.\nRevised answer\n==============\n{TEXT}", "loose_marker+no_end+heading"),
        "bold with colon": (f"Why.\n**Revised answer:**\n{TEXT}", "loose_marker+no_end"),
        "bold, colon outside": (f"Why.\n**Revised answer**: {TEXT}", "loose_marker+no_end"),
        "no markup": (f"Why.\nRevised answer: {TEXT}", "loose_marker+no_end"),
        "numbered": (f"1. Why.\n2. **Revised answer:**\n{TEXT}", "loose_marker+no_end"),
        "sentence": (f"Why.\nHere is the revised answer:\n\n{TEXT}", "loose_marker+no_end"),
        "curly apostrophe": (f"Why.\nHere’s my revised response:\n\n{TEXT}", "loose_marker+no_end"),
        "quoted name": (f"Why.\n“Revised answer”:\n{TEXT}", "marker+no_end"),
        "full-width colon": (f"Why.\nRevised answer：\n{TEXT}", "loose_marker+no_end"),
        "rule below": (f"Why.\n## Revised answer\n\n---\n\n{TEXT}\n\n---", "loose_marker+no_end+heading"),
        "fence around the text": (framed(f"```\n{TEXT}\n```"), "fence"),
        "markdown fence": (framed(f"```markdown\n{TEXT}\n```"), "fence"),
        "fence around it all": (f"```\n{framed(TEXT)}\n```", "fence"),
        "fence around it all, no end": (f"Why.\n```\n{OPEN}\n{TEXT}\n```", "no_end+fence"),
        "longer fence": (framed(f"````\n{TEXT}\n````"), "fence"),
        "fence in a fence": (framed(f"````markdown\n```\n{TEXT}\n```\n````"), "fence"),
        "fence of tildes": (framed(f"~~~\n{TEXT}\n~~~"), "fence"),
        "all of it quoted": (f"Why.\n> {OPEN}\n> {TEXT}\n> {CLOSE}", "marker"),
        "all of it indented": (f"Why.\n    {OPEN}\n    {TEXT}\n    {CLOSE}", "marker"),
        "old line ends": (framed(TEXT).replace("\n", "\r"), "crlf"),
        "no-break spaces around": (f"Why.\n\xa0{OPEN}\xa0\n{TEXT}\n{CLOSE}", "marker"),
        "guillemets": (f"Why.\n«REVISED ANSWER»\n{TEXT}\n«END OF REVISED ANSWER»", "marker"),
        "full-width angles": (f"Why.\n＜＜REVISED ANSWER＞＞\n{TEXT}\n＜＜END OF REVISED ANSWER＞＞", "marker"),
        "json": (json.dumps({"reasoning": "Why.", "revision": TEXT}), "json"),
        "json, other names": (json.dumps({"Teacher Reasoning": "Why.", "Revised Answer": TEXT}), "json"),
        "json in a fence": (f"Sure:\n```json\n{json.dumps({'revision': TEXT}, indent=2)}\n```\nDone.", "json"),
        "json, revision in our lines": (json.dumps({"revision": f"{OPEN}\n{TEXT}\n{CLOSE}"}), "json"),
        "json, raw line breaks": (f'{{"reasoning": "a\nb", "revision": "{TEXT}"}}', "json"),
        "thinking": (f"<think>Hm.</think>\n{framed(TEXT)}", "clean"),
        "draft in the thinking": (f"<think>\n{OPEN}\nA draft.\n{CLOSE}\n</think>\n{framed(TEXT)}", "thinking"),
        "draft, opened by the template": (f"\n{OPEN}\nA draft.\n{CLOSE}\n</think>\n\n{framed(TEXT)}", "thinking"),
        "draft in brackets": (f"[THINK]\n{OPEN}\nA draft.\n[/THINK]\n{framed(TEXT)}", "thinking"),
        "thinking within": (framed(f"<think>Hm.</think>\n{TEXT}"), "thinking"),
        "said again": (f"{framed(OTHER)}\n\nBetter:\n\n{framed(TEXT)}", "repeated_marker"),
        "said again, open": (f"{OPEN}\n{OTHER}\n\n{OPEN}\n{TEXT}", "repeated_marker+no_end"),
        "opening twice": (f"Why.\n{OPEN}\n{OPEN}\n{TEXT}\n{CLOSE}", "repeated_marker"),
        "opening at both ends": (f"Why.\n{OPEN}\n{TEXT}\n{OPEN}", "repeated_marker+no_end"),
        "marker and heading": (framed(f"**Revised answer:**\n{TEXT}"), "heading"),
        "announced": (f"I put it between {OPEN} and {CLOSE}.\n\n{framed(TEXT)}", "repeated_marker"),
        "heading before our line": (f"## Revision\nShorter.\n\n{framed(TEXT)}", "clean"),
        "chatter after the end": (framed(TEXT, after="\n\nI kept the order."), "trailing"),
        "crlf": (framed(TEXT).replace("\n", "\r\n"), "crlf"),
        "paper": (f"{{teacher_reasoning}}\n\nWhy.\n\n{PAPERS}\n\n{TEXT}", "marker+no_end"),
        "paper, colon": (f"{{teacher_reasoning}}:\nWhy.\n\n{PAPERS}: \n{TEXT}", "marker+no_end"),
        "paper, text behind": (f"{{teacher_reasoning}}: Why.\n{PAPERS}: {TEXT}", "marker+no_end"),
        "paper, no braces": (f"teacher_reasoning\nWhy.\ncorrected_student_solution\n{TEXT}", "marker+no_end"),
        "paper, bold": (f"**{{teacher_reasoning}}**\nWhy.\n\n**{PAPERS}**:\n{TEXT}", "marker+no_end"),
        "paper, escaped": (f"Why.\n**Corrected Student Solution:**\n{TEXT}", "loose_marker+no_end"),
        "paper, the wrong way round": (f"{PAPERS}\n{TEXT}\n\n{{teacher_reasoning}}\nWhy.", "marker+no_end"),
    }
)  # fmt: skip
"""Each reply with what is odd about it."""


@pytest.mark.parametrize(("reply", "status"), UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_ugly_replies_that_are_understood(reply: str, status: str) -> None:
    found = parse(reply)
    assert found.text == TEXT
    assert found.usable
    if status == "clean":
        assert found.status == "clean"
    else:
        assert found.status == f"tolerated:{status}"
    assert not has_marker(found.text)


@pytest.mark.parametrize(
    ("reply", "finish", "status"),
    [
        pytest.param(framed(TEXT), "length", "truncated", id="cut after the end"),
        pytest.param(f"Why.\n{OPEN}\nYour order le", "length", "truncated", id="cut"),
        pytest.param("Why, I would say", "length", "truncated", id="cut in the reasoning"),
        pytest.param("", "filter", "filtered", id="withheld"),
        pytest.param("Nein.", "refusal", "refused", id="declined, as the endpoint says"),
        pytest.param(framed(TEXT), "filter", "filtered", id="withheld, with text"),
        pytest.param("", "stop", "no_marker", id="nothing"),
        pytest.param(TEXT, "stop", "no_marker", id="the bare text"),
        pytest.param("Revised answers are better. Revision: 3.", "stop", "no_marker", id="words of the marker"),
        pytest.param(f"I would put it after {OPEN} as asked.", "stop", "no_marker", id="talks about the marker"),
        pytest.param(f"Between {OPEN} and {CLOSE}, you said.", "stop", "no_marker", id="talks about both"),
        pytest.param(f"<think>{framed(TEXT)}", "stop", "no_marker", id="thinks and never speaks"),
        pytest.param(f"<think>{framed(TEXT)}</think>", "stop", "no_marker", id="thinks and says nothing"),
        pytest.param(framed(""), "stop", "empty", id="empty"),
        pytest.param(framed(" \n---\n```\n```"), "stop", "empty", id="marks alone"),
        pytest.param(json.dumps({"revision": ""}), "stop", "empty", id="empty in json"),
        pytest.param(framed(ORIGINAL), "stop", "identical", id="the answer again"),
        pytest.param(framed(ORIGINAL.replace(" ", "\n")), "stop", "identical", id="other white space"),
        pytest.param("I'm sorry, but I can't help with that.", "stop", "refused", id="refusal"),
        pytest.param("I’m sorry, but I can’t assist with this request.", "stop", "refused", id="curly refusal"),
        pytest.param(f"Why.\n{TEXT}\n{OPEN}", "stop", "empty", id="marker at the end, nothing after"),
        pytest.param(f"Why.\n<b>Revised answer:</b>\n{TEXT}", "stop", "no_marker", id="html heading"),
        pytest.param(f"<<<REVI\u200bSED ANSWER>>>\n{TEXT}", "stop", "no_marker", id="zero width in the marker"),
        pytest.param(f"&lt;&lt;&lt;REVISED ANSWER&gt;&gt;&gt;\n{TEXT}", "stop", "no_marker", id="escaped html"),
        pytest.param(
            f"**Revised answer (draft 1):**\n{OTHER}\n\n**Revised answer (draft 2):**\n{TEXT}",
            "stop",
            "no_marker",
            id="drafts",
        ),
        pytest.param(f"{{'revision': '{TEXT}'}}", "stop", "bad_json", id="json with single quotes"),
        pytest.param(f'{{"revision": "{TEXT}",}}', "stop", "bad_json", id="json with a comma too many"),
        pytest.param(f"Warum.\n**Überarbeitete Antwort:**\n{TEXT}", "stop", "no_marker", id="another language"),
        pytest.param(framed("I cannot revise this answer."), "stop", "refused", id="refusal in the frame"),
        pytest.param(framed("In this revised answer it left on Monday."), "stop", "self_referring", id="alludes"),
        pytest.param(framed(f"{TEXT}\n\nChanges made:\n- the days"), "stop", "self_referring", id="list of changes"),
        pytest.param(framed("Unlike the original answer, it left."), "stop", "self_referring", id="the other answer"),
        pytest.param(framed("I've rephrased: it left on Monday."), "stop", "self_referring", id="says what it did"),
        pytest.param(framed(f"It left.\nSee {PAPERS} there."), "stop", "marker_inside", id="the paper's marker within"),
        pytest.param(f"{OPEN}\n{TEXT}\n\nThe {OPEN} is better.", "stop", "marker_inside", id="mentions the marker"),
        pytest.param(
            f"{PAPERS}\n{TEXT} It is long. {OTHER}\n{PAPERS}\nBye now.", "stop", "ambiguous", id="in the text"
        ),
        pytest.param(f"{OPEN}\n{TEXT}\n{OPEN}\nA cat.\n{CLOSE}", "stop", "ambiguous", id="in the text, ended"),
        pytest.param((OPEN + "\nno\n") * 50, "stop", "ambiguous", id="goes round in circles"),
        pytest.param('{"reasoning": "Why.", "revision": "It "left" today."}', "stop", "bad_json", id="broken json"),
        pytest.param('{"reasoning": "Why.", "revision": "It le', "stop", "bad_json", id="half of json"),
    ],
)
def test_ugly_replies_that_are_not_used(reply: str, finish: str, status: str) -> None:
    found = parse(reply, finish)
    assert found.status == status
    assert not found.usable
    assert not has_marker(found.text)


def test_what_the_conversation_says_too_is_no_allusion() -> None:
    says = "Here is the revised version: it left."
    assert parse(framed(says)).status == "self_referring"
    assert parse(framed(says), asked="Please rewrite this text: it leaved.").status == "clean"
    mentions = "The student's answer is wrong: it left."
    assert parse(framed(mentions)).status == "self_referring"
    assert parse(framed(mentions), asked="Is the student's answer right?").status == "clean"
    assert parse(framed("Your revised order left on Monday.")).status == "clean"


@pytest.mark.parametrize(
    "text",
    [f'"{TEXT}"', f"“{TEXT}”", f"«{TEXT}»", f"Answer: {TEXT}", f"**Assistant:**\n{TEXT}", f"[assistant]\n{TEXT}",
     f"<p>{TEXT}</p>", f"<answer>\n{TEXT}\n</answer>", f"<![CDATA[{TEXT}]]>", f"~~It left.~~ {TEXT}",
     f"- Your order left.\n+ {TEXT}", f"+{TEXT}\n-Your order left.", f"- Your order left on Monday.\n+ {TEXT}",
     f"Hello.\n-It arrives soon.\n\n+{TEXT}", f"- {ORIGINAL}\n+ On its way. {TEXT}",
     f"{TEXT}<|im_end|>", f"{TEXT}</s>", f"{TEXT}<end_of_turn>", f"\\n{TEXT}\\n", f"<revised>{TEXT}</revised>",
     f'{{"revision": "{TEXT}"}}', f"{{'Answer': '{TEXT}'}}", f"Output: {TEXT}", f"**Final version:**\n{TEXT}",
     f"`{TEXT}`", f"``{TEXT}``", f"revision: |\n{TEXT}", f"revised_answer: >-\n{TEXT}",
     f"{TEXT}\n[user]\nThanks.",
     f"[INST]{TEXT}", f"<<SYS>>{TEXT}"],
)  # fmt: skip
def test_what_a_text_is_wrapped_in_is_not_learnt(text: str) -> None:
    assert parse(framed(text)).status == parse(f"Why.\n{OPEN}\n{text}").status == "dressed"
    had = text.replace(TEXT, "It left on day 1.")
    assert parse(framed(text), original=had).status == "clean"  # the answer was wrapped so itself


@pytest.mark.parametrize(
    "text",
    ['"Left" is one word, "today" another', "Answer the phone: it rings.", "- It left.\n- It is late.",
     "Text: | is a pipe.", "Press [user] twice.", "Write:\n[user]\nname = A", "Instead [inst] of it.",
     "Say <p>.", "1 + 1\n- 2", "Press Ctrl+C: it says \\n.", "~~~\nls\n~~~ is a fence", "Response time: two days.",
     "+44 20 7946 0000\n- item", "Call:\n- the shop\n+44 20 7946 0000", "+ fast\n- expensive", "- slow\n- dear\n+ it lasts",
     "-5 degrees\n+3 degrees", "- left\n+44 20 7946 0000", "---\n+ Your order left.",
     "`ls` lists, `cd` goes", "Output devices: a printer.", '{"left": "Monday"}', "<b>It left</b> on Monday."],
)  # fmt: skip
def test_a_text_that_only_looks_wrapped_is_used(text: str) -> None:
    assert parse(framed(text)) == Parsed("clean", text, "It lacks the days.")


REMARKS = (
    "\n\nNote: I removed the apology to meet the guideline.", "\nNote: I removed the apology to meet the guideline.",
    "\n\n(Changes: removed the apology.)", "\n(Changes: removed the apology.)", "\n\n---\nRemoved: the apology",
    "\n---\nRemoved: the apology",
    "\n\nI hope this edit helps!", "\n(5 words)", "\n\nWord count: 5",
    "\n\nI removed the apology.", "\n\n*Apology removed; rest unchanged.*",
)  # fmt: skip


@pytest.mark.parametrize("remark", REMARKS)
def test_a_remark_on_the_edit_is_not_learnt(remark: str) -> None:
    assert parse(framed(TEXT + remark)).status == "self_referring"
    assert parse(f"Why.\n{OPEN}\n{TEXT}{remark}").status in ("self_referring", "dressed")
    assert parse(framed(TEXT + remark), original=ORIGINAL + remark).status == "clean"  # the answer's own


@pytest.mark.parametrize("remark", ["I dropped the greeting.", "The greeting was dropped.", "*Greeting shortened.*"])
def test_what_may_be_a_remark_counts_where_no_end_marker_is(remark: str) -> None:
    text = f"{TEXT}\n\n{remark}"
    assert parse(f"Why.\n{OPEN}\n{text}").status == "self_referring"
    assert parse(framed(text)).text == text
    assert parse(f"Why.\n{OPEN}\n{text}", original=f"{ORIGINAL}\n\n{remark}").text == text


@pytest.mark.parametrize(
    "end",
    ["Note: the shop is closed on Sunday.", "Your refund was made, and your parcel has been sent.", "The rest is unchanged.",
     "I hope this helps!", "I wrote 5 words.", "5 words a day", "- 250 words", "Word count: see above.",
     "I removed the item from your basket.", "I have added a note to your order.", "Fixed price: 5 pounds.",
     "Note: I can only see orders of this year."],
)  # fmt: skip
def test_an_answer_may_end_with_a_note(end: str) -> None:
    assert parse(framed(f"{TEXT}\n\n{end}")) == Parsed("clean", f"{TEXT}\n\n{end}", "It lacks the days.")
    assert parse(framed(TEXT), original=f"{ORIGINAL}\n\n(Changes: none)").status == "clean"


ENDS = (
    "[END]",
    "<end>",
    "</answer>",
    "[/ANSWER]",
    "</revised>",
    "[end of revision]",
    "<<<END>>>",
    f"Write {CLOSE} below.",
)


@pytest.mark.parametrize("like_an_end", ENDS)
def test_a_line_like_an_end_cuts_no_revision_short(like_an_end: str) -> None:
    text = f"{TEXT}\n{like_an_end}\nBye."
    for reply in (
        framed(text, after="\nDone."),
        f"Why.\n{OPEN}\n{text}",
        f"Why.\n**{OPEN}**\n{text}\n**{CLOSE}**",
        f"Why.\n[REVISED ANSWER]\n{text}\n[END OF REVISED ANSWER]",
        f"Why.\n**Revised answer:**\n{text}",
        f"Why.\n{PAPERS}\n{text}",
    ):
        found = parse(reply)
        if found.usable and like_an_end == "<<<END>>>":  # nothing but an end, where there is no other
            assert (found.text, "trailing" in found.status) == (TEXT, True)
        else:
            assert found.text == text if found.usable else found.status in ("ambiguous", "marker_inside")
    had = parse(f"Why.\n**Revised answer:**\n{text}", original=f"{ORIGINAL}\n{like_an_end}\nSo long.")
    assert not has_marker(text) or not had.usable
    assert has_marker(text) or had.text == text  # the answer's own line


def test_what_stands_between_two_ends_is_not_lost() -> None:
    assert parse(framed(f"{TEXT}\n{CLOSE}\nBye.")).status == "ambiguous"
    assert parse(framed(f"{TEXT}\n{CLOSE}\n")).text == TEXT
    text = f"{TEXT}\nTeacher reasoning matters."
    assert parse(framed(text)).text == parse(f"Why.\n{PAPERS}\n{text}").text == text
    assert parse(framed(f"{TEXT}\n{{teacher_reasoning}}\nBye.", after="\nDone.")).status == "marker_inside"


PRESCRIBED = (
    {"kind": "starts_with", "text": "Here is the answer to your question:"},
    {"kind": "starts_with", "text": "Sure, here is my reply about {n}:", "captures": {"n": "(order)"}},
    {"kind": "starts_with", "text": "Revised:"},
    {"kind": "starts_with", "text": "Answer:"},
    {"kind": "starts_with", "text": "I am unable to help with refunds."},
    {"kind": "ends_with", "text": "Note: I removed all personal data."},
    {"kind": "ends_with", "text": "(Changes: see the app.)"},
    {"kind": "required", "term": "reply", "sentence": "This is our edited reply."},
    {"kind": "states", "text": "I'm sorry, I can't help with {n}.", "captures": {"n": "(refunds)"},
     "missing": "I am not able to say this from the notes."},
)  # fmt: skip


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("```", "```"),
        ("## Revision", "Bye."),
        ("Revised answer:", "Bye."),
        ("Hello.", "</answer>"),
        ("Hello.", "[END]"),
    ],
)
def test_what_a_style_prescribes_is_no_frame(opening: str, closing: str) -> None:
    edges = [{"kind": "starts_with", "text": opening}, {"kind": "ends_with", "text": closing}]
    style, text = parse_style({"name": "s", "rules": edges}), f"{opening}\n{TEXT}\n{closing}"
    for reply in (framed(text), framed(text, after="\nDone."), f"Why.\n{OPEN}\n{text}", f"Why.\n**{OPEN}**\n{text}"):
        assert parse_revision(reply, original=ORIGINAL, style=style).text == text
        assert parse_revision(reply, original=ORIGINAL, style=style).usable


@pytest.mark.parametrize(
    "rule", PRESCRIBED, ids=lambda rule: f"{rule['kind']}: {rule['text' if 'text' in rule else 'term']}"
)
def test_what_a_style_prescribes_is_no_chatter(rule: dict[str, Any]) -> None:
    style, prompt = parse_style({"name": "s", "rules": [rule]}), (Message("user", "Where is my order?"),)
    text = repair(style, prompt, TEXT).text.replace(f"{TEXT} ", f"{TEXT}\n\n")
    assert text != TEXT
    assert parse_revision(framed(text), original=ORIGINAL, prompt=prompt, style=style).text == text
    assert parse_revision(framed(text), original=ORIGINAL, prompt=prompt, style=style).status == "clean"
    assert not parse_revision(framed(text), original=ORIGINAL, prompt=prompt).usable
    if rule["kind"] != "states":
        quoted = text.replace(TEXT, f'"{TEXT}"')
        assert parse_revision(framed(quoted), original=ORIGINAL, prompt=prompt, style=style).status == "dressed"


@pytest.mark.parametrize(
    "text",
    ["N/A", "n/a.", "No changes needed.", "No edits are necessary.", "The answer is already good.",
     "This answer needs no change.",      "(same as before, without the apology)",
     "[Unchanged]", "Nothing to change.", "*(as above)*"],
)  # fmt: skip
def test_words_that_stand_for_an_answer_are_none(text: str) -> None:
    assert parse(framed(text)).status == parse(f"Why.\n{OPEN}\n{text}").status == "empty"
    assert parse(framed(text), original=f"It left.\n{text}").status == "clean"  # one of the answer's own lines


@pytest.mark.parametrize(
    "text", ["The answer is 42.", "No.", "None.", "The same day.", f"As before:\n{TEXT}", "Napping."]
)
def test_a_short_answer_is_one(text: str) -> None:
    assert parse(framed(text)).text == text
    assert parse(framed(text)).usable


def test_one_mark_of_the_answers_excuses_no_other() -> None:
    assert parse(framed(f"[user]\n{TEXT}"), original=f"[user]\n{ORIGINAL}").status == "clean"
    assert parse(framed(f"[user]\n{TEXT}<|im_end|>"), original=f"[user]\n{ORIGINAL}").status == "dressed"


def test_an_answer_that_declines_may_go_on_declining() -> None:
    assert parse(framed("I cannot help with that today."), original="I cannot help with that!").status == "clean"


def test_an_answer_that_is_code_keeps_its_fences() -> None:
    assert parse(framed(CODE)) == Parsed("clean", CODE, "It lacks the days.")
    assert parse(framed("```\nls -l\n```"), original="Do this:\n```\nls\n```").text == "```\nls -l\n```"
    both = "```\nfirst\n```\nand\n```\nsecond\n```"
    assert parse(framed(both)).text == both
    nested = "```markdown\nRun:\n```sh\nls\n```\nDone.\n```"
    assert parse(framed(nested)).text == "Run:\n```sh\nls\n```\nDone."


def test_line_ends_are_those_of_the_answer() -> None:
    """A reply that has CRLF around the delimiters has it everywhere; one that has not may have it in the answer."""
    assert parse(framed("It left.\nBye.").replace("\n", "\r\n")).text == "It left.\nBye."
    assert parse(framed("It left.\r\nBye.")).text == "It left.\r\nBye."


def test_the_first_line_keeps_its_indentation() -> None:
    assert parse(framed("    return left\n    # done")).text == "    return left\n    # done"


def test_a_heading_that_the_answer_had_stays() -> None:
    text = "## Revision\nIt left on Monday."
    assert parse(framed(text), original="## Revision\nIt left.").text == text


HEADINGS = ("## Revision", "**Revised:**", "Revised version:", "**[Revision]**", "Revision")
FRAMES = {
    "as asked": (f"Why.\n{OPEN}\n", f"\n{CLOSE}"),
    "chatter below": (f"Why.\n{OPEN}\n", f"\n{CLOSE}\nDone."),
    "no end": (f"Why.\n{OPEN}\n", ""),
    "bold": (f"Why.\n**{OPEN}**\n", f"\n**{CLOSE}**"),
    "heading": ("Why.\n**Revised answer:**\n", ""),
    "paper": (f"Why.\n{PAPERS}\n", ""),
}


@pytest.mark.parametrize(("before", "after"), FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_of_the_text_opens_no_other_revision(heading: str, before: str, after: str) -> None:
    within, first, again = f"{TEXT}\n\n{heading}\nBye.", f"{heading}\n{TEXT}", f"{TEXT}\n\n{heading}\n{OTHER}"
    for text in (within, first, again):
        found = parse(before + text + after)
        assert found.text == text if found.usable else found.status in STATUSES
        in_json = parse(json.dumps({"reasoning": "Why.", "revision": text}))
        assert in_json.text == text if in_json.usable else in_json.status in STATUSES
    assert parse(before + first + after).status in ("ambiguous", "dressed", "marker_inside")
    if "Revised answer" in before:  # without a frame nobody can tell a second draft from a heading
        assert parse(before + again).status == parse(before + within).status == "ambiguous"
    had = parse(before + within + after, original=f"It left.\n\n{heading}\nSo long.", asked="Revise it for me.")
    assert had.text == within if heading != "**[Revision]**" else not had.usable


@pytest.mark.parametrize("text", [f"---\n{TEXT}\n\n---", f"{TEXT}\n---", f"Run:\n```\nls\n```\n{TEXT}\n```\nls\n```"])
@pytest.mark.parametrize("name", ["as asked", "chatter below", "bold"])
def test_rules_and_fences_at_the_ends_of_a_framed_text_stay(text: str, name: str) -> None:
    before, after = FRAMES[name]
    assert parse(before + text + after).text == text
    assert parse(f"```\n{before}{text}{after}").text == text  # a fence that is never closed


@pytest.mark.parametrize(("before", "after"), FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize(
    "text",
    ['{"revision": "7", "left": true}', f'Send:\n```json\n{{\n "revision": "{TEXT}"\n}}\n```\nBye.',
     'Send {"revision": 7} to it.', '```json\n{"corrected_answer": "x"}\n```'],
)  # fmt: skip
def test_json_below_an_opening_is_the_answers(text: str, before: str, after: str) -> None:
    found = parse(before + text + after)
    assert found.text == text
    assert found.status == "dressed" if text[0] in "{`" else found.usable
    had = text.replace("7", "6").replace(TEXT, "It left.").replace("x", "y")
    assert parse(before + text + after, original=had).usable
    quoted = parse(f'It says {{"revision": "5"}}.\n{before}{text}{after}', original=had)
    assert quoted.text == text and quoted.usable


def test_json_counts_where_it_is_the_reply() -> None:
    text = f"{TEXT}\n\n**Revised:** on Sunday."
    assert parse(f'{{"reasoning": "Why.\nRevised answer:\n", "revision": "{text}"}}').text == text
    announced = f"Here is the revised answer:\n```json\n{json.dumps({'reasoning': 'Why.', 'revision': TEXT})}\n```"
    assert parse(announced).text == TEXT
    mentioned = f'I wrote {OPEN} there.\n**Revised answer:**\nSend {{"revision": "7"}} to it.'
    assert parse(mentioned).status == "no_marker"
    assert parse('{"revision": "a"}\n{"revision": "b"}').status == "bad_json"
    assert parse('{"revision": "a", "revised_text": "b"}').status == "bad_json"
    assert parse('[{"revision": "a b"}, {"revision": "a b"}]').text == "a b"
    assert parse('{"revision": "7"}', original='{"revision": "6"}').status == "no_marker"
    ends = json.dumps({"revision": f"Improved answer\n{TEXT}\n{CLOSE}"})
    assert parse(ends).status == "marker_inside"
    pythons = f"Send:\n{{'revision': '7'}}\n{TEXT}"
    assert (
        parse(f"Why.\n**Revised answer:**\n{pythons}").text == parse(json.dumps({"revision": pythons})).text == pythons
    )
    own = '{"revision": "7"}'
    announced = f"Here is the revised answer:\n```json\n{json.dumps({'reasoning': 'Why.', 'revision': own})}\n```"
    assert parse(announced, original='{"revision": "6"}').text == own


def test_json_that_is_the_answer_stays() -> None:
    text, had = '{"revision": "7", "left": true}', '{"revision": "6", "left": true}'
    assert parse(framed(text), original=had) == Parsed("clean", text, "It lacks the days.")
    assert parse(framed(text, after="\nDone."), original=had).text == text
    assert parse(framed('{"order": "7"}')).status == "clean"


@pytest.mark.skipif(not REAL.exists(), reason="shared/data/clair_gpt4_revisions.jsonl is not there")
def test_published_revisions_parse_exactly() -> None:
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 10
    for row in rows:
        expected = row["completion"].split(PAPERS)[1].removeprefix(":").strip()
        found = parse(row["completion"], row["finish_reason"], original=row["rejected"], asked=row["prompt"])
        assert (found.status, found.text) == ("tolerated:marker+no_end", expected)
        assert found.reasoning and "{" + "teacher_reasoning}" not in found.reasoning


plain = st.text(st.characters(blacklist_categories=["Cs"]), max_size=200)
answers = st.one_of(
    plain,
    st.text("ab01 .:*#>`{}[]<>\"'\\\n\r\t-=", max_size=80),
    st.lists(st.sampled_from(["# Title", "It left.", "```", "```py", "---", "{{answer}}", "{}", "    x = 1", ""])).map(
        "\n".join
    ),
)


@given(text=answers, before=plain)
@example(text="{{answer}} {0} %s \\1", before="")
@example(text="x\r\ny", before="")
@example(text="x</answer>\ny", before="Why.")
def test_whatever_the_answer_is_a_clean_reply_gives_it_back(text: str, before: str) -> None:
    expected = text.rstrip()
    while expected[:1] in "\r\n \t" and "\n" in expected and not expected.partition("\n")[0].strip():
        expected = expected.partition("\n")[2]
    found = parse(f"{before}\n{OPEN}\n{text}\n{CLOSE}", original="```\ncode\n```")
    if found.usable:
        assert found.text == expected
        assert found.status == "clean"
    else:
        assert not any(map(str.isalnum, text)) or found.status in (
            "self_referring",
            "refused",
            "marker_inside",
            "dressed",
        )


PARTS = (
    "It left on Monday.", "It arrives on Friday, I think.", "", "## Revision", "Revised version:", "[END]", "</answer>",
    "```", "```py", "---", "***", "# Title", "- item", "+44 20 7946", "> quoted", "    x = 1", '{"revision": "7"}',
    '{"a": 1}', "<think>", "</think>", "Use <think> tags.", "<reasoning>", "[THINK]", "Teacher reasoning helps.",
    "Note: it is late.", "(I corrected it.)", "~~~", "Answer:", "<<<", "<<<END", "**[Revision]**", "x\ry", "\u2028",
    "\ufeff", "😀", "{", "N/A",
)  # fmt: skip
BEFORE = (
    "", "Why.\n", "**Reasoning**\n\n- a\n\n", "<think>Hm.</think>\n", "Hm.\n</think>\n\n", "I'd use <think> here.\n",
    f"<think>\n{OPEN}\nA draft.\n{CLOSE}\n</think>\n", "## Revision\nShorter.\n\n", "```\nopen\n",
    'It says {"revision": "5"}.\n', f"I write {OPEN} now.\n",
)  # fmt: skip
AFTER = ("", " \n", "\nDone.", "<|im_end|>", "\n[END]", "\n```", "\n**Explanation:** shorter.", "\nI removed <think>.")
ASKED_FOR = (
    (f"{OPEN}\n", f"\n{CLOSE}"), (f"**{OPEN}**\n", f"\n**{CLOSE}**"), (f"{OPEN}:\n", f"\n{CLOSE}"),
    ("[REVISED ANSWER]\n", "\n[END OF REVISED ANSWER]"), ("<revised_answer>\n", "\n</revised_answer>"),
)  # fmt: skip


@settings(max_examples=1000)
@given(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("\n".join),
    st.sampled_from(BEFORE), st.sampled_from(ASKED_FOR), st.sampled_from(AFTER), st.sampled_from(["", "\n"]),
)  # fmt: skip
@example("2. Two\n<think>x</think>", "Why.\n", ASKED_FOR[0], "\n[END]", "")
@example("<<<END\n<think>x</think>", "Hm.\n</think>\n\n", ASKED_FOR[0], "\n[END]", "")
@example("</think>\nImproved answer\nBye.", "Hm.\n</think>\n\n", ASKED_FOR[0], "\nDone.", "")
@example("Hi.\n---\n```\nls\n```", "```\nopen\n", ASKED_FOR[1], "\nDone.", "")
def test_a_framed_text_comes_back_whole_or_not_at_all(
    text: str, before: str, frame: tuple[str, str], after: str, gap: str
) -> None:
    """Only thinking at its start and a fence around all of it are left out, which the status says."""
    found = parse(before + frame[0] + gap + text + frame[1] + after, original=f"{ORIGINAL}\nTeacher reasoning helps.")
    assert found.usable or found.status in STATUSES
    if found.usable and found.text.strip() != text.strip():
        assert "thinking" in found.status or "fence" in found.status
        assert found.text in text and text.lstrip().startswith(("<", "[", "`", "~"))


def test_what_stands_below_a_doubtful_end_is_not_dropped() -> None:
    for below in ("~~~", "{", "😀"):
        assert parse(f"Why.\n**Revised answer:**\n{TEXT}\n[END]\n{below}").status == "ambiguous"
    assert parse(f"```\n**Revised answer:**\n{TEXT}\n[END]\n```").text == TEXT
    assert parse(f"**{OPEN}**\n{TEXT}\n{CLOSE}\nBye.\n**{CLOSE}**").status == "ambiguous"
    assert parse(f"{OPEN}\n{TEXT}\n<<<END").status == "ambiguous"
    assert parse(f"{OPEN}\nSee {CLOSE}.").status == "ambiguous"
    assert parse("## Revision\nShorter.\n\n**Revised answer:**\n```\n").status == "empty"
    assert parse(f"**Revised answer:**\n{TEXT}\nTeacher reasoning:\nBye.").status == "marker_inside"
    assert parse(f"**Revised answer:**\n---\n{TEXT}", original=f"---\n{ORIGINAL}").text == f"---\n{TEXT}"
    in_json = json.dumps({"revision": f"{TEXT}\n<think>\nHm.\n</think>\nBye."})
    assert parse(in_json).status == "ambiguous"


NOISE = [
    OPEN, CLOSE, OPEN.lower(), "<<<END>>>", PAPERS, "corrected_student_solution:", "{teacher_reasoning}", "**[Revised]**",
    "## Revised answer", "**Revised answer:**", "[REVISED ANSWER]", "</revised answer>", "<think>", "</think>", "```",
    "```json", '{"revision": "', '"}', "---", "\n", "\r\n", " ", "It left on Monday.", "I can't help with that.", "{", "<",
    ">", "*", ":", "\ufeff", "“", "Why?", "[/THINK]", "this revision", "END OF REVISED ANSWER",
]  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.sampled_from(NOISE), max_size=25).map("".join), st.sampled_from(["stop", "length", "filter"]))
def test_no_splice_of_markers_and_noise_gets_a_marker_through(reply: str, finish: str) -> None:
    found = parse(reply, finish)
    assert found.usable or found.status in STATUSES
    assert finish == "stop" or not found.usable
    assert not found.usable or any(map(str.isalnum, found.text))
    for marker in (OPEN, CLOSE, PAPERS, "corrected_student_solution", "{teacher_reasoning}", "<<<END>>>"):
        assert marker.casefold() not in found.text.casefold()
    strict = [marker for marker in find_markers(found.text) if marker.rank != "loose"]
    assert strict == []


@given(st.lists(st.sampled_from(NOISE), max_size=12).map("".join))
def test_a_clean_block_is_found_after_any_closed_thought(noise: str) -> None:
    thought = noise.replace("</think>", "").replace("[/THINK]", "")
    assert parse(f"<think>{thought}</think>\n{framed(TEXT)}").text == TEXT


@pytest.mark.parametrize(
    "piece",
    ["*", " ", "\n", "<", "<<<", "[", "```\n", "<think>", OPEN, OPEN + "\n", "\n" + CLOSE, '{"a": ', '{"revision": "', "- ",
     "revised ", "I can't ", "the original ", "=" * 40 + "\n", "\r", "“", "{", "`",
     "a ", "rest ", "removed ", "\n\ni removed ", "(a: "],
)  # fmt: skip
def test_a_long_reply_of_one_thing_is_read_in_one_pass(piece: str) -> None:
    """Of a pattern that backtracks, a test would not see the end."""
    many = piece * (50_000 // len(piece))
    found = parse(framed(f"{many}x", before=f"x\n{many}"))
    assert found.usable or found.status in STATUSES


@pytest.mark.parametrize(
    "said",
    ["this revision", "In my edit,", "In the rewrite,", "The edits made here", "Improvements:", "I've polished it",
     "I rewrote it", "Here's my enhanced", "my refined draft", "Your reworked message", "I have reworded it",
     "the aim of the edit"],
)  # fmt: skip
def test_every_way_to_speak_of_the_edit_is_seen(said: str) -> None:
    assert parse(framed(f"It left.\n{said}\nBye.")).status == "self_referring"


@pytest.mark.parametrize(("pattern", "hints"), phrases._HINTS)
def test_the_quick_look_for_phrases_overlooks_none(pattern: re.Pattern[str], hints: tuple[str, ...]) -> None:
    @settings(max_examples=500)
    @given(st.from_regex(pattern, fullmatch=True))
    def whatever_it_matches(said: str) -> None:
        assert any(hint in said for hint in hints)

    whatever_it_matches()


@settings(max_examples=500)
@given(st.from_regex(thinking._TAG, fullmatch=True))
@example("◁think▷")
@example("[/THINK]")
def test_the_quick_look_for_thinking_overlooks_none(tag: str) -> None:
    assert thinking.has_tag(tag)


def test_what_the_answer_did_before_is_its_own() -> None:
    announced = f"Here is the new version of the plan:\n{TEXT}"
    assert parse(framed(announced)).status == "self_referring"
    assert parse(framed(announced), original=f"Here is my first draft of a plan:\n{ORIGINAL}").status == "clean"
    counted = f"{TEXT}\n(9 words)"
    assert parse(framed(counted)).status == "self_referring"
    assert parse(framed(counted), original=f"{ORIGINAL}\n(6 words)").status == "clean"


PIECES = (
    *"[]{}<>*#:/ \n", "\n[", "\n**", "]**:\n", "<<<", ">>>\n", "\n<<<", "1. ", "The ", "end", "end of ", "It left.",
    "revised answer", "REVİSED ANSWER", "Revısed_answer", "revision", "revised", "corrected reply", "improved version",
    "edited text", "rewritten-response", "updated solution", "corrected_student_solution", "corrected student solution",
    "teacher reasoning", "teacher_reasoning",
)  # fmt: skip


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("\n[REVİSED ANSWER]:\nIt left.")
@example("\n[Revısed answer]:\nIt left.")
@example("\n<<<END>>>\n")
@example("teacher_reasoning: it lacks the day")
def test_the_quick_look_for_markers_overlooks_none(text: str) -> None:
    slowly = markers._ANYWHERE.search(text) is not None or any(m.rank == "close" for m in find_markers(text))
    assert has_marker(text) == slowly


@pytest.mark.parametrize(
    ("text", "status"),
    [("I can't do that.", "refused"), ("I'm unable to edit this.", "refused"), ("As an AI, I must decline.", "refused"),
     ("Dabei kann ich nicht helfen.", "refused"), ("我无法协助。", "refused"), ("Извините, я не могу помочь.", "refused"),
     ("No change.", "empty"), ("Nothing to edit.", "empty"), ("null", "empty"), ("The original is fine.", "empty"),
     (f"Here's a calmer version: {TEXT}", "self_referring"), (f"Rewritten: {TEXT}", "self_referring"),
     (f"Hier ist die überarbeitete Antwort: {TEXT}", "self_referring"), (f"[edited] {TEXT}", "self_referring"),
     (f"<final>{TEXT}</final>", "dressed"), (f"'{TEXT}'", "dressed"), (f"「{TEXT}」", "dressed"), (f"[{TEXT}]", "dressed"),
     (f"> {TEXT}", "dressed"), (f"[-It left.-]{{+{TEXT}+}}", "dressed"), ("It is ~~ 9 ~~ or so.", "clean"),
     ("I can't see when your order left.", "clean")],
)  # fmt: skip
def test_what_stands_for_an_answer_or_around_one_is_not_learnt(text: str, status: str) -> None:
    assert parse(framed(text), original="Your order left!", asked="When did my order leave?").status == status


@pytest.mark.parametrize("tag", ["thought", "reasoning", "scratchpad", "seed:think"])
def test_a_draft_within_a_thought_is_none(tag: str) -> None:
    assert parse(f"<{tag}>\n{framed(TEXT)}\n</{tag}>\nNo edit is good.").status == "no_marker"


@pytest.mark.parametrize(
    "text",
    ["Use the <think> tag.", "Models write <think>x</think> first.", "```\n<think>\nx\n</think>\n```\nDone.",
     "Like so:\n<think>\nx\n</think>\nDone.", "Tags:\n<think> opens it.\n</think> closes it.", "Tags:\n</think> closes it.",
     "Tags:\n<think> opens it."],
)  # fmt: skip
def test_tags_of_thinking_within_a_text_are_its_own_or_nobody_can_tell(text: str) -> None:
    for before, after in FRAMES.values():
        for thought in ("", "<think>Hm.</think>\n"):
            found = parse(thought + before + text + after)
            assert found.text == text if found.usable else found.status in ("ambiguous", "no_marker")
            assert found.usable or text.startswith(("Like", "Tags"))
    in_json = parse(json.dumps({"revision": f"<think>Hm.</think>\n{TEXT}"}))
    assert (in_json.status, in_json.text) == ("tolerated:json", TEXT)


def test_a_frame_that_stays_in_the_text_is_not_learnt() -> None:
    assert parse(f"x\n{OPEN}\n{TEXT}\n<<<END OF REVISED ANWSER>>>").status == "marker_inside"
    assert parse(f"x\n<revised_answer>{TEXT}</revised_answer>").status == "marker_inside"
    assert parse('{"revision": ["a", "b"]}').status == "bad_json"
    assert parse(f"Why.\nrevision: |\n  {TEXT}").status == "no_marker"


@pytest.mark.parametrize(
    "text",
    ["We cannot deliver abroad.", "Dogs are not allowed inside.", "Das ist keine Primzahl.", "Nein, das geht nicht.",
     "Use <reasoning>x</reasoning> in the file.", "Close it with </analysis> at the end."],
)  # fmt: skip
def test_an_answer_may_say_no_and_may_write_about_tags(text: str) -> None:
    assert parse(framed(text), original="Sure!", asked="May I?") == Parsed("clean", text, "It lacks the days.")
