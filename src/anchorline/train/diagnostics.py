"""From the records of pairs to the numbers of a step, and to the look back at a whole training. Numbers in, numbers out.

>>> rows = [{"id": "a", "epoch": 0, "state": "won"}, {"id": "b", "epoch": 0, "state": "stranded"}]
>>> life(rows)["stranded"]
['b']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anchorline.measure.regions import REGIONS
from anchorline.measure.summary import quantile
from anchorline.objectives.life import STATES

Row = Mapping[str, Any]

QUANTILES = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9}
_SPREAD = ("chosen_reward", "rejected_reward", "margin")
_MEANS = ("both_fell", "chosen_stuck", "rejected_stuck", "margin_stuck", "chosen_weight", "rejected_weight")


def step_metrics(records: Sequence[Row]) -> dict[str, float | None]:
    """Means and quantiles over the pairs of a step; over the wanted and unwanted answers of a step without pairs."""
    if not records:
        return {}
    if "chosen_reward" not in records[0]:
        found: dict[str, float | None] = {}
        for side, rows in (
            ("chosen", [r for r in records if r["label"]]),
            ("rejected", [r for r in records if not r["label"]]),
        ):
            found[f"{side}_reward"] = mean(r["reward"] for r in rows)
            found |= quantiles(f"{side}_reward", [r["reward"] for r in rows])
            found[f"{side}_weight"] = mean(r["weight"] for r in rows if "weight" in r)
        return found
    found = {name: mean(r[name] for r in records) for name in _SPREAD}
    found["accuracy"] = mean(r["correct"] for r in records)
    found["chosen_fell"] = mean(r["chosen_reward"] < 0 for r in records)
    found |= {name: mean(r[name] for r in records if name in r) for name in _MEANS}
    for name in _SPREAD:
        found |= quantiles(name, [r[name] for r in records])
    for side in ("chosen", "rejected"):
        for region in REGIONS:
            column = f"{side}_{region}_change"
            if column in records[0]:
                found[column] = mean(r[column] for r in records)
    return found


def quantiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """`NAME_p10` to `NAME_p90` of the values."""
    ordered = sorted(values)
    return {f"{name}_{key}": quantile(ordered, share=share) if ordered else None for key, share in QUANTILES.items()}


def mean(values: Iterable[float]) -> float | None:
    """The mean, None of nothing."""
    known = [float(value) for value in values]
    return sum(known) / len(known) if known else None


def last_records(records: Iterable[Row]) -> list[Row]:
    """The newest record of each row that was trained on."""
    newest: dict[str, Row] = {}
    for record in records:
        newest[record["id"]] = record
    return list(newest.values())


def life(records: Sequence[Row]) -> dict[str, Any]:
    """How many rows are won, live and stranded, and the ids of each; the records are the rows' newest."""
    ids = {state: [r["id"] for r in records if r.get("state") == state] for state in STATES}
    return {"counts": {state: len(found) for state, found in ids.items()}, **ids}


def displacement(records: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """For each answer and region: mean change a pair and a token in nats, tokens, and pairs that have the region."""
    table: dict[str, dict[str, Any]] = {}
    for side in ("chosen", "rejected"):
        table[side] = {}
        for region in REGIONS:
            column, count = f"{side}_{region}_change", f"{side}_{region}_tokens"
            rows = [r for r in records if r.get(column) is not None]
            tokens, change = sum(r[count] for r in rows), sum(r[column] for r in rows)
            table[side][region] = {
                "change_per_pair": change / len(rows) if rows else None,
                "change_per_token": change / tokens if tokens else None,
                "tokens": tokens,
                "pairs": sum(r[count] > 0 for r in rows),
            }
    return table


def diagnose(records: Iterable[Row]) -> dict[str, Any]:
    """`train/diagnostics.json`: the state of each row when it was last seen, and where its log-probs moved by then."""
    newest = last_records(records)
    found: dict[str, Any] = {"rows": len(newest), "life": life(newest)}
    stranded = [r for r in newest if r.get("state") == "stranded"]
    keys = ("id", "step", "chosen_reward", "rejected_reward", "margin", "reward", "label")
    found["stranded"] = [{key: r[key] for key in keys if key in r} for r in stranded]
    if newest and "margin" in newest[0]:
        found["displacement"] = displacement(newest)
        found["weight_left"] = {side: mean(r[f"{side}_weight"] for r in newest) for side in ("chosen", "rejected")}
    return found
