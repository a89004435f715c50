"""Subgroups: the gaps per object class, caption length, number of objects, or any entry of the pairs' JSON.

Each group's PPG, PRG and AUCG is symmetric (mean over A and B) if B was measured, else that of A. With each figure come
  ci95       (Σd ± 1.96 …) after adding two pseudo-records with Σd = 0 and Σd² = 1, so that a group whose records all agree
             has an interval too (Agresti & Min, Statistics in Medicine 2005);
  p, q       of the hypothesis that the gap is 0: z = mean(d) / √(mean(d²) / n), for signs McNemar's test;
  rest_p, q  of the hypothesis that the group is a random draw from all records: the permutation variance s²/n · (1 − n/N).
q is Benjamini–Hochberg over the groups of one column. Groups that are too small are counted, not tested.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import erfc

from dejavu_lit.measure.figures import FIGURES
from dejavu_lit.measure.gaps import Outcomes
from dejavu_lit.measure.records import META, Records
from dejavu_lit.measure.roc import NORMAL_95
from dejavu_lit.measure.settings import BUILT_IN_COLUMNS
from dejavu_lit.utils.errors import check_choice
from dejavu_lit.utils.words import split_words

CAPTION_WORD_BINS = (5, 10, 15, 20, 30, 50)  # upper edges, finer for short captions
MANY_OBJECTS = 10  # images with this many objects or more form one group
MAX_LISTED = 1000  # groups listed per column, which bounds metrics.json; all groups are tested
MAX_DISTINCT = 10  # a numeric column with more distinct values than this is binned at its quartiles


@dataclass(frozen=True)
class GroupMeans:
    """Means of g groups and the variances of these means, for the three figures.

    n: records, int64 [g]; mean, center (of the interval), variance (of the mean, with the pseudo-records), null_variance
    (of the mean, if the gap were 0): float64 [g, 3].
    """

    n: np.ndarray
    mean: np.ndarray
    center: np.ndarray
    variance: np.ndarray
    null_variance: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, rows: np.ndarray, codes: np.ndarray, groups: int) -> "GroupMeans":
        """From the records' values, float64 [records, 3] in −1..1, and their groups: ``rows[i]`` is in ``codes[i]``."""
        n = np.bincount(codes, minlength=groups)
        d = values[rows]
        first, second = (
            np.stack([np.bincount(codes, weights=w[:, f], minlength=groups) for f in range(d.shape[1])], axis=1)
            for w in (d, d**2)
        )
        with_pseudo, at_least_1 = (n + 2)[:, None], np.maximum(n, 1)[:, None]
        center = first / with_pseudo
        variance = ((second + 1) / with_pseudo - center**2) / with_pseudo
        return cls(n, first / at_least_1, center, variance, second / at_least_1**2)

    def averaged_with(self, other: "GroupMeans") -> "GroupMeans":
        """The average of the means of two independent sets, group by group."""
        return GroupMeans(
            self.n + other.n,
            (self.mean + other.mean) / 2,
            (self.center + other.center) / 2,
            (self.variance + other.variance) / 4,
            (self.null_variance + other.null_variance) / 4,
        )

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The 95 % intervals, float64 [g, 3] each, within −1..1."""
        half = NORMAL_95 * np.sqrt(self.variance)
        return np.maximum(self.center - half, -1), np.minimum(self.center + half, 1)


def two_sided(difference: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The two-sided normal p-value of each difference, of the shape of the arguments; 1 if the variance is 0."""
    z = np.abs(difference) / np.sqrt(np.where(variance > 0, variance, np.inf))
    return np.asarray(erfc(z / np.sqrt(2)))


def by_subgroup(
    columns: Sequence[str],
    population: tuple[Records, Outcomes],
    swapped: tuple[Records, Outcomes] | None = None,
    smallest: int = 20,
) -> dict[str, Any]:
    """The gaps of every group of every column.

    Args:
        columns: names among ``BUILT_IN_COLUMNS`` and the records' columns, with or without ``meta.``.
        population: A's records and their outcomes; swapped: B's.
        smallest: groups with fewer records (in A or, if given, in B) are only counted.

    Returns:
        {full name of the column: {basis, groups: [{group, records, ppg|prg|aucg: {value, ci95, p, q, rest_p, rest_q}}],
        largest first, tested: the number of groups, of which the ``MAX_LISTED`` that differ most from the rest in PPG are
        listed, too_small: {groups, records, smallest}}}. Raises UserError for an unknown column.
    """
    sets = [population, *([swapped] if swapped else [])]
    in_all = (name for name in population[0].columns if all(name in records.columns for records, _ in sets))
    known = [*BUILT_IN_COLUMNS, *in_all]
    names = [name if name in known else META + name for name in columns]
    for column, name in zip(columns, names, strict=True):
        check_choice("subgroups", name if name in known else column, known)
    return {name: _column(name, sets, smallest) for name in names}


def _column(column: str, sets: list[tuple[Records, Outcomes]], smallest: int) -> dict[str, Any]:
    """The gaps of every group of one column, over one set or averaged over two."""
    names, members = _members(column, [records for records, _ in sets])
    means, is_tested = None, np.ones(len(names), bool)
    rest, rest_variance = np.zeros((len(names), 3)), np.zeros((len(names), 3))
    for (_, outcomes), (rows, codes) in zip(sets, members, strict=True):
        values = outcomes.values()
        set_means = GroupMeans.of(values, rows, codes, len(names))
        is_tested &= set_means.n >= smallest
        total = len(values)
        n = np.maximum(set_means.n, 1)[:, None]
        rest += set_means.mean - values.mean(axis=0)
        rest_variance += values.var(axis=0, ddof=min(1, total - 1)) / n * (1 - n / total)
        means = set_means if means is None else means.averaged_with(set_means)
    assert means is not None
    tested = np.flatnonzero(is_tested)
    tested = tested[np.argsort(-means.n[tested], kind="stable")]
    small = ~is_tested & (means.n > 0)
    return {
        "basis": "symmetric" if len(sets) > 1 else "population",
        "groups": _group_rows(names, means, two_sided(rest, rest_variance), tested),
        "tested": len(tested),
        "too_small": {"groups": int(small.sum()), "records": int(means.n[small].sum()), "smallest": smallest},
    }


def _group_rows(names: list[str], means: GroupMeans, rest_p: np.ndarray, tested: np.ndarray) -> list[dict[str, Any]]:
    """The rows of the groups ``tested`` that differ most from the rest, with q-values over all of ``tested``."""
    from scipy.stats import false_discovery_control

    low, high = means.interval()
    p = two_sided(means.mean, means.null_variance)
    q, rest_q = (false_discovery_control(x[tested], axis=0) for x in (p, rest_p))
    rows = []
    listed = np.sort(np.argsort(rest_p[tested, 0], kind="stable")[:MAX_LISTED])
    for position, g in zip(listed, tested[listed], strict=True):
        row: dict[str, Any] = {"group": names[g], "records": int(means.n[g])}
        for f, figure in enumerate(FIGURES):
            row[figure] = {
                "value": float(means.mean[g, f]),
                "ci95": [float(low[g, f]), float(high[g, f])],
                "p": float(p[g, f]),
                "q": float(q[position, f]),
                "rest_p": float(rest_p[g, f]),
                "rest_q": float(rest_q[position, f]),
            }
        rows.append(row)
    return rows


def _members(column: str, sets: list[Records]) -> tuple[list[str], list[tuple[np.ndarray, np.ndarray]]]:
    """The names of the groups, and (rows, codes) per set: its record ``rows[i]`` with objects is in group ``codes[i]``."""
    if column == "object":
        counts = [records.truth.counts() for records in sets]
        counts = [n[n > 0] for n in counts]
        rows = [np.repeat(np.arange(len(n)), n) for n in counts]
        return list(sets[0].truth.labels), list(zip(rows, [records.truth.codes for records in sets], strict=True))
    values = [_values(column, records) for records in sets]
    bins = _bins(column, values[0])
    named = [[_group_name(value, *bins) for value in v] for v in values]
    names = sorted({name for set_names in named for name in set_names}, key=group_order)
    code = {name: i for i, name in enumerate(names)}
    codes = [np.array([code[name] for name in set_names], np.int64) for set_names in named]
    return names, [(np.arange(len(set_codes)), set_codes) for set_codes in codes]


def _values(column: str, records: Records) -> list[Any]:
    """The values of a column for the records that have objects."""
    rows = np.flatnonzero(records.truth.counts() > 0).tolist()
    if column == "caption_words":
        return [len(split_words(records.captions[row])) for row in rows]
    if column == "object_count":
        counts = records.truth.counts()[rows].tolist()
        return [str(n) if n < MANY_OBJECTS else f"{MANY_OBJECTS}+" for n in counts]
    values = records.columns[column]
    return [values[row].item() if isinstance(values[row], np.generic) else values[row] for row in rows]


def is_missing(value: Any) -> bool:
    """Whether a record has no value: None, or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _bins(column: str, values: list[Any]) -> tuple[Sequence[float], list[str]]:
    """The upper edges of the bins of a column of numbers, and the bins' names; none for other values and few distinct numbers."""
    edges: Sequence[float] = CAPTION_WORD_BINS
    if column != "caption_words":
        known = [v for v in values if not is_missing(v)]
        is_numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
        finite = [v for v in known if abs(v) < 1e308] if is_numeric else []  # others have no quantiles
        if not finite or len(set(known)) <= MAX_DISTINCT:
            return [], []
        edges = np.unique(np.quantile(finite, [0.25, 0.5, 0.75])).tolist()
    texts = [f"{edge:g}" for edge in edges]
    if len(set(texts)) < len(edges):  # such as dates that are numbers, alike in their first six digits
        texts = [repr(edge).removesuffix(".0") for edge in edges]
    return edges, [f"≤ {texts[0]}", *(f"{low} < … ≤ {high}" for low, high in pairwise(texts)), f"> {texts[-1]}"]


def _group_name(value: Any, edges: Sequence[float], names: Sequence[str]) -> str:
    """The group of a value: the bin of a number, by the first edge that is not below it, or the value itself."""
    if is_missing(value):
        return "(none)"
    if not edges or isinstance(value, bool) or not isinstance(value, int | float):  # numbers in A may be lists in B
        return str(value)
    return names[bisect_left(edges, value)]


def group_order(name: str) -> tuple[float, str]:
    """The sort key of a group's name: its number or its bin's edge, infinity for other names, then the text."""
    try:
        number = float(name.split("≤ ")[-1].removeprefix("> ").removesuffix("+"))
    except ValueError:
        number = np.nan
    return (np.inf if np.isnan(number) else number + name.startswith(">")), name
