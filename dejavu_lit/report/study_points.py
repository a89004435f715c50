"""What the figures of a study draw: study.json as points, one a (setting, training size), over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dejavu_lit.report.words import FIGURES
from dejavu_lit.study.ranking import comparable, measure_of, utility

Row = Mapping[str, Any]
Point = dict[str, Any]
UNSET = {"logit_scale_fixed": "learned", "logit_scale_init": "recipe's"}  # what null means; else: off


def points(study: Mapping[str, Any]) -> list[Point]:
    """One dict a (setting, size): name, train_size, seeds, group, series, public, exposure, knobs, and for utility and each
    gap value, low, high and values.

    The gaps are symmetric where both directions were measured, else the target's alone. low and high are the t interval
    over 3 seeds and more, the records' bootstrap with one seed, and the span of the seeds' values with two.
    """
    rows = study["settings"]
    which = measure_of(rows)
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["train_size"]), []).append(row)
    block = "symmetric" if all(row.get("symmetric") for row in rows) else "population"
    made = []
    for (name, size), group in groups.items():
        first = group[0]
        point: Point = {"setting": name, "train_size": size, "seeds": len(group), "knobs": knobs(first), "block": block}
        point |= {"overrides": first["overrides"], "series": first.get("series"), "public": first.get("public")}
        point |= {"group": comparable(first), "exposure": _exposure(group)}
        if which is not None and (found := [u for r in group if (u := utility(r, which)) is not None]):
            point["utility"] = {"value": float(np.mean(found)), "low": min(found), "high": max(found), "values": found}
        for figure in FIGURES:
            figures = [r[block][figure] for r in group]
            pooled = next((p for p in study.get("pooled", []) if (p["name"], p["train_size"]) == (name, size)), None)
            point[figure] = _pool(figures, pooled[block][figure]["ci95"] if pooled and pooled.get(block) else None)
        made.append(point)
    return made


def _exposure(group: Sequence[Row]) -> float | None:
    """How often the target saw each pair; None where it is not known."""
    found = [((row.get("exposure") or {}).get("target") or {}).get("mean") for row in group]
    return None if None in found else float(np.mean([f for f in found if f is not None]))


def _pool(figures: Sequence[Row], over_seeds: Sequence[float] | None) -> dict[str, Any]:
    values = [f["value"] for f in figures]
    low, high = over_seeds or (figures[0]["ci95"] if len(figures) == 1 else (min(values), max(values)))
    return {
        "value": float(np.mean(values)), "low": low, "high": high, "values": values,
        "std": float(np.mean([f["std"] for f in figures])),
    }  # fmt: skip


def knobs(row: Row) -> dict[str, Any]:
    """{knob: value} of a row: those of its mitigation as they were, and its other overrides as typed.

    The evaluation's overrides are no knobs. ``mitigation.text_mask=0.3`` is text_mask: 0.3.
    """
    known = dict(row.get("knobs") or {})
    for override in row["overrides"]:
        name, _, value = override.lstrip("+~").partition("=")
        group = name.partition(".")[0]
        if group != "evaluate" and not (known and group == "mitigation"):
            known[name.removeprefix("mitigation.")] = _number(value)
    return known


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def changed(point: Point, default: Point) -> list[str]:
    """The knobs in which a setting differs from the default."""
    names = dict.fromkeys([*point["knobs"], *default["knobs"]])
    return [name for name in names if point["knobs"].get(name) != default["knobs"].get(name)]


def shown(knob: str, value: Any) -> str:
    """A knob's value as a tick says it."""
    if value is None or value is False:
        return UNSET.get(knob, "off")
    if value is True:
        return "on"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def order(value: Any) -> tuple[int, float, str]:
    """Values in their order: what is off, then numbers, then names."""
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


def largest(found: Sequence[Point]) -> list[list[Point]]:
    """The comparable points of each group at its largest training size, the groups in the order of the settings."""
    groups: dict[Any, list[Point]] = {}
    for point in found:
        groups.setdefault(point["group"], []).append(point)
    return [
        [point for point in group if point["train_size"] == max(p["train_size"] for p in group)]
        for group in groups.values()
    ]
