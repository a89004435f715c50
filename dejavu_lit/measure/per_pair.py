"""One person's question: how much do the models remember of these pairs, and how unusual is that?

For each asked pair of A the gap target − reference (precision, recall, hits) is ranked against the gaps of H, which no
model saw: p = (1 + #{H ≥ x}) / (1 + |H|), with Benjamini–Hochberg q over the asked pairs.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit.data import exclude as left_out
from dejavu_lit.measure.records import SIDES, Records
from dejavu_lit.measure.sample import RANKINGS, rank
from dejavu_lit.measure.scores import predict
from dejavu_lit.measure.subgroups import benjamini_hochberg
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic

GAPS = ("precision", "recall", "hits")


def read_keys(path: Path | str) -> list[str]:
    """The keys in a text file, one a line, each once; raises UserError when there is no file or no key in it."""
    if not (keys := left_out.read_keys(path, "keys")):
        raise UserError(f"keys={path} holds no key; write one key a line")
    return keys


def person_gaps(
    population: Records, null: Records, keys: Sequence[str], k: int, top_m: int | None = None
) -> dict[str, Any]:
    """The gaps of some pairs of A and their p-values against H.

    Args:
        population: the records of A; null: of H, under the same two models; keys: the asked pairs; k, top_m: as in
            ``score``.

    Returns:
        {asked, unknown: {count, first}, without_objects: {count, first}, holdout: |H| with objects, k, top_m,
        pairs: [{key, caption, gap, p, q: {precision, recall, hits}}] in the asked order}. Unknown keys and pairs without
        objects are counted and the first five of them named.

    Raises:
        UserError: none of the keys is a record of A, or H has no record with objects.
    """
    place = population.truth.rows
    known = [key for key in dict.fromkeys(keys) if key in place]
    unknown = [key for key in dict.fromkeys(keys) if key not in place]
    if not known:
        first = f", the first is {keys[0]!r}" if keys else ""
        raise UserError(f"none of the {len(keys)} keys is a pair of the target's set A{first}; check keys=")
    counts = population.truth.counts()
    bare = [key for key in known if counts[place[key]] == 0]
    rows = np.array([place[key] for key in known if counts[place[key]] > 0], np.int64)
    everyone = _gaps(null, k, top_m)
    everyone = everyone[null.truth.counts() > 0]
    if not len(everyone):
        raise UserError("no record of the holdout set H has an object, so there is nothing to rank against")
    mine = _gaps(population, k, top_m)[rows]
    p = np.stack([_tail(everyone[:, g], mine[:, g]) for g in range(len(GAPS))], axis=1)
    q = np.stack([benjamini_hochberg(p[:, g]) for g in range(len(GAPS))], axis=1)
    pairs = [
        {
            "key": population.keys[row],
            "caption": population.captions[row],
            **{name: dict(zip(GAPS, x[i].tolist(), strict=True)) for name, x in (("gap", mine), ("p", p), ("q", q))},
        }
        for i, row in enumerate(rows.tolist())
    ]
    return {
        "asked": len(known) + len(unknown),
        "unknown": {"count": len(unknown), "first": unknown[:5]},
        "without_objects": {"count": len(bare), "first": bare[:5]},
        "holdout": len(everyone),
        "k": k,
        "top_m": top_m,
        "pairs": pairs,
    }


def _gaps(records: Records, k: int, top_m: int | None) -> np.ndarray:
    """Precision, recall and hits of target − reference, float64 [n, 3]."""
    target, reference = records.scores([k], top_m)
    gaps = [getattr(target, name)(k) - getattr(reference, name)(k) for name in ("precision", "recall")]
    hits = target.hits[:, 0].astype(np.int64) - reference.hits[:, 0]
    # 2/4 − 1/6 and 1/3 are one gap: rounding the last bits away keeps ties ties.
    return np.stack([*gaps, hits], axis=1).round(12)


def _tail(everyone: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """(1 + #{everyone ≥ x}) / (1 + |everyone|) for each x of ``mine``."""
    reached = len(everyone) - np.searchsorted(np.sort(everyone), mine, side="left")
    return (1 + reached) / (1 + len(everyone))


def most_memorized(
    records: Records, k: int, top_m: int | None = None, by: str = "gap", limit: int | None = 100
) -> list[dict[str, Any]]:
    """The records that have objects, most memorized first.

    Args:
        records: the audited pairs; k, top_m: as in ``score``; by: one of ``RANKINGS``; limit: None gives all of them.

    Returns:
        Rows of rank (from 1), key, caption, objects, only_target (objects right for the target and wrong for the
        reference), only_reference, both_right, missed (by both); target_ and reference_ wrong (predicted, not in the
        image), hits, precision, recall, neighbors (k keys), distances.

    Raises:
        UserError: an unknown ranking, or k beyond the neighbors.
    """
    if by not in RANKINGS:
        raise UserError(f"the ranking {by!r} is unknown; choose one of {', '.join(RANKINGS)}")
    scores = dict(zip(SIDES, records.scores([k], top_m), strict=True))
    order = rank(scores["target"], scores["reference"], records.target.distances[:, 0], k, by)[:limit]
    rates = {side: (s.precision(k), s.recall(k)) for side, s in scores.items()}
    labels = records.truth.labels
    guesses = {side: predict(getattr(records, side)[order], records.public, k, top_m) for side in SIDES}
    rows = []
    for place, row in enumerate(order.tolist()):
        truth = set(records.truth.names(row))
        guess = {
            s: {labels[c] for c in codes[starts[place] : starts[place + 1]]} for s, (starts, codes) in guesses.items()
        }
        right = {side: guess[side] & truth for side in SIDES}
        found: dict[str, Any] = {
            "rank": place + 1,
            "key": records.keys[row],
            "caption": records.captions[row],
            "objects": sorted(truth),
            "only_target": sorted(right["target"] - right["reference"]),
            "only_reference": sorted(right["reference"] - right["target"]),
            "both_right": sorted(right["target"] & right["reference"]),
            "missed": sorted(truth - right["target"] - right["reference"]),
        }
        for side in SIDES:
            neighbors = getattr(records, side)
            found |= {
                f"{side}_wrong": sorted(guess[side] - truth),
                f"{side}_hits": int(scores[side].hits[row, 0]),
                f"{side}_precision": float(rates[side][0][row]),
                f"{side}_recall": float(rates[side][1][row]),
                f"{side}_neighbors": [records.public.keys[p] for p in neighbors.rows[row, :k]],
                f"{side}_distances": neighbors.distances[row, :k].tolist(),
            }
        rows.append(found)
    return rows


def write_csv(path: Path | str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of one set of columns as CSV (UTF-8), lists joined by ``; ``, atomically.

    A text that a spreadsheet would run as a formula gets a leading apostrophe: captions are other people's texts. Keys
    as prepare makes them stay as they are, so that tables can be joined by them.
    """
    with atomic(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0] if rows else ["rank", "key"])
        for row in rows:
            writer.writerow([_cell(name, value) for name, value in row.items()])


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, list):
        value = "; ".join(str(v) for v in value)
    if (name == "key" or name.endswith("_neighbors")) and re.fullmatch(r"[\w; -]*", str(value)):
        return value
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
