"""The most memorized pairs as data for the page: ``data/cards.js`` is one call, ``dejavu({…})``, loaded as a script.

A page opened from disk may not fetch, so the data travel as a script. Labels and public images are listed once, and the cards
refer to them by position.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dejavu_lit.measure.records import EXPOSURE, SCHEMA, SIDES, check_schema, records_file_errors
from dejavu_lit.report.images import ImageObjects, Thumbnail
from dejavu_lit.utils.words import letter_words, singulars

Row = dict[str, Any]


@dataclass(frozen=True)
class CardImages:
    """What cards show of images, by key: thumbnails below thumbs/ and objects, of the audited and the public set."""

    own: Mapping[str, Thumbnail] = field(default_factory=dict)
    public: Mapping[str, Thumbnail] = field(default_factory=dict)
    own_objects: Mapping[str, ImageObjects] = field(default_factory=dict)
    public_objects: Mapping[str, ImageObjects] = field(default_factory=dict)


@dataclass(frozen=True)
class Rankings:
    """What the n records with objects are ranked by.

    keys [n]; columns: {ranking: [n], the most memorized have the smallest value}, the main ranking first;
    memorization: {key: {hits, hits_se, alignment, alignment_se, halves}}, the counterfactual memorization over random halves.
    """

    keys: list[str]
    columns: Mapping[str, np.ndarray]
    memorization: Mapping[str, Mapping[str, Any]]

    def orders(self) -> dict[str, np.ndarray]:
        """{ranking: positions in 0..n-1, most memorized first}; ties keep the record order."""
        return {name: np.argsort(column, kind="stable") for name, column in self.columns.items()}


def read_ranks(path: Path, memorization: Mapping[str, Mapping[str, Any]] | None = None) -> Rankings:
    """Read what ranks the records of a records file; raises UserError if it is not a records file."""
    names = ["key", "target_hits", "target_precision", "reference_hits", "target_distances"]
    with records_file_errors(path):
        check_schema(path, SCHEMA.names)
        table = pq.read_table(path, columns=names)
        with_objects = np.flatnonzero(table["target_precision"].is_valid().to_numpy())
        nearest = pc.list_element(table["target_distances"], 0).to_numpy()[with_objects]
        keys = table["key"].take(pa.array(with_objects)).to_pylist()
        target, reference = (table[f"{side}_hits"].to_numpy()[with_objects] for side in SIDES)
        if not np.isfinite([nearest, target, reference]).all():
            raise ValueError("its distances or hits are not all numbers")
    columns = {"gap": reference - target, "hits": -target, "distance": nearest}
    if memorization:
        hits = [memorization.get(key, {}).get("hits") for key in keys]
        columns = {"memorization": -np.array(hits, np.float64)} | columns
    return Rankings(keys, columns, memorization or {})


def choose_keys(evaluations: Iterable[Rankings], limit: int) -> set[str]:
    """The keys of at most ``limit`` pairs, taken in turn from the top of every ranking of every evaluation."""
    rankings = [[ranks.keys[i] for i in order[:limit]] for ranks in evaluations for order in ranks.orders().values()]
    in_turn = dict.fromkeys(key for key in chain.from_iterable(zip_longest(*rankings)) if key is not None)
    return set(islice(in_turn, limit))


def read_rows(path: Path, ranks: Rankings, chosen: set[str], k: int) -> list[Row]:
    """The chosen records in the order of the main ranking, with ``k`` neighbors, and what is known of exposure and halves."""
    order = next(iter(ranks.orders().values())).tolist()
    keys = [ranks.keys[i] for i in order if ranks.keys[i] in chosen]
    by_key = _read_by_key(path, keys)
    exposure = _read_exposure(path.with_suffix(".columns.parquet"))
    rows = [by_key[key] for key in keys]
    for row in rows:
        row[EXPOSURE] = exposure.get(row["key"])
        row["memorization"] = ranks.memorization.get(row["key"])
        for side in SIDES:
            for name in ("neighbors", "distances"):
                row[f"{side}_{name}"] = row[f"{side}_{name}"][:k]
    return rows


def _read_by_key(path: Path, keys: Sequence[str]) -> dict[str, Row]:
    """{key: row} of the rows with these keys; one row group is in memory at a time."""
    chosen = pa.array(keys, pa.string())
    by_key: dict[str, Row] = {}
    with records_file_errors(path), pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            group = file.read_row_group(number, columns=SCHEMA.names)
            for row in group.filter(pc.is_in(group["key"], value_set=chosen)).to_pylist():
                _check_row(row)
                by_key[row["key"]] = row
    return by_key


def _check_row(row: Row) -> None:
    """Raise ValueError if a value that a card shows is missing or not a number."""
    if gaps := [name for name, value in row.items() if value is None or (isinstance(value, list) and None in value)]:
        raise ValueError(f"{gaps[0]} of {row['key']} has a missing value")
    numbers = [row[f"{side}_{name}"] for side in SIDES for name in ("hits", "precision", "recall")]
    if not np.isfinite([*numbers, *(d for side in SIDES for d in row[f"{side}_distances"])]).all():
        raise ValueError(f"the figures of {row['key']} are not all numbers")


def _read_exposure(path: Path) -> dict[str, int]:
    """{key: exposure}, empty if the optional columns of the records do not include it."""
    exposure: dict[str, int] = {}
    with records_file_errors(path):
        if path.exists() and EXPOSURE in pq.read_schema(path).names:
            table = pq.read_table(path, columns=["key", EXPOSURE])
            keys, values = (column.to_pylist() for column in table.columns)
            exposure = {key: json.loads(value) for key, value in zip(keys, values, strict=True)}
            if not all(value is None or isinstance(value, int) for value in exposure.values()):
                raise ValueError("its exposure is not an integer")
    return exposure


def cards(rows: Sequence[Row], images: CardImages, redact: bool) -> dict[str, Any]:
    """The cards of ``rows`` (from ``read_rows``); redacted ones have keys and numbers alone."""
    data: dict[str, Any] = {"redacted": redact, "boxes": False, "labels": [], "pictures": []}
    if redact:
        return data | {"cards": [_numbers(row) for row in rows]}
    keys = sorted(neighbors(rows))
    shown = [row[name] for row in rows for name in ("objects", *(f"{side}_predicted" for side in SIDES))]
    shown += [images.public_objects[key].labels for key in keys if key in images.public_objects]
    data["labels"] = sorted(set(chain.from_iterable(shown)))
    codes = {label: number for number, label in enumerate(data["labels"])}
    for key in keys:
        thumbnail, objects = images.public.get(key), images.public_objects.get(key)
        labels = None if objects is None else _encode(objects.labels, codes)
        data["pictures"].append([key, thumbnail and thumbnail.name, labels, encode_boxes(thumbnail, objects, codes)])
    positions = {key: number for number, key in enumerate(keys)}
    data["cards"] = [_card(row, codes, positions, images) for row in rows]
    data["boxes"] = any(boxes for *_, boxes in data["pictures"]) or any(card["boxes"] for card in data["cards"])
    return data


def neighbors(rows: Sequence[Row]) -> set[str]:
    """The keys of the public images that the cards of ``rows`` show."""
    return {key for row in rows for side in SIDES for key in row[f"{side}_neighbors"]}


def _card(row: Row, codes: Mapping[str, int], positions: Mapping[str, int], images: CardImages) -> Row:
    """One card; ``positions`` are those of the neighbors in the list of public images."""
    thumbnail = images.own.get(row["key"])
    card = _numbers(row) | {
        "caption": row["caption"],
        "picture": thumbnail and thumbnail.name,
        "objects": _encode(row["objects"], codes),
        "boxes": encode_boxes(thumbnail, images.own_objects.get(row["key"]), codes),
    }
    labels = sorted({*row["objects"], *(label for side in SIDES for label in row[f"{side}_predicted"])})
    card["named"] = _encode(labels_in_caption(row["caption"], labels), codes)
    for side in SIDES:
        card[side] |= {
            "predicted": _encode(row[f"{side}_predicted"], codes),
            "near": [positions[key] for key in row[f"{side}_neighbors"]],
            "distances": [round(d, 4) for d in row[f"{side}_distances"]],
        }
    return card


def _numbers(row: Row) -> Row:
    """The part of a card that a redacted report shows as well."""
    sides = {
        side: {"hits": row[f"{side}_hits"]} | {n: round(row[f"{side}_{n}"], 4) for n in ("precision", "recall")}
        for side in SIDES
    }
    of_halves = {"memorization": row["memorization"]} if row["memorization"] else {}
    distance = round(row["target_distances"][0], 4)
    return {"key": row["key"], "exposure": row[EXPOSURE], "distance": distance, **of_halves, **sides}


def _encode(labels: Iterable[str], codes: Mapping[str, int]) -> list[int]:
    return [codes[label] for label in labels]


def encode_boxes(
    thumbnail: Thumbnail | None, objects: ImageObjects | None, codes: Mapping[str, int]
) -> list[Any] | None:
    """[width, height, [object, x, y, width, height], …] of one image in whole pixels; None without boxes or a thumbnail.

    Boxes of an image with an EXIF rotation may refer to either orientation, so it has none.
    """
    if not thumbnail or not thumbnail.width or not objects:
        return None
    boxes = [[codes[label], *map(round, box)] for label, box in objects.boxes if label in codes]
    return [thumbnail.width, thumbnail.height, *boxes] if boxes else None


def labels_in_caption(caption: str, labels: Sequence[str]) -> list[str]:
    """The labels whose words appear in a row in the caption, in the singular or plural. For display only; no figure uses it."""
    words = _forms(caption)

    def is_named(label: Sequence[frozenset[str]]) -> bool:
        starts = range(len(words) - len(label) + 1) if label else ()
        return any(all(forms & words[start + i] for i, forms in enumerate(label)) for start in starts)

    return [label for label in labels if is_named(_forms(label))]


@lru_cache(maxsize=4096)
def _forms(text: str) -> tuple[frozenset[str], ...]:
    """For each word, itself and the singulars that it may be the plural of."""
    return tuple(frozenset({word, *singulars(word)}) for word in letter_words(text))


def write_script(path: Path, value: Any) -> None:
    """Write ``dejavu(value)`` in pure ASCII, so that no text can end the script or be read in another encoding."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    path.write_text(f"dejavu({text})\n", encoding="ascii")
