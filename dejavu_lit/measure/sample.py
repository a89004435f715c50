"""The sample level: the gaps on the L most memorized records, as a table and as curves over L.

Records are ranked by ``distance`` (smallest distance of caption and nearest public image under the target, ascending),
``hits`` (|G ∩ Ô_T|, descending) or ``gap`` (hits_T − hits_R, descending; it selects on the outcome, so its gaps are
optimistic). Ties keep the record order. On the first L records: mean precision and recall per model, F1 of these two means,
and the three gaps target − reference (Jayaraman, Guo, Chaudhuri, NeurIPS 2024, arXiv 2402.02103).
"""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, fsum

import numpy as np

from dejavu_lit.measure.figures import SAMPLE_GAPS
from dejavu_lit.measure.scores import Scores

RANKINGS = ("distance", "hits", "gap")
POINTS = 40  # per curve over L: enough for a smooth line on a log scale


def rank(target: Scores, reference: Scores, distance: np.ndarray, k: int, by: str) -> np.ndarray:
    """The rows of the records that have objects, most memorized first, int64 [records with objects].

    Args:
        distance: the distance of each of the n records' nearest public image under the target, [n]; by: one of ``RANKINGS``.
    """
    rows = np.flatnonzero(target.has_objects)
    if by == "distance":
        sort_key = distance[rows]
    else:
        sort_key = -target.hits[rows, target.column(k)].astype(np.int64)
        if by == "gap":
            sort_key += reference.hits[rows, reference.column(k)]
    return rows[np.argsort(sort_key, kind="stable")]


def sizes(tops: Sequence[int | float], n: int) -> list[tuple[int, float]]:
    """(L, L's share of the n records) for each of ``tops``: an int is L itself, a float a share, L = max(1, ⌈share · n⌉).

    Shares are read as exact decimals (0.01 of 700 is 7, not 8). An L above n is omitted.
    """
    lengths = []
    for top in tops:
        if isinstance(top, int):
            lengths += [(top, top / n)] if top <= n else []
        else:
            lengths.append((max(1, ceil(Fraction(str(top)) * n)), top))
    return lengths


def sample_gaps(
    target: Scores, reference: Scores, distance: np.ndarray, k: int, tops: Sequence[int | float]
) -> dict[str, list[dict[str, float]]]:
    """{ranking: [{top, fraction, precision_gap, recall_gap, f1_gap, and per model precision, recall, f1}]}.

    Args: as for ``rank``, where n ≥ 1 records have objects, and ``sizes``.
    """
    models = {name: (s.precision(k), s.recall(k)) for name, s in (("target", target), ("reference", reference))}
    gaps: dict[str, list[dict[str, float]]] = {}
    for by in RANKINGS:
        order, gaps[by] = rank(target, reference, distance, k, by), []
        for top, fraction in sizes(tops, len(order)):
            row: dict[str, float] = {"top": top, "fraction": fraction}
            for name, rates in models.items():
                p, r = (fsum(rate[order[:top]]) / top for rate in rates)
                f1 = 2 * p * r / (p + r) if p + r else 0.0
                row |= {f"{name}_precision": p, f"{name}_recall": r, f"{name}_f1": f1}
            row |= {f"{m}_gap": row[f"target_{m}"] - row[f"reference_{m}"] for m in ("precision", "recall", "f1")}
            gaps[by].append(row)
    return gaps


def sample_curves(target: Scores, reference: Scores, distance: np.ndarray, k: int) -> dict[str, dict[str, list[float]]]:
    """{ranking: {top, precision_gap, recall_gap, f1_gap}}: lists over L from 1 to n, at most ``POINTS`` on a log scale.

    Args: as for ``rank``; n ≥ 1 records have objects.
    """
    curves: dict[str, dict[str, list[float]]] = {}
    for by in RANKINGS:
        order = rank(target, reference, distance, k, by)
        tops = np.unique(np.geomspace(1, len(order), POINTS).round().astype(np.int64))
        figures = []
        for s in (target, reference):
            p, r = (np.cumsum(column[order])[tops - 1] / tops for column in (s.precision(k), s.recall(k)))
            figures.append(np.stack([p, r, 2 * p * r / np.where(p + r > 0, p + r, 1)]))
        gaps = figures[0] - figures[1]
        curves[by] = {"top": tops.tolist()} | {name: gap.tolist() for name, gap in zip(SAMPLE_GAPS, gaps, strict=True)}
    return curves


def recall_curves(target: Scores, reference: Scores, k: int, points: int = 400) -> dict[str, list[float]]:
    """P(recall ≥ x) of both models: {x, target, reference}, with a step at every recall that occurs.

    The area between the two step curves is AUCG. If there are more than ``points`` distinct recalls, ``points`` evenly
    spaced ones of them are returned.
    """
    recalls = [np.sort(s.recall(k)[s.has_objects]) for s in (target, reference)]
    x = np.unique(np.concatenate([*recalls, [0.0, 1.0]]))
    if len(x) > points:
        x = x[np.linspace(0, len(x) - 1, points).round().astype(np.int64)]
    above = [(1 - np.searchsorted(r, x, side="left") / len(r)).tolist() for r in recalls]
    return {"x": x.tolist(), "target": above[0], "reference": above[1]}
