"""Gaps by exposure: the gap against how often training saw each record, with which it must rise (planted memorization).

Exposures within a factor of 1.5 form one level, because an epoch skips a few pairs at random. Spearman's rank correlation
is over the records, its p-value from t = ρ · √((n − 2) / (1 − ρ²)).
"""

from typing import Any

import numpy as np

from dejavu_lit.measure.figures import FIGURES
from dejavu_lit.measure.gaps import Outcomes
from dejavu_lit.measure.subgroups import GroupMeans
from dejavu_lit.utils.errors import UserError

# Largest exposure of a level / its smallest: above what skipped pairs explain, below a planted doubling.
LEVEL_RATIO = 1.5


def gaps_by_exposure(outcomes: Outcomes, exposure: np.ndarray) -> dict[str, Any] | None:
    """The gaps of n records at each level of ``exposure`` [n] ≥ 0, how often training saw them; None if about equal for all.

    Returns:
        {levels: [{exposure, low, high, records, hits, ppg|prg|aucg: {value, ci95}}] by rising exposure,
        spearman: {hits|recall: {rho, p}}}; hits is the mean of hits_T − hits_R.

    Raises:
        UserError: exposures that are not numbers ≥ 0.
    """
    try:
        exposure = np.asarray(exposure, np.float64)
    except (TypeError, ValueError):  # text
        exposure = np.array([np.nan])
    if not (np.isfinite(exposure).all() and (exposure >= 0).all()):
        raise UserError(
            "the column exposure of the records, how often training saw each pair, must have a number of at least 0 for "
            "every record; evaluate again into another folder"
        )
    code = exposure_levels(exposure)
    if not len(code) or code.max() == 0:
        return None
    count = int(code.max()) + 1
    means = GroupMeans.of(outcomes.values(), np.arange(len(outcomes)), code, count)
    low, high = means.interval()
    rows = []
    for level in range(count):
        seen = exposure[code == level]
        row: dict[str, Any] = {
            "exposure": float(seen.mean()),
            "low": float(seen.min()),
            "high": float(seen.max()),
            "records": len(seen),
            "hits": float(outcomes.hits[code == level].mean()),
        }
        for f, figure in enumerate(FIGURES):
            row[figure] = {"value": float(means.mean[level, f]), "ci95": [float(low[level, f]), float(high[level, f])]}
        rows.append(row)
    gaps = {"hits": outcomes.hits, "recall": outcomes.values()[:, 2]}
    return {"levels": rows, "spearman": {name: spearman(exposure, gap) for name, gap in gaps.items()}}


def exposure_levels(exposure: np.ndarray) -> np.ndarray:
    """The level of each exposure, 0 the lowest, int64 [n]; an exposure above ``LEVEL_RATIO`` × its level's smallest starts
    the next level."""
    values, index = np.unique(exposure, return_inverse=True)
    level, start = np.zeros(len(values), np.int64), 0
    for i in range(1, len(values)):
        if values[i] > LEVEL_RATIO * values[start]:
            start = i
        level[i] = level[i - 1] + (start == i)
    return level[index]


def spearman(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """Spearman's rank correlation {rho, p} of two arrays [n]; both are None if a or b is constant or n < 3."""
    from scipy.stats import spearmanr

    if len(a) < 3 or not np.ptp(a) or not np.ptp(b):
        return {"rho": None, "p": None}
    rho, p = spearmanr(a, b)
    return {"rho": float(rho), "p": float(p)}
