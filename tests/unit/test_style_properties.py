"""Repairs over many styles and ugly texts: they pass, they are idempotent, and they leave alone what is right."""

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from anchorline.errors import RuleConflict
from anchorline.style import check, parse_style, repair
from anchorline.style.conflicts import _frames, _joined
from anchorline.style.prose import count_words
from anchorline.style.sentences import count_sentences
from anchorline.types import Message

PROMPTS = (
    (Message("user", "Where is order 4417?"),),
    (Message("user", "Is my order 12345 or order 777 late?"), Message("assistant", "Yes!"), Message("user", "Hm.")),
    (Message("system", "Order 1 is a trap."), Message("user", "Hello")),
)

FRAGMENTS = [
    "Your parcel left today.",
    "We are so sorry!",
    "I apologise for it, e.g. the delay.",
    "Dr. Hall paid 3.14 to the U.S. office!",
    "Wait... what?!",
    "Wait…! Really!?",
    '"Great!" he said. "Stop!!"',
    "See https://harbour.example/a!b?c=1. Thanks!",
    "`x != 1!` is code",
    "```py\nprint('sorry!')\n```",
    "```\nnever closed!",
    "- Sorry about this. Do that",
    "* colour of the basket!",
    "1. Open the box",
    "2) the color, the Basket, the BASKET",
    "## A heading",
    "> a quotation!",
    "**Bold!** and *italic* and _it_ and __so__",
    "a [link!](https://a.example/x) here",
    "![image](https://a.example/y.png)",
    "谢谢！订单已发出。请等待",
    "¡Hola! ¿Qué tal?",
    "Bonjour !",
    "👍🎉!",
    "!",
    "!!",
    "( ! )",
    "(!)",
    "..",
    "no terminator here",
    "Here are the steps:",
    "Thank you for contacting Harbour!",
    "Thank you for contacting Harbour.",
    "Reference: order 999.",
    "Reference: order 4417.",
    "Reference: none given",
    "Terms apply.",
    "a*b*c snake_case_name 2 * 3 * 4",
    "\u200b",
    "x" * 30,
    " ".join(["word"] * 25),
]
GAPS = ["", " ", " ", " ", "\n", "\n\n", "\r\n", "\r\n\r\n", "  ", "\t", "\n  ", "\u00a0", "\x1c", "\x85"]

texts = st.one_of(
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from(GAPS)), max_size=14).map("".join),
    st.lists(st.tuples(st.sampled_from(FRAGMENTS), st.sampled_from(GAPS)).map("".join), max_size=10).map("".join),
    st.text(alphabet="aB1 .!?…,:;\n\r\t-*_`#>[]()'\"。！¡é👍", max_size=60),
    st.text(max_size=60),
)

GREETINGS = [
    {"kind": "starts_with", "text": "Thank you for contacting Harbour."},
    {"kind": "starts_with", "text": "Dear customer,"},
    {"kind": "starts_with", "text": "About {n}:", "captures": {"n": r"order (\d+)"}},
]
CLOSINGS = [
    {
        "kind": "ends_with",
        "text": "Reference: order {n}.",
        "captures": {"n": r"order (\d+)"},
        "missing": "Reference: none given.",
    },
    {"kind": "ends_with", "text": "Reference: order {n}", "captures": {"n": r"order (\d+)"}},
    {"kind": "ends_with", "text": "Kind regards\nHarbour"},
]
OTHERS = [
    {"kind": "forbidden", "pattern": r"(?i)\bsorry\b|\bapolog\w+"},
    {"kind": "forbidden", "name": "swap", "pattern": r"(?i)\bwait\b", "repair": {"replace": "hold on"}},
    {"kind": "forbidden", "name": "cut", "pattern": r"\bso\b", "repair": {"replace": ""}},
    {"kind": "forbidden", "name": "pairs", "pattern": "aa", "repair": {"replace": "a"}},
    {"kind": "forbidden", "name": "tabs", "pattern": r"\t"},
    {"kind": "required", "term": "terms", "sentence": "Terms apply."},
    {"kind": "states", "text": "It is order {n}.", "captures": {"n": r"order (\d+)"}},
    {"kind": "states", "name": "alone", "text": "{n}.", "captures": {"n": r"order (\d+)"}, "missing": "No order."},
    {"kind": "terminology", "terms": {"basket": "cart", "parcel": "package", "github": "GitHub"}},
    {"kind": "no_exclamation"},
    {"kind": "no_markdown"},
    {"kind": "spelling", "variant": "british"},
    {"kind": "spelling", "name": "us", "variant": "american", "keep": ["Harbour"]},
]
LIMITS = [
    {"kind": "max_words", "limit": 12},
    {"kind": "max_words", "limit": 30},
    {"kind": "max_sentences", "limit": 5},
    {"kind": "max_sentences", "limit": 6},
]


@st.composite
def styles(draw):
    rules = [
        *draw(st.lists(st.sampled_from(GREETINGS), max_size=1)),
        *draw(st.lists(st.sampled_from(CLOSINGS), max_size=1)),
        *draw(st.lists(st.sampled_from(OTHERS), max_size=5, unique_by=lambda rule: rule.get("name", rule["kind"]))),
        *draw(st.lists(st.sampled_from(LIMITS), max_size=2, unique_by=lambda rule: rule["kind"])),
    ]
    assume(rules)
    try:
        return parse_style({"name": "s", "rules": draw(st.permutations(rules))})
    except RuleConflict:  # the two spelling variants
        assume(False)


@settings(deadline=None, max_examples=250)
@given(styles(), st.sampled_from(PROMPTS), texts)
def test_a_repaired_answer_keeps_every_rule_and_repairing_it_again_changes_nothing(style, prompt, answer):
    repaired = repair(style, prompt, answer)
    assert all(repaired.kept.values()), repaired
    assert repaired.kept == check(style, prompt, repaired.text)
    again = repair(style, prompt, repaired.text)
    assert again.text == repaired.text
    assert again.touched == ()
    assert again.own_words == repaired.own_words


@settings(deadline=None, max_examples=80)
@given(styles(), st.sampled_from(PROMPTS), texts)
def test_an_answer_that_passes_comes_back_byte_for_byte_and_the_touched_rules_say_what_changed(style, prompt, answer):
    before = check(style, prompt, answer)
    repaired = repair(style, prompt, answer)
    assert (repaired.text == answer) == all(before.values())
    assert bool(repaired.touched) == (repaired.text != answer)
    assert set(repaired.touched) <= before.keys()


@settings(deadline=None, max_examples=80)
@given(st.sampled_from([*GREETINGS[:2], CLOSINGS[2]]), texts)
def test_an_edge_rule_adds_its_text_and_changes_no_other_character(rule, answer):
    style = parse_style({"name": "s", "rules": [rule]})
    assume("harbour" not in answer.lower() and "customer" not in answer.lower())
    text = repair(style, (), answer).text
    rest = text.removeprefix(rule["text"]) if rule["kind"] == "starts_with" else text.removesuffix(rule["text"])
    assert rest.strip() == answer.strip()
    assert len(rest) < len(text)


@settings(deadline=None, max_examples=80)
@given(texts, st.integers(1, 8), st.sampled_from(["max_words", "max_sentences"]))
def test_a_limit_keeps_a_beginning_of_the_answer(answer, limit, kind):
    repaired = repair(parse_style({"name": "s", "rules": [{"kind": kind, "limit": limit}]}), (), answer).text
    count = count_words if kind == "max_words" else count_sentences
    assert count(repaired) <= limit
    assert (
        "**" in answer or "`" in answer or answer.strip().startswith(repaired.strip().rstrip(".")) or repaired == answer
    )


def words_alone(text):
    return "".join(char for char in text if not char.isspace() and char not in "!！¡‼⁉.。?？…()")


@settings(deadline=None, max_examples=100)
@given(texts)
def test_no_exclamation_changes_only_marks_and_the_blanks_at_them(answer):
    style = parse_style({"name": "s", "rules": [{"kind": "no_exclamation"}]})
    text = repair(style, (), answer).text
    assert words_alone(text) == words_alone(answer)
    assert text.count("..") <= answer.count("..")


@settings(deadline=None, max_examples=100)
@given(styles())
def test_the_fixed_texts_of_an_accepted_style_keep_all_its_rules(style):
    for frame in _frames(style.rules):
        for rule in style.rules:
            if rule.kind not in ("starts_with", "ends_with", "states", "required"):
                assert rule.kept((), _joined(frame))


@example("- Sorry.\n")
@given(texts)
def test_dropping_a_sentence_keeps_the_others_in_their_order(answer):
    style = parse_style({"name": "s", "rules": [{"kind": "forbidden", "pattern": "(?i)sorry|apolog"}]})
    text = repair(style, (), answer).text
    rest = iter(answer)
    assert all(char in rest for char in text if not char.isspace())
