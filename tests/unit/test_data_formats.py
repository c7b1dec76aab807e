"""Rows to and from the types: every accepted layout, every refused row with its field, and round trips."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorline.data import (
    answer_from_row,
    answer_to_row,
    failure_from_row,
    failure_to_row,
    pair_from_row,
    pair_to_row,
    prompt_from_row,
    prompt_to_row,
    read_pairs,
    read_prompts,
    read_unpaired,
    unpaired_from_row,
    unpaired_to_row,
    write_rows,
)
from anchorline.errors import DataError
from anchorline.types import Answer, Failure, Message, Pair, Prompt, Provenance, Unpaired, prompt_id


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [SYSTEM, user("Hi"), bot("Hello."), user("Where is order 4417?")]
MESSAGES = (
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "Hello."),
    Message("user", "Where is order 4417?"),
)
HI = (Message("user", "Hi"),)

PAIR_LAYOUTS = {
    "plain": ({"prompt": "Hi", "chosen": "A", "rejected": "B"}, HI),
    "conversational": ({"prompt": TALK, "chosen": [bot("A")], "rejected": [bot("B")]}, MESSAGES),
    "text prompt": ({"prompt": "Hi", "chosen": [bot("A")], "rejected": [bot("B")]}, HI),
    "text answers": ({"prompt": TALK, "chosen": "A", "rejected": "B"}, MESSAGES),
    "implicit prompt": ({"chosen": [*TALK, bot("A")], "rejected": [*TALK, bot("B")]}, MESSAGES),
    "null prompt": ({"prompt": None, "chosen": [user("Hi"), bot("A")], "rejected": [user("Hi"), bot("B")]}, HI),
    "prompt repeated": ({"prompt": TALK, "chosen": [*TALK, bot("A")], "rejected": [*TALK, bot("B")]}, MESSAGES),
    "prompt repeated once": ({"prompt": TALK, "chosen": [*TALK, bot("A")], "rejected": [bot("B")]}, MESSAGES),
    "first turn as text": ({"prompt": "Hi", "chosen": [*TALK, bot("A")], "rejected": [*TALK, bot("B")]}, MESSAGES),
    "last turn as text": (
        {"prompt": "Where is order 4417?", "chosen": [*TALK, bot("A")], "rejected": [*TALK, bot("B")]},
        MESSAGES,
    ),
    "system only in the conversation": (
        {"prompt": TALK[1:], "chosen": [*TALK, bot("A")], "rejected": [*TALK, bot("B")]},
        MESSAGES,
    ),
}


@pytest.mark.parametrize(("row", "prompt"), PAIR_LAYOUTS.values(), ids=PAIR_LAYOUTS)
def test_pair_layouts(row, prompt):
    assert pair_from_row(row) == Pair(prompt_id(prompt), prompt, chosen="A", rejected="B")


BAD_PAIRS = {
    "no prompt": ({"chosen": "A", "rejected": "B"}, "prompt", "is missing"),
    "no prompt in messages": ({"chosen": [bot("A")], "rejected": [bot("B")]}, "prompt", "is missing"),
    "no chosen": ({"prompt": "Hi", "rejected": "B"}, "chosen", "got prompt, rejected"),
    "null rejected": ({"prompt": "Hi", "chosen": "A", "rejected": None}, "rejected", "is missing or null"),
    "number": ({"prompt": "Hi", "chosen": 7, "rejected": "B"}, "chosen", "is 7"),
    "blank answer": ({"prompt": "Hi", "chosen": "A", "rejected": " \n"}, "rejected", "is blank"),
    "blank turn": ({"prompt": "Hi", "chosen": [bot("")], "rejected": "B"}, "chosen[0].content", "is blank"),
    "identical": ({"prompt": "Hi", "chosen": "A", "rejected": [bot("A")]}, "chosen", "identical"),
    "blank prompt": ({"prompt": "  ", "chosen": "A", "rejected": "B"}, "prompt", "is blank"),
    "user last": ({"prompt": "Hi", "chosen": [user("A")], "rejected": "B"}, "chosen", "assistant's turn last"),
    "empty list": ({"prompt": "Hi", "chosen": [], "rejected": "B"}, "chosen", "is an empty list"),
    "two prompts": (
        {"chosen": [user("Hi"), bot("A")], "rejected": [user("Ho"), bot("B")]},
        "rejected",
        "not that of chosen",
    ),
    "not the prompt": (
        {"prompt": "Hi", "chosen": [user("Ho"), bot("A")], "rejected": [user("Ho"), bot("B")]},
        "chosen",
        "does not start with",
    ),
    "answers of two turns": ({"prompt": "Hi", "chosen": [bot("A"), bot("A2")], "rejected": "B"}, "chosen", "user's"),
    "id": ({"id": True, "prompt": "Hi", "chosen": "A", "rejected": "B"}, "id", "is True"),
}


@pytest.mark.parametrize(("row", "field", "reason"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_refused_pairs(row, field, reason):
    with pytest.raises(DataError) as caught:
        pair_from_row(row)
    assert caught.value.field == field
    assert reason in str(caught.value)


UNUSABLE = [{"details": r'{"a": "\ud83d"}'}, {"details": '{"a": NaN}'}, {"details": "\ud83d"}]


@pytest.mark.parametrize("row", UNUSABLE)
def test_details_that_no_file_can_hold_are_refused(row):
    with pytest.raises(DataError, match="details: is text, expected an object"):
        failure_from_row({"id": "a", "stage": "s", "kind": "k", "reason": "r", **row})


@pytest.mark.parametrize(
    "foreign", [{"details": "free text"}, {"details": [1]}, {"details": "[1]"}, {"policy": 3}, {"maker": {}}, *UNUSABLE]
)
def test_columns_of_another_tool_with_our_names_are_left_out(foreign):
    pair = pair_from_row({"prompt": "Hi", "chosen": "A", "rejected": "B", "reviser": "r", **foreign})
    assert pair.provenance == Provenance(reviser="r")


def test_prompts_as_text_prompt_or_messages():
    assert prompt_from_row({"prompt": "Hi"}).messages == HI
    assert prompt_from_row({"prompt": TALK}).messages == MESSAGES
    assert prompt_from_row({"messages": TALK, "prompt": None}).messages == MESSAGES
    assert prompt_from_row({"id": 7, "prompt": "Hi"}).id == "7"
    assert prompt_from_row({"prompt": "  Hi\n"}).messages[0].content == "  Hi\n"


def test_system_goes_before_prompts_without_one():
    with_system = prompt_from_row({"prompt": "Hi"}, system="Be kind.")
    assert with_system.messages == (Message("system", "Be kind."), *HI)
    assert with_system.id == prompt_id(with_system.messages)
    assert prompt_from_row({"prompt": TALK}, system="Be kind.").messages == MESSAGES


BAD_PROMPTS = {
    "none": ({}, "prompt", "got none"),
    "other columns": ({"text": "Hi"}, "prompt", "got text"),
    "assistant last": ({"messages": [user("Hi"), bot("A")]}, "messages", "ends with a turn of role assistant"),
    "system only": ({"prompt": [SYSTEM]}, "prompt", "ends with a turn of role system"),
    "system later": ({"prompt": [user("Hi"), SYSTEM, user("Ho")]}, "prompt[1]", "may only come first"),
    "role": ({"prompt": [{"role": "human", "content": "Hi"}]}, "prompt[0].role", "is 'human'"),
    "role of another kind": ({"prompt": [{"role": ["user"], "content": "Hi"}]}, "prompt[0].role", "is a list"),
    "no role": ({"prompt": [{"content": "Hi"}]}, "prompt[0].role", "is null"),
    "parts": ({"prompt": [{"role": "user", "content": [{"text": "Hi"}]}]}, "prompt[0].content", "is a list"),
    "null content": ({"prompt": [user("Hi"), bot(None), user("Ho")]}, "prompt[1].content", "is null"),
    "not messages": ({"prompt": ["Hi"]}, "prompt[0]", "is 'Hi'"),
    "object": ({"prompt": user("Hi")}, "prompt", "is an object"),
    "blank id": ({"id": " ", "prompt": "Hi"}, "id", "is blank"),
    "float id": ({"id": 1.5, "prompt": "Hi"}, "id", "is 1.5"),
}


@pytest.mark.parametrize(("row", "field", "reason"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_refused_prompts(row, field, reason):
    with pytest.raises(DataError) as caught:
        prompt_from_row(row)
    assert caught.value.field == field
    assert reason in str(caught.value)


def test_a_message_shows_only_the_start_of_a_long_value():
    with pytest.raises(DataError) as caught:
        prompt_from_row({"prompt": [{"role": "x" * 5000, "content": "Hi"}]})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("label", "expected"), [(True, True), (False, False), (1, True), (0, False)])
def test_labels(label, expected):
    found = unpaired_from_row({"prompt": "Hi", "completion": [bot("A")], "label": label})
    assert found == Unpaired(prompt_id(HI), HI, "A", expected)
    assert found.label is expected


@pytest.mark.parametrize("label", [None, 2, -1, "true", 1.0, 0.5, [True]])
def test_refused_labels(label):
    with pytest.raises(DataError) as caught:
        unpaired_from_row({"prompt": "Hi", "completion": "A", "label": label})
    assert caught.value.field == "label"


def test_plain_layout_holds_one_user_turn_only():
    pair = pair_from_row({"id": "p", "prompt": "Hi", "chosen": "A", "rejected": "B"})
    row = pair_to_row(pair, layout="plain")
    assert {k: row[k] for k in ("prompt", "chosen", "rejected")} == {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    with pytest.raises(DataError, match="plain"):
        pair_to_row(Pair("p", MESSAGES, "A", "B"), layout="plain")


def test_conversational_rows_are_what_trl_reads():
    row = pair_to_row(Pair("p", MESSAGES, "A", "B"))
    assert (row["prompt"], row["chosen"], row["rejected"]) == (TALK, [bot("A")], [bot("B")])
    row = unpaired_to_row(Unpaired("p", HI, "A", False))
    assert row == {"id": "p", "prompt": [user("Hi")], "completion": [bot("A")], "label": False}


@pytest.mark.parametrize(("field", "value"), [("finish", "done"), ("text", None), ("id", []), ("prompt", "")])
def test_refused_answers(field, value):
    row = answer_to_row(Answer("a", HI, "", "stop"))
    assert answer_from_row(row).text == ""
    with pytest.raises(DataError) as caught:
        answer_from_row(row | {field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["id", "stage", "kind", "reason"])
def test_refused_failures(field):
    row = failure_to_row(Failure("a", "pairs", "unchanged", "The repair changed nothing."))
    with pytest.raises(DataError) as caught:
        failure_from_row(row | {field: None})
    assert caught.value.field == field


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["\u2028", "a\r\nb", "\x00", '"', "\\ud800", "{}", "\ufeff", "e\u0301"]
)
texts = anything.filter(str.strip)
turns = st.builds(Message, st.sampled_from(["user", "assistant"]), texts)
conversations = st.builds(
    lambda system, middle, last: (*system, *middle, Message("user", last)),
    st.lists(st.builds(Message, st.just("system"), texts), max_size=1),
    st.lists(turns, max_size=2),
    texts,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=5,
)
details = st.dictionaries(anything, json_values, max_size=3)
pairs = st.builds(
    Pair, texts, conversations, texts, texts, st.builds(Provenance, anything, anything, anything, details)
).filter(lambda pair: pair.chosen != pair.rejected)
quick = settings(max_examples=60, deadline=None)


@quick
@given(pairs, texts, details)
def test_rows_round_trip(pair, text, extra):
    assert pair_from_row(pair_to_row(pair)) == pair
    prompt = Prompt(pair.id, pair.prompt)
    assert prompt_from_row(prompt_to_row(prompt)) == prompt
    answer = Answer(pair.id, pair.prompt, text, "length")
    assert answer_from_row(answer_to_row(answer)) == answer
    failure = Failure(pair.id, "pairs", "unchanged", text, extra)
    assert failure_from_row(failure_to_row(failure)) == failure


@quick
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@given(found=st.lists(pairs, min_size=1, max_size=4, unique_by=lambda pair: pair.id))
def test_files_round_trip(ending, found):
    unpaired = [Unpaired(p.id, p.prompt, p.chosen, len(p.chosen) % 2 == 0) for p in found]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"rows.{ending}"
        write_rows(file, map(pair_to_row, found))
        assert read_pairs(file, strict=True).rows == found
        write_rows(file, map(unpaired_to_row, unpaired))
        assert read_unpaired(file, strict=True).rows == unpaired
        write_rows(file, [prompt_to_row(Prompt(p.id, p.prompt)) for p in found])
        assert read_prompts(file, strict=True).rows == [Prompt(p.id, p.prompt) for p in found]
