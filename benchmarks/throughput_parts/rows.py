"""The rows of the throughput benchmark: a customer's question, a model's answer, and the revision that the server gives.

Everything follows from the row's number, so the server knows the revision of whatever answer it is shown, and the
benchmark knows what each contender has to come back with. Standard library only: each contender has its own environment.

>>> "order 12 " in question(12) and answer(12) != revision(12)
True
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

SENTENCES = (
    "Most parcels leave our warehouse on the day after the payment has come in, and on Mondays somewhat later.",
    "The carrier scans each parcel at the depot, which is why the tracking page can stay empty for a whole day.",
    "If the parcel is too large for the letter box, the driver leaves a card with the address of the nearest shop.",
    "You can ask the carrier for another day of delivery up to midnight before the parcel is on the road.",
    "A neighbour may take the parcel in if you have said so on the carrier's page or on a note at the door.",
    "Parcels to islands and mountain villages take two further days, and three in the weeks before Christmas.",
    "When several articles were ordered together, they may come in separate parcels without any further cost.",
    "The invoice is not in the parcel; it was sent to the address that you gave when you paid.",
    "Should the box be damaged, take a picture of it before you open it, since the carrier will ask for one.",
    "Batteries and sprays travel by road only, so that they arrive later than the rest of the order.",
    "A change of the address is possible as long as the label has not been printed, which is usually until noon.",
    "Bank transfers take up to three working days until we can see them, and only then is the order packed.",
    "In case nothing has moved for five working days, we start a search with the carrier, which takes a week.",
    "Articles that are out of stock are marked on the order page, together with the day on which we expect them.",
    "The parcel number has fourteen digits and stands in the message that we sent when the order was packed.",
    "Refunds go back the way the money came, and banks need between two and ten days to show them.",
    "For deliveries to a company please name the department, because the post room will otherwise send it back.",
    "Our return label is valid for thirty days, and any shop of the carrier takes the parcel in.",
    "You do not need to be at home if you have given the driver a place where the parcel may be left.",
    "Customs may hold parcels to countries outside the union, and they write to you directly if something is owed.",
    "On the order page you can also see which of the articles have left us and which are still being packed.",
    "The night delivery between six and nine is offered in larger towns and has to be chosen before you pay.",
)
OPENING = "Thank you so much for asking about order {number}, what a great question!"
BETTER_OPENING = "Order {number} is on its way to you."
CLOSING = "Hopefully this helps somewhat and things will sort themselves out soon!!!"
BETTER_CLOSING = "If it has not arrived within two working days, write to us and we will send it again."
REASONING = (
    "The answer begins with praise that says nothing and leaves open what the customer should do in the end. The facts in "
    "the middle are right and stay as they are. It is enough to replace the opening and the closing sentence."
)


def question(number: int) -> str:
    """What the customer asks."""
    return (
        f"I am waiting for order {number} since last week. When will it arrive, what may have held it up, and what can I "
        "do if it does not come at all? Please tell me everything that I should know."
    )


def answer(number: int) -> str:
    """What the policy wrote: about 1,800 characters, as real answers have."""
    return _text(number, OPENING, CLOSING)


def revision(number: int) -> str:
    """Its minimal revision."""
    return _text(number, BETTER_OPENING, BETTER_CLOSING)


def write_rows(path: Path, n: int) -> None:
    """`n` rows of number, question and answer, as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(n):
            file.write(json.dumps({"number": number, "question": question(number), "answer": answer(number)}) + "\n")


def read_rows(path: Path) -> Iterator[dict[str, str | int]]:
    """The rows of a file, one after the other."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def write_revisions(path: Path, revisions: Iterator[tuple[int, str | None]]) -> None:
    """What a contender came back with: number and text."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in revisions:
            file.write(json.dumps({"number": number, "revision": text}) + "\n")


def count_right(path: Path) -> int:
    """How many numbers stand there with exactly their revision."""
    with path.open(encoding="utf-8") as file:
        found = {row["number"]: row["revision"] for row in map(json.loads, file)}
    return sum(text is not None and text.strip() == revision(number) for number, text in found.items())


def _text(number: int, opening: str, closing: str) -> str:
    middle = random.Random(number).sample(SENTENCES, 16)
    paragraphs = [" ".join(middle[:5]), " ".join(middle[5:11]), " ".join(middle[11:])]
    return "\n\n".join([opening.format(number=number), *paragraphs, closing])
