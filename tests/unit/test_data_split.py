"""The split: no prompt on both sides, whatever the order, the case or the Unicode form."""

import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anchorline.data import distinct, drop_overlap, split
from anchorline.errors import DataError
from anchorline.types import Message, Prompt


def ask(text: str, *, id: str = "x", system: str | None = None) -> Prompt:
    before = () if system is None else (Message("system", system),)
    return Prompt(id, (*before, Message("user", text)))


def texts(prompts):
    return [prompt.messages[-1].content for prompt in prompts]


HUNDRED = [ask(f"Question {n}", id=str(n)) for n in range(100)]
VARIANTS = [
    str.upper,
    str.title,
    lambda text: f"  {text}\n",
    lambda text: text.replace(" ", " \t\u00a0"),
    lambda text: unicodedata.normalize("NFD", text),
    lambda text: unicodedata.normalize("NFKC", text),
]
questions = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
shares = st.floats(0.001, 0.999)
quick = settings(max_examples=100, deadline=None)


def test_the_share_is_kept_and_every_row_comes_once_in_order():
    train, heldout = split(HUNDRED, heldout=0.2)
    assert (len(train), len(heldout)) == (80, 20)
    assert sorted(train + heldout, key=lambda p: int(p.id)) == HUNDRED
    assert train == sorted(train, key=lambda p: int(p.id))
    assert heldout == sorted(heldout, key=lambda p: int(p.id))


def test_the_same_today_and_tomorrow_and_another_with_another_seed():
    # Written down once: a change here moves prompts between the sides of every user's split.
    assert texts(split(HUNDRED[:8], heldout=0.25).heldout) == ["Question 0", "Question 7"]
    assert split(HUNDRED, heldout=0.2, seed=1).heldout != split(HUNDRED, heldout=0.2, seed=0).heldout


@quick
@given(st.lists(questions, min_size=2, max_size=12), shares, st.integers(0, 5), st.randoms(use_true_random=False))
def test_neither_order_nor_ids_matter(words, share, seed, random):
    rows = [ask(word, id=str(n)) for n, word in enumerate(words)]
    assume(len({word.strip().casefold() for word in words}) > 1)
    try:
        heldout = set(texts(split(rows, heldout=share, seed=seed).heldout))
    except DataError:  # The words were one and the same to the split.
        assume(False)
    shuffled = [ask(word, id=f"other-{n}") for n, word in enumerate(words)]
    random.shuffle(shuffled)
    again = split(shuffled, heldout=share, seed=seed)
    assert set(texts(again.heldout)) == heldout
    assert set(texts(again.train)).isdisjoint(heldout)
    assert again.train
    assert again.heldout


@quick
@given(st.lists(questions, min_size=2, max_size=8), st.lists(st.sampled_from(VARIANTS), min_size=8, max_size=8), shares)
def test_copies_in_another_form_land_on_the_same_side(words, variants, share):
    rows = [ask(word, id=str(n)) for n, word in enumerate(words)]
    copies = [ask(change(word), id=str(n)) for n, (word, change) in enumerate(zip(words, variants, strict=False))]
    # Some letters change for good in upper case (dotless i); those are other prompts.
    assume(all(c.messages[0].content.lower().split() == w.lower().split() for c, w in zip(copies, words, strict=True)))
    try:
        train, heldout = split(rows + copies, heldout=share)
    except DataError:
        assume(False)
    assert {p.id for p in train}.isdisjoint({p.id for p in heldout})


@pytest.mark.parametrize(
    "copy", ["WO IST DIE STRASSE 5?", "wo  ist die\nstraße 5?", "Wo ist die Straße ５?", " Wo ist die Straße 5? "]
)
def test_copies_seen_as_the_same(copy):
    assert drop_overlap([ask(copy), ask("Other")], [ask("Wo ist die Straße 5?")]).dropped == [ask(copy)]


@pytest.mark.parametrize("other", ["Wo ist die Straße 6?", "Wo ist die Straße 5", "Wo ist dieStraße 5?"])
def test_others_are_not(other):
    assert drop_overlap([ask(other)], [ask("Wo ist die Straße 5?")]).dropped == []


def test_the_whole_conversation_counts():
    assert drop_overlap([ask("Hi", system="Be brief.")], [ask("Hi")]).dropped == []
    assert drop_overlap([ask("Hi", system="Be brief."), ask("Ho")], [ask("hi", system="BE BRIEF.")]).train == [
        ask("Ho")
    ]
    assert drop_overlap([ask("Hi", system="Be brief."), ask("Ho")], [ask("hi")], system=False).train == [ask("Ho")]
    turns = (Message("user", "a b"),)
    assert drop_overlap([Prompt("1", turns)], [Prompt("1", (Message("user", "a"), Message("user", "b")))]).train


def test_distinct_keeps_the_first_copy_of_each_and_the_order():
    copies = [ask(text) for text in ("Two", "one", "two ", "ONE", "three")]
    assert texts(distinct(copies)) == ["Two", "one", "three"]


def test_drop_overlap_keeps_order_and_needs_something_left():
    kept = drop_overlap(HUNDRED, HUNDRED[::2])
    assert kept == (HUNDRED[1::2], HUNDRED[::2])
    with pytest.raises(DataError, match="all 3 training prompts are also held out"):
        drop_overlap(HUNDRED[:3], HUNDRED)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_shares_outside_0_to_1(share):
    with pytest.raises(DataError, match="heldout"):
        split(HUNDRED, heldout=share)


@pytest.mark.parametrize(("share", "held"), [(0.001, 1), (0.999, 99)])
def test_both_sides_get_at_least_one(share, held):
    assert len(split(HUNDRED, heldout=share).heldout) == held


@pytest.mark.parametrize("rows", [[], [ask("Hi")], [ask("Hi"), ask("HI ")]])
def test_fewer_than_two_distinct_prompts(rows):
    with pytest.raises(DataError, match=f"{len(rows)} rows hold {min(len(rows), 1)} distinct"):
        split(rows, heldout=0.5)
