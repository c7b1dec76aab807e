"""The card of an exported data set, README.md beside `data/`: what the pairs are, how they were made, how alike they are.

It is Markdown with YAML in front, as the Hub reads it. It says only what the pairs and their run folder say: the licence
is the one that was given, and no prompt or answer stands in it. Every text from a file is one line and escaped.

>>> from anchorline.types import Message
>>> pairs = [Pair("a", (Message("user", "Hi"),), "Good day.", "Yo", Provenance("clair", "lab/policy", "rules"))]
>>> card = build_data_card(CardFacts("harbour", Licence("cc-by-4.0"), "data/train.jsonl", pairs, {"metrics": {}}))
>>> "license: cc-by-4.0" in card, "lab/policy" in card
(True, True)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from markupsafe import Markup

from anchorline.data import Licence
from anchorline.report.card import base_model, dropped_rows, environment
from anchorline.report.files import ReportData, mapping
from anchorline.types import Pair, Provenance

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
MEANINGS = {
    "clair": "chosen is a minimal revision of the rejected answer.",
    "on_policy": "a judge chose between answers of the policy itself.",
    "off_policy": "a judge chose between answers of other models.",
    "stronger": "chosen is a stronger model's own answer.",
}
"""What each maker's pairs are."""
_BY_RULES = "rules"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the card is made from. `run` is the folder of the run that made the pairs, where there is one."""

    name: str
    licence: Licence
    file: str
    pairs: Sequence[Pair]
    measured: Mapping[str, Any]
    run: ReportData | None = None


def build_data_card(facts: CardFacts) -> str:
    """The whole card. The same facts give the same card."""
    origins = [pair.provenance for pair in facts.pairs]
    manifest = mapping(facts.run.manifest) if facts.run else {}
    return (
        environment()
        .get_template("data_card.md.j2")
        .render(
            front=_front_matter(facts),
            facts=facts,
            makers=list(_counted(origin.maker for origin in origins)),
            models=list(_models(origins)),
            templates=list(_counted(str(origin.details.get("template") or "") for origin in origins)),
            turns=sum(len(pair.prompt) > 1 for pair in facts.pairs),
            metrics=mapping(facts.measured.get("metrics")),
            rules=mapping(facts.measured.get("rules")),
            manifest=manifest,
            meanings=MEANINGS.items(),
            dropped=_dropped(facts.run),
            kinds_known=facts.run is not None and facts.run.failures is not None,
        )
    )


def _front_matter(facts: CardFacts) -> Markup:
    count = len(facts.pairs)
    front: dict[str, Any] = {"license": facts.licence.id}
    if facts.licence.name:
        front["license_name"] = facts.licence.name
    makers = sorted({pair.provenance.maker for pair in facts.pairs} & {"clair", "on_policy", "off_policy", "stronger"})
    front |= {
        "pretty_name": facts.name,
        "task_categories": ["text-generation"],
        "tags": ["anchorline", "preference", "trl", *makers],
        "size_categories": [next((name for limit, name in SIZES if count < limit), "n>10M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": facts.file}]}],
    }
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1_000_000)
    return Markup(text)  # noqa: S704 - YAML, quoted by its own writer


def _models(origins: Sequence[Provenance]) -> Iterator[tuple[str, str, int]]:
    """What each model did, its name, and in how many pairs."""
    roles = {
        "policy": [origin.policy for origin in origins],
        "reviser": ["" if origin.maker == "stronger" else origin.reviser for origin in origins],
        "stronger model": [origin.reviser if origin.maker == "stronger" else "" for origin in origins],
        "wrote chosen": [origin.details.get("chosen_model") for origin in origins],
        "wrote rejected": [origin.details.get("rejected_model") for origin in origins],
        "judge": [_judge(origin) for origin in origins],
    }
    for role, names in roles.items():
        for name, count in _counted(name for name in names if isinstance(name, str)):
            yield role, _public(name), count


def _judge(origin: Provenance) -> Any:
    """Who chose, or who looked a second time."""
    details = origin.details
    meetings, scores = (_first(details.get(name)) for name in ("verdicts", "scores"))
    verdict = mapping(meetings).get("verdict") or details.get("verdict") or scores
    return mapping(verdict).get("judge")


def _first(value: Any) -> Any:
    """Of a list; None where there is none: a pair's details may be another tool's."""
    return value[0] if isinstance(value, list) and value else None


def _public(name: str) -> str:
    if name == _BY_RULES:
        return "the style's rules"
    known = base_model(name)
    return known.name if known else name


def _counted(values: Iterator[str]) -> Iterator[tuple[str, int]]:
    return iter(Counter(value for value in values if value).most_common())


def _dropped(run: ReportData | None) -> list[tuple[str, str, int]]:
    """Rows that did not become pairs: what evaluation and training left out is no matter of the data."""
    return [row for row in dropped_rows(run) if row[0] not in ("train", "evaluate")] if run else []
