"""What the figures of a study draw: study.json as points, one per (setting, training size), pooled over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dejavu_lit.measure.controls import pool_seeds
from dejavu_lit.measure.figures import FIGURES, MEMBERSHIP
from dejavu_lit.study.ranking import by_setting, comparison_key, parse_override, utility, utility_measure

Row = Mapping[str, Any]
Point = dict[str, Any]


def points(study: Mapping[str, Any]) -> list[Point]:
    """One point per (setting, size).

    A point has setting, train_size, seeds, knobs, block, overrides, series, public, group, exposure, whether it is a default,
    on the frontier and recommended, and for utility, each gap, and the AUC of each membership score that all its rows have
    {value, low, high, values}. The gaps are symmetric if every row has both directions, else the target's alone. low and high
    are the t interval over 3 or more seeds, the range of the values of two seeds, or the interval of one seed's records.
    """
    rows, ranking = study["settings"], study.get("ranking") or []
    measure = utility_measure(rows)
    block = "symmetric" if all(row.get("symmetric") for row in rows) else "population"
    defaults = {entry["default"] for entry in ranking}
    best = {(e["recommended"]["name"], e["train_size"]) for e in ranking if e["recommended"]}
    return [
        _point(group, block, measure)
        | {
            "default": name in defaults,
            "frontier": name in study.get("frontier", ()),
            "recommended": (name, size) in best,
        }
        for (name, size), group in by_setting(rows).items()
    ]


def _point(group: Sequence[Row], block: str, measure: str | None) -> Point:
    first = group[0]
    shared = {name: first.get(name) for name in ("train_size", "overrides", "series", "public")}
    point: Point = {"setting": first["name"], **shared, "knobs": knobs(first), "group": comparison_key(first)}
    point |= {"seeds": len(group), "block": block, "exposure": _exposure(group)}
    if measure is not None and (values := [u for row in group if (u := utility(row, measure)) is not None]):
        point["utility"] = _pool([{"value": value, "ci95": (value, value)} for value in values])
    for figure in FIGURES:
        point[figure] = _pool([row[block][figure] for row in group])
    for score in MEMBERSHIP:
        aucs = [membership_auc(row, score) for row in group]
        if None not in aucs:
            point[score] = _pool([auc for auc in aucs if auc is not None])
    return point


def membership_auc(row: Row, score: str) -> Row | None:
    """The AUC of a membership score: the mean of both directions if both were measured, else that of A."""
    entry = (row.get("membership") or {}).get(score) or {}
    auc: Row | None = entry.get("symmetric") or entry.get("auc")
    return auc


def _exposure(group: Sequence[Row]) -> float | None:
    """How often the target saw each pair; None if it is unknown."""
    means = [((row.get("exposure") or {}).get("target") or {}).get("mean") for row in group]
    return None if None in means else float(np.mean([mean for mean in means if mean is not None]))


def _pool(figures: Sequence[Row]) -> dict[str, Any]:
    """One figure over its seeds: the mean, and the interval that ``points`` describes."""
    values = [figure["value"] for figure in figures]
    over_seeds = pool_seeds(values, [f["ci95"] for f in figures if f["ci95"]] if len(values) == 1 else ())
    low, high = over_seeds["ci95"] or (min(values), max(values))
    pooled = {"value": over_seeds["mean"], "low": low, "high": high, "values": values}
    if all("std" in figure for figure in figures):
        pooled["std"] = float(np.mean([figure["std"] for figure in figures]))
    return pooled


def knobs(row: Row) -> dict[str, Any]:
    """{knob: value} of a row: its mitigation's knobs as recorded, and its other overrides as typed.

    The evaluation's overrides are not knobs. ``mitigation.text_mask=0.3`` becomes text_mask: 0.3.
    """
    values = dict(row.get("knobs") or {})
    for name, value in map(parse_override, row["overrides"]):
        group = name.partition(".")[0]
        if group != "evaluate" and not (values and group == "mitigation"):
            values[name.removeprefix("mitigation.")] = value
    return values


def knob_label(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def sort_key(value: Any) -> tuple[int, float, str]:
    """Sorts a knob's values: off and on first, then numbers, then names."""
    if value is None or isinstance(value, bool):
        return 0, float(bool(value)), ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def flat(point: Point, measures: Sequence[str] = ("utility", *FIGURES)) -> dict[str, Any]:
    """A point as a row of the CSV."""
    row = {name: point[name] for name in ("setting", "train_size", "seeds", "series", "public", "exposure", "block")}
    row["overrides"] = " ".join(point["overrides"])
    for m in measures:
        if m in point:
            row |= {f"{m}_{part}": point[m][part] for part in ("value", "low", "high", "std") if part in point[m]}
    return row


def at_largest_size(points: Sequence[Point]) -> list[list[Point]]:
    """The points of each comparable group at the group's largest training size; groups in the order of the settings."""
    groups: dict[Any, list[Point]] = {}
    for point in points:
        groups.setdefault(point["group"], []).append(point)
    largest = {key: max(point["train_size"] for point in group) for key, group in groups.items()}
    return [[point for point in group if point["train_size"] == largest[key]] for key, group in groups.items()]
