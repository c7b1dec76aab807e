"""The card of a run, README.md of the run folder: what the model is, what it was trained on, and how to load it.

It is Markdown with YAML in front, as model hubs read it. It says only what the run folder says: no licence and no base
model is made up, and no prompt or answer stands in it. Every text from a file is one line and escaped.

>>> card = build_card(ReportData(name="harbour", summary={"pairs": 290}), saved=None)
>>> "# harbour" in card, "290 pairs" in card
(True, True)
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup

from anchorline.errors import DataError
from anchorline.llm.embedded import PREFIX
from anchorline.llm.models import HUB_ID
from anchorline.report.charts import is_number
from anchorline.report.diff import visible
from anchorline.report.figures import MISSING, duration, interval, number, objective_text, own_objectives, percent
from anchorline.report.files import ReportData, mapping, read_run_folder, write_page
from anchorline.report.making import making, usd

Saved = Literal["adapter", "whole"]
"""What lies in `model/`: a PEFT adapter, or all weights."""

# an underscore between letters or digits means nothing in Markdown
_MARKS = re.compile(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def write_card(run_folder: Path) -> Path:
    """Write `README.md` into the run folder, whole or not at all, and return its path."""
    data, model = read_run_folder(run_folder), run_folder / "model"
    saved: Saved | None = None
    if (model / "adapter_config.json").is_file():
        saved = "adapter"
    elif (model / "config.json").is_file():
        saved = "whole"
    card = build_card(data, saved=saved, merged=(model / "merged" / "config.json").is_file())
    return write_page(run_folder / "README.md", card)


def build_card(data: ReportData, *, saved: Saved | None, merged: bool = False) -> str:
    """The whole card. The same data give the same card.

    Args:
        data: the run folder's files.
        saved: what the run folder holds as its model; None before training.
        merged: whether `model/merged` is there too.

    """
    recipe = _recipe(data)
    base, given = base_model(recipe.get("model")), mapping(recipe.get("pairs")).get("file")
    system = None if given else mapping(recipe.get("prompts")).get("system")
    summary, style = mapping(data.summary), mapping(data.style)
    return (
        environment()
        .get_template("card.md.j2")
        .render(
            front=_front_matter(saved, base, _objectives(summary.get("objective"), data.pairs or ())),
            data=data,
            summary=summary,
            manifest=mapping(data.manifest),
            making=making(mapping(data.manifest)),
            by_rules=_by_rules(recipe),
            maker=mapping(recipe.get("pairs")).get("maker") or "clair",
            style=style,
            rules=list(_rules(data)),
            recipe=recipe,
            base=base,
            given=given,
            unpaired=bool(data.pairs and "completion" in data.pairs[0]),
            # a Python literal: it keeps to one line and shows what hides or reorders text as escapes
            system=Markup(repr(system)) if isinstance(system, str) else None,  # noqa: S704 - stands in a code fence
            settings=list(_settings(recipe, ("train", "eval") if given else ("sample", "train", "eval"))),
            dropped=dropped_rows(data),
            seconds=sum(s for s in mapping(summary.get("seconds")).values() if is_number(s)) or None,
            saved=saved,
            merged=merged,
        )
    )


def markdown(text: str) -> str:
    r"""The text as one line that Markdown shows as it is, in a paragraph or a table's cell.

    >>> markdown("<b>no_apology</b> | a\nb")
    '&lt;b&gt;no_apology&lt;/b&gt; \\| a b'
    """
    escaped = re.sub("[&<>]", lambda found: _ENTITIES[found.group()], _one_line(text))
    return _MARKS.sub(lambda found: "\\" + found.group(), escaped)


def _one_line(text: str) -> str:
    return re.sub(r"[ \t\n]+", " ", visible(text)).strip()


class _Base(NamedTuple):
    """The model that was trained: how to call it, and where it comes from."""

    name: str
    kind: Literal["hub", "embedded", "local"]


def base_model(model: Any) -> _Base | None:
    """What a reader may know of a model, of which the recipe gives the id."""
    if not isinstance(model, str):
        return None
    if model.startswith(PREFIX):
        return _Base(model, "embedded")
    if HUB_ID.fullmatch(model) and not Path(model).exists():
        return _Base(model, "hub")
    # a path tells strangers about the machine, and nothing about the model
    return _Base(Path(model).name, "local")


def _front_matter(saved: Saved | None, base: _Base | None, objectives: list[str]) -> Markup:
    front: dict[str, Any] = {}
    if base and base.kind == "hub":
        front["base_model"] = base.name
    if saved:
        front["library_name"] = "peft" if saved == "adapter" else "transformers"
    front["tags"] = ["anchorline", *(["lora"] if saved == "adapter" else []), *map(_one_line, objectives)]
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1_000_000)
    return Markup(text)  # noqa: S704 - YAML, quoted by its own writer


def _objectives(weights: Any, pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of what was trained with: the settings' for pairs without an objective of their own, and theirs."""
    own = own_objectives(pairs)
    settings = [] if own and own.total() == len(pairs) else map(str, mapping(weights))
    return list(dict.fromkeys([*settings, *own]))


def _recipe(data: ReportData) -> Mapping[str, Any]:
    try:
        return mapping(yaml.safe_load(data.recipe or ""))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError("is not YAML; start the run again, which writes it anew", file="recipe.yaml") from error


class _Rule(NamedTuple):
    name: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    touched: Any


def _rules(data: ReportData) -> Iterator[_Rule]:
    style, touched = mapping(data.style), mapping(mapping(data.measure).get("rules"))
    before, after = (mapping(mapping(style.get(side)).get("rules")) for side in ("before", "after"))
    for name in dict.fromkeys([*(style.get("rules") or ()), *touched]):
        # the counts of touched pairs leave out rules that no repair touched
        count = touched.get(name, 0) if data.measure else None
        yield _Rule(name, mapping(before.get(name)), mapping(after.get(name)), count)


def _by_rules(recipe: Mapping[str, Any]) -> bool:
    """Whether the style's own repairs wrote the chosen answers."""
    pairs = mapping(recipe.get("pairs"))
    return pairs.get("maker", "clair") == "clair" and pairs.get("reviser", "rules") == "rules"


def _settings(recipe: Mapping[str, Any], groups: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Dotted names and values of the settings that decide the outcome."""
    if "seed" in recipe:
        yield "seed", str(recipe["seed"])
    for group in groups:
        used = mapping(recipe.get(group))
        # where the reference's log-probs are kept decides nothing, and tells of the machine
        yield from _flat(group, {name: value for name, value in used.items() if name != "reference_cache"})


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif isinstance(value, str):
        yield name, Path(value).name if value.startswith(("/", "~")) else value  # as `base_model` names folders
    else:
        yield name, json.dumps(value, ensure_ascii=False, default=str)


def dropped_rows(data: ReportData) -> list[tuple[str, str, int]]:
    """Stage, kind and count of the rows that fell out; the commonest of a stage first."""
    counts = Counter((str(row.get("stage", "")), str(row.get("kind", ""))) for row in data.failures or ())
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    return [(stage, kind, count) for (stage, kind), count in ordered]


def environment() -> Environment:
    """Of the cards' Markdown templates: every text is one line and escaped, every gap is shown as one."""
    environment = Environment(
        loader=PackageLoader("anchorline.report"),
        autoescape=False,  # noqa: S701 - Markdown: _printed escapes every expression
        undefined=ChainableUndefined,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration, "objective": objective_text}
    environment.filters |= {"interval": interval, "usd": usd}
    environment.tests |= {"shown": is_number}
    return environment


def _printed(value: Any) -> Any:
    if value is None or isinstance(value, ChainableUndefined) or (isinstance(value, float) and not is_number(value)):
        return MISSING
    return value if isinstance(value, Markup) else markdown(str(value))
