"""Replies as large chat models write them, each written down before the parser was tried on it.

They differ from `test_pairs_parse` in their length and in mixing several oddities at once: a plan, markdown, code, other
languages, remarks at the end. `text` is what a careful reader takes for the revision; None where no careful reader would.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from anchorline.pairs.parse import CLOSE, OPEN, parse_revision
from anchorline.types import Message

ASKED = "How do I reset the router, and why does the light blink?"
ORIGINAL = (
    "Just press the button! The light blinks because it is updating, I think. You should hold the button for a second. "
    "If it does not work, sorry, I do not know!"
)
GOOD = (
    "Hold the reset button for ten seconds, until the light turns red. The light blinks because the router is updating.\n\n"
    "If it still blinks after ten minutes, unplug the router, wait a minute, and plug it in again."
)
SOONER = GOOD.replace("ten minutes", "five minutes")
LIST = (
    "1. **Find the button.** It is on the back, in a small hole.\n2. **Hold it** for ten seconds with a pin.\n"
    "3. **Wait** two minutes.\n\nThe light blinks while the router updates."
)
CODE = (
    "Use this script:\n\n```bash\n#!/bin/sh\nfor i in 1 2 3; do\n    ping -c 1 192.168.0.1 && break\ndone\n```\n\n"
    "Then hold the button for ten seconds."
)
GERMAN = "Halten Sie die Taste zehn Sekunden lang gedrückt. Das Licht blinkt, weil der Router sich aktualisiert."
TABLE = "| Light | Meaning |\n|---|---|\n| blinking | it updates |\n| red | it was reset |\n\nHold the button for ten seconds."
MATH = "Hold it for \\(t = 10\\) s:\n\n\\[ t \\ge \\frac{20}{2} \\]\n\nThe light blinks while it updates."
WHY = (
    'The answer is vague ("I think"), holds two exclamation marks, and gives one second where ten are needed. The smallest '
    "change is to correct the duration and to drop the apology."
)


class Case(NamedTuple):
    reply: str
    text: str | None
    status: str = ""
    finish: str = "stop"


CASES = {
    # as asked, the way GPT-4 writes it
    "gpt: clean": Case(f"{WHY}\n\n{OPEN}\n{GOOD}\n{CLOSE}", GOOD, "clean"),
    "gpt: numbered thoughts": Case(
        f"1. Duration is wrong.\n2. Tone: exclamation marks.\n\n{OPEN}\n\n{LIST}\n\n{CLOSE}\n", LIST, "clean"
    ),
    "gpt: code within": Case(f"{WHY}\n\n{OPEN}\n{CODE}\n{CLOSE}", CODE, "clean"),
    "gpt: headed reasoning": Case(
        f"**Where it falls short**\n\n- {WHY}\n\n**Smallest change**\n\n- Ten.\n\n{OPEN}\n{TABLE}\n{CLOSE}",
        TABLE,
        "clean",
    ),
    "gpt: formula": Case(f"Reasoning: the duration.\n\n{OPEN}\n{MATH}\n{CLOSE}", MATH, "clean"),
    "gpt: ends with a remark": Case(
        f"{WHY}\n\n{OPEN}\n{GOOD}\n{CLOSE}\n\nLet me know if you would like a shorter one!", GOOD
    ),
    "gpt: the marker in quotes before": Case(
        f'{WHY} I will now write "{OPEN}" and the text.\n\n{OPEN}\n{GOOD}\n{CLOSE}', GOOD
    ),
    "gpt: bold markers and a rule": Case(f"{WHY}\n\n---\n\n**{OPEN}**\n\n{LIST}\n\n**{CLOSE}**", LIST),
    # what escapes the markers may have escaped the text, too, and nobody can tell: it is asked for again
    "gpt: escaped angles": Case(
        f"{WHY}\n\n\\<\\<\\<REVISED ANSWER\\>\\>\\>\n{GOOD}\n\\<\\<\\<END OF REVISED ANSWER\\>\\>\\>", None, "no_marker"
    ),
    "gpt: html entities": Case(
        f"{WHY}\n\n&lt;&lt;&lt;REVISED ANSWER&gt;&gt;&gt;\n{GOOD}\n&lt;&lt;&lt;END OF REVISED ANSWER&gt;&gt;&gt;",
        None,
        "no_marker",
    ),
    "gpt: markers as inline code": Case(f"{WHY}\n\n`{OPEN}`\n{GOOD}\n`{CLOSE}`", GOOD),
    "gpt: cut": Case(f"{WHY}\n\n{OPEN}\n{GOOD[:90]}", None, "truncated", "length"),
    "gpt: refuses": Case("I'm sorry, but I can't assist with that request.", None, "refused"),
    "gpt: nothing to change": Case(
        f"The answer already meets the aim.\n\n{OPEN}\n{ORIGINAL}\n{CLOSE}", None, "identical"
    ),
    "gpt: summary of the changes inside": Case(
        f"{WHY}\n\n{OPEN}\n{GOOD}\n\n**Changes made:**\n- Corrected the duration\n{CLOSE}", None, "self_referring"
    ),
    # with the paper's prompt
    "paper: colon and blank": Case(
        f"{{teacher_reasoning}}:\n\n{WHY}\n\n{{corrected_student_solution}}:\n\n{LIST}", LIST
    ),
    "paper: bold in braces": Case(
        f"**{{teacher_reasoning}}**\n{WHY}\n\n**{{corrected_student_solution}}**\n{CODE}", CODE
    ),
    "paper: heading": Case(f"### {{teacher_reasoning}}\n{WHY}\n\n### {{corrected_student_solution}}\n{GOOD}", GOOD),
    "paper: names as words": Case(f"Teacher Reasoning:\n{WHY}\n\nCorrected Student Solution:\n{GOOD}", GOOD),
    "paper: double braces": Case(
        f"{{{{teacher_reasoning}}}}\n{WHY}\n\n{{{{corrected_student_solution}}}}\n{GOOD}", GOOD
    ),
    "paper: reasoning names it": Case(
        f"{{teacher_reasoning}}\nIn the {{corrected_student_solution}} I fix it.\n\n{{corrected_student_solution}}\n{GOOD}",
        GOOD,
    ),
    "paper: json": Case(
        json.dumps({"teacher_reasoning": "Why.", "corrected_student_solution": LIST}),
        LIST,
        "tolerated:json",
    ),
    # Qwen and other models that think aloud
    "qwen: thinks": Case(
        f"<think>\nOkay, maybe:\n{OPEN}\nHold it.\n{CLOSE}\nNo.\n</think>\n\n{WHY}\n\n{OPEN}\n{GOOD}\n{CLOSE}",
        GOOD,
    ),
    "qwen: think tag opened by the template": Case(
        f"Let me see. The duration is wrong.\n</think>\n\n{OPEN}\n{GOOD}\n{CLOSE}", GOOD
    ),
    "qwen: thinks in capitals": Case(f"<THINK>\n{OPEN}\nHold it.\n{CLOSE}\n</THINK>\n{OPEN}\n{GOOD}\n{CLOSE}", GOOD),
    "qwen: thinks and stops": Case(f"<think>\nOkay. {OPEN}\n{GOOD}\n{CLOSE}\n", None, "no_marker"),
    "qwen: chinese colon": Case(f"分析：时间不对。\n\n**Revised answer**：\n{GOOD}", GOOD),
    "qwen: chinese heading": Case(f"分析：时间不对。\n\n【修改后的回答】\n{GOOD}", None, "no_marker"),
    "qwen: end marker in other words": Case(f"{WHY}\n{OPEN}\n{GOOD}\n<<<END REVISED ANSWER>>>", GOOD),
    "qwen: two angles": Case(f"{WHY}\n<<REVISED ANSWER>>\n{LIST}\n<<END OF REVISED ANSWER>>", LIST),
    "qwen: everything in a fence": Case(f"```\n{WHY}\n{OPEN}\n{GOOD}\n{CLOSE}\n```", GOOD),
    "qwen: special token at the end": Case(f"{WHY}\n{OPEN}\n{GOOD}\n{CLOSE}<|im_end|>", GOOD),
    # Llama
    "llama: announces": Case(f"Here is the revised answer:\n\n{OPEN}\n{GOOD}\n{CLOSE}", GOOD, "clean"),
    "llama: heading alone": Case(f"**Reasoning:** {WHY}\n\n**Revised Answer:**\n\n{LIST}", LIST),
    "llama: bold heading, no colon": Case(
        f"## Reasoning\n{WHY}\n\n## Revised Answer\n{GOOD}\n\n## End of Revised Answer", GOOD
    ),
    "llama: marker twice": Case(
        f"{OPEN}\n{GOOD}\n{CLOSE}\n\nWait, that is too long. Final version:\n\n{OPEN}\n{SOONER}\n{CLOSE}",
        SOONER,
    ),
    "llama: says that it edited": Case(
        f"{WHY}\n{OPEN}\nHere's the revised version: {GOOD}\n{CLOSE}", None, "self_referring"
    ),
    "llama: no markers at all": Case(GOOD, None, "no_marker"),
    "llama: quotes it": Case(f'{WHY}\n{OPEN}\n"{GOOD}"\n{CLOSE}', None, "dressed"),
    "mistral: german": Case(f"Die Antwort ist ungenau.\n\n{OPEN}\n{GERMAN}\n{CLOSE}", GERMAN, "clean"),
    "gemma: bullets around the markers": Case(f"* {WHY}\n\n* {OPEN}\n{GOOD}\n* {CLOSE}", GOOD),
    "gemma: turn token": Case(f"{OPEN}\n{GOOD}\n{CLOSE}\n<end_of_turn>", GOOD),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_replies_as_large_models_write_them(case: Case) -> None:
    found = parse_revision(case.reply, case.finish, original=ORIGINAL, prompt=(Message("user", ASKED),))
    assert found.usable == (case.text is not None)
    if case.text is not None:
        assert found.text == case.text
    if case.status:
        assert found.status == case.status


REMARKS = (
    "**Explanation:** I corrected the duration.",
    "**Explanation of changes:**\n- Corrected the duration",
    "Note: I changed the duration.",
    "(Note: I only changed the duration and removed the apology.)",
    "---\n\nThis version fixes the duration and drops the apology.",
    "**Reasoning:** The duration was wrong.",
    "Rationale: the duration was wrong.",
    "I hope this helps! Let me know if you'd like further edits.",
    "I kept the structure and only fixed the duration.",
    "**Why this works:** it is minimal.",
    "**Why this is better:** it is calm.",
    "---\n\nThe changes are small: the duration.",
    "(Corrected the duration.)",
    "Is there anything else you want me to revise?",
    "### Changes\n- duration",
    "**Key changes:**\n1. duration",
    "The edits are minimal: only the duration.",
    "**What changed:** duration",
    "Summary of changes:\n- duration",
    "I’ve made minimal changes to the answer: the duration.",
    "The above answer is now correct.",
    "This answer keeps most of the wording.",
    "Justification for changes: one second is too short.",
    "(I corrected the time.)",
    "[I've fixed the duration only.]",
    "I corrected the duration.",
    "I have only fixed the time it takes.",
)
CLOSINGS = (
    "Let me know if you need more help.",
    "Let me know if you'd like any further changes to your contract.",
    "I have changed your password, as you asked.",
    "I hope this helps!",
    "Note that the light is red on older models.",
    "The response time is two minutes.",
    "If the version is older than 2.1, update it first.",
    "Changes to your contract take a day.",
    "Why it blinks: it downloads its software.",
    "(Removed in version 2.)",
    "The changes are in the app's menu.",
    "I have corrected your invoice.",
    "(I keep mine by the window.)",
    "Improve the signal by moving it.",
)


@pytest.mark.parametrize("frame", ["**Revised answer:**\n", "{corrected_student_solution}\n", f"{OPEN}\n"])
@pytest.mark.parametrize("remark", REMARKS)
def test_a_remark_below_a_revision_without_an_end_is_never_learnt(frame: str, remark: str) -> None:
    reply = f"{WHY}\n\n{frame}{GOOD}\n\n{remark}"
    found = parse_revision(reply, original=ORIGINAL, prompt=(Message("user", ASKED),))
    assert (found.status, found.usable) == ("self_referring", False)
    ended = parse_revision(f"{OPEN}\n{GOOD}\n{CLOSE}\n\n{remark}", original=ORIGINAL)
    assert (ended.status, ended.text) == ("tolerated:trailing", GOOD)
    had = parse_revision(reply, original=f"{ORIGINAL}\n\n{remark}", prompt=(Message("user", ASKED),))
    assert had.usable or "changes" in remark.lower()


@pytest.mark.parametrize("closing", CLOSINGS)
def test_how_answers_end_is_no_remark(closing: str) -> None:
    found = parse_revision(f"{WHY}\n\n**Revised answer:**\n{GOOD}\n\n{closing}", original=ORIGINAL)
    assert found.text == f"{GOOD}\n\n{closing}" and found.usable


def test_an_answer_about_changed_code_may_say_what_it_changed() -> None:
    text = "```python\nx = 2\n```\n\nI fixed the loop and kept the structure of the original."
    reply = f"It is vague.\n\n**Revised answer:**\n{text}"
    assert parse_revision(reply, original="Try x = 2.", prompt=(Message("user", "Fix my code: x = 1"),)).text == text
    assert not parse_revision(reply, original="Try x = 2.", prompt=(Message("user", "What is 1 + 1?"),)).usable


@pytest.mark.parametrize("end", ["", f"\n{CLOSE}"])
@pytest.mark.parametrize(
    "first", ["Explanation: I shortened it.", "**Changes:** I fixed the duration.", "(I corrected the time.)"]
)
def test_what_was_done_is_not_learnt_as_the_first_line(first: str, end: str) -> None:
    reply = f"{WHY}\n{OPEN}\n{first}\n\n{GOOD}{end}"
    assert parse_revision(reply, original=ORIGINAL).status == "self_referring"
    assert parse_revision(reply, original=f"{first}\n\n{ORIGINAL}").usable
    assert parse_revision(f"{OPEN}\nExplanation: it blinks.\n\n{GOOD}\n{CLOSE}", original=ORIGINAL).status == "clean"


LABELS = (
    "**Explanation:** The router needs ten seconds to notice.",
    "Explanation: one second is too short.",
    "*Explanation*: one second is too short.",
    "### Explanation\nOne second is too short.",
    "**Explanation**\n\nOne second is too short.",
    "---\n\n> **Brief explanation:** one second is too short.",
    "(Explanation: one second is too short.)",
    "2. Explanation for the new duration: one second is too short.",
    "Note: the tone is calmer.",
    "**Editor’s note:** the tone is calmer.",
    "Comments:\n- a calmer tone",
    "Reason：one second is too short.",
    "Improvements: the time",
    "**Fixes:** the time",
    "Critique: the time was wrong.",
)


@pytest.mark.parametrize("gap", ["\n\n", "\n"])
@pytest.mark.parametrize("label", LABELS)
def test_a_label_below_a_revision_without_an_end_is_asked_about(label: str, gap: str) -> None:
    """Nobody can tell whether it speaks to the reader of the answer, or to whoever asked for the edit."""
    reply = f"{WHY}\n\n**Revised answer:**\n{GOOD}{gap}{label}"
    found = parse_revision(reply, original=ORIGINAL, prompt=(Message("user", ASKED),))
    assert (found.status, found.usable) == ("dressed", False)
    ended = parse_revision(f"{OPEN}\n{GOOD}{gap}{label}\n{CLOSE}", original=ORIGINAL)
    assert (ended.status, ended.text) == ("clean", f"{GOOD}{gap}{label}")
    below = parse_revision(f"{OPEN}\n{GOOD}\n{CLOSE}{gap}{label}", original=ORIGINAL)
    assert (below.status, below.text) == ("tolerated:trailing", GOOD)


@pytest.mark.parametrize("label", LABELS)
def test_a_label_that_the_answer_had_is_the_answers_own_but_a_second_one_is_not(label: str) -> None:
    reply = f"{WHY}\n\n**Revised answer:**\n{GOOD}\n\n{label}"
    original = f"{ORIGINAL}\n\n{label.replace('calm', 'friend')}"
    found = parse_revision(reply, original=original)
    assert found.usable and found.text == f"{GOOD}\n\n{label}"
    assert parse_revision(f"{reply}\n\n{label}", original=original).status == "dressed"
