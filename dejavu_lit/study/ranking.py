"""Which settings are worth having: the frontier of memorization against utility, and a recommendation by a stated rule.

Only comparable rows are ranked: of one series, the same data, objects and public set, the same settings of the evaluation, and
one training size. Within them seeds are averaged first. All functions take rows of study.json and know nothing of files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

FIGURES = ("ppg", "prg", "aucg")
MEASURES = ("zeroshot_top1", "t2i_r1")  # of utility: the first that all ranked rows have
SAME = "not distinguishable"
Row = Mapping[str, Any]


def comparable(row: Row) -> tuple[Any, ...]:
    """What two rows must share for their gaps to mean the same: series, public set, the evaluation's overrides, data, objects."""
    evaluation = sorted(o for o in row["overrides"] if o.lstrip("+~").startswith("evaluate."))
    return row.get("series"), row.get("public"), tuple(evaluation), row.get("data"), row.get("objects")


def utility(row: Row, measure: str) -> float | None:
    """One measure of the target model's utility, in 0..1."""
    value = ((row.get("utility") or {}).get("target") or {}).get(measure)
    return None if value is None else float(value)


def measure_of(rows: Sequence[Row]) -> str | None:
    """The utility by which rows are ranked: the first of ``MEASURES`` that all have, else the first that one has."""
    for enough in (all, any):
        for measure in MEASURES:
            if rows and enough(utility(row, measure) is not None for row in rows):
                return measure
    return None


def averages(rows: Sequence[Row]) -> dict[str, tuple[float, float, float]]:
    """{setting: (symmetric PPG, symmetric AUCG, −utility)} over the seeds that all of them have, smaller being better.

    Args:
        rows: comparable rows of one training size; those without symmetric gaps or utility are left out, and so are settings
            that share no seed with the ones before them.
    """
    there = [row for row in rows if row["symmetric"]]
    measure = measure_of(there)
    usable: dict[str, dict[int, tuple[float, float, float]]] = {}  # by setting and seed
    for row in there:
        if measure is not None and (u := utility(row, measure)) is not None:
            point = (row["symmetric"]["ppg"]["value"], row["symmetric"]["aucg"]["value"], -u)
            usable.setdefault(row["name"], {})[row["seed"]] = point
    shared: set[int] = set()
    ranked: list[str] = []
    for name, points in usable.items():
        if both := shared & set(points) if ranked else set(points):
            shared = both
            ranked.append(name)
    return {name: _mean([usable[name][seed] for seed in sorted(shared)]) for name in ranked}


def _mean(points: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    ppg, aucg, lost = (float(np.mean(values)) for values in zip(*points, strict=True))
    return ppg, aucg, lost


def frontier(rows: Sequence[Row]) -> list[str]:
    """The settings that no other beats: none is at least as good in symmetric PPG, symmetric AUCG and utility and better in
    one of them. Equal settings do not beat each other.

    Args:
        rows: comparable rows of one training size.
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


def recommend(rows: Sequence[Row], pooled: Sequence[Row], loss: float) -> dict[str, Any] | None:
    """The setting with the largest drop of symmetric PPG against the first one whose utility loss is at most ``loss``.

    Only settings count whose drop holds: the 95 % interval of the paired difference, pooled over seeds, lies above 0. Of
    equal drops the smaller loss wins, then the earlier setting. Utility is compared on the seeds that both settings have.

    Args:
        rows: comparable rows of one training size, the default setting first.
        pooled: {name, train_size, difference: as ``pool_differences`` makes it, or None}.
        loss: largest accepted drop of utility, as a share of all images (0.02 is two points).

    Returns:
        {name, against, drop, ci95, utility, utility_loss}, or None where no setting qualifies.
    """
    ranked = averages(rows)
    if not rows or rows[0]["name"] not in ranked:
        return None
    measure = str(measure_of([row for row in rows if row["symmetric"]]))
    first, size = rows[0]["name"], rows[0]["train_size"]
    accepted = []
    for name in ranked:
        found = next((p.get("difference") for p in pooled if (p["name"], p["train_size"]) == (name, size)), None)
        lost = _loss(rows, first, name, measure)
        if found is None or lost is None or found["basis"] != "symmetric" or found["ppg"]["ci95"] is None:
            continue
        if found["ppg"]["ci95"][0] > 0 and lost <= loss + 1e-12:
            accepted.append((found["ppg"]["value"], -lost, name, found))
    if not accepted:
        return None
    drop, gain, name, found = max(accepted, key=lambda one: one[:2])
    return {
        "name": name,
        "against": first,
        "drop": drop,
        "ci95": found["ppg"]["ci95"],
        "utility": measure,
        "utility_loss": -gain,
    }


def _loss(rows: Sequence[Row], first: str, name: str, measure: str) -> float | None:
    """The mean drop of utility from the first setting, over the seeds of both; None where they share none."""
    values = {
        setting: {row["seed"]: u for row in rows if row["name"] == setting and (u := utility(row, measure)) is not None}
        for setting in (first, name)
    }
    seeds = [seed for seed in values[first] if seed in values[name]]
    return float(np.mean([values[first][s] - values[name][s] for s in seeds])) if seeds else None


def rank(rows: Sequence[Row], pooled: Sequence[Row], loss: float) -> dict[str, Any]:
    """What study.json says of all rows: ``frontier``, ``recommended`` and ``ranking``.

    ``ranking`` has an entry for every group of comparable rows and every training size: {series, public, evaluation,
    data, objects, train_size, default, frontier, recommended, unranked}. ``frontier`` joins those of each group's largest
    size, and ``recommended`` is that of the first group.
    """
    groups: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for row in rows:
        groups.setdefault(comparable(row), {}).setdefault(row["train_size"], []).append(row)
    ranking, best, names = [], [], []
    for (series, public, evaluation, data, objects), sizes in groups.items():
        for size, group in sizes.items():
            ranked = averages(group)
            unranked = [name for name in dict.fromkeys(row["name"] for row in group) if name not in ranked]
            ranking.append(
                {
                    "series": series,
                    "public": public,
                    "evaluation": list(evaluation),
                    "data": data,
                    "objects": objects,
                    "train_size": size,
                    "default": group[0]["name"],
                    "frontier": frontier(group),
                    "recommended": recommend(group, pooled, loss),
                    "unranked": unranked,
                }
            )
            if size == max(sizes):
                names += ranking[-1]["frontier"]
                best.append(ranking[-1]["recommended"])
    return {
        "frontier": names,
        "recommended": best[0]["name"] if best and best[0] else None,
        "ranking": ranking,
    }


def pool_differences(differences: Sequence[Row]) -> dict[tuple[str, int], dict[str, Any]]:
    """Pool the differences of each setting over its seeds, within one training size.

    Args:
        differences: {name, against, train_size, seed, basis, ppg|prg|aucg: {value, ci95}}: the first setting's gap minus
            this one's, on the same records.

    Returns:
        {(name, train_size): {against, seeds, basis, ppg|prg|aucg: {value, sd, ci95, distinguishable}, words}}: the mean over
        seeds; ci95 is the records' bootstrap with one seed, the t interval from 3 seeds on, and with two seeds the span of
        both bootstrap intervals (each seed must hold by itself).
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    for one in differences:
        groups.setdefault((one["name"], one["train_size"]), []).append(one)
    return {
        key: add_words(
            {
                "name": key[0],
                "against": group[0]["against"],
                "train_size": key[1],
                "seeds": [one["seed"] for one in group],
                "basis": "symmetric" if all(one["basis"] == "symmetric" for one in group) else "population",
                **{figure: _over_seeds([one[figure] for one in group]) for figure in FIGURES},
            }
        )
        for key, group in groups.items()
    }


def _over_seeds(found: Sequence[Row]) -> dict[str, Any]:
    values = np.array([one["value"] for one in found])
    s, mean = len(values), float(values.mean())
    sd = float(values.std(ddof=1)) if s > 1 else None
    if sd is not None and s >= 3:
        half = float(stdtrit(s - 1, 0.975)) * sd / np.sqrt(s)
        low, high = mean - half, mean + half
    else:
        low, high = min(one["ci95"][0] for one in found), max(one["ci95"][1] for one in found)
    return {"value": mean, "sd": sd, "ci95": [float(low), float(high)]}


def add_words(difference: dict[str, Any]) -> dict[str, Any]:
    """The difference with ``distinguishable`` for each figure, which is false where the interval holds 0, and ``words``."""
    for figure in FIGURES:
        low, high = difference[figure]["ci95"]
        difference[figure] = {**difference[figure], "distinguishable": bool(low > 0 or high < 0)}
    value, (low, high) = difference["ppg"]["value"], difference["ppg"]["ci95"]
    if difference["ppg"]["distinguishable"]:
        less = f"PPG {abs(value):.3f} {'less' if value > 0 else 'more'}"
        words = (
            f"{less} than {difference['against']} ({min(abs(low), abs(high)):.3f} to {max(abs(low), abs(high)):.3f})"
        )
    else:
        words = f"{SAME} from {difference['against']} in PPG (change {-high:+.3f} to {-low:+.3f})"
    seeds = len(difference.get("seeds", [0]))
    return {**difference, "words": f"{words}, {'one seed pair' if seeds == 1 else f'{seeds} seed pairs'}"}
