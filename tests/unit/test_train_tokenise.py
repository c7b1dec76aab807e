"""Prompt and response tokens are the whole conversation's, the turn ends once, and nothing else is trained on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train_toys import END, TEMPLATE, example, pair, template, tokenizer, words
from tokenizers.processors import TemplateProcessing

from anchorline.errors import DataError
from anchorline.train.tokenise import BoundaryError, encode, response_key, tokenise, with_mismatched
from anchorline.types import Message, Unpaired

PROMPT = (Message("system", "w1 w2"), Message("user", "w3 w4 w5"))
TINY = template()


def failures_of(rows, text=TEMPLATE, **changes):
    made = tokenise(rows, template(text), **{"max_tokens": 100, "overlong": "drop"} | changes)
    return made.examples, made.failures


@settings(max_examples=20)
@given(turns=st.integers(1, 3), prompt=st.integers(1, 6), response=st.integers(1, 9))
def test_prompt_and_response_are_the_whole_conversation_and_the_turn_ends_once(turns, prompt, response):
    said = tuple(Message("assistant" if i % 2 else "user", words(prompt, first=i)) for i in range(turns))
    answer = words(response, first=50)
    prompt_ids, response_ids = encode(said, answer, TINY)
    rows = [{"role": m.role, "content": m.content} for m in (*said, Message("assistant", answer))]
    whole = str(TINY.tokenizer.apply_chat_template(rows, tokenize=False))
    assert [*prompt_ids, *response_ids] == TINY.tokenizer(whole)["input_ids"]
    assert response_ids.count(END) == 1 and response_ids[-1] == END and len(response_ids) == response + 1
    assert TINY.tokenizer.decode(list(response_ids[:-1])) == answer


def test_what_the_template_writes_after_the_end_of_turn_is_not_trained_on():
    text = TEMPLATE.replace("<end> ", "<end> w9 w9 ")
    assert encode(PROMPT, "w7 w8", template(text))[1] == encode(PROMPT, "w7 w8", TINY)[1]


def test_a_tokenizer_that_adds_special_tokens_adds_none_here():
    eager = tokenizer()
    eager.backend_tokenizer.post_processor = TemplateProcessing(single="<user> $A", special_tokens=[("<user>", 2)])
    assert eager("w0")["input_ids"] == [2, 5]
    assert encode(PROMPT, "w7", TINY._replace(tokenizer=eager)) == encode(PROMPT, "w7", TINY)


GLUED = TEMPLATE.replace("{{ m.role }}> {{", "{{ m.role }}>{{")
BAD = {
    "the prompt's last token grows into the response": (GLUED, "w7", "not the start of the whole"),
    "no end of turn": (TEMPLATE.replace("<end> ", ""), "w7", "stands 0 times in the response"),
    "end of turn inside the text": (TEMPLATE, "w7 <end> w8", "stands 2 times in the response"),
    "end of turn closes the text": (TEMPLATE, "w7 <end>", "stands 2 times in the response"),
    "empty response": (TEMPLATE, "", "has no tokens"),
    "blank response": (TEMPLATE, "  ", "has no tokens"),
    "text put before the response": (
        TEMPLATE.replace("{{ m.content }}", "{{ 'w60 ' if m.role == 'assistant' }}{{ m.content }}"),
        "w7",
        "text of its own",
    ),
    "text put behind the response": (
        TEMPLATE.replace("{{ m.content }}", "{{ m.content }}{{ ' w60' if m.role == 'assistant' }}"),
        "w7",
        "text of its own",
    ),
    "text put in the place of an empty response": (
        TEMPLATE.replace("{{ m.content }}", "{{ m.content or 'w60' }}"),
        "",
        "text of its own",
    ),
    "part of the response left out": (
        TEMPLATE.replace("{{ m.content }}", "{{ m.content.split('w8')[-1] }}"),
        "w7 w8 w9",
        "text of its own",
    ),
    "the prompt reads otherwise when an answer follows": (
        TEMPLATE.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'assistant' else 'w60' }}"),
        "w7",
        "not the start of the whole",
    ),
}


@pytest.mark.parametrize("why", BAD)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_row_whose_tokens_are_not_the_conversation_is_a_failure_with_a_reason(why, side):
    text, response, reason = BAD[why]
    bad = replace(pair(0), prompt=PROMPT, **{side: response})
    with pytest.raises(BoundaryError, match=reason):
        encode(PROMPT, response, template(text))
    examples, failures = failures_of([bad], text)
    assert examples == [] and [(f.id, f.stage, f.kind) for f in failures] == [("p0", "train", "boundary")]
    assert reason in failures[0].reason


def test_a_bad_row_stops_no_good_row():
    examples, failures = failures_of([pair(0), pair(1, chosen="w1 <end>"), pair(2)])
    assert [e.id for e in examples] == ["p0", "p2"] and [f.id for f in failures] == ["p1"]


@pytest.mark.parametrize(
    "text", [TEMPLATE.replace("{{ m.content }}", "{{ m.content | trim }}"), TEMPLATE.replace(" <end>", "\n\n<end>")]
)
def test_blank_space_is_the_templates_own_affair(text):
    assert encode(PROMPT, " w7 w8\n", template(text))[1] == encode(PROMPT, "w7 w8", TINY)[1]


def test_pairs_and_labelled_answers_become_examples():
    one = pair(1)
    examples, _ = failures_of([one, Unpaired("u", PROMPT, "w7", False)])
    assert examples[0].labels == (True, False) and examples[1].labels == (False,)
    assert examples[0].responses == (encode(one.prompt, one.chosen, TINY)[1], encode(one.prompt, one.rejected, TINY)[1])
    assert examples[0].longest == len(examples[0].prompt) + max(map(len, examples[0].responses))


# ---- length -------------------------------------------------------------------------------------------------------

LONG = replace(pair(0), prompt=PROMPT, chosen=words(10), rejected=words(5, first=40))
# prompt: <system> w w <end> <user> w w w <end> <assistant>; each answer one more token, its end of turn
FIXED, CHOSEN, REJECTED = 10, 11, 6


def test_a_row_of_exactly_the_limit_is_kept_and_one_token_less_drops_it():
    assert failures_of([LONG], max_tokens=FIXED + CHOSEN)[0][0].longest == FIXED + CHOSEN
    examples, failures = failures_of([LONG], max_tokens=FIXED + CHOSEN - 1)
    assert examples == [] and failures[0].kind == "overlong"
    assert failures[0].reason == "21 tokens, the limit is 20 (train.max_tokens)"


def test_truncation_cuts_both_answers_to_the_same_room():
    examples, failures = failures_of([LONG], max_tokens=FIXED + 4, overlong="truncate")
    assert failures == [] and [len(r) for r in examples[0].responses] == [4, 4]
    whole, _ = failures_of([LONG])
    assert examples[0].responses == tuple(r[:4] for r in whole[0].responses) and examples[0].prompt == whole[0].prompt


@pytest.mark.parametrize("room", [REJECTED, REJECTED + 2, CHOSEN - 1])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_pair_is_never_cut_on_one_side_only(room, swapped):
    row = LONG.swap() if swapped else LONG
    examples, failures = failures_of([row], max_tokens=FIXED + room, overlong="truncate")
    assert examples == [] and failures[0].reason.endswith(", and only one answer would be cut")


def test_truncation_that_would_leave_no_answer_drops_the_row():
    examples, failures = failures_of([LONG], max_tokens=FIXED, overlong="truncate")
    assert examples == [] and failures[0].reason.endswith(", and the prompt alone fills it")


def test_a_truncated_pair_whose_answers_become_the_same_is_dropped():
    row = replace(LONG, chosen=words(8, first=11), rejected=words(8, first=11) + " w90 w91")
    examples, failures = failures_of([row], max_tokens=FIXED + 8, overlong="truncate")
    assert examples == [] and [(f.id, f.kind) for f in failures] == [("p0", "overlong")]
    assert failures[0].reason.endswith(", and cut to it both answers are the same")
    # one answer only cannot be the same as another
    alone = Unpaired("u", row.prompt, row.chosen, True)
    assert len(failures_of([alone], max_tokens=FIXED + 4, overlong="truncate")[0]) == 1


@settings(max_examples=40)
@given(limit=st.integers(8, 40), sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_truncation_leaves_both_answers_whole_or_cuts_both(limit, sizes):
    row = replace(LONG, chosen=words(sizes[0]), rejected=words(sizes[1], first=40))
    for one in failures_of([row], max_tokens=limit, overlong="truncate")[0]:
        assert one.longest <= limit
        whole = [len(response) == size + 1 for response, size in zip(one.responses, sizes, strict=True)]
        assert all(whole) or not any(whole)


def test_overlong_can_be_an_error():
    with pytest.raises(DataError, match=r"row p0: 21 tokens, the limit is 20 .*; raise the limit, or set train\.over"):
        failures_of([LONG], max_tokens=20, overlong="error")


# ---- around examples ----------------------------------------------------------------------------------------------


def test_each_example_borrows_the_next_ones_first_response():
    rows = [example([1], [10], [20]), example([2], [11], [21]), example([3], [12], [22])]
    made = with_mismatched(rows, max_tokens=9)
    assert [e.responses for e in made] == [((10,), (20,), (11,)), ((11,), (21,), (12,)), ((12,), (22,), (10,))]
    assert all(e.labels == (True, False, None) for e in made) and [e.prompt for e in made] == [(1,), (2,), (3,)]


def borrowed(prompts: str, *, max_tokens: int = 9) -> str:
    """The letters of the prompts that each answer is borrowed from."""
    rows = [example([ord(letter)], [ord(letter), i]) for i, letter in enumerate(prompts)]
    made = [e.responses[-1] for e in with_mismatched(rows, max_tokens=max_tokens)]
    assert all(response in [e.responses[0] for e in rows] for response in made)
    return "".join(chr(response[0]) for response in made)


@pytest.mark.parametrize(
    ("prompts", "found"),
    [("aabbcc", "bbccaa"), ("aaab", "bbba"), ("abba", "baab"), ("aba", "bab"), ("aaa", "aaa"), ("a", "a"), ("", "")],
)
def test_an_answer_is_borrowed_from_another_prompt_where_there_is_one(prompts, found):
    assert borrowed(prompts) == found


@given(st.text(alphabet="abc", max_size=12))
def test_whatever_the_order_it_is_the_next_other_prompt(prompts):
    for i, letter in enumerate(prompts):
        behind = prompts[i + 1 :] + prompts[: i + 1]
        assert borrowed(prompts)[i] == next((other for other in behind if other != letter), letter)


def test_where_all_prompts_are_the_same_the_next_answer_is_borrowed():
    made = with_mismatched([example([1], [10]), example([1], [11])], max_tokens=9)
    assert [e.responses for e in made] == [((10,), (11,)), ((11,), (10,))]


def test_a_borrowed_answer_is_cut_to_what_fits_behind_the_prompt():
    rows = [example([1, 2, 3, 4], [10]), example([5], [11, 12, 13, 14])]
    assert with_mismatched(rows, max_tokens=6)[0].responses == ((10,), (11, 12))
    assert with_mismatched(rows, max_tokens=5)[0].responses == ((10,), (11,))
    assert with_mismatched(rows, max_tokens=4)[0].responses == ((10,), (11,)), "at least one token"


def test_the_key_of_an_answer_knows_where_the_prompt_ends():
    keys = [
        response_key(p, r) for p, r in [((1, 2), (3,)), ((1,), (2, 3)), ((12,), (3,)), ((1, 2), (4,)), ((2,), (3,))]
    ]
    assert len(set(keys)) == len(keys) and keys[0] == response_key([1, 2], [3])
