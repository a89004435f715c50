"""The ranking of settings: the frontier of memorization against utility, and a recommendation by a stated rule.

Only comparable rows are ranked: the same series, data, objects, public set, evaluation settings and training size. Seeds are
averaged first. All functions take rows of study.json and do no I/O.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dejavu_lit.measure.controls import excludes_zero, pool_seeds
from dejavu_lit.measure.figures import FIGURES, decimal, signed
from dejavu_lit.measure.recompute import PLACEMENT_OPTIONS
from dejavu_lit.study.cells import Cell

UTILITY_MEASURES = ("zeroshot_top1", "t2i_r1")  # rows are ranked by the first that all of them have
NOT_DISTINGUISHABLE = "not distinguishable"
ROUNDING_SLACK = 1e-12  # a utility loss of exactly the limit is accepted despite rounding
PLACEMENT = tuple(f"evaluate.{name}" for name in PLACEMENT_OPTIONS)
COMPARED = ("series", "public", "evaluation", "data", "objects")  # what two rows must share to be comparable
Row = Mapping[str, Any]


def by_setting(rows: Iterable[Row]) -> dict[tuple[str, int], list[Row]]:
    """{(setting, size): its rows or differences, one per seed or half}."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["train_size"]), []).append(row)
    return groups


def seed_and_half(row: Row) -> tuple[int, int]:
    """What tells apart the rows of one setting and size."""
    return row["seed"], row.get("half", 0)


def unit_of(group: Iterable[Row]) -> str:
    """What rows of one setting and size differ in: halves, each with its own seed, or seed pairs of one half."""
    return "half" if len({row.get("half", 0) for row in group}) > 1 else "seed pair"


def comparison_key(row: Row) -> tuple[Any, ...]:
    """The values of ``COMPARED``; of an evaluation, its overrides but those of where it is computed."""
    evaluation = _chosen(row["overrides"], "evaluate.")
    return row.get("series"), row.get("public"), evaluation, row.get("data"), row.get("objects")


def _chosen(overrides: Iterable[str], *prefixes: str) -> tuple[str, ...]:
    """The overrides of options that begin with one of ``prefixes``, sorted."""
    names = {override: override.lstrip("+~").partition("=")[0] for override in overrides}
    return tuple(sorted(o for o, name in names.items() if name.startswith(prefixes) and name not in PLACEMENT))


def default_names(rows: Sequence[Row], planned: Sequence[Cell]) -> dict[tuple[Any, ...], str]:
    """{comparison key: the setting that the others are compared with}, the first one that was planned, with a result or not."""
    first_rows = {comparison_key(row): row for row in reversed(rows)}
    names = {key: row["name"] for key, row in first_rows.items()}
    measured = {row["name"] for row in rows}
    for key, row in first_rows.items():
        chosen = _chosen(row["overrides"], "evaluate.", "data.")
        alike = (p.name for p in planned if p.series == key[0] and _chosen(p.overrides, "evaluate.", "data.") == chosen)
        if (first := next(alike, None)) is not None and first not in measured:
            names[key] = first
    return names


def parse_override(override: str) -> tuple[str, float | str]:
    """The dotted name of an override and its value as typed, a number if it is one."""
    name, _, value = override.lstrip("+~").partition("=")
    try:
        return name, float(value)
    except ValueError:
        return name, value


def utility(row: Row, measure: str) -> float | None:
    """One measure of the target model's utility, in 0..1."""
    value = ((row.get("utility") or {}).get("target") or {}).get(measure)
    return None if value is None else float(value)


def utility_measure(rows: Sequence[Row]) -> str | None:
    """The utility by which rows are ranked: the first of ``UTILITY_MEASURES`` that all rows have, else that any row has."""
    for quantifier in (all, any):
        for measure in UTILITY_MEASURES:
            if rows and quantifier(utility(row, measure) is not None for row in rows):
                return measure
    return None


def setting_means(rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    """{setting: (symmetric PPG, symmetric AUCG, −utility)}, means over the seeds that all settings have; smaller is better.

    Left out are rows without symmetric gaps or utility, and settings that share no seed with the ones before them.
    """
    measured = [row for row in rows if row["symmetric"]]
    measure = utility_measure(measured)
    usable: dict[str, dict[tuple[int, int], tuple[float, float, float]]] = {}  # {setting: {(seed, half): point}}
    for row in measured:
        if measure is not None and (u := utility(row, measure)) is not None:
            point = (row["symmetric"]["ppg"]["value"], row["symmetric"]["aucg"]["value"], -u)
            usable.setdefault(row["name"], {})[seed_and_half(row)] = point
    shared: set[tuple[int, int]] = set()
    ranked: list[str] = []
    for name, points in usable.items():
        if remaining := shared & set(points) if ranked else set(points):
            shared = remaining
            ranked.append(name)
    return {name: tuple(np.mean([usable[name][s] for s in sorted(shared)], axis=0).tolist()) for name in ranked}


def frontier(rows: Sequence[Row]) -> list[str]:
    """The settings that no other one dominates in symmetric PPG, symmetric AUCG and utility; ``rows``: of one training size."""
    points = setting_means(rows)
    rivals = np.array(list(points.values()))
    # Nowhere worse (larger) and better somewhere: equal points do not dominate each other.
    return [name for name, p in points.items() if not ((rivals <= p).all(axis=1) & (rivals < p).any(axis=1)).any()]


def recommend(rows: Sequence[Row], pooled: Sequence[Row], loss: float) -> dict[str, Any] | None:
    """The setting with the largest drop of symmetric PPG against the default whose utility loss is at most ``loss``.

    The 95 % interval of the paired difference, pooled over seeds, must be above 0. Among equal drops the smaller utility loss
    wins, then the earlier setting. Utility is compared on the seeds that both settings have.

    Args:
        rows: comparable rows of one training size, the default setting first.
        pooled: {name, train_size, difference: from ``pool_differences``, or None}.
        loss: largest accepted drop of utility, as a share of all images (0.02 is two points).

    Returns:
        {name, against, drop, ci95, utility, utility_loss}, or None if no setting qualifies.
    """
    ranked = setting_means(rows)
    if not rows or rows[0]["name"] not in ranked:
        return None
    measure = str(utility_measure([row for row in rows if row["symmetric"]]))
    default, size = rows[0]["name"], rows[0]["train_size"]
    accepted = []
    for name in ranked:
        difference = (pooled_setting(pooled, name, size) or {}).get("difference")
        if difference is None or difference["basis"] != "symmetric":
            continue
        ppg, cost = difference["ppg"], _utility_loss(rows, default, name, measure)
        if ppg["ci95"][0] > 0 and cost <= loss + ROUNDING_SLACK:
            choice = {"name": name, "against": default, "drop": ppg["value"], "ci95": ppg["ci95"]}
            accepted.append(choice | {"utility": measure, "utility_loss": cost})
    return max(accepted, key=lambda choice: (choice["drop"], -choice["utility_loss"]), default=None)


def _utility_loss(rows: Sequence[Row], default: str, name: str, measure: str) -> float:
    """The mean drop of utility from the default, over the seeds of both; ranked settings share at least one."""
    values = {(row["name"], seed_and_half(row)): u for row in rows if (u := utility(row, measure)) is not None}
    seeds = [seed for of, seed in values if of == default and (name, seed) in values]
    return float(np.mean([values[default, seed] - values[name, seed] for seed in seeds]))


def rank(rows: Sequence[Row], pooled: Sequence[Row], loss: float, planned: Sequence[Cell] = ()) -> dict[str, Any]:
    """The keys ``frontier``, ``recommended`` and ``ranking`` of study.json; ``planned``: as for ``default_names``.

    ``ranking`` has one entry per group of comparable rows and training size: {series, public, evaluation, data, objects,
    train_size, default, frontier, recommended, unranked}. ``frontier`` joins those of each group's largest size, and
    ``recommended`` is that of the first group.
    """
    defaults = default_names(rows, planned)
    groups: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for row in rows:
        groups.setdefault(comparison_key(row), {}).setdefault(row["train_size"], []).append(row)
    ranking: list[dict[str, Any]] = []
    names: list[str] = []
    for key, sizes in groups.items():
        for size, group in sizes.items():
            ranked = setting_means(group)
            entry = {
                **dict(zip(COMPARED, key, strict=True)),
                "train_size": size,
                "default": defaults[key],
                "frontier": frontier(group),
                "recommended": recommend(group, pooled, loss) if group[0]["name"] == defaults[key] else None,
                "unranked": [name for name in dict.fromkeys(row["name"] for row in group) if name not in ranked],
            }
            ranking.append(entry)
            if size == max(sizes):
                names += entry["frontier"]
    headline = headline_ranking({"ranking": ranking})
    recommended = headline and headline["recommended"]
    return {"frontier": names, "recommended": recommended and recommended["name"], "ranking": ranking}


def headline_ranking(study: Mapping[str, Any]) -> Row | None:
    """The entry of ``ranking`` from which study.json's ``recommended`` is: of the first comparable rows, the largest size."""
    ranking = study.get("ranking") or []
    first = [entry for entry in ranking if all(entry.get(name) == ranking[0].get(name) for name in COMPARED)]
    return max(first, key=lambda entry: entry["train_size"], default=None)


def lacks_seeds(study: Mapping[str, Any]) -> bool:
    """Whether no setting has intervals that include the noise between trainings: those of three seeds, or of halves."""
    return all(len(pooled["seeds"]) < 3 and not any(pooled.get("halves", [])) for pooled in study.get("pooled", []))


def pooled_setting(pooled: Iterable[Row], name: str, size: int) -> Row | None:
    """The entry of study.json's ``pooled`` for a setting and size."""
    return next((entry for entry in pooled if (entry["name"], entry["train_size"]) == (name, size)), None)


def is_recommended(study: Mapping[str, Any], row: Row) -> bool:
    """Whether a row of study.json is of the recommended setting, at the size for which it is recommended."""
    headline = headline_ranking(study)
    return headline is not None and (row["name"], row["train_size"]) == (study["recommended"], headline["train_size"])


def is_on_frontier(study: Mapping[str, Any], row: Row) -> bool:
    """Whether a row of study.json is of a setting on the frontier of its size."""
    ranking = study.get("ranking") or []
    return any(row["name"] in entry["frontier"] for entry in ranking if entry["train_size"] == row["train_size"])


def pool_differences(differences: Sequence[Row]) -> dict[tuple[str, int], dict[str, Any]]:
    """Pool the differences of each setting over its seeds, within one training size.

    Args:
        differences: {name, against, train_size, seed, half, basis, ppg|prg|aucg: {value, ci95}}: the default's gap minus this
            setting's, on the same records.

    Returns:
        {(name, train_size): {against, seeds, basis, ppg|prg|aucg: {value, sd, ci95, distinguishable}, words}}: the mean over
        seeds; ci95 is the records' bootstrap interval with one seed, the span of both bootstrap intervals with two seeds
        (each must exclude 0 by itself), and the t interval with three or more.
    """
    return {
        key: add_verdict(
            {
                "name": key[0],
                "against": group[0]["against"],
                "train_size": key[1],
                "seeds": [d["seed"] for d in group],
                "basis": "symmetric" if all(d["basis"] == "symmetric" for d in group) else "population",
                **{figure: _over_seeds([d[figure] for d in group]) for figure in FIGURES},
            },
            unit_of(group),
        )
        for key, group in by_setting(differences).items()
    }


def difference_to_default(study: Row, row: Row) -> Row | None:
    """The entry of ``differences`` in study.json for one of its rows; None for the default, and for what was not compared."""
    half = row.get("half", 0)  # differences of earlier versions do not name it
    identity = {name: row[name] for name in ("name", "train_size", "seed")} | {"half": half}
    return next((d for d in study.get("differences", []) if identity.items() <= ({"half": half} | d).items()), None)


def share_removed(drop: float, remaining: float) -> str | None:
    """The share of a default's gap, ``drop`` + ``remaining``, that a setting removes: ``73 %``; None if there was no gap.

    A gap below 0 is not a negative amount of memorization, so a setting removes at most ``all``.
    """
    if drop + remaining <= 0:
        return None
    return "all" if remaining < 0 else f"{decimal(100 * drop / (drop + remaining), 0)} %"


def _over_seeds(figures: Sequence[Row]) -> dict[str, Any]:
    pooled = pool_seeds([figure["value"] for figure in figures], [figure["ci95"] for figure in figures])
    return {"value": pooled["mean"], "sd": pooled["sd"], "ci95": pooled["ci95"]}


def add_verdict(difference: dict[str, Any], unit: str = "seed pair") -> dict[str, Any]:
    """Add ``distinguishable`` to each figure (false if its interval contains 0), and a sentence on PPG as ``words``.

    ``unit``: from ``unit_of``.
    """
    for figure in FIGURES:
        difference[figure] = {**difference[figure], "distinguishable": excludes_zero(difference[figure]["ci95"])}
    value, (low, high) = difference["ppg"]["value"], difference["ppg"]["ci95"]
    default = difference["against"]
    if difference["ppg"]["distinguishable"]:
        change = f"{abs(value):.3f} {'less' if value > 0 else 'more'}"
        words = f"PPG {change} than {default} ({min(abs(low), abs(high)):.3f} to {max(abs(low), abs(high)):.3f})"
    else:
        words = f"{NOT_DISTINGUISHABLE} from {default} in PPG (change {signed(-high)} to {signed(-low)})"
    seeds = len(difference.get("seeds", [0]))
    several = "halves" if unit == "half" else "seed pairs"
    return {**difference, "words": f"{words}, {f'one {unit}' if seeds == 1 else f'{seeds} {several}'}"}
