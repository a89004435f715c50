"""Single pairs: the gaps of chosen pairs with their p-values, and the table of the most memorized pairs.

For each chosen pair of A, the gap target − reference (precision, recall, hits) is ranked against the gaps of H, which
neither model trained on: p = (1 + #{H ≥ x}) / (1 + |H|), with Benjamini–Hochberg q over the chosen pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dejavu_lit.measure.records import SIDES, Records
from dejavu_lit.measure.sample import rank
from dejavu_lit.measure.scores import predict
from dejavu_lit.utils.errors import UserError

GAPS = ("precision", "recall", "hits")


def pair_gaps(
    population: Records, null: Records, keys: Sequence[str], k: int, top_m: int | None = None
) -> dict[str, Any]:
    """The gaps of the pairs ``keys`` of A and their p-values against H (``null``), under the same two models.

    Returns:
        {asked, unknown: {count, first}, without_objects: {count, first}, holdout: |H| with objects, k, top_m,
        pairs: [{key, caption, gap, p, q: {precision, recall, hits}}] in the order of ``keys``}. ``first`` has up to five
        of the unknown keys or of the pairs without objects. Raises UserError if none of the keys is a record of A, or no record
        of H has objects.
    """
    from scipy.stats import false_discovery_control

    row_of = population.truth.rows
    distinct = list(dict.fromkeys(keys))
    known = [key for key in distinct if key in row_of]
    unknown = [key for key in distinct if key not in row_of]
    if not known:
        first = f", the first is {keys[0]!r}" if keys else ""
        raise UserError(f"none of the {len(keys)} keys is a pair of the target's set A{first}; check keys=")
    counts = population.truth.counts()
    bare = [key for key in known if counts[row_of[key]] == 0]
    rows = np.array([row_of[key] for key in known if counts[row_of[key]] > 0], np.int64)
    holdout = _gaps(null, k, top_m)[null.truth.counts() > 0]
    if not len(holdout):
        raise UserError("no record of the holdout set H has an object, so there is nothing to rank against")
    gap = _gaps(population, k, top_m)[rows]
    p = np.stack([tail(holdout[:, g], gap[:, g]) for g in range(len(GAPS))], axis=1)
    q = false_discovery_control(p, axis=0)
    pairs = [
        {
            "key": population.keys[row],
            "caption": population.captions[row],
            **{name: dict(zip(GAPS, x[i].tolist(), strict=True)) for name, x in (("gap", gap), ("p", p), ("q", q))},
        }
        for i, row in enumerate(rows.tolist())
    ]
    return {
        "asked": len(distinct),
        "unknown": {"count": len(unknown), "first": unknown[:5]},
        "without_objects": {"count": len(bare), "first": bare[:5]},
        "holdout": len(holdout),
        "k": k,
        "top_m": top_m,
        "pairs": pairs,
    }


def _gaps(records: Records, k: int, top_m: int | None) -> np.ndarray:
    """Precision, recall and hits of target − reference, float64 [n, 3]."""
    target, reference = records.scores([k], top_m)
    gaps = [getattr(target, name)(k) - getattr(reference, name)(k) for name in ("precision", "recall")]
    hits = target.hits[:, 0].astype(np.int64) - reference.hits[:, 0]
    # 2/4 − 1/6 and 1/3 are the same gap: rounding the last bits away keeps ties ties.
    return np.stack([*gaps, hits], axis=1).round(12)


def tail(holdout: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """(1 + #{holdout ≥ x}) / (1 + |holdout|) for each x of ``gaps``."""
    reached = len(holdout) - np.searchsorted(np.sort(holdout), gaps, side="left")
    return (1 + reached) / (1 + len(holdout))


def add_q(rows: Iterable[dict[str, Any]], prefix: str = "") -> None:
    """Add the Benjamini–Hochberg ``q`` to the rows with a ``p``, over these rows; ``prefix``: of both names."""
    from scipy.stats import false_discovery_control  # takes a second to import

    tested = [row for row in rows if row[f"{prefix}p"] is not None]
    q = false_discovery_control([row[f"{prefix}p"] for row in tested])
    for row, value in zip(tested, q.tolist(), strict=True):
        row[f"{prefix}q"] = value


def most_memorized(records: Records, k: int, top_m: int | None = None, limit: int | None = 100) -> list[dict[str, Any]]:
    """The records that have objects, most memorized first: those with the largest gap in hits.

    Returns:
        At most ``limit`` rows of rank (from 1), key, caption, objects, only_target (objects right for the target and wrong for
        the reference), only_reference, both_right, missed (by both); target_ and reference_ wrong (predicted, not in the
        image), hits, precision, recall, neighbors (k keys), distances.

    Raises UserError for a ``k`` beyond the neighbors.
    """
    scores = dict(zip(SIDES, records.scores([k], top_m), strict=True))
    order = rank(scores["target"], scores["reference"], records.target.distances[:, 0], k, "gap")[:limit]
    rates = {side: (s.precision(k), s.recall(k)) for side, s in scores.items()}
    guesses = [_predicted(records, side, order, k, top_m) for side in SIDES]
    rows = []
    for position, (row, *guess) in enumerate(zip(order.tolist(), *guesses, strict=True)):
        truth = set(records.truth.names(row))
        target, reference = guess
        pair: dict[str, Any] = {
            "rank": position + 1,
            "key": records.keys[row],
            "caption": records.captions[row],
            "objects": sorted(truth),
            "only_target": sorted(truth & target - reference),
            "only_reference": sorted(truth & reference - target),
            "both_right": sorted(truth & target & reference),
            "missed": sorted(truth - target - reference),
        }
        for side, objects in zip(SIDES, guess, strict=True):
            precision, recall = rates[side]
            neighbors = getattr(records, side)
            pair |= {
                f"{side}_wrong": sorted(objects - truth),
                f"{side}_hits": int(scores[side].hits[row, 0]),
                f"{side}_precision": float(precision[row]),
                f"{side}_recall": float(recall[row]),
                f"{side}_neighbors": [records.public.keys[p] for p in neighbors.rows[row, :k]],
                f"{side}_distances": neighbors.distances[row, :k].tolist(),
            }
        rows.append(pair)
    return rows


def _predicted(records: Records, side: str, order: np.ndarray, k: int, top_m: int | None) -> Iterator[set[str]]:
    """The objects that one model predicts for each record of ``order``."""
    starts, codes = predict(getattr(records, side)[order], records.public, k, top_m)
    labels = records.public.labels
    for start, stop in pairwise(starts.tolist()):
        yield {labels[code] for code in codes[start:stop]}
