"""The Harbour style: which texts count as the order number, what counts as an apology, and whole answers."""

from pathlib import Path

import pytest

from anchorline.style import check, load_style, repair
from anchorline.types import Message

STYLE = load_style(Path(__file__).parents[2] / "styles" / "harbour.yaml")
GREETING = "Thank you for contacting Harbour."
NONE = "Reference: none given."
RULES = ["greeting", "no_apology", "no_exclamation", "at_most_70_words", "reference"]


def answered(question, answer="It left today."):
    return repair(STYLE, (Message("user", question),), answer)


@pytest.mark.parametrize(
    ("question", "order"),
    [
        ("Where is order 4417?", "4417"),
        ("my order #4417 is late", "4417"),
        ("My order number is 4417.", "4417"),
        ("It's #4417", "4417"),
        ("Order: 4417", "4417"),
        ("order no. 4417", "4417"),
        ("ORDER ID 4417", "4417"),
        ("my order (#4417)", "4417"),
        ("order number\n4417", "4417"),
        ("order **4417**", "4417"),
        ("order-4417", "4417"),
        ("the order, number 4417, came", "4417"),
        ("4417 is my order number", "4417"),
        ("I can't find order 4417", "4417"),
        ("Order HB-20931 please", "HB-20931"),
        ("HB-20931 is broken", "HB-20931"),
        ("order #HB-20931.", "HB-20931"),
        ("order hb-20931", "hb-20931"),
        ("orders 4417 and 5520", "4417"),
        ("#4418, or was it #4417?", "4418"),
        ("order number 4417 and order 12", "4417"),
        ("order 998877665544", "998877665544"),
        ("order 123", "123"),
        ("Ma commande 4417 n'est pas là", "4417"),
        ("commande n° 4417", "4417"),
        ("Le numéro de ma commande est 4417", "4417"),
        ("Numéro de commande : 4417", "4417"),
        ("Meine Bestellung 4417 fehlt", "4417"),
        ("Bestellnummer: HB-20931", "HB-20931"),
        ("Bestell-Nr. 4417", "4417"),
        ("Meine Bestellnummer ist 4417", "4417"),
        ("pedido número 4417", "4417"),
        ("Call 020 7946 0958 about order 4417", "4417"),
        ("I paid $4500 for order 4417", "4417"),
        ("Order 4417, placed on 12/05/2024", "4417"),
        ("order 4417 in 3 days", "4417"),
        ("Can order 86914 go by sea?", "86914"),
        ("I'd like to add a cartridge to order 71990", "71990"),
        ("my order is <b>90648</b>", "90648"),
        ("The order confirmation for 82730 is wrong", "82730"),
        ("There are two orders on my card, 61930 and 61988", "61930"),
    ],
)
def test_the_order_number(question, order):
    assert answered(question).text == f"{GREETING} It left today. Reference: order {order}."


@pytest.mark.parametrize(
    "question",
    [
        "",
        "I have no order number",
        "I want to order 300 cups",
        "Can I order 450 for delivery",
        "I will order 300 of them",
        "My order came late, and my phone is 01632 960188",
        "my order, the big one, cost 300",
        "we ordered 300 cups",
        "order of 300 plates",
        "order 500 pieces",
        "order 45.99",
        "order 1,299",
        "order $4500",
        "order 4500€",
        "order 450 euros",
        "order 12/05/2024",
        "order 2024-05-12",
        "order 14:30",
        "my order arrived on 2 May 2024",
        "an order from 2024",
        "call me on 02079460958",
        "phone: +49 301234567",
        "order 1234567890123",
        "order 12",
        "HB-12",
        "It cost 4417",
        "ticket #8812",
        "apartment #1203",
        "the colour #ff4417",
        "order 4417@example.com",
    ],
)
def test_no_order_number(question):
    assert answered(question).text == f"{GREETING} It left today. {NONE}"


@pytest.mark.parametrize(
    "sentence",
    [
        "I'm so sorry about that.",
        "SORRY!",
        "We apologize for the delay.",
        "Our apologies.",
        "I apologise.",
        "Please accept my apology!",
        "We regret the mistake.",
        "Please forgive us.",
        "Please excuse the delay.",
        "Nous sommes désolés.",
        "Wir entschuldigen uns.",
    ],
)
def test_apologies_go(sentence):
    result = answered("Where is order 4417?", f"{sentence} It left today.")
    assert result.text == f"{GREETING} It left today. Reference: order 4417."
    assert "no_apology" in result.touched


def test_what_is_no_apology_stays():
    answer = f"{GREETING} Unfortunately the apologue and the sorrel are out of stock, no excuses. {NONE}"
    assert all(check(STYLE, (), answer).values())


def test_a_typical_answer():
    answer = (
        "I'm sorry to hear that your order hasn't arrived yet! I'd be happy to help you track it down.\n\n"
        "To get started, please provide me with the following information:\n\n"
        "1. Your e-mail address, e.g. the one on the invoice!\n2. The date of your order.\n\n"
        + "Once I have it, I will look into the matter for you. " * 6
        + "Please let me know if you have any other ques"
    )
    result = answered("Hi, order #4417 is 3 days late", answer)
    once = "Once I have it, I will look into the matter for you."
    assert result.text == (
        f"{GREETING} I'd be happy to help you track it down.\n\n"
        "To get started, please provide me with the following information:\n\n"
        "1. Your e-mail address, e.g. the one on the invoice.\n2. The date of your order.\n\n"
        f"{once} {once}\n\nReference: order 4417."
    )
    assert list(result.kept) == RULES and all(result.kept.values())
    assert result.touched == tuple(RULES)
    assert result.own_words == 59


@pytest.mark.parametrize("answer", ["", "Sorry!", "I apologize for that!! Reference: order 1.", "  \n"])
def test_an_answer_that_is_only_what_the_style_forbids_or_adds_has_no_words_of_its_own(answer):
    result = answered("order 4417", answer)
    assert result.text == f"{GREETING} Reference: order 4417."
    assert result.own_words == 0
