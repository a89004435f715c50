"""Planted memory: the per-record gap against how often training saw the record, which it must rise with.

Exposures within a factor of 1.5 are one level, because an epoch leaves out a few pairs at random. Spearman's rank
correlation is over the records, its p-value from t = ρ · √((n − 2) / (1 − ρ²)).
"""

from typing import Any

import numpy as np
from scipy.special import stdtr

from dejavu_lit.measure.population import FIGURES, Outcomes
from dejavu_lit.measure.subgroups import Means
from dejavu_lit.utils.errors import UserError

LEVEL = 1.5  # the ratio of the largest and the smallest exposure of one level


def planted_memory(found: Outcomes, exposure: np.ndarray) -> dict[str, Any] | None:
    """The gaps at each level of exposure; None where every pair was seen equally often.

    Args:
        found: outcomes of n records; exposure: how often training saw each of them, [n], ≥ 0.

    Returns:
        {levels: [{exposure, low, high, records, hits, ppg|prg|aucg: {value, ci95}}] by rising exposure,
        spearman: {hits|recall: {rho, p}}}; hits is the mean of hits_T − hits_R.

    Raises:
        UserError: exposures that are no numbers ≥ 0.
    """
    exposure = np.asarray(exposure, np.float64)
    if not (np.isfinite(exposure).all() and (exposure >= 0).all()):
        raise UserError("the column exposure must hold a number of at least 0 for every record")
    code = levels(exposure)
    if not len(code) or code.max() == 0:
        return None
    count = int(code.max()) + 1
    means = Means.of(found.values(), np.arange(len(found)), code, count)
    low, high = means.interval()
    rows = []
    for level in range(count):
        seen = exposure[code == level]
        row: dict[str, Any] = {
            "exposure": float(seen.mean()),
            "low": float(seen.min()),
            "high": float(seen.max()),
            "records": len(seen),
            "hits": float(found.hits[code == level].mean()),
        }
        for f, figure in enumerate(FIGURES):
            row[figure] = {"value": float(means.mean[level, f]), "ci95": [float(low[level, f]), float(high[level, f])]}
        rows.append(row)
    gaps = {"hits": found.hits, "recall": found.values()[:, 2]}
    return {"levels": rows, "spearman": {name: spearman(exposure, gap) for name, gap in gaps.items()}}


def levels(exposure: np.ndarray) -> np.ndarray:
    """The level of each exposure, 0 the lowest, int64 [n]: a new one begins above ``LEVEL`` times a level's smallest."""
    values, place = np.unique(exposure, return_inverse=True)
    level, begin = np.zeros(len(values), np.int64), 0
    for i in range(1, len(values)):
        if values[i] > LEVEL * values[begin]:
            begin = i
        level[i] = level[i - 1] + (begin == i)
    return level[place]


def spearman(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """Spearman's rank correlation {rho, p}; both None where one of the two does not vary or n < 3."""
    ranks = [_ranks(x) - (len(x) + 1) / 2 for x in (a, b)]
    size = np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1]))
    if len(a) < 3 or size == 0:
        return {"rho": None, "p": None}
    rho = float(np.clip(ranks[0] @ ranks[1] / size, -1, 1))
    free = len(a) - 2
    t = np.inf if abs(rho) == 1 else abs(rho) * np.sqrt(free / (1 - rho**2))
    return {"rho": rho, "p": float(2 * stdtr(free, -t))}


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean rank, float64 [n]."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
