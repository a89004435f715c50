"""The numbers of metrics.json and study.json under the stable names that every dashboard and ``scalars.csv`` uses.

    symmetric/ppg, symmetric/ppg_low, symmetric/ppg_high (95 %), symmetric/ppg_mean, symmetric/ppg_std (100 draws of 10 %)
    by_k/5/symmetric/ppg …          sample/distance/top_100/recall_gap …        planted/20/prg …
    by_objects/owlv2/symmetric/ppg …
    utility/target/zeroshot_top1 …  exposure/target_mean …                      counts/records …        found

A number that was not measured has no name; ``found`` is 1, 0, or absent where it cannot be said.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dejavu_lit.report.words import BLOCKS, FIGURES

SAMPLE = ("precision_gap", "recall_gap", "f1_gap")


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """{stable name: value} of one evaluation, from the contents of metrics.json."""
    return {name: float(value) for name, value in _all(metrics) if math.isfinite(value)}


def _all(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield from blocks(metrics)
    for k, found in metrics["by_k"].items():
        yield from blocks(found, f"by_k/{k}/")
    for ranking, rows in metrics["sample"].items():
        for row in rows:
            for gap in SAMPLE:
                yield f"sample/{ranking}/top_{row['top']}/{gap}", row[gap]
    for level in (metrics.get("planted") or {}).get("levels", []):
        for figure in FIGURES:
            yield from _figure(f"planted/{level['exposure']:g}/{figure}", level[figure])
    for name, found in (metrics.get("by_objects") or {}).items():
        yield from blocks(found, f"by_objects/{name}/")
    yield from models(metrics)
    for name in ("records", "without_objects", "public"):
        yield f"counts/{name}", metrics["counts"][name]
    if metrics["found"]["found"] is not None:
        yield "found", metrics["found"]["found"]


def blocks(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The five blocks, those that were measured."""
    for block in BLOCKS:
        for figure in FIGURES:
            if found.get(block):
                yield from _figure(f"{prefix}{block}/{figure}", found[block][figure])


def _figure(name: str, figure: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield name, figure["value"]
    for end, value in zip(("low", "high"), figure["ci95"], strict=True):
        yield f"{name}_{end}", value
    for part in ("mean", "std"):
        if part in figure:
            yield f"{name}_{part}", figure[part]


def models(found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Utility and exposure of both models."""
    for side in ("target", "reference"):
        for name, value in ((found.get("utility") or {}).get(side) or {}).items():
            if isinstance(value, int | float):
                yield f"utility/{side}/{name}", value
        for part, value in ((found.get("exposure") or {}).get(side) or {}).items():
            yield f"exposure/{side}_{part}", value


def settings_rows(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of a study as flat rows of equal columns: name, size, seed, each knob as typed, the numbers, the verdicts.

    A knob is a number where every row that sets it has one; what a row does not set is None.
    """
    rows = []
    for row in study["settings"]:
        made = {"setting": row["name"], "train_size": row["train_size"], "seed": row["seed"]}
        made |= {o.partition("=")[0].lstrip("+~"): _typed(o.partition("=")[2]) for o in row["overrides"]}
        made |= dict(blocks(row)) | dict(models(row))
        made["frontier"] = row["name"] in study["frontier"]
        made["recommended"] = row["name"] == study["recommended"]
        rows.append(made)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns.sort(key=lambda name: (name in ("frontier", "recommended"), "/" in name))  # knobs before numbers
    for name in columns:
        values = [row.get(name) for row in rows if row.get(name) is not None]
        mixed = any(isinstance(v, str) for v in values) and any(not isinstance(v, str) for v in values)
        for row in rows:
            if mixed and row.get(name) is not None:
                row[name] = str(row[name])
    return [{name: row.get(name) for name in columns} for row in rows]


def _typed(text: str) -> float | str | None:
    if text == "null":
        return None
    try:
        return float(text)
    except ValueError:
        return text
