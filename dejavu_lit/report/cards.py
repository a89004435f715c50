"""The most memorized pairs as data for the page: an index of all of them, and their cards in chunks of script files.

    data/index.js        columns over all cards: what is needed to sort, filter by object and page
    data/text.js         keys and captions, loaded when somebody searches for a text
    data/cards-0000.js   CHUNK cards each, with neighbors, objects and thumbnails

A page opened from disk may not fetch, so each file is one call, ``dejavu(NAME, VALUE)``, loaded as a script.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dejavu_lit.data.objects import Objects
from dejavu_lit.measure.records import EXPOSURE, SCHEMA, SIDES, check_columns, damage_told
from dejavu_lit.report.images import Boxes

CHUNK = 25  # cards: about 40 kB, with boxes 80
Row = dict[str, Any]


@dataclass(frozen=True)
class Images:
    """What cards show of images, by key: thumbnails (file names below thumbs/) and boxes, of the audited and public set."""

    own: Mapping[str, str] = field(default_factory=dict)
    public: Mapping[str, str] = field(default_factory=dict)
    own_boxes: Mapping[str, Boxes] = field(default_factory=dict)
    public_boxes: Mapping[str, Boxes] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranks:
    """What every record is ranked by: keys [n], target's and reference's hits [n], distance [n]; only rows with objects.

    ``rows`` [n] are the places in the file.
    """

    keys: list[str]
    rows: np.ndarray
    target: np.ndarray
    reference: np.ndarray
    distance: np.ndarray

    def orders(self) -> dict[str, np.ndarray]:
        """{ranking: places of the records, most memorized first}; ties keep the record order."""
        by = {"gap": self.reference - self.target, "hits": -self.target, "distance": self.distance}
        return {name: np.argsort(column, kind="stable") for name, column in by.items()}


def read_ranks(path: Path) -> Ranks:
    """Read what ranks the records of a records file; raises UserError where it is none."""
    names = ["key", "target_hits", "target_precision", "reference_hits", "target_distances"]
    with damage_told(path):
        check_columns(path, SCHEMA.names)
        table = pq.read_table(path, columns=names)
        kept = np.flatnonzero(table["target_precision"].is_valid().to_numpy())
        nearest = pc.list_element(table["target_distances"], 0).to_numpy()[kept]
        keys = table["key"].take(pa.array(kept)).to_pylist()
        hits = [table[f"{side}_hits"].to_numpy()[kept] for side in SIDES]
        if not np.isfinite([nearest, *hits]).all():
            raise ValueError("its distances or hits are not all numbers")
    return Ranks(keys, kept, hits[0].astype(np.int64), hits[1].astype(np.int64), nearest)


def choose(evaluations: Sequence[Ranks], limit: int) -> set[str]:
    """The keys of at most ``limit`` pairs, taken in turn from the top of every ranking of every evaluation.

    Several evaluations of the same pairs show the same ones, so that they can be compared pair by pair.
    """
    everything = [[found.keys[i] for i in order] for found in evaluations for order in found.orders().values()]
    chosen: dict[str, None] = {}
    for place in zip_longest(*everything):
        for key in place:
            if key is not None and len(chosen) < limit:
                chosen[key] = None
        if len(chosen) >= limit:
            break
    return set(chosen)


def read_rows(path: Path, ranks: Ranks, chosen: set[str], k: int) -> list[Row]:
    """The chosen records, most memorized by ``gap`` first, neighbors cut to ``k``, with the exposure where it is known."""
    order = [i for i in ranks.orders()["gap"].tolist() if ranks.keys[i] in chosen]
    wanted = np.sort(ranks.rows[order])
    by_key: dict[str, Row] = {}
    with damage_told(path), pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            inside = wanted[(wanted >= start) & (wanted < end)] - start
            if len(inside):
                for row in file.read_row_group(group, columns=SCHEMA.names).take(pa.array(inside)).to_pylist():
                    by_key[row["key"]] = _checked(row)
            start = end
    columns = path.with_suffix(".columns.parquet")
    exposure: dict[str, int] = {}
    with damage_told(columns):
        if columns.exists() and EXPOSURE in pq.read_schema(columns).names:
            table = pq.read_table(columns, columns=["key", EXPOSURE])
            exposure = {k: json.loads(v) for k, v in zip(*(c.to_pylist() for c in table.columns), strict=True)}
            if not all(value is None or isinstance(value, int) for value in exposure.values()):
                raise ValueError("its exposure is no number")
    rows = [by_key[ranks.keys[i]] for i in order]
    for row in rows:
        row[EXPOSURE] = exposure.get(row["key"])
        for side in SIDES:
            for name in ("neighbors", "distances"):
                row[f"{side}_{name}"] = row[f"{side}_{name}"][:k]
    return rows


def _checked(row: Row) -> Row:
    """The row; raises ValueError where it cannot be shown."""
    if gaps := [name for name, value in row.items() if value is None or (isinstance(value, list) and None in value)]:
        raise ValueError(f"{gaps[0]} of {row['key']} has a gap")
    numbers = [row[f"{side}_{name}"] for side in SIDES for name in ("hits", "precision", "recall")]
    if not all(map(math.isfinite, (*numbers, *(d for side in SIDES for d in row[f"{side}_distances"])))):
        raise ValueError(f"the figures of {row['key']} are not all numbers")
    return row


def named_in(caption: str, labels: Sequence[str]) -> list[str]:
    """Those of ``labels`` that the caption names: their words in a row, a plural s aside. For the eye; no figure uses it."""
    words = [_stem(w) for w in re.findall(r"[^\W_]+", caption.casefold())]
    text = f" {' '.join(words)} "
    found = []
    for label in labels:
        wanted = " ".join(_stem(w) for w in re.findall(r"[^\W_]+", label.casefold()))
        if wanted and f" {wanted} " in text:
            found.append(label)
    return found


def _stem(word: str) -> str:
    if word.endswith(("ses", "xes", "ches", "shes")) and len(word) > 4:
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def write_cards(
    folder: Path,
    rows: Sequence[Row],
    total: int,
    public: Objects | None,
    images: Images,
    redact: bool,
) -> None:
    """Write index.js, text.js and the chunks into ``folder``.

    Args:
        rows: of ``read_rows``; total: how many records they were chosen from.
        public: the public images' objects, or None where they are not at hand.
        images: of the rows and of their neighbors.
        redact: leave out captions, images, objects and neighbors; keys and numbers stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        set()
        if redact
        else {o for r in rows for o in (*r["objects"], *(p for s in SIDES for p in r[f"{s}_predicted"]))}
    )
    if public is not None and not redact:
        shown = {n for r in rows for s in SIDES for n in r[f"{s}_neighbors"]}
        names |= {label for key in shown if key in public.rows for label in public.names(public.rows[key])}
    labels = sorted(names)
    code = {label: number for number, label in enumerate(labels)}
    index: dict[str, Any] = {"count": len(rows), "total": total, "chunk": CHUNK, "redacted": redact, "labels": labels}
    index["boxes"] = not redact and bool(images.own_boxes or images.public_boxes)
    index["key"] = [row["key"] for row in rows] if redact else None
    index["distance"] = [round(row["target_distances"][0], 4) for row in rows]
    index |= {side: [row[f"{side}_hits"] for row in rows] for side in SIDES}
    index["objects"] = [[] if redact else [code[o] for o in row["objects"]] for row in rows]
    write_script(folder / "index.js", "index", index)
    if not redact:
        write_script(folder / "text.js", "text", [[row["key"], row["caption"]] for row in rows])
    for number, start in enumerate(range(0, len(rows), CHUNK)):
        part = rows[start : start + CHUNK]
        name = f"cards-{number:04d}"
        chunk = {"cards": [_numbers(r) for r in part], "pictures": []} if redact else _chunk(part, code, public, images)
        write_script(folder / f"{name}.js", name, chunk)


def _numbers(row: Row) -> Row:
    sides = {
        side: {"hits": row[f"{side}_hits"]} | {n: round(row[f"{side}_{n}"], 4) for n in ("precision", "recall")}
        for side in SIDES
    }
    return {"key": row["key"], "exposure": row[EXPOSURE], **sides}


def _chunk(
    rows: Sequence[Row],
    code: Mapping[str, int],
    public: Objects | None,
    images: Images,
) -> Row:
    keys = sorted({n for row in rows for s in SIDES for n in row[f"{s}_neighbors"]})
    place = {key: number for number, key in enumerate(keys)}
    codes: Callable[[Sequence[str]], list[int]] = lambda found: [code[o] for o in found]  # noqa: E731
    cards = []
    for row in rows:
        card = _numbers(row)
        card |= {"caption": row["caption"], "picture": images.own.get(row["key"]), "objects": codes(row["objects"])}
        shown = sorted({*row["objects"], *(p for s in SIDES for p in row[f"{s}_predicted"])})
        card["boxes"] = _boxes(images.own_boxes.get(row["key"]), code)
        card["named"] = codes(named_in(row["caption"], shown))
        for side in SIDES:
            card[side] |= {
                "predicted": codes(row[f"{side}_predicted"]),
                "near": [place[n] for n in row[f"{side}_neighbors"]],
                "distances": [round(d, 4) for d in row[f"{side}_distances"]],
            }
        cards.append(card)
    table = [
        [
            key,
            images.public.get(key),
            None if public is None or key not in public.rows else codes(public.names(public.rows[key])),
            _boxes(images.public_boxes.get(key), code),
        ]
        for key in keys
    ]
    return {"cards": cards, "pictures": table}


def _boxes(found: Boxes | None, code: Mapping[str, int]) -> list[Any] | None:
    """[width, height, [object, x, y, width, height], …] of one image in whole pixels; None where there are none."""
    if found is None:
        return None
    places = [[code[label], *map(round, place)] for label, *place in found.found if label in code]
    return [found.width, found.height, *places] if places else None


def write_script(path: Path, name: str, value: Any) -> None:
    """``dejavu(name, value)`` in pure ASCII, so that no text can end the script or be read in another encoding."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    path.write_text(f'dejavu("{name}",{text})\n', encoding="ascii")
