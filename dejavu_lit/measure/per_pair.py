"""One person's question: how much do the models remember of these pairs, and how unusual is that?

For each asked pair of A the gap target − reference (precision, recall, hits) is ranked against the gaps of H, which no
model saw: p = (1 + #{H ≥ x}) / (1 + |H|), with Benjamini–Hochberg q over the asked pairs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit.data import exclude as left_out
from dejavu_lit.measure.records import Records
from dejavu_lit.measure.subgroups import benjamini_hochberg
from dejavu_lit.utils.errors import UserError

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
