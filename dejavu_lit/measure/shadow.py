"""Attacks with shadow models, from the losses of the models of several random halves.

LiRA: log N(x; μ_in, σ_in) − log N(x; μ_out, σ_out), with the means of each pair over its in- and out-models and variances that
are pooled over the pairs (Carlini et al., S&P 2022, with a fixed variance)
RMIA: share of the population z with P(x | θ) / P(x) ≥ P(z | θ) / P(z), where P(·) is the mean over the shadow models (Zarifzadeh
et al., ICML 2024, online, γ = 1)

``loss`` is the log-probability that ``model_scores`` defines; shadows are the models of the other halves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp

from dejavu_lit.measure.controls import pool_seeds
from dejavu_lit.measure.roc import FPRS, attack

LEAST_HALVES = 4


def lira(loss: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """The log likelihood ratios of n pairs, float64 [n].

    Args:
        loss: under the attacked model, [n]; inside, outside: under the shadow models that trained on each pair and that did not,
            [S, n] with S ≥ 2.
    """
    likelihoods = []
    for shadows in (inside, outside):
        variance = max(float(shadows.var(axis=0, ddof=1).mean()), np.finfo(np.float64).tiny)
        likelihoods.append(-((loss - shadows.mean(axis=0)) ** 2) / (2 * variance) - np.log(variance) / 2)
    return np.asarray(likelihoods[0] - likelihoods[1])


def rmia(
    loss: np.ndarray, inside: np.ndarray, outside: np.ndarray, population: np.ndarray, population_shadows: np.ndarray
) -> np.ndarray:
    """The share of the population that each of n pairs dominates, float64 [n] in 0..1.

    Args:
        loss, inside, outside: as in ``lira``; population: losses of pairs that no model trained on, under the attacked model,
            [m]; population_shadows: under the shadow models, [S', m].
    """
    shadows = np.concatenate([inside, outside])
    ratio = loss - (logsumexp(shadows, axis=0) - np.log(len(shadows)))
    reference = population - (logsumexp(population_shadows, axis=0) - np.log(len(population_shadows)))
    return np.asarray(np.searchsorted(np.sort(reference), ratio, side="right") / len(reference))


def shadow_attacks(
    inside: np.ndarray, outside: np.ndarray, is_in_a: np.ndarray, population: np.ndarray
) -> tuple[dict[str, Any] | None, str | None]:
    """({lira|rmia: {auc, tpr_at_fpr{"0.01", "0.001"}}: {values, mean, sd, ci95}}, None), or (None, why not).

    Every model is attacked with those of the other halves as shadows: the pairs that it trained on against those that the
    other model of its half trained on. ``values`` has the mean of a half's two models. A TPR is None where a half has too few
    pairs.

    Args:
        inside, outside: losses of n pairs under the model of each half that trained on them, and under the other, [R, n].
        is_in_a: whether the half dealt the pair to A, bool [R, n].
        population: losses of m pairs of H under the models of A and of B, [R, 2, m].
    """
    halves = len(inside)
    if halves < LEAST_HALVES:
        return None, f"{halves} halves are fewer than the {LEAST_HALVES} that the shadow models need"
    usable = np.isfinite(inside).all(axis=0) & np.isfinite(outside).all(axis=0)
    if not usable.any() or not population.shape[2] or not np.isfinite(population).all():
        return None, "no pair has a finite loss under every model"
    inside, outside, is_in_a = inside[:, usable], outside[:, usable], is_in_a[:, usable]
    if (one_sided := np.flatnonzero(is_in_a.all(axis=1) | ~is_in_a.any(axis=1))).size:
        return None, (
            f"half {one_sided[0]} dealt all pairs with a loss under every model to one side; score more, by membership.pairs"
        )
    figures: dict[str, list[dict[str, Any]]] = {"lira": [], "rmia": []}
    for half in range(halves):
        others = np.arange(halves) != half
        shadows = inside[others], outside[others]
        population_shadows = population[others].reshape(-1, population.shape[2])
        for side, is_member in enumerate((is_in_a[half], ~is_in_a[half])):
            loss = np.where(is_member, inside[half], outside[half])
            scores = {
                "lira": lira(loss, *shadows),
                "rmia": rmia(loss, *shadows, population[half, side], population_shadows),
            }
            for name, values in scores.items():
                figures[name].append(attack(values[is_member], values[~is_member], half))
    return {name: _pooled(made) for name, made in figures.items()}, None


def _pooled(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of two models per half as means over the halves."""
    return {
        "auc": _over_halves([f["auc"] for f in figures]),
        "tpr_at_fpr": {str(fpr): _over_halves([f["tpr_at_fpr"][str(fpr)] for f in figures]) for fpr in FPRS},
    }


def _over_halves(figures: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    values = [figure["value"] for figure in figures if figure is not None]
    if len(values) < len(figures):
        return None
    means = np.reshape(values, (-1, 2)).mean(axis=1).tolist()
    return {"values": means, **pool_seeds(means)}
