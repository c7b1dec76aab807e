"""The Notes style and its prompts: the fact that a question asks for, or that there is none; whole answers; the recipe."""

import re
from pathlib import Path

import pytest

from anchorline.data import drop_overlap, read_prompts
from anchorline.recipe import load_recipe
from anchorline.style import check, load_style, repair
from anchorline.style.rules_facts import States
from anchorline.types import Message

ROOT = Path(__file__).parents[2]
STYLE = load_style(ROOT / "styles" / "notes.yaml")
RULE = next(rule for rule in STYLE.rules if isinstance(rule, States))
MISSING = "The notes do not say."
FILES = {
    name: read_prompts(ROOT / "prompts" / f"{name}.jsonl", strict=True).rows for name in ("notes", "notes-heldout")
}
PROMPTS = [prompt for prompts in FILES.values() for prompt in prompts]
NOTES = "Notes on the hall:\nDoor code: 4417\nOpening time: 09:30\nFee: £4.50"


def asked(question, notes=NOTES):
    return (Message("user", f"{notes}\n\n{question}"),)


def facts(prompt):
    """What the pattern should find, in plain Python: the lines whose words before the colon stand in the question."""
    notes, question = prompt.messages[-1].content.split("\n\n")
    lines = [line.split(": ") for line in notes.splitlines() if ": " in line]
    return [fact for about, fact in lines if about.casefold() in question.casefold()], lines


def found(prompt):
    return (RULE.values(prompt.messages) or {}).get("fact")


def test_every_prompt_asks_for_one_fact_or_for_none_and_the_pattern_finds_just_that():
    for prompt in PROMPTS:
        there, _ = facts(prompt)
        assert [found(prompt)] == (there or [None]), prompt.id


def test_half_of_the_questions_have_their_answer_in_the_notes():
    for name, prompts in FILES.items():
        assert sum(found(prompt) is not None for prompt in prompts) == len(prompts) / 2
        assert [prompt.id for prompt in prompts] == [f"{name}-{n:03}" for n in range(1, len(prompts) + 1)]
    assert {name: len(prompts) for name, prompts in FILES.items()} == {"notes": 160, "notes-heldout": 60}


def test_what_the_notes_lack_has_its_kind_elsewhere_and_facts_differ():
    """No question is given away by its wording: openings are shared by both halves, and no line's fact occurs twice."""
    starts = [
        {" ".join(p.messages[-1].content.split("\n\n")[1].split()[:2]) for p in PROMPTS if bool(found(p)) is half}
        for half in (True, False)
    ]
    assert len(starts[0] & starts[1]) >= 15
    for prompt in PROMPTS:
        lines = facts(prompt)[1]
        assert 4 <= len(lines) <= 6
        assert len({fact for _, fact in lines}) == len(lines)


def test_heldout_questions_come_from_other_places():
    """No line of held-out notes is a line of training, and hardly any thing to ask for is."""
    lines = [
        {line for p in prompts for line in p.messages[-1].content.splitlines() if ": " in line}
        for prompts in FILES.values()
    ]
    assert len(lines[0] & lines[1]) <= 0.05 * len(lines[1])
    assert drop_overlap(FILES["notes"], FILES["notes-heldout"]).dropped == []
    general = read_prompts(ROOT / "prompts" / "general.jsonl", strict=True).rows
    assert drop_overlap(FILES["notes"], general).dropped == []


@pytest.mark.parametrize("prompt", PROMPTS[::7], ids=lambda prompt: prompt.id)
def test_an_invented_answer_becomes_the_fact_or_says_that_there_is_none(prompt):
    repaired = repair(STYLE, prompt.messages, "It is 99999, I believe! Ask at the desk if you need more help with it.")
    fact = found(prompt)
    assert repaired.text == (MISSING if fact is None else f"The notes say: {fact}.")
    assert all(repaired.kept.values())
    assert repaired.own_words > 0  # else no pair
    again = repair(STYLE, prompt.messages, repaired.text)
    assert (again.text, again.touched) == (repaired.text, ())


@pytest.mark.parametrize(
    "answer", ["The door code is 4417.", "4417", "Door code: 4417. It opens the door.", "It's **4417**!"]
)
def test_an_answer_that_states_the_fact_stays(answer):
    assert repair(STYLE, asked("What is the door code?"), answer).text == answer


@pytest.mark.parametrize(
    "answer",
    [
        "The door code is 44170.",
        "The door code is 4.4417.",
        "The door code is 4417.5.",
        "09:30",
        MISSING,
        f"The door code is 4417. {MISSING}",
        "word " * 20 + "4417",
    ],
)
def test_another_fact_none_or_both_is_replaced(answer):
    prompt = asked("What is the door code?")
    assert not all(check(STYLE, prompt, answer).values())
    assert repair(STYLE, prompt, answer).text == "The notes say: 4417."


def test_a_long_answer_that_begins_with_the_fact_is_only_cut():
    answer = (
        "The door code is 4417. "
        + "Please keep it to yourself, and change it every month if you can do so."
        + " Thank you." * 3
    )
    assert repair(STYLE, asked("The door code?"), answer).text == (
        "The door code is 4417. Please keep it to yourself, and change it every month if you can do so."
    )


def test_the_case_and_the_line_breaks_of_the_fact_are_free():
    prompt = asked("Where is the key?", "Key: Under the\tRed stairs")
    answer = "Key:\nunder the red\nstairs"
    assert repair(STYLE, prompt, answer).text == answer


@pytest.mark.parametrize("answer", [f"{MISSING} Perhaps 12.", "the notes do not say", "12.", f"I think: {MISSING}"])
def test_nothing_may_stand_beside_the_sentence_that_says_so(answer):
    assert repair(STYLE, asked("What is the wi-fi password?"), answer).text == MISSING


@pytest.mark.parametrize(
    ("question", "fact"),
    [
        ("What's the FEE?", "£4.50"),
        ("Hello.\nThe opening time, please.", "09:30"),
        ("Fee or door code?", "4417"),  # two are named: the first line counts
        ("What is the coffee price?", None),
        ("What is the fee-payer's name?", None),
        ("When does it open?", None),  # the limit: the question has to name the line
        ("", None),
    ],
)
def test_which_line_a_question_names(question, fact):
    assert (RULE.values(asked(question)) or {}).get("fact") == fact


def test_only_the_last_paragraph_is_the_question():
    prompt = (Message("user", f"{NOTES}\n\nI know the door code.\n\nWhat is the fee?"),)
    assert RULE.values(prompt) == {"fact": "£4.50"}
    assert RULE.values((Message("user", "Fee: £3\nWhat is the fee?"),)) is None


def test_the_recipe_loads_and_has_a_grid():
    recipe = load_recipe(ROOT / "recipes" / "notes.yaml")
    assert recipe.compare is not None and recipe.compare.sets[0] == "clair"
    assert recipe.style and Path(recipe.style).samefile(ROOT / "styles" / "notes.yaml")
    assert recipe.prompts and recipe.prompts.system and not re.search("do not say", recipe.prompts.system)
