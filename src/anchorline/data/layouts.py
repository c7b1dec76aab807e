"""Rows as other tools lay them out, recognised by their columns and turned into ours.

Pairs come in TRL's columns (`prompt, chosen, rejected`; the published CLAIR sets add `rational`) or in those of
distilabel's CLAIR task. Prompts stand in `prompt`, `messages`, `instruction` or `task`. A row that fits no layout, or
more than one, is refused with what was found and what is known. Errors name the row's own columns.

>>> row = {"task": "2 + 2?", "student_solution": "5", "revision": "4", "rational": "5 is wrong.", "model_name": "m"}
>>> pair = read_pair(row)
>>> pair.chosen, pair.rejected, pair.provenance.reviser, pair.provenance.details["rational"]
('4', '5', 'm', '5 is wrong.')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

from anchorline.data.formats import Row, pair_from_row, prompt_from_row
from anchorline.errors import DataError
from anchorline.types import Pair, Prompt

PairLayout = Literal["trl", "distilabel"]

PAIR_COLUMNS: Mapping[PairLayout, tuple[str, ...]] = {
    "trl": ("chosen", "rejected"),
    "distilabel": ("task", "student_solution", "revision"),
}
"""The columns that a row of each layout must have. TRL's `prompt` may be implied by conversations."""

_DISTILABEL = {"prompt": "task", "chosen": "revision", "rejected": "student_solution", "reviser": "model_name"}
_CANDIDATES = ("completions", "generations")
_OTHER_PROMPTS = ("instruction", "task")

T = TypeVar("T")


def pair_layout(row: Mapping[str, Any], layout: PairLayout | None = None) -> PairLayout:
    """Which layout a row of pairs has. `layout` says so where the columns fit several."""
    if layout is not None:
        if layout not in PAIR_COLUMNS:
            raise DataError(f"is {layout!r}, expected one of {', '.join(get_args(PairLayout))}", field="layout")
        return layout
    named: list[PairLayout] = [
        name for name, columns in PAIR_COLUMNS.items() if all(column in row for column in columns)
    ]
    # a table that joins several sources has all their columns, and in each row those of the others are null
    filled: list[PairLayout] = [name for name in named if all(row[column] is not None for column in PAIR_COLUMNS[name])]
    fits = filled or named
    if len(fits) > 1:
        raise DataError(
            f"the columns fit the layouts {' and '.join(fits)} ({_columns(row)}); "
            f"choose one with layout (--layout {fits[0]}), or leave the other's columns out"
        )
    if fits:
        return fits[0]
    if several := [name for name in _CANDIDATES if name in row]:
        raise DataError(
            "holds several answers of which none is preferred yet; judge them first (anchorline pairs off-policy)",
            field=several[0],
        )
    if any(name in row for name in ("prompt", "chosen", "rejected")):
        return "trl"  # its reader says which of the three is missing
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in PAIR_COLUMNS.items())
    raise DataError(f"no known layout of pairs has the columns {_columns(row)}; known are {known}")


def read_pair(row: Mapping[str, Any], *, layout: PairLayout | None = None) -> Pair:
    """A pair from a row of any known layout."""
    if pair_layout(row, layout) == "trl":
        return pair_from_row(_with_rational(row))
    ours: Row = {name: row.get(theirs) for name, theirs in _DISTILABEL.items()}
    if row.get("revision") is None:
        raise DataError("is missing or null: distilabel found no revision in the model's reply", field="revision")
    ours |= {"id": row.get("id"), "rational": row.get("rational"), "maker": "clair"}
    return _renamed(lambda: pair_from_row(_with_rational(ours)), _DISTILABEL)


def read_prompt(row: Mapping[str, Any], *, system: str | None = None) -> Prompt:
    """A prompt from the column `prompt` or `messages`, else from `instruction` or `task`."""
    if all(row.get(name) is None for name in ("prompt", "messages")):
        given = [name for name in _OTHER_PROMPTS if row.get(name) is not None]
        if len(given) > 1:
            raise DataError(f"{' and '.join(given)} may both be the prompt; rename the right one to prompt")
        if not given:
            raise DataError(
                f"is missing or null; expected a column 'prompt' (or {_either('messages', *_OTHER_PROMPTS)}), "
                f"got {_columns(row)}",
                field="prompt",
            )
        if isinstance(row.get("input"), str) and row["input"].strip():
            raise DataError(f"belongs to {given[0]}; write both as one text in a column prompt", field="input")
        ours = {**row, "prompt": row[given[0]]}
        return _renamed(lambda: prompt_from_row(ours, system=system), {"prompt": given[0]})
    return prompt_from_row(row, system=system)


def _with_rational(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The reviser's reasoning belongs to where the pair comes from."""
    rational = row.get("rational")
    if not isinstance(rational, str) or row.get("details") is not None:
        return row
    return {**row, "maker": row.get("maker") or "clair", "details": {"rational": rational}}


def _renamed(read: Callable[[], T], names: Mapping[str, str]) -> T:
    """An error of our columns, told in the row's own."""
    try:
        return read()
    except DataError as error:
        name, bracket, rest = (error.field or "").partition("[")
        if name not in names:
            raise
        text = str(error).removeprefix(f"{error.field}: ")
        raise DataError(text, field=names[name] + bracket + rest) from None


def _either(*names: str) -> str:
    return ", ".join(repr(name) for name in names)


def _columns(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"
