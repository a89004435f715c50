"""Duplicates within and across prepared sets, and a list of keys for ``data.exclude``.

There are three kinds: exact (the same bytes), hash (perceptual hashes that differ in few bits, ``data/near_duplicates.py``) and
semantic (embeddings with a large cosine, ``duplicates/semantic.py``). Groups are the connected components of all three
together. The command is ``dejavu dedup``; docs/duplicates.md reports how many duplicates each kind finds.
"""

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from dejavu_lit.data.decode import open_image
from dejavu_lit.data.near_duplicates import exact_groups, flatten, join, near_links
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.duplicates.hashing import ImageHashes, hash_sets
from dejavu_lit.duplicates.semantic import semantic_groups
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.objects.contact_sheet import sheet
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, read_json_object, write_json, write_text

SCHEMA = 1  # of report.json
REPORT, PAIRS, COUNTS, LIST, EXAMPLES = "report.json", "duplicates.parquet", "counts.csv", "exclude.txt", "examples.png"
RULE = "in each group, the images of the first of its sets are kept"
RULE_WITHIN = "in each group, one image is kept: the one with the smallest key in the first of its sets"
CHAIN = 10  # images, the smallest group that is suspected of being a chain of images that merely look alike
EXAMPLES_PER_KIND = 12  # pairs of each kind on the sheet
THUMBNAIL = 112  # pixels
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DuplicateCriteria:
    """What counts as a duplicate, apart from the same bytes."""

    distance: int | None
    """Largest number of bits in which two perceptual hashes may differ; None: no perceptual hashes."""
    encoder: str | None
    """The model whose image embeddings are compared; None: no embeddings."""
    similarity: float
    """Smallest cosine of two embeddings."""
    device: str = "cpu"
    """The device that the encoder runs on."""
    workers: int = 2
    """Processes that hash and load images."""


@dataclass(frozen=True)
class Images:
    """The compared images of all sets, one row per image: keys [n], and the number of its set, int8 [n]."""

    sets: tuple[str, ...]
    keys: list[str]
    set_numbers: np.ndarray


@dataclass(frozen=True)
class DuplicateKind:
    """The duplicates of one kind."""

    name: str
    groups: np.ndarray
    """int64 [n]: the first row of each row's group."""
    links: np.ndarray
    """int64 [m, 2]: the pairs of rows that connect the groups."""
    distances: np.ndarray
    """float64 [m]: the distance of each pair."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Its settings and recall, for report.json."""


def dedup(
    out: Path,
    sets: Mapping[str, ShardSet],
    criteria: DuplicateCriteria,
    within: bool = False,
    excluded: frozenset[str] = frozenset(),
    force: bool = False,
) -> dict[str, Any]:
    """Find the duplicates in ``sets`` and write the pairs, counts, a sheet of examples and the list of keys into ``out``.

    Args:
        out: a folder locked by the caller; the same call resumes.
        sets: {name: shards}; duplicates across sets are kept in the set that is named first.
        within: also exclude duplicates within a set, so that one image of each group is kept.
        excluded: keys that are already excluded: they are not compared and are in the list, too.
        force: write the list even if one group has more than half of a set.

    Returns:
        The contents of report.json; exclude.file is null if no list was written.

    Raises:
        UserError: a key is in two sets or contains a line break, or the model cannot be loaded or embeds no images.
    """
    if (out / REPORT).is_file():
        report = read_json_object(out / REPORT, SCHEMA)
        if report["exclude"]["file"] or not force:
            log.info("%s is finished; nothing to do", out)
            return report
    _check_keys(sets)
    images, hashes, unusable = _hashed_images(sets, out / "hashes", criteria, excluded)
    kinds = [_exact(hashes)]
    if criteria.distance is not None:
        kinds.append(_perceptual(hashes, kinds[0].groups, criteria.distance))
    if criteria.encoder is not None:
        kinds.append(_semantic(out, sets, criteria, images))
    groups = _connected(kinds, len(images.keys))
    exclude = excluded | set(keys_to_exclude(images, groups, within))
    listed = force or not _is_chained(images, groups)
    counts = {kind.name: shared_counts(images, kind.groups) for kind in kinds} | {"any": shared_counts(images, groups)}
    report = {
        "schema": SCHEMA,
        "sets": {
            name: {
                "pictures": int((images.set_numbers == number).sum()),
                "unusable": unusable[name],
                "left_out": sum(key in exclude for key in shards.keys()),
            }
            for number, (name, shards) in enumerate(sets.items())
        },
        "kinds": {kind.name: {**kind.details, **group_sizes(kind.groups)} for kind in kinds}
        | {"any": group_sizes(groups)},
        "shared": counts,
        "exclude": {"file": LIST if listed else None, "keys": len(exclude), "rule": RULE_WITHIN if within else RULE},
    }
    _write_pairs(out / PAIRS, images, groups, kinds)
    _write_counts(out / COUNTS, counts)
    if tiles := _example_tiles(sets, images, kinds):
        with atomic(out / EXAMPLES) as part:
            sheet(tiles, 4).save(part, "PNG")
    if listed:
        write_text(out / LIST, "".join(f"{key}\n" for key in sorted(exclude)))
    write_json(out / REPORT, report)
    return report


def _is_chained(images: Images, groups: np.ndarray) -> bool:
    """Whether the largest group has more than half of a set, with a warning if so."""
    largest = groups == np.bincount(groups, minlength=1).argmax()
    for number, name in enumerate(images.sets):
        members = images.set_numbers == number
        count = int((largest & members).sum())
        if count >= CHAIN and 2 * count > members.sum():
            log.warning(
                "one group has %d of the %d images of %s: they are chained by looking alike, not copies of each other, so no "
                "%s was written; look at %s, then raise similarity= or lower distance= with another out=, or pass force=true",
                *(count, members.sum(), name, LIST, EXAMPLES),
            )
            return True
    return False


def keys_to_exclude(images: Images, groups: np.ndarray, within: bool) -> list[str]:
    """The keys to exclude so that no group spans two sets and, with ``within``, so that each group has one image."""
    rows = _duplicated(groups)
    first = np.full(len(groups), len(images.sets), dtype=np.int8)  # at each group's first row: its first set
    np.minimum.at(first, groups[rows], images.set_numbers[rows])
    elsewhere = images.set_numbers[rows] > first[groups[rows]]
    exclude = [images.keys[row] for row in rows[elsewhere].tolist()]
    if within:
        smallest: dict[int, str] = {}
        for row in sorted(rows[~elsewhere].tolist(), key=images.keys.__getitem__):
            if smallest.setdefault(int(groups[row]), images.keys[row]) != images.keys[row]:
                exclude.append(images.keys[row])
    return exclude


def shared_counts(images: Images, groups: np.ndarray) -> dict[str, dict[str, int]]:
    """{set: {second set: number of the set's images with a duplicate in the second set}}; both may be the same set."""
    rows = _duplicated(groups)
    roots, group_of_row = np.unique(groups[rows], return_inverse=True)
    table = np.zeros((len(roots), len(images.sets)), dtype=np.int64)
    np.add.at(table, (group_of_row, images.set_numbers[rows]), 1)
    return {
        name: {second: int(table[table[:, b] > (a == b), a].sum()) for b, second in enumerate(images.sets)}
        for a, name in enumerate(images.sets)
    }


def group_sizes(groups: np.ndarray) -> dict[str, int]:
    """The number of groups with at least two images, of the images in them, and the size of the largest."""
    counts = np.bincount(groups, minlength=1)
    several = counts[counts > 1]
    return {"groups": len(several), "pictures": int(several.sum()), "largest": int(several.max(initial=0))}


def _duplicated(groups: np.ndarray) -> np.ndarray:
    """The rows whose groups have at least two images."""
    return np.flatnonzero(np.bincount(groups, minlength=1)[groups] > 1) if len(groups) else np.zeros(0, np.int64)


def _check_keys(sets: Mapping[str, ShardSet]) -> None:
    keys = [key for shards in sets.values() for key in shards.keys()]
    if len(set(keys)) != len(keys):
        repeated = Counter(keys).most_common(1)[0][0]
        raise UserError(
            f"the key {repeated!r} is in two of the sets {', '.join(sets)}; name sets without common keys in sets="
        )
    if broken := [key for key in keys if "\n" in key or key.endswith("\r")]:
        raise UserError(f"the key {broken[0]!r} contains a line break and cannot be in a list of keys; rename the pair")


def _hashed_images(
    sets: Mapping[str, ShardSet], folder: Path, criteria: DuplicateCriteria, excluded: frozenset[str]
) -> tuple[Images, ImageHashes, dict[str, int]]:
    """The images that can be decoded and are not excluded, their hashes, and {set: images that cannot be decoded}."""
    keys = [key for shards in sets.values() for key in shards.keys()]
    set_numbers = np.repeat(np.arange(len(sets), dtype=np.int8), [len(shards) for shards in sets.values()])
    hashes = hash_sets(sets, folder, criteria.distance is not None, criteria.workers)
    rows = np.array([row for row in np.flatnonzero(hashes.usable).tolist() if keys[row] not in excluded], np.int64)
    images = Images(tuple(sets), [keys[row] for row in rows.tolist()], set_numbers[rows])
    unusable = {name: int((~hashes.usable[set_numbers == number]).sum()) for number, name in enumerate(sets)}
    return images, hashes.select(rows), unusable


def _exact(hashes: ImageHashes) -> DuplicateKind:
    groups = exact_groups(hashes.digests)
    copies = np.flatnonzero(groups != np.arange(len(groups)))
    return DuplicateKind("exact", groups, np.stack([groups[copies], copies], axis=1), np.zeros(len(copies)))


def _perceptual(hashes: ImageHashes, exact: np.ndarray, distance: int) -> DuplicateKind:
    groups, links = near_links(exact, hashes.hashes, hashes.hashed, distance)
    bits = np.bitwise_count(hashes.hashes[links[:, 0]] ^ hashes.hashes[links[:, 1]])
    details = {"distance": distance, "without_hash": int((~hashes.hashed).sum())}
    return DuplicateKind("hash", groups, links, bits.astype(np.float64), details)


def _semantic(out: Path, sets: Mapping[str, ShardSet], criteria: DuplicateCriteria, images: Images) -> DuplicateKind:
    model = AuditedModel(str(criteria.encoder), out / "embeddings", criteria.device, criteria.workers)
    if model.captions_only:
        raise UserError(f"encoder={criteria.encoder} embeds captions only; give a model that embeds images")
    embeddings = {name: model.embeddings(shards, name, "image") for name, shards in sets.items()}
    embedded, parts = [], []
    for number, name in enumerate(images.sets):
        candidates = np.flatnonzero(images.set_numbers == number).tolist()
        rows = [row for row in candidates if images.keys[row] in embeddings[name].rows]
        embedded += rows
        parts.append(embeddings[name].load([images.keys[row] for row in rows]))
    result = semantic_groups(np.concatenate(parts), criteria.similarity)
    row_of = np.array(embedded, dtype=np.int64)  # the row of each embedding in ``images``
    groups = np.arange(len(images.keys))
    groups[row_of] = row_of[result.groups]
    details = {
        "encoder": criteria.encoder,
        "similarity": criteria.similarity,
        "cells": result.cells,
        "recall": result.recall,
        "recall_of": "all pairs, by proof" if result.checked is None else f"{result.checked} pairs of a sample",
    }
    return DuplicateKind("semantic", groups, row_of[result.links], 1 - result.cosines, details)


def _connected(kinds: Sequence[DuplicateKind], count: int) -> np.ndarray:
    """The groups of all kinds together: int64 [count], the first row of each row's group."""
    groups = np.arange(count)
    for kind in kinds:
        join(groups, np.arange(count), kind.groups)
    flat: np.ndarray = flatten(groups)
    return flat


def _write_pairs(path: Path, images: Images, groups: np.ndarray, kinds: Sequence[DuplicateKind]) -> None:
    """Write one row per pair that connects a group: a group of n images has n − 1 pairs of each kind that connects it."""
    links = np.concatenate([kind.links for kind in kinds])
    names = pa.array(images.sets, pa.string())
    columns: dict[str, Any] = {"group": pa.array([images.keys[row] for row in groups[links[:, 0]].tolist()])}
    for side, rows in (("a", links[:, 0]), ("b", links[:, 1])):
        columns[f"key_{side}"] = pa.array([images.keys[row] for row in rows.tolist()], pa.string())
        columns[f"set_{side}"] = pa.DictionaryArray.from_arrays(pa.array(images.set_numbers[rows]), names)
    columns["kind"] = pa.array([kind.name for kind in kinds for _ in kind.links], pa.string())
    columns["distance"] = pa.array(np.concatenate([kind.distances for kind in kinds]), pa.float64())
    with atomic(path) as part:
        pq.write_table(pa.table(columns), part)


def _write_counts(path: Path, counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("kind", "set", "with", "pictures"))
    for kind, table in counts.items():
        writer.writerows((kind, a, b, count) for a, row in table.items() for b, count in row.items())
    write_text(path, text.getvalue())


@dataclass(frozen=True)
class _Example:
    kind: str
    rows: tuple[int, int]
    distance: float


def _example_tiles(sets: Mapping[str, ShardSet], images: Images, kinds: Sequence[DuplicateKind]) -> list[Image.Image]:
    """One tile per example: the least similar pairs of each kind, those across sets before those within one."""
    examples = []
    for kind in kinds:
        across = images.set_numbers[kind.links[:, 0]] != images.set_numbers[kind.links[:, 1]]
        for link in np.lexsort((-kind.distances, ~across))[:EXAMPLES_PER_KIND].tolist():
            a, b = kind.links[link].tolist()
            examples.append(_Example(kind.name, (a, b), float(kind.distances[link])))
    thumbnails = _thumbnails(sets, images, {row for example in examples for row in example.rows})
    font = ImageFont.load_default(11)
    tiles = []
    for example in examples:
        tile = Image.new("RGB", (2 * THUMBNAIL + 4, THUMBNAIL + 15), "white")
        for column, row in enumerate(example.rows):
            tile.paste(thumbnails[images.keys[row]], (column * (THUMBNAIL + 4), 0))
        distance = example.distance
        value = {"exact": "", "hash": f" {distance:.0f} bits", "semantic": f" {1 - distance:.4f}"}[example.kind]
        names = " and ".join(images.sets[images.set_numbers[row]] for row in example.rows)
        ImageDraw.Draw(tile).text((1, THUMBNAIL + 1), f"{example.kind}{value}, {names}", fill="black", font=font)
        tiles.append(tile)
    return tiles


def _thumbnails(sets: Mapping[str, ShardSet], images: Images, rows: set[int]) -> dict[str, Image.Image]:
    """{key: thumbnail} of some images."""
    thumbnails: dict[str, Image.Image] = {}
    for number, shards in enumerate(sets.values()):
        keys = {images.keys[row] for row in rows if images.set_numbers[row] == number}
        if not keys:
            continue
        for shard in range(len(shards.names)):
            index = shards.index(shard)
            for position in [p for p, key in enumerate(index.keys) if key in keys]:
                with open_image(index.read(position).image) as image:
                    thumbnails[index.keys[position]] = _thumbnail(image)
    return thumbnails


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    scale = THUMBNAIL / max(small.size)
    size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
    page = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    page.paste(small.resize(size))
    return page
