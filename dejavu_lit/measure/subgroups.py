"""Who is memorized more: the gaps per object class, caption length, number of objects, or any column of the pairs' JSON.

Each group's PPG, PRG and AUCG is symmetric (mean over A and B) where B was measured, else A's. Beside it
  ci95       (Σd ± 1.96 …) after adding two pseudo-records with Σd = 0 and Σd² = 1, so that a group in which every record
             agrees has an interval too (Agresti & Min, Statistics in Medicine 2005);
  p, q       that the gap is 0: z = mean(d) / √(mean(d²) / n), for signs McNemar's test;
  rest_p, q  that the group is a random draw from all records: the permutation variance s²/n · (1 − n/N).
q is Benjamini–Hochberg over the groups of one column. Groups too small to say anything are counted, not tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import erfc

from dejavu_lit.measure.population import FIGURES, Outcomes
from dejavu_lit.measure.records import Records
from dejavu_lit.utils.errors import UserError, suggest

BUILT_IN = ("object", "caption_words", "object_count")
WORDS = (5, 10, 15, 20, 30, 50)  # upper ends of the caption length bins
MANY_OBJECTS = 10  # this many and more are one group
LISTED = 1000  # groups of a column that are listed; all are tested
NUMERIC = 10  # a column of numbers with more different values than this is cut at its quartiles


@dataclass(frozen=True)
class _Membership:
    """One column over the kept records of one set: record ``rows[i]`` is in group ``codes[i]``."""

    rows: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class Means:
    """Mean and its variances for each of g groups and the three figures.

    n: records, int64 [g]; mean, variance (of the mean, with the pseudo-records), centre (of the interval), null_variance
    (of the mean, were the gap 0): float64 [g, 3].
    """

    n: np.ndarray
    mean: np.ndarray
    centre: np.ndarray
    variance: np.ndarray
    null_variance: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, rows: np.ndarray, codes: np.ndarray, groups: int) -> "Means":
        """From the records' values float64 [records, 3] in −1..1 and the membership."""
        n = np.bincount(codes, minlength=groups)
        d = values[rows]
        first, second = (
            np.stack([np.bincount(codes, weights=w[:, f], minlength=groups) for f in range(d.shape[1])], axis=1)
            for w in (d, d**2)
        )
        more, some = (n + 2)[:, None], np.maximum(n, 1)[:, None]
        centre = first / more
        return cls(n, first / some, centre, ((second + 1) / more - centre**2) / more, second / some**2)

    def with_other(self, other: "Means") -> "Means":
        """The mean of two independent sets' means, group by group."""
        return Means(
            self.n + other.n,
            (self.mean + other.mean) / 2,
            (self.centre + other.centre) / 2,
            (self.variance + other.variance) / 4,
            (self.null_variance + other.null_variance) / 4,
        )

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The 95 % intervals, float64 [g, 3] each, within −1..1."""
        half = 1.959963984540054 * np.sqrt(self.variance)
        return np.maximum(self.centre - half, -1), np.minimum(self.centre + half, 1)

    def p(self) -> np.ndarray:
        """Two-sided p-values that the mean is 0, float64 [g, 3]."""
        return two_sided(self.mean, self.null_variance)


def two_sided(difference: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The two-sided normal p-value of a difference; 1 where nothing varies."""
    z = np.abs(difference) / np.sqrt(np.where(variance > 0, variance, np.inf))
    return np.asarray(erfc(z / np.sqrt(2)))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """The smallest false discovery rate at which each p-value is among the discoveries, float64 [m]."""
    order = np.argsort(p, kind="stable")[::-1]
    m = len(p)
    q = np.empty(m)
    q[order] = np.minimum.accumulate(p[order] * m / np.arange(m, 0, -1)) if m else q
    return np.minimum(q, 1.0)


def check_columns(columns: Sequence[str], records: Records) -> None:
    """Raises UserError for a column that is neither built in nor in the records, naming those there are."""
    known = [*BUILT_IN, *records.columns]
    for column in columns:
        if column not in known:
            raise UserError(
                f"subgroups={column!r} is no column of these pairs{suggest(column, known)}; there are {', '.join(known)}"
            )


def by_subgroup(
    columns: Sequence[str],
    population: tuple[Records, Outcomes],
    swapped: tuple[Records, Outcomes] | None = None,
    smallest: int = 20,
) -> dict[str, Any]:
    """The gaps of every group of every column.

    Args:
        columns: names among ``BUILT_IN`` and the records' columns.
        population: A's records and their outcomes; swapped: B's.
        smallest: a group with fewer records (in A, or in B where it counts) is only counted.

    Returns:
        {column: {basis, groups: [{group, records, ppg|prg|aucg: {value, ci95, p, q, rest_p, rest_q}}], largest first,
        tested: the number of groups, of which the ``LISTED`` that differ most from the rest in PPG are listed,
        too_small: {groups, records, smallest}}}.

    Raises:
        UserError: an unknown column.
    """
    sets = [population, *([swapped] if swapped else [])]
    for records, _ in sets:
        check_columns(columns, records)
    return {column: _column(column, sets, smallest) for column in columns}


def _column(column: str, sets: list[tuple[Records, Outcomes]], smallest: int) -> dict[str, Any]:
    names, members = _members(column, [records for records, _ in sets])
    means, enough = None, np.ones(len(names), bool)
    rest, rest_variance = np.zeros((len(names), 3)), np.zeros((len(names), 3))
    for (_, outcomes), member in zip(sets, members, strict=True):
        values = outcomes.values()
        mine = Means.of(values, member.rows, member.codes, len(names))
        enough &= mine.n >= smallest
        total = len(values)
        n = np.maximum(mine.n, 1)[:, None]
        rest += mine.mean - values.mean(axis=0)
        rest_variance += values.var(axis=0, ddof=min(1, total - 1)) / n * (1 - n / total)
        means = mine if means is None else means.with_other(mine)
    assert means is not None
    chosen = np.flatnonzero(enough)
    chosen = chosen[np.argsort(-means.n[chosen], kind="stable")]
    low, high = means.interval()
    p, rest_p = means.p(), two_sided(rest, rest_variance)
    q, rest_q = (np.stack([benjamini_hochberg(x[chosen, f]) for f in range(3)], axis=1) for x in (p, rest_p))
    groups = []
    listed = np.sort(np.argsort(rest_p[chosen, 0], kind="stable")[:LISTED])
    for place, g in zip(listed, chosen[listed], strict=True):
        row: dict[str, Any] = {"group": names[g], "records": int(means.n[g])}
        for f, figure in enumerate(FIGURES):
            row[figure] = {
                "value": float(means.mean[g, f]),
                "ci95": [float(low[g, f]), float(high[g, f])],
                "p": float(p[g, f]),
                "q": float(q[place, f]),
                "rest_p": float(rest_p[g, f]),
                "rest_q": float(rest_q[place, f]),
            }
        groups.append(row)
    small = ~enough & (means.n > 0)
    return {
        "basis": "symmetric" if len(sets) > 1 else "population",
        "groups": groups,
        "tested": len(chosen),
        "too_small": {"groups": int(small.sum()), "records": int(means.n[small].sum()), "smallest": smallest},
    }


def _members(column: str, sets: list[Records]) -> tuple[list[str], list[_Membership]]:
    """The groups' names, and for each set which kept record is in which group."""
    if column == "object":
        members = []
        for records in sets:
            counts = records.truth.counts()
            members.append(
                _Membership(np.repeat(np.arange((counts > 0).sum()), counts[counts > 0]), records.truth.codes)
            )
        return list(sets[0].truth.labels), members
    values = [_values(column, records) for records in sets]
    groups = _Bins.of(column, values[0])
    named = [[groups.name(value) for value in v] for v in values]
    names = sorted({n for part in named for n in part}, key=groups.order)
    code = {name: i for i, name in enumerate(names)}
    return names, [_Membership(np.arange(len(part)), np.array([code[n] for n in part], np.int64)) for part in named]


def _values(column: str, records: Records) -> list[Any]:
    kept = np.flatnonzero(records.truth.counts() > 0).tolist()
    if column == "caption_words":
        return [len(records.captions[row].split()) for row in kept]
    if column == "object_count":
        counts = records.truth.counts()[kept].tolist()
        return [str(n) if n < MANY_OBJECTS else f"{MANY_OBJECTS}+" for n in counts]
    values = records.columns[column]
    return [values[row].item() if isinstance(values[row], np.generic) else values[row] for row in kept]


@dataclass(frozen=True)
class _Bins:
    """How a column's values are named: numbers by the first of ``edges`` that is not below them, others as they are."""

    edges: tuple[float, ...]

    @classmethod
    def of(cls, column: str, values: list[Any]) -> "_Bins":
        if column == "caption_words":
            return cls(tuple(WORDS))
        there = [v for v in values if v is not None]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in there)
        if numbers and len(set(there)) > NUMERIC:
            return cls(tuple(np.unique(np.quantile(there, [0.25, 0.5, 0.75])).tolist()))
        return cls(())

    def name(self, value: Any) -> str:
        if value is None:
            return "(none)"
        if not self.edges or isinstance(value, bool | str):
            return str(value)
        place = int(np.searchsorted(self.edges, value, side="left"))
        if place == len(self.edges):
            return f"> {self.edges[-1]:g}"
        return f"≤ {self.edges[0]:g}" if place == 0 else f"{self.edges[place - 1]:g} < … ≤ {self.edges[place]:g}"

    def order(self, name: str) -> tuple[float, str]:
        try:
            return float(name.split("≤ ")[-1].removeprefix("> ")) + name.startswith(">"), name
        except ValueError:
            return np.inf, name
