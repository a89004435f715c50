"""Counterfactual memorization of each pair over random halves, in any score (Feldman and Zhang, NeurIPS 2020).

In every half one model trained on the pair and the other did not, so the difference of their scores is one draw of
E[score | trained on it] − E[score | not]. Arrays are float64 [R, n], NaN where a half did not measure a pair.
"""

from dataclasses import dataclass

import numpy as np

from dejavu_lit.measure.roc import spearman


@dataclass(frozen=True)
class Counterfactual:
    """Of n pairs: the mean score of the models that trained on it and of the others, and the mean of their difference.

    difference: NaN if no half measured the pair; se: standard error over halves, sd (ddof 1) / √halves, NaN below two halves;
    halves: in how many halves both models were measured, int64.
    """

    inside: np.ndarray
    outside: np.ndarray
    difference: np.ndarray
    se: np.ndarray
    halves: np.ndarray


def counterfactual(inside: np.ndarray, outside: np.ndarray) -> Counterfactual:
    """From the scores of the models that trained on each pair and of those that did not, [R, n] each."""
    differences = inside - outside
    measured = np.isfinite(differences)
    halves = measured.sum(axis=0)
    count = np.where(halves > 0, halves, np.nan)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.where(measured, values, 0).sum(axis=0) / count)

    difference = mean(differences)
    squares = np.where(measured, differences - difference, 0) ** 2
    se = np.sqrt(squares.sum(axis=0) / np.where(halves > 1, (halves - 1) * halves, np.nan))
    return Counterfactual(mean(inside), mean(outside), difference, se, halves)


def reliability(inside: np.ndarray, outside: np.ndarray) -> tuple[float | None, str | None]:
    """(how far the ranking of the pairs repeats, None), or (None, why it is unknown), from scores [R, n] each.

    The Spearman correlation ρ of the pairs' mean differences over the even halves and over the odd ones, corrected to the
    number of all halves by Spearman and Brown, 2 ρ / (1 + ρ), which has no meaning below 0.
    """
    if len(inside) < 2:
        return None, f"{len(inside)} half cannot be split into even and odd ones"
    even, odd = (counterfactual(inside[start::2], outside[start::2]).difference for start in (0, 1))
    both = np.isfinite(even) & np.isfinite(odd)
    figure, reason = spearman(even[both], odd[both])
    if figure is None:
        return None, reason
    rho = figure["value"]
    return (2 * rho / (1 + rho) if rho > 0 else rho), None
