"""Each kind of rule: what its check refuses and the exact text of its repair."""

import re
import sys

import pytest

from anchorline.errors import DataError, StyleError
from anchorline.style import MAX_TEXT, check, markdown, parse_style, patterns, repair
from anchorline.types import Message


def style_of(*rules):
    return parse_style({"name": "s", "rules": list(rules)})


def fixed(rule, answer, *, prompt="Where is order 4417?"):
    style = style_of(rule)
    messages = (Message("user", prompt),)
    result = repair(style, messages, answer)
    assert list(check(style, messages, answer).values()) == [result.text == answer]
    assert list(result.kept.values()) == [True]
    return result.text


HELLO = {"kind": "starts_with", "text": "Hello."}
REFERENCE = {
    "kind": "ends_with",
    "text": "Reference: order {n}.",
    "captures": {"n": r"order (\d+)"},
    "missing": "Reference: none.",
}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It left.", "Hello. It left."),
        ("  It left.\n", "Hello. It left.\n"),
        ("Hello. It left.", "Hello. It left."),
        ("\nHello.\n\nIt left.", "\nHello.\n\nIt left."),
        ("Hello.com is down.", "Hello. Hello.com is down."),
        ("HELLO! It left.", "Hello. It left."),
        ("Good day. Hello! It left.", "Hello. Good day. It left."),
        ("- It left\n- Now", "Hello.\n\n- It left\n- Now"),
        ("- It left\r\n- Now", "Hello.\r\n\r\n- It left\r\n- Now"),
        ("```\nx\n```", "Hello.\n\n```\nx\n```"),
        ("", "Hello."),
        (" \n", "Hello."),
    ],
)
def test_starts_with(answer, expected):
    assert fixed(HELLO, answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It left.", "It left. Reference: order 4417."),
        ("It left.\n", "It left. Reference: order 4417."),
        ("It left. Reference: order 4417.", "It left. Reference: order 4417."),
        ("It left.\nReference: order 4417. \n", "It left.\nReference: order 4417. \n"),
        ("It left. Reference: order 4417", "It left. Reference: order 4417."),
        ("It left. Reference: order 999.", "It left. Reference: order 4417."),
        ("It left. Reference: none.", "It left. Reference: order 4417."),
        ("Reference: order 4417. It left.", "It left. Reference: order 4417."),
        ("It was cut in the", "It was cut in the\n\nReference: order 4417."),
        ("- It left.", "- It left.\n\nReference: order 4417."),
        ("", "Reference: order 4417."),
    ],
)
def test_ends_with(answer, expected):
    assert fixed(REFERENCE, answer) == expected


def test_captures_come_from_user_turns_the_last_first_and_the_first_match_wins():
    style = style_of(REFERENCE)
    system, helper = Message("system", "order 1"), Message("assistant", "order 2")
    early, late, none = Message("user", "order 3"), Message("user", "order 4 or order 5"), Message("user", "well?")
    for prompt, closing in [
        ((system, early, helper, late), "order 4."),
        ((system, early, helper, none), "order 3."),
        ((system, none), "none."),
        ((), "none."),
    ]:
        assert repair(style, prompt, "Ok.").text == f"Ok. Reference: {closing}"


def test_a_capture_without_groups_is_the_match_and_its_white_space_is_made_single():
    rule = {"kind": "starts_with", "text": "On {what}:", "captures": {"what": r"HB\s+\d+"}}
    assert fixed(rule, "It left.", prompt="Where is HB\n 12?") == "On HB 12: It left."


def test_an_edge_rule_whose_capture_finds_nothing_and_that_has_no_missing_text_counts_as_kept():
    rule = {"kind": "ends_with", "text": "Order {n}.", "captures": {"n": r"order (\d+)"}}
    assert fixed(rule, "It left.", prompt="Hi") == "It left."


APOLOGY = {"kind": "forbidden", "pattern": r"(?i)\bsorry\b"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("We are sorry. It left.", "It left."),
        ("It left, Dr. Hall. Sorry for it! It comes.", "It left, Dr. Hall. It comes."),
        ("One.\n\nSorry.\n\nTwo.", "One.\n\nTwo."),
        ("1. Sorry\n2. Wait", "2. Wait"),
        ("- Sorry. Wait", "- Wait"),
        ("A sorry\n```\nsorry\n```\nend", "end"),
        ("Sorry!", ""),
        ("No glory.", "No glory."),
    ],
)
def test_forbidden_drops_the_sentence(answer, expected):
    assert fixed(APOLOGY, answer) == expected


def test_a_match_over_two_sentences_drops_both_and_one_in_white_space_drops_what_follows():
    assert fixed({"kind": "forbidden", "pattern": r"left\. It"}, "One. It left. It comes. Two.") == "One. Two."
    assert fixed({"kind": "forbidden", "pattern": r"\n\n"}, "One.\n\nTwo.") == "One."
    assert fixed({"kind": "forbidden", "pattern": r"^- "}, "- One\n- Two") == ""


def test_a_match_across_the_greeting_drops_the_answers_sentence_never_the_greeting():
    style = style_of(HELLO, {"kind": "forbidden", "pattern": r"Hello\. It"})
    assert repair(style, (), "Hello. It left. Bye.").text == "Hello. Bye."


@pytest.mark.parametrize(
    ("pattern", "replace", "answer", "expected"),
    [
        ("(?i)asap", "soon", "Come ASAP, please.", "Come soon, please."),
        ("really ?", "", "It is really good. Not really.", "It is good. Not ."),
        ("very", "", "It is very good.", "It is good."),
        ("aa", "a", "Keep. baaaad", "Keep. bad"),
        ("!!", "!", "Wow!!!! It left.", "Wow! It left."),
        ("\n\n\n", "\n\n", "One.\n\n\n\n\nTwo.", "One.\n\nTwo."),
        ("a a", "a or a", "Keep a a a.", "Keep a or a or a."),
        ("(?<=.{5})b", "bb", "Keep. It is bad.", "Keep."),  # each round would double them
        ("x", r"\1", "an x", r"an \1"),
    ],
)
def test_forbidden_replaces(pattern, replace, answer, expected):
    assert fixed({"kind": "forbidden", "pattern": pattern, "repair": {"replace": replace}}, answer) == expected


def test_required_adds_its_sentence_before_the_closing():
    terms = {"kind": "required", "term": "terms of sale", "sentence": "Our terms of sale apply."}
    style = style_of(HELLO, terms, REFERENCE)
    text = repair(style, (), "It left.").text
    assert text == "Hello. It left. Our terms of sale apply. Reference: none."
    assert fixed(terms, "The TERMS  of\nsale!") == "The TERMS  of\nsale!"
    assert fixed(terms, "The terms of sales.") == "The terms of sales. Our terms of sale apply."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A basket, Basket, BASKET.", "A cart, Cart, CART."),
        ("basketball, mybasket, basket_1", "basketball, mybasket, basket_1"),
        ("The shopping\nbag's handle", "The basin's handle"),
        ("github, Github, GITHUB, GitHub", "GitHub, GitHub, GITHUB, GitHub"),
        ("eBAY, ebay", "Ebay, Ebay"),
        ("`basket` https://a.example/basket basket", "`basket` https://a.example/basket cart"),
    ],
)
def test_terminology(answer, expected):
    terms = {"basket": "cart", "shopping bag": "basin", "github": "GitHub", "eBay": "Ebay"}
    rule = {"kind": "terminology", "terms": terms}
    assert fixed(rule, answer) == expected


def test_spelling():
    british = {"kind": "spelling", "variant": "british"}
    american = {"kind": "spelling", "variant": "american", "keep": ["Harbour"]}
    assert (
        fixed(british, "Organize the COLOR. Check the meter, Center!")
        == "Organise the COLOUR. Check the meter, Centre!"
    )
    assert fixed(american, "Harbour's grey harbour cheque: travelled") == "Harbour's gray harbor check: traveled"
    assert fixed(british, "`color` in https://a.example/color") == "`color` in https://a.example/color"
    assert fixed(american, "We promise to revise the wise exercise.") == "We promise to revise the wise exercise."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Hi! Go!! Now!!!", "Hi. Go. Now."),
        ("What?! No!? Why??!", "What? No? Why??"),
        ("So...! Well…! Ok.! Ok!.", "So... Well… Ok. Ok."),
        ('"Go!" (now!) **Hi!**', '"Go." (now.) **Hi.**'),
        ("Bonjour ! Ça va ?", "Bonjour. Ça va ?"),
        ("¡Hola! 好！好", "Hola. 好。好"),
        ("Wow (!) yes", "Wow yes"),
        ("Was⁉ Nein‼", "Was? Nein."),
        ("! Note\n! Two\nOk", "Note\nTwo\nOk"),
        ("Done. ! Go", "Done. Go"),
        ("a..! b", "a. b"),
        ("a != b `x!` https://a.example/!b ![i](u)", "a != b `x!` https://a.example/!b ![i](u)"),
        ("Hi!\n```\nx!\n```\nBye!", "Hi.\n```\nx!\n```\nBye."),
        ("See https://a.example/b!", "See https://a.example/b."),
        ("- Go!\r\n- Now!", "- Go.\r\n- Now."),
    ],
)
def test_no_exclamation(answer, expected):
    assert fixed({"kind": "no_exclamation"}, answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("## Steps\n\n- **Open** it\n* _Close_ `it`\n1. Go", "Steps\n\nOpen it\nClose it\n1. Go"),
        ("A [page](https://a.b/c) and [x](x), ![pic](p.png)", "A page (https://a.b/c) and x, pic"),
        ("```py\nx = 1\n```\nDone", "x = 1\nDone"),
        ("- " * 20 + "`**one**`\n> two", "one\n> two"),
        ("***both*** __bold__ *it*", "both bold it"),
        ("2 * 3 * 4, snake_case_x, #4417, -5, a - b", "2 * 3 * 4, snake_case_x, #4417, -5, a - b"),
        ("  - nested\r\n  - two", "  nested\r\n  two"),
    ],
)
def test_no_markdown(answer, expected):
    assert fixed({"kind": "no_markdown"}, answer) == expected


@pytest.mark.parametrize("deep", [1, 12, 40])
@pytest.mark.parametrize("last", ["box", "*box*", "[box](a)", "", "-box", "# \n- map", "`- box`\r\n  * map"])
@pytest.mark.parametrize("mark", ["- ", "# ", "*\t", "## + "])
def test_marks_that_open_a_line_go_at_once_as_they_do_one_by_one(mark, last, deep, monkeypatch):
    text = f"Steps:\n  {mark * deep}{last}"
    at_once = markdown.plain(text)
    monkeypatch.setattr(markdown, "DEEP", 1_000)
    assert at_once == markdown.plain(text)


@pytest.mark.parametrize("mark", ["- ", "# - "])
def test_a_line_of_nothing_but_marks_takes_few_rounds(mark, monkeypatch):
    rounds = []

    def count(_):
        rounds.append(1)
        assert len(rounds) < 20
        return ""

    monkeypatch.setattr(markdown, "_STEPS", ((re.compile(r"\A"), count), *markdown._STEPS))
    assert markdown.plain("Steps:\n" + mark * (MAX_TEXT // len(mark) - 4) + "box") == "Steps:\nbox"


@pytest.mark.parametrize(
    ("limit", "answer", "expected"),
    [
        (5, "One two. Three four. Five six.", "One two. Three four."),
        (3, "One two three, four five six", "One two three."),
        (3, "Intro text. Do this:\n- one\n- two", "Intro text."),
        (4, "Do this:\n\n- one two\n- three", "Do this."),
        (5, "Do it.\n\n- one two\n- three", "Do it.\n\n- one two"),
        (2, "A **bold word** here", "A bold."),
        (2, "```\na b c d\n```", ""),
        (9, "One two. It was cut in the middle of a sen", "One two."),
    ],
)
def test_max_words(limit, answer, expected):
    assert fixed({"kind": "max_words", "limit": limit}, answer) == expected


def test_limits_leave_room_for_the_fixed_and_required_texts():
    terms = {"kind": "required", "term": "terms", "sentence": "Our terms apply."}
    style = style_of({"kind": "max_words", "limit": 10}, HELLO, terms, REFERENCE)
    answer = "It left today. The terms are on the web page. It comes soon."
    result = repair(style, (), answer)
    assert result.text == "Hello. It left today. Our terms apply. Reference: none."
    assert result.own_words == 3
    sentences = style_of({"kind": "max_sentences", "limit": 3}, HELLO, REFERENCE)
    assert repair(sentences, (), "One. It left. Gone.").text == "Hello. One. Reference: none."


def test_own_words_are_those_that_no_rule_prescribes():
    terms = {"kind": "required", "term": "terms", "sentence": "Our terms apply."}
    style = style_of(HELLO, terms, APOLOGY, REFERENCE)
    assert repair(style, (), "Hello. Sorry. - ? Our terms apply.").own_words == 0
    assert repair(style, (), "It left, sir.").own_words == 3
    untouched = "Hello. Gone. Our terms apply. Reference: none."
    assert repair(style, (), untouched) == (untouched, (), dict.fromkeys(check(style, (), ""), True), 1)


def test_a_repair_that_breaks_another_rule_is_followed_by_that_rules_repair():
    words = {"kind": "terminology", "terms": {"colour": "hue"}}
    style = style_of(words, {"kind": "spelling", "variant": "british"})
    result = repair(style, (), "The color.")
    assert result.text == "The hue."
    assert result.touched == ("terminology", "spelling")
    joined = style_of({"kind": "forbidden", "pattern": r"One\. Six"})
    assert repair(joined, (), "Zero. " + "One. " * 20 + "Six. " * 21).text == "Zero. Six. "


def test_only_the_rules_that_changed_the_text_are_touched():
    style = style_of(HELLO, {"kind": "no_exclamation"}, REFERENCE)
    assert repair(style, (), "Hello! It left. Reference: none.").touched == ("no_exclamation",)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    body = (
        "def sign(prompt, answer):\n    return answer if 'Bo' in answer else answer + ' Bo'\n"
        "def fails(prompt, answer):\n    return {}[answer]\n"
        "def nothing(prompt, answer):\n    return None\n"
    )
    (tmp_path / "user_rules_for_test.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    yield "user_rules_for_test"
    sys.modules.pop("user_rules_for_test", None)


def python_style(function, *, trust_code=True):
    rules = [{"kind": "python", "name": "signed", "function": function}]
    return parse_style({"name": "s", "rules": rules}, trust_code=trust_code)


def test_python_rules_run_only_when_trusted(user_module):
    with pytest.raises(StyleError, match=r"'signed' would run user_rules_for_test:sign.*--trust-code"):
        python_style(f"{user_module}:sign", trust_code=False)
    assert user_module not in sys.modules
    style = python_style(f"{user_module}:sign")
    assert check(style, (), "Bye") == {"signed": False}
    assert repair(style, (), "Bye").text == "Bye Bo"


@pytest.mark.parametrize(
    ("function", "message"),
    [("missing_module_x:f", "cannot import 'missing_module_x'"), ("json:nope", "no function 'nope'")],
)
def test_a_python_rule_that_cannot_be_loaded(function, message):
    with pytest.raises(StyleError, match=f"style: rule 'signed': .*{message}"):
        python_style(function)


def test_a_python_rule_that_fails(user_module):
    with pytest.raises(
        StyleError, match=r"rule 'signed': on the prompt '.*' with the answer '.*', .*:fails raised KeyError"
    ):
        repair(python_style(f"{user_module}:fails"), (), "a")
    with pytest.raises(StyleError, match=r"rule 'signed': .*returned NoneType"):
        repair(python_style(f"{user_module}:nothing"), (), "a")


def test_a_slow_pattern_is_an_error_that_names_its_rule(monkeypatch):
    monkeypatch.setattr(patterns, "TIMEOUT_SECONDS", 0.05)
    slow = r"(?:(?:a|aa|a.)+)+\d"
    with pytest.raises(StyleError, match=r"rule 'slow'.*took over"):
        check(style_of({"kind": "forbidden", "name": "slow", "pattern": slow}), (), "a" * 3000)
    edge = {"kind": "starts_with", "name": "slow", "text": "{x}", "captures": {"x": slow}}
    with pytest.raises(StyleError, match=r"rule 'slow'.*took over"):
        check(style_of(edge), (Message("user", "a" * 3000),), "b")


def test_an_over_long_answer_is_refused():
    with pytest.raises(DataError, match=f"at most {MAX_TEXT}"):
        repair(style_of(HELLO), (), "a" * (MAX_TEXT + 1))
    assert repair(style_of(HELLO), (), "a" * MAX_TEXT).own_words == 1
