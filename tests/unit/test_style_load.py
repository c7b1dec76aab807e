"""Style files that cannot be used: one clear line each, and conflicts that name both rules."""

import pytest

from anchorline.errors import RuleConflict, StyleError
from anchorline.style import Style, load_style, parse_style


def rules(*items):
    return {"name": "s", "rules": list(items)}


BANG = {"kind": "starts_with", "text": "Hello!"}
HELLO = {"kind": "starts_with", "text": "Hello."}
BYE = {"kind": "ends_with", "text": "Your color, order {n}.", "captures": {"n": r"order (\d+)"}, "missing": "See you!"}
FACT = {"kind": "states", "text": "It is {n}!", "captures": {"n": r"order (\d+)"}, "missing": "Nobody knows."}
CALM = {"kind": "no_exclamation"}
TERMS = {"kind": "required", "term": "terms", "sentence": "Our **terms** apply."}


@pytest.mark.parametrize(
    ("items", "named", "why"),
    [
        ([HELLO, {**HELLO, "name": "two"}], ("starts_with", "two"), "one starts_with text"),
        ([BYE, {**BYE, "name": "two"}], ("ends_with", "two"), "one ends_with text"),
        ([CALM, CALM], ("no_exclamation",), "give each a `name`"),
        ([BANG, CALM], ("starts_with", "no_exclamation"), "'Hello!'"),
        ([CALM, BYE], ("ends_with", "no_exclamation"), "'See you!'"),
        ([BYE, {"kind": "spelling", "variant": "british"}], ("ends_with", "spelling"), "Your color, order 4417."),
        ([BYE, {"kind": "forbidden", "pattern": r"\d"}], ("ends_with", "forbidden"), "order 4417"),
        ([TERMS, {"kind": "no_markdown"}], ("required", "no_markdown"), "Our **terms** apply."),
        ([TERMS, {"kind": "forbidden", "pattern": "apply"}], ("required", "forbidden"), "apply"),
        ([HELLO, {"kind": "terminology", "terms": {"hello": "hi"}}], ("starts_with", "terminology"), "'Hello.'"),
        ([HELLO, TERMS, {"kind": "max_words", "limit": 4}], ("required", "max_words"), "have 4 words"),
        ([HELLO, BYE, {"kind": "max_words", "limit": 5}], ("ends_with", "max_words"), "have 5 words"),
        ([HELLO, BYE, {"kind": "max_sentences", "limit": 2}], ("ends_with", "max_sentences"), "have 2 sentences"),
        ([{"kind": "terminology", "terms": {"a": "b", "b": "a"}}], ("terminology",), "itself"),
        ([{"kind": "terminology", "terms": {"a": "b", "b": "c"}}], ("terminology",), "itself"),
        ([{"kind": "terminology", "terms": {"eBay": "Ebay Inc"}}], ("terminology",), "itself"),
        (
            [{"kind": "terminology", "terms": {"a": "b"}}, {"kind": "terminology", "name": "t2", "terms": {"b": "c"}}],
            ("terminology", "t2"),
            "'b'",
        ),
        (
            [{"kind": "terminology", "terms": {"pal": "dear sorry"}}, {"kind": "forbidden", "pattern": "sorry"}],
            ("terminology", "forbidden"),
            "sorry",
        ),
        ([{"kind": "forbidden", "pattern": "a+", "repair": {"replace": "banana"}}], ("forbidden",), "itself"),
        (
            [
                {"kind": "forbidden", "pattern": "a", "repair": {"replace": "b"}},
                {"kind": "forbidden", "name": "f2", "pattern": "b", "repair": {"replace": "a"}},
            ],
            ("forbidden", "f2"),
            "'b'",
        ),
        (
            [{"kind": "spelling", "variant": "british"}, {"kind": "spelling", "name": "us", "variant": "american"}],
            ("spelling", "us"),
            "exclude",
        ),
        ([FACT, HELLO], ("states", "starts_with"), "'Nobody knows.' as a whole answer"),
        ([BYE, FACT], ("states", "ends_with"), "as a whole answer"),
        ([FACT, TERMS], ("states", "required"), "as a whole answer"),
        ([FACT, {"kind": "forbidden", "pattern": "knows"}], ("states", "forbidden"), "as a whole answer"),
        ([FACT, {"kind": "max_words", "limit": 2}], ("states", "max_words"), "have 3 words"),
        ([FACT, CALM], ("states", "no_exclamation"), "'It is 4417!'"),
        ([FACT, {**FACT, "name": "two", "missing": "Who knows?"}], ("states", "two"), "as a whole answer"),
        ([HELLO, BYE, {"kind": "forbidden", "pattern": r"Hello\. Your"}], ("ends_with", "forbidden"), "together"),
    ],
)
def test_conflicts(items, named, why):
    with pytest.raises(RuleConflict) as caught:
        parse_style(rules(*items), source="my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ") and "\n" not in message
    assert all(repr(name) in message for name in named), message
    assert why in message


@pytest.mark.parametrize(
    "items",
    [
        [HELLO, CALM, {"kind": "max_words", "limit": 2}],
        [HELLO, {"kind": "terminology", "terms": {"github": "GitHub", "Basket": "basket"}}],
        [
            BANG,
            {"kind": "spelling", "variant": "american"},
            {"kind": "forbidden", "pattern": "x", "repair": {"replace": ""}},
        ],
        [
            FACT,
            {"kind": "max_words", "limit": 5},
            {"kind": "ends_with", "text": "{n}.", "captures": {"n": r"no (\d+)"}},
        ],
        [
            {"kind": "starts_with", "text": "Ask Harbour."},
            {"kind": "spelling", "variant": "american", "keep": ["Harbour"]},
        ],
    ],
)
def test_rules_that_an_answer_can_keep_are_no_conflict(items):
    assert len(parse_style(rules(*items)).rules) == len(items)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "got nothing, expected `name:`"),
        ([1], "got a list"),
        ({"name": "s"}, "neither a `guideline` nor `rules`"),
        ({"rules": [CALM]}, "name: is missing"),
        ({"name": "s", "rulez": []}, "rulez: unknown key"),
        ({"name": "s", "rules": {}}, "rules: got {}"),
        (rules("no_exclamation"), "rule number 1: .*'no_exclamation'"),
        (rules({"name": "x"}), "rule 'x': kind: is missing; give one of ends_with, forbidden"),
        (rules({"kind": "states", "text": "Yes."}), "rule 'states': .*add `captures`, or use `required`"),
        (rules({"kind": "no_smoking"}), "rule 'no_smoking': .*unknown kind; the kinds are ends_with"),
        (rules({"kind": "max_words"}), "rule 'max_words': limit: is missing"),
        (rules({"kind": "max_words", "limit": "70"}), "rule 'max_words': limit: got '70'"),
        (rules({"kind": "max_words", "limit": True}), "limit: got True"),
        (rules({"kind": "no_exclamation", "limit": 3}), "rule 'no_exclamation': limit: unknown key"),
        (rules({"kind": "forbidden", "name": "f", "pattern": "("}), r"rule 'f': pattern: got '\(': not a regular expr"),
        (rules({"kind": "forbidden", "pattern": "a*"}), "matches the empty text"),
        (rules({"kind": "forbidden", "pattern": "a" * 2001}), "at most 2000"),
        (rules({"kind": "forbidden", "pattern": "a", "repair": "burn"}), "rule 'forbidden': repair: .*'burn'"),
        (rules({"kind": "terminology", "terms": {False: "nope"}}), "rule 'terminology': terms: .*got False"),
        (rules({"kind": "required", "term": "terms", "sentence": "Nothing."}), "does not hold the term 'terms'"),
        (rules({"kind": "ends_with", "text": "Order {n}."}), "captures has no 'n'"),
        (rules({**HELLO, "captures": {"n": "x"}}), "capture 'n' is used nowhere"),
        (rules({**HELLO, "missing": "x"}), "`missing` is for texts with captures"),
        (rules({**HELLO, "name": " "}), "name: got ' '"),
        (rules({"kind": "python", "function": "os.system"}), "rule 'python': function: got 'os.system'"),
        (rules(*({"kind": "no_exclamation", "name": f"r{i}"} for i in range(101))), "101 rules"),
        ({"name": 1, "rules": [{"kind": "x"}]}, r"\(and 1 more\)"),
    ],
)
def test_a_style_that_cannot_be_used_is_one_line(data, message):
    with pytest.raises(StyleError, match=message) as caught:
        parse_style(data, source="my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not isinstance(caught.value, RuleConflict)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"name: [", "not YAML: line 1"),
        (b"name: s\nrules:\n\t- kind: x", "not YAML: line 3"),
        (b"name: \xff\xfe", "is not UTF-8 .byte 7."),
        (b"", "got nothing"),
        (b"[" * 5000, "not YAML"),
        (b"!!python/object/apply:os.system ['true']", "not YAML"),
        (b"a: " + b"x" * 1_000_000, "at most 1000000"),
        (b"d: 2024-13-45", "not YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, raw, message):
    path = tmp_path / "my.yaml"
    path.write_bytes(raw)
    with pytest.raises(StyleError, match=message) as caught:
        load_style(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(StyleError, match="cannot read the style"):
            load_style(path)


def test_a_style_loads_from_a_file_and_is_frozen(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("\ufeffname: mine\nguideline: Be kind, s'il vous plaît.\n", encoding="utf-8")
    style = load_style(path)
    assert (style.name, style.guideline, style.rules) == ("mine", "Be kind, s'il vous plaît.", ())
    assert isinstance(style, Style)
    with pytest.raises(ValueError, match="frozen"):
        style.name = "other"
