"""Simulated studies of models that remember nothing: how often memorization is "found", and how often intervals cover.

The null model of the definitions: a utility shift δ ~ N(0, σ) per seed pair, of opposite sign in the two directions, plus
record noise. ``spread`` adds what it omits: a difference of the two models that varies between sets, so that it stays in the
symmetric gap. ``studies`` implements the rule again, on arrays; the tests compare it with ``memorization_found``.

    python -m tests.measure.simulation      the table of docs/statistics.md
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

SE = 0.02  # of one direction's PPG: that of 1,600 records of which two thirds differ
PAIRS = (1, 3, 5)
# (σ of the quality shift, spread of the symmetric gap between trainings), in units of PPG
CASES = ((0.0, 0.0), (0.02, 0.0), (0.05, 0.0), (0.1, 0.0), (0.15, 0.0), (0.1, 0.01), (0.1, 0.04))


@dataclass(frozen=True)
class Studies:
    """n studies of s seed pairs: the values of each set, float64 [n, s], and the conditions of the rule, bool [n]."""

    population: np.ndarray
    null: np.ndarray
    swapped: np.ndarray
    above_zero: np.ndarray
    one_sign: np.ndarray
    corrected: np.ndarray
    null_smaller: np.ndarray
    covers: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Whether all conditions hold."""
        return self.above_zero & self.one_sign & self.corrected & self.null_smaller


def studies(random: np.random.Generator, count: int, pairs: int, shift: float, spread: float = 0.0) -> Studies:
    """``count`` studies of the null model; record noise has the standard deviation SE in every set."""
    quality = random.normal(0, shift, (count, pairs))
    noise = random.normal(0, SE, (3, count, pairs))
    noise += random.normal(0, spread * np.sqrt(2), (3, count, pairs))  # the mean of two of them has the spread
    population, swapped, null = quality + noise[0], -quality + noise[1], quality + noise[2]
    symmetric = (population + swapped) / 2
    mean = symmetric.mean(axis=1)
    if pairs == 1:
        half = np.full(count, stats.norm.ppf(0.975) * SE / np.sqrt(2))
    else:
        half = stats.t.ppf(0.975, pairs - 1) * symmetric.std(axis=1, ddof=1) / np.sqrt(pairs)
    one_sign = population.mean(axis=1) * swapped.mean(axis=1) > 0
    corrected = population.mean(axis=1) > null.mean(axis=1)
    null_smaller = np.abs(null.mean(axis=1)) < np.abs(mean)
    return Studies(population, null, swapped, mean - half > 0, one_sign, corrected, null_smaller, np.abs(mean) <= half)


def rates(count: int = 200_000) -> list[dict[str, float]]:
    """One row per case and number of seed pairs: how often the lower bound is above 0, and how often it is "found"."""
    rows = []
    for shift, spread in CASES:
        for pairs in PAIRS:
            batch = studies(
                np.random.default_rng([pairs, int(shift * 1000), int(spread * 1000)]), count, pairs, shift, spread
            )
            rows.append(
                {"shift": shift, "spread": spread, "pairs": pairs}
                | {"interval": float(batch.above_zero.mean()), "found": float(batch.found.mean())}
                | {"covers": float(batch.covers.mean())}
            )
    return rows


def as_table(rows: list[dict[str, float]]) -> str:
    """The rows in Markdown, in per cent."""
    lines = ["| σ of the shift | spread that stays | seed pairs | interval above 0 | found |", "|---|---|---|---|---|"]
    for row in rows:
        numbers = f"{row['shift']:.2f} | {row['spread']:.2f} | {row['pairs']}"
        lines.append(f"| {numbers} | {100 * row['interval']:.1f} % | {100 * row['found']:.1f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_table(rates()))
