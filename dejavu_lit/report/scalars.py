"""The numbers of metrics.json and study.json under the stable names of docs/wandb.md, on every dashboard and in ``scalars.csv``.

A number that was not measured is missing; ``found`` is 1 or 0, and missing without a verdict.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dejavu_lit.measure.figures import DISPLAY_ORDER, FIGURES, MEMBERSHIP, SAMPLE_GAPS
from dejavu_lit.measure.records import SIDES
from dejavu_lit.study.ranking import is_on_frontier, is_recommended, parse_override

COUNTS = ("records", "without_objects", "public")


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """{stable name: value} of one evaluation, from the contents of metrics.json."""
    return {name: float(value) for name, value in _all_scalars(metrics) if math.isfinite(value)}


def settings_rows(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of a study as flat rows with the same columns: name, size, seed, each knob as typed, numbers, verdicts.

    A knob is a number if every row that sets it has one, else a string; None if a row does not set it.
    """
    rows = []
    for setting in study["settings"]:
        row = {"setting": setting["name"], "train_size": setting["train_size"], "seed": setting["seed"]}
        overrides = map(parse_override, setting["overrides"])
        row |= {name: None if value == "null" else value for name, value in overrides}
        row |= dict(_block_scalars(setting)) | dict(_block_scalars(setting.get("base") or {}, "base/"))
        row |= dict(_model_scalars(setting))
        row["frontier"], row["recommended"] = is_on_frontier(study, setting), is_recommended(study, setting)
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns.sort(key=lambda name: (name in ("frontier", "recommended"), "/" in name))  # knobs before numbers
    for name in columns:
        having = [row for row in rows if row.get(name) is not None]
        if len({isinstance(row[name], str) for row in having}) > 1:
            for row in having:
                row[name] = str(row[name])
    return [{name: row.get(name) for name in columns} for row in rows]


def _all_scalars(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield from _block_scalars(metrics)
    for k, blocks in metrics["by_k"].items():
        yield from _block_scalars(blocks, f"by_k/{k}/")
    for ranking, rows in metrics["sample"].items():
        for row in rows:
            for gap in SAMPLE_GAPS:
                yield f"sample/{ranking}/top_{row['top']}/{gap}", row[gap]
    for level in (metrics.get("planted") or {}).get("levels", []):
        for figure in FIGURES:
            yield from _figure_scalars(f"planted/{level['exposure']:g}/{figure}", level[figure])
    for name, blocks in (metrics.get("by_objects") or {}).items():
        yield from _block_scalars(blocks, f"by_objects/{name}/")
    yield from _block_scalars(metrics.get("base") or {}, "base/")
    yield from _model_scalars(metrics)
    for name in COUNTS:
        yield f"counts/{name}", metrics["counts"][name]
    if metrics["found"]["found"] is not None:
        yield "found", metrics["found"]["found"]


def _block_scalars(blocks: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for block in DISPLAY_ORDER:
        for figure in FIGURES:
            if blocks.get(block):
                yield from _figure_scalars(f"{prefix}{block}/{figure}", blocks[block][figure])


def figure_row(figure: Mapping[str, Any]) -> dict[str, float]:
    """value, low and high (95 %), and the paper's mean and std, as far as they were measured."""
    ends = dict(zip(("low", "high"), figure["ci95"] or (), strict=False))
    spread = {name: figure[name] for name in ("mean", "std") if name in figure}
    return {"value": figure["value"], **ends, **spread}


def _figure_scalars(name: str, figure: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for part, value in figure_row(figure).items():
        yield name if part == "value" else f"{name}_{part}", value


def _model_scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Membership, and utility and exposure of both models."""
    board = row.get("membership") or {}
    for score in MEMBERSHIP:
        if entry := board.get(score):
            named = {"auc": entry["auc"], "symmetric": entry["symmetric"]}
            named |= {f"tpr_{fpr}": figure for fpr, figure in entry["tpr_at_fpr"].items()}
            for name, figure in named.items():
                if figure is not None:
                    yield from _figure_scalars(f"membership/{score}/{name}", figure)
    if (epsilon := board.get("epsilon")) is not None:
        yield "membership/epsilon", epsilon["epsilon"] if isinstance(epsilon, Mapping) else epsilon
    for side in SIDES:
        for name, value in ((row.get("utility") or {}).get(side) or {}).items():
            if isinstance(value, int | float):
                yield f"utility/{side}/{name}", value
        for part, value in ((row.get("exposure") or {}).get(side) or {}).items():
            yield f"exposure/{side}_{part}", value
