"""Read a style from YAML. Every mistake in it is one line that names the file, the place, and what to do.

>>> try:
...     parse_style({"name": "s", "rules": [{"kind": "max_words", "limit": 0}]}, source="s.yaml")
... except StyleError as error:
...     print(error)
s.yaml: rule 'max_words': limit: got 0: input should be greater than or equal to 1
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from anchorline.errors import StyleError
from anchorline.style.conflicts import refuse_conflicts
from anchorline.style.rules import ORDER
from anchorline.style.rules_python import Python
from anchorline.style.style import Style
from anchorline.textfile import read_text, yaml_problem

MAX_BYTES = 1_000_000
MAX_RULES = 100


def load_style(path: str | Path, *, trust_code: bool = False) -> Style:
    """The style in a YAML file. StyleError if it cannot be used, RuleConflict if no answer can keep its rules.

    `trust_code` lets rules of kind `python` import and run the functions that they name.
    """
    text = read_text(path, what="style", kind="YAML file", most=MAX_BYTES, error=StyleError)
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StyleError(f"{path}: is not YAML: {yaml_problem(error)}") from error
    return parse_style(data, trust_code=trust_code, source=str(path))


def parse_style(data: Mapping[str, Any], *, trust_code: bool = False, source: str = "style") -> Style:
    """The style in a mapping, as `load_style` reads it; `source` opens the error messages."""
    if not isinstance(data, Mapping):
        what = "nothing" if data is None else f"a {type(data).__name__}"
        raise StyleError(f"{source}: got {what}, expected `name:` with `guideline:` or `rules:` (see docs/styles.md)")
    try:
        style = Style.model_validate(dict(data))
    except ValidationError as error:
        raise StyleError(f"{source}: {_problem(error, data)}") from error
    if not style.rules and not style.guideline:
        raise StyleError(f"{source}: the style has neither a `guideline` nor `rules`; give it one of them")
    if len(style.rules) > MAX_RULES:
        raise StyleError(
            f"{source}: the style has {len(style.rules)} rules, at most {MAX_RULES} are possible; join some"
        )
    for rule in style.rules:
        if isinstance(rule, Python):
            if not trust_code:
                would = f"{source}: rule {rule.name!r} would run {rule.function}"
                raise StyleError(f"{would}; if you trust the style's code, add --trust-code")
            try:
                rule.load()
            except StyleError as error:
                raise StyleError(f"{source}: {error}") from error
    refuse_conflicts(style.rules, source=source)
    return style


def _problem(error: ValidationError, data: Mapping[str, Any]) -> str:
    """The first of the mistakes, in one line, and how many more there are."""
    first, *more = error.errors(include_url=False)
    place = [
        part for part in first["loc"] if part not in ORDER and not str(part).startswith(("function-", "constrained-"))
    ]
    where = ""
    if place[:1] == ["rules"] and len(place) > 1:
        where, place = f"rule {_rule_name(data, place[1])}: ", place[2:]
    where += "".join(f"{part}: " for part in place)
    message = _first_line(first["msg"]).removeprefix("Value error, ")
    got = f"got {reprlib.repr(first['input'])}: "
    match first["type"]:
        case "extra_forbidden":
            got, message = "", "unknown key; check its spelling, or remove it"
        case "missing":
            got, message = "", "is missing; add it"
        case "union_tag_invalid":
            message = f"unknown kind; the kinds are {', '.join(sorted(ORDER))}"
        case "union_tag_not_found":
            got, message = "", f"kind: is missing; give one of {', '.join(sorted(ORDER))}"
        case "value_error" if not isinstance(first["input"], str):
            got = ""
    return where + got + message[:1].lower() + message[1:] + (f" (and {len(more)} more)" if more else "")


def _rule_name(data: Mapping[str, Any], index: Any) -> str:
    """The name of a rule that did not become one: as given, else its kind, else its place in the list."""
    given = data["rules"][index]
    if isinstance(given, Mapping):
        for key in ("name", "kind"):
            if isinstance(given.get(key), str):
                return reprlib.repr(given[key])
    return f"number {index + 1}"


def _first_line(what: object) -> str:
    return (str(what).splitlines() or ["unreadable"])[0]
