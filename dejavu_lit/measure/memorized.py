"""The per-record table: the most memorized pairs first, with what each model got right, and its CSV form."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dejavu_lit.measure.records import SIDES, Records
from dejavu_lit.measure.sample import RANKINGS, rank
from dejavu_lit.measure.scores import predict
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic


def most_memorized(
    records: Records, k: int, top_m: int | None = None, by: str = "gap", limit: int | None = 100
) -> list[dict[str, Any]]:
    """The records that have objects, most memorized first.

    Args:
        records: the audited pairs; k, top_m: as in ``score``; by: one of ``RANKINGS``; limit: None gives all of them.

    Returns:
        Rows of rank (from 1), key, caption, objects, only_target (objects right for the target and wrong for the
        reference), only_reference, both_right, missed (by both); target_ and reference_ wrong (predicted, not in the
        picture), hits, precision, recall, neighbors (k keys), distances.

    Raises:
        UserError: an unknown ranking, or k beyond the neighbours.
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
