"""The shipped prompts: counts, variety, no copies within or across files, order numbers in many forms."""

import re
from itertools import combinations
from pathlib import Path
from statistics import median

import pytest

from anchorline.data import drop_overlap, read_jsonl, read_prompts

FOLDER = Path(__file__).parents[2] / "prompts"
COUNTS = {"harbour": 300, "harbour-heldout": 60, "general": 100, "unstyled": 96}
FILES = {name: read_prompts(FOLDER / f"{name}.jsonl", strict=True).rows for name in COUNTS}
SHOP = FILES["harbour"] + FILES["harbour-heldout"]
NAMED = re.compile(
    r"(?:\b(?:backorder|orders?|commande|bestellung|bestelling|pedido|ordine)\b[^.?!\d#]{0,22}(?:\bno\. )?#?"
    r"|\bno\. |#)(\d{4,5})\b",
    re.IGNORECASE,
)


def said(prompt):
    return "\n".join(m.content for m in prompt.messages if m.role == "user")


def bag(prompt):
    return frozenset(re.findall(r"\w+", said(prompt).casefold()))


@pytest.mark.parametrize("name", COUNTS)
def test_counts_ids_and_layout(name):
    rows = [row for _, row in read_jsonl(FOLDER / f"{name}.jsonl")]
    assert [row["id"] for row in rows] == [
        f"{name.removeprefix('harbour-')}-{n:03}" for n in range(1, COUNTS[name] + 1)
    ]
    assert all(set(row) == {"id", "prompt"} for row in rows)
    assert len(FILES[name]) == COUNTS[name]


def test_no_prompt_is_nearly_another_one_within_or_across_files():
    bags = [(prompt.id, bag(prompt)) for prompts in FILES.values() for prompt in prompts]
    alike = [(a, b) for (a, x), (b, y) in combinations(bags, 2) if len(x & y) > 0.6 * len(x | y)]
    assert alike == []
    for name in ("harbour-heldout", "general"):
        for trained in ("harbour", "unstyled"):
            assert drop_overlap(FILES[trained], FILES[name]).dropped == []


def test_openings_differ():
    """No template: few prompts start with the same three words."""
    starts = [" ".join(said(prompt).casefold().split()[:3]) for prompt in SHOP]
    assert max(map(starts.count, starts)) <= 0.05 * len(SHOP)
    assert len(set(starts)) > 0.75 * len(SHOP)


def test_lengths_vary():
    words = [len(said(prompt).split()) for prompt in SHOP]
    assert 18 <= median(words) <= 30
    assert min(words) <= 5
    assert max(words) >= 80
    assert max(words) <= 100


def test_most_name_one_order_and_some_two_or_none():
    counts = [len(set(NAMED.findall(said(prompt)))) for prompt in FILES["harbour"]]
    assert 0.8 <= counts.count(1) / len(counts) <= 0.95
    assert counts.count(0) >= 15
    assert sum(n >= 2 for n in counts) >= 6


def test_an_order_number_belongs_to_one_customer():
    numbers = [number for prompt in SHOP for number in set(NAMED.findall(said(prompt)))]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize(
    "form",
    [
        r"order \d{5}",
        r"order #\d{5}",
        r"order number is \d{5}",
        r"order number \d{5}",
        r"\(order no\. \d{4,5}\)",
        r"(?<!order )#\d{5}",
        r"commande \d{4}",
        r"Bestellung \d{4}",
        r"pedido \d{4}",
        r"bestelling \d{4}",
        r"ordine \d{4}",
        r"<script>",
        r"<b>",
        r"\n",
        r"[A-Z ]{20,}",
        r"[\U0001F300-\U0001FAFF]",
        r"(?i)ignore all previous|system prompt",
    ],
)
def test_the_awkward_forms_are_there(form):
    assert any(re.search(form, said(prompt)) for prompt in FILES["harbour"])


def test_numbers_stand_at_the_start_in_the_middle_and_at_the_end():
    places = []
    for prompt in SHOP:
        found = NAMED.search(said(prompt))
        if found:
            places.append(found.start(1) / len(said(prompt)))
    for low, high in ((0, 0.15), (0.15, 0.7), (0.7, 1)):
        assert sum(low <= place < high for place in places) >= 0.08 * len(places)


def test_some_conversations_have_several_turns():
    for name, least in (("harbour", 3), ("harbour-heldout", 1), ("general", 3)):
        assert sum(len(prompt.messages) > 1 for prompt in FILES[name]) >= least


def test_general_prompts_have_nothing_to_do_with_the_shop():
    text = "\n".join(said(prompt) for prompt in FILES["general"]).casefold()
    assert not re.search(r"\border\s*#?\d|parcel|refund|invoice|customer|harbour|warranty|delivery", text)
    words = [len(said(prompt).split()) for prompt in FILES["general"]]
    assert min(words) >= 4
    assert max(words) <= 40
