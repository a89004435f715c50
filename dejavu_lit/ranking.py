"""Which settings are worth having: the frontier of memorization against utility, and a recommendation by a stated rule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def frontier(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that no other beats: none is at least as good in symmetric PPG, symmetric AUCG and zero-shot accuracy
    (retrieval where there is none) and better in one of them. Seeds are averaged first; the largest training size counts.
    """
    points = averages(rows)
    return [
        name
        for name, point in points.items()
        if not any(
            all(b <= a for a, b in zip(point, other, strict=True))
            and any(b < a for a, b in zip(point, other, strict=True))
            for other in points.values()
        )
    ]


def averages(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """{setting: (symmetric PPG, symmetric AUCG, −utility)}, smaller being better, over seeds at the largest size."""
    largest = max((r["train_size"] for r in rows), default=0)
    usable = [r for r in rows if r["train_size"] == largest and r["symmetric"] and _utility(r) is not None]
    return {
        name: (
            float(np.mean([r["symmetric"]["ppg"]["value"] for r in group])),
            float(np.mean([r["symmetric"]["aucg"]["value"] for r in group])),
            -float(np.mean([_utility(r) for r in group])),
        )
        for name in dict.fromkeys(r["name"] for r in usable)
        if (group := [r for r in usable if r["name"] == name])
    }


def _utility(found: Mapping[str, Any]) -> float | None:
    target = (found["utility"] or {}).get("target") or {}
    value = target.get("zeroshot_top1")
    return value if value is not None else target.get("t2i_r1")


def recommend(rows: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]], loss: float) -> str | None:
    """The setting with the largest drop of symmetric PPG against the first one whose utility loss is at most ``loss``.

    Only settings count that are distinguishable from the first: the 95 % interval of their paired difference lies above 0
    at the largest training size, for every seed.

    Args:
        differences: {name, train_size, ppg: {value, ci95}} of first − setting, one a seed.
        loss: largest accepted drop of zero-shot accuracy, as a share of all pictures (0.02 is two points).
    """
    points = averages(rows)
    if not points:
        return None
    largest = max(r["train_size"] for r in rows)
    first = next(iter(points.values()))
    accepted = {}
    for name, point in points.items():
        lows = [d["ppg"]["ci95"][0] for d in differences if d["name"] == name and d["train_size"] == largest]
        if lows and min(lows) > 0 and point[2] - first[2] <= loss:
            accepted[name] = first[0] - point[0]
    return max(accepted, key=lambda name: accepted[name], default=None)
