"""Which prompts overlap an evaluation set: by hand, against a plain quadratic version, and on files as they come."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.data.decontaminate import (
    NGRAM,
    SHORTEST,
    drop_contaminated,
    evaluation_texts,
    normal_words,
)
from anchorline.errors import DataError
from anchorline.types import Message, Prompt

MIXEVAL = Path(__file__).parents[2].parent / "shared" / "data" / "mixeval_hard" / "free-form.json"
TWELVE = "one two three four five six seven eight nine ten eleven twelve"


def ask(*texts: str, system: str | None = None) -> Prompt:
    roles = ("user", "assistant")
    turns = [Message(roles[i % 2], text) for i, text in enumerate(texts)]  # pyright: ignore[reportArgumentType]
    return Prompt("x", (*([Message("system", system)] if system else []), *turns))


def dropped(prompt: Prompt, *against: str, n: int = NGRAM) -> bool:
    result = drop_contaminated([prompt], against, n=n)
    assert len(result.kept) + len(result.dropped) == 1
    return bool(result.dropped)


def test_thirteen_words_in_a_row_and_no_fewer():
    assert dropped(ask(f"Say: {TWELVE} thirteen, please"), f"They counted {TWELVE} thirteen and stopped")
    assert not dropped(ask(f"Say: {TWELVE} THIRD, please"), f"They counted {TWELVE} thirteen and stopped")
    assert not dropped(ask(f"Say: {TWELVE} or thirteen"), f"They counted {TWELVE} thirteen and stopped")


def test_the_ngram_and_its_text_are_told():
    prompts = [ask("Good day"), ask(f"A {TWELVE} thirteen b c")]
    kept, [found] = drop_contaminated(prompts, ["nothing", f"{TWELVE} thirteen b c", f"{TWELVE} thirteen"])
    assert kept == prompts[:1]
    assert found == (prompts[1], f"{TWELVE} thirteen", 1), "the first that is shared, in the first text with it"


def test_case_punctuation_and_unicode_form_do_not_hide_a_match():
    asked = "“Ｗhat” — is THE straße’s name?! In Zu\u0308rich: so, it goes on; with (a) few more words…"
    assert dropped(ask(asked), "what is the strasse s name in zürich so it goes on with a few more words")


def test_a_short_prompt_matches_when_all_of_it_is_contained():
    text = "Tell me: where is the moon tonight, and why is it red?"
    assert dropped(ask("Where is the moon?"), text)
    assert not dropped(ask("Where is the moon now?"), text)
    assert not dropped(ask("Where is the mo"), text), "whole words only"
    assert not dropped(ask("?!"), text), "without a word there is nothing to share"


def test_a_short_text_matches_where_it_stands_whole():
    prompt = ask("Think step by step and then tell me at length: who wrote the play Hamlet, and for whom was it?")
    assert dropped(prompt, "Who wrote the play Hamlet?")
    assert not dropped(prompt, "Who wrote the play Macbeth?")
    assert not dropped(prompt, "tell me at length"), f"fewer than {SHORTEST} words are a common phrase"


def test_system_messages_are_not_compared_and_all_other_turns_are():
    assert not dropped(ask("Hello you", system=f"{TWELVE} thirteen"), f"{TWELVE} thirteen")
    assert dropped(ask(f"{TWELVE} thirteen", "I see.", "And then?"), f"{TWELVE} thirteen")
    assert not dropped(ask(TWELVE, "I see.", "Thanks"), "Thanks"), "a short last turn is not the whole prompt"


def test_scripts_without_spaces_are_compared_by_character():
    text = "日本の首都はどこですか、教えてください。"
    assert dropped(ask(f"次の質問に答えて：{text}"), text)
    assert not dropped(ask("次の質問に答えて：日本の一番高い山はどこですか。"), text)


WORDS = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


@given(prompts=st.lists(WORDS, max_size=4), texts=st.lists(WORDS, max_size=4), n=st.integers(SHORTEST, 7))
def test_it_is_the_plain_definition(prompts: list[str], texts: list[str], n: int):
    def contains(long: list[str], short: list[str]) -> bool:
        return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))

    def shares(prompt: list[str], text: list[str]) -> bool:
        if not prompt:
            return False
        if len(prompt) < n:
            return contains(text, prompt) or (SHORTEST <= len(text) < n and contains(prompt, text))
        whole = SHORTEST <= len(text) < n and contains(prompt, text)
        return whole or any(contains(text, prompt[i : i + n]) for i in range(len(prompt) - n + 1))

    expected = [any(shares(prompt.split(), text.split()) for text in texts) for prompt in prompts]
    asked = [Prompt(str(i), (Message("user", prompt),)) for i, prompt in enumerate(prompts)]
    result = drop_contaminated(asked, texts, n=n)
    gone = {found.prompt.id for found in result.dropped}
    assert [prompt.id in gone for prompt in asked] == expected
    assert result.kept == [prompt for prompt in asked if prompt.id not in gone]
    for found in result.dropped:
        assert found.ngram in " ".join(normal_words(found.prompt.messages[0].content))
        assert found.ngram in texts[found.text]


@given(st.text())
def test_words_are_normal_and_stay_so(text: str):
    words = normal_words(text)
    assert normal_words(" ".join(words)) == words
    assert normal_words(text.upper().lower()) == normal_words(text.lower().upper().lower())


def test_too_short_ngrams_are_refused():
    with pytest.raises(DataError, match="n: is 4, expected at least 5 words"):
        drop_contaminated([], [], n=4)


def test_texts_of_rows_and_of_objects(tmp_path: Path):
    rows = [
        {"prompt": "Who?", "context": "A passage.", "target": ["no"], "options": ["neither"]},
        {"messages": [{"role": "system", "content": "no"}, {"role": "user", "content": "Where?"}], "context": None},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps(dict(enumerate(rows))))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "b.json", "c.json"):
        assert evaluation_texts(tmp_path / name) == ["Who?", "A passage.", "Where?"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"prompt": "a"}\n{"label": 1}\n', r"a\.jsonl:2: no text in the columns label; expected one of prompt, "),
        ('{"prompt": "a"}\nnot json\n', r"a\.jsonl:2: is not JSON"),
        ("\n", "is empty, expected at least one row"),
    ],
)
def test_a_text_that_cannot_be_read_is_an_error(tmp_path: Path, content: str, says: str):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=says):
        evaluation_texts(tmp_path / "a.jsonl")


@pytest.mark.skipif(not MIXEVAL.is_file(), reason="shared/data/mixeval_hard is not there")
def test_a_published_evaluation_set_is_found_in_prompts():
    texts = evaluation_texts(MIXEVAL)
    assert len(texts) >= 500
    long = [text for text in texts if len(normal_words(text)) >= NGRAM][:50]
    prompts = [Prompt(str(i), (Message("user", f"Please answer. {text.upper()}!"),)) for i, text in enumerate(long)]
    result = drop_contaminated([*prompts, ask("Which hat goes with a green raincoat?")], texts)
    assert (len(result.dropped), len(result.kept)) == (50, 1)
