"""Duplicates in prepared data, within the sets and across them, and a list of keys that ``data.exclude`` honours.

Three kinds: exact (the same bytes), hash (perceptual hashes that differ in few bits, ``data/duplicates.py``), semantic
(embeddings of a model with a large cosine, ``measure/duplicates.py``). Groups are the connected components of all three
together. ``dejavu dedup`` is the command, docs/duplicates.md says how much each kind finds.
"""

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from dejavu_lit.data.decode import opened
from dejavu_lit.data.near_duplicates import exact_groups, flatten, join, near_links
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.duplicates.hashing import hash_sets
from dejavu_lit.evaluation.audited_model import Side
from dejavu_lit.objects.contact_sheet import sheet
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, read_object, write_json, write_text

SCHEMA = 1  # of report.json
REPORT, PAIRS, COUNTS, LIST, EXAMPLES = "report.json", "duplicates.parquet", "counts.csv", "exclude.txt", "examples.png"
RULE = "of each group the images in the first of its sets stay"
RULE_WITHIN = "of each group one image stays: the one of smallest key in the first of its sets"
SHOWN = 12  # pairs of each kind on the sheet
THUMBNAIL = 112  # pixels
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kinds:
    """What counts as a duplicate, beside the same bytes."""

    distance: int | None  # largest number of different bits of the perceptual hashes; None: they are not compared
    encoder: str | None  # the model whose embeddings are compared; None: none are
    similarity: float  # smallest cosine
    device: str = "cpu"
    workers: int = 2


@dataclass(frozen=True)
class Images:
    """The images that are compared, in one long row: keys [n], and the number of each one's set, int8 [n]."""

    sets: tuple[str, ...]
    keys: list[str]
    member: np.ndarray


@dataclass(frozen=True)
class Kind:
    """One kind's groups (int64 [n], the first row of each row's group) and the pairs that connect them, with distances."""

    name: str
    groups: np.ndarray
    links: np.ndarray
    distances: np.ndarray


def dedup(
    out: Path, sets: Mapping[str, ShardSet], kinds: Kinds, within: bool = False, excluded: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Search ``sets`` for duplicates, and write the pairs, the counts, a sheet of examples and the list of keys into ``out``.

    Args:
        out: owned by the caller; the same again goes on where it was.
        sets: {name: shards}; where duplicates lie in several sets, they stay in the one that is named first.
        within: also leave out duplicates within a set, so that one image of each group stays.
        excluded: keys left out already, which are not compared and stand in the list, too.

    Returns:
        The contents of report.json.

    Raises:
        UserError: a key in two sets or with a line break, or a model that can't be had or embeds no images.
    """
    if (out / REPORT).is_file():
        log.info("%s is finished; nothing to do", out)
        return read_object(out / REPORT, SCHEMA)
    keys = [key for shards in sets.values() for key in shards.keys()]
    if len(set(keys)) != len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise UserError(
            f"the key {twice!r} is in two of the sets {', '.join(sets)}; name sets without common keys by sets="
        )
    if broken := [key for key in keys if "\n" in key or key.endswith("\r")]:
        raise UserError(f"the key {broken[0]!r} holds a line break, so no list of keys can name it; rename the pair")
    member = np.repeat(np.arange(len(sets), dtype=np.int8), [len(shards) for shards in sets.values()])
    found = hash_sets(sets, out / "hashes", kinds.distance is not None, kinds.workers)
    used = np.array([row for row in np.flatnonzero(found.usable).tolist() if keys[row] not in excluded], np.int64)
    images = Images(tuple(sets), [keys[row] for row in used.tolist()], member[used])
    unusable = {name: int((~found.usable[member == code]).sum()) for code, name in enumerate(sets)}

    exact = exact_groups(found.digests[used])
    copies = np.flatnonzero(exact != np.arange(len(exact)))
    made = [Kind("exact", exact, np.stack([exact[copies], copies], axis=1), np.zeros(len(copies)))]
    about: dict[str, Any] = {"exact": {}}
    if kinds.distance is not None:
        hashes = found.hashes[used]
        groups, links = near_links(exact, hashes, found.hashed[used], kinds.distance)
        bits = [(one ^ other).bit_count() for one, other in hashes[links].tolist()]
        made.append(Kind("hash", groups, links, np.array(bits, dtype=np.float64)))
        about["hash"] = {"distance": kinds.distance, "without_hash": int((~found.hashed[used]).sum())}
    if kinds.encoder is not None:
        kind, about["semantic"] = _semantic(out, sets, kinds, images)
        made.append(kind)
    together = np.arange(len(exact))
    for kind in made:
        join(together, np.arange(len(exact)), kind.groups)
    together = flatten(together)
    left_out = excluded | set(leave_out(images, together, within))

    counts = {kind.name: shared(images, kind.groups) for kind in made} | {"any": shared(images, together)}
    report = {
        "schema": SCHEMA,
        "sets": {
            name: {
                "pictures": int((images.member == code).sum()),
                "unusable": unusable[name],
                "left_out": sum(key in left_out for key in shards.keys()),
            }
            for code, (name, shards) in enumerate(sets.items())
        },
        "kinds": {kind.name: about[kind.name] | sizes(kind.groups) for kind in made} | {"any": sizes(together)},
        "shared": counts,
        "exclude": {"file": LIST, "keys": len(left_out), "rule": RULE_WITHIN if within else RULE},
    }
    _write_pairs(out / PAIRS, images, together, made)
    _write_counts(out / COUNTS, counts)
    if tiles := _examples(sets, images, made):
        with atomic(out / EXAMPLES) as part:
            sheet(tiles, 4).save(part, "PNG")
    write_text(out / LIST, "".join(f"{key}\n" for key in sorted(left_out)))
    write_json(out / REPORT, report)
    return report


def leave_out(images: Images, groups: np.ndarray, within: bool) -> list[str]:
    """The keys to leave out so that no group lies in two sets, and with ``within`` that each has one image."""
    rows = _of_several(groups)
    first = np.full(len(groups), len(images.sets), dtype=np.int8)  # by root: the first set that the group has part in
    np.minimum.at(first, groups[rows], images.member[rows])
    elsewhere = images.member[rows] > first[groups[rows]]
    gone = [images.keys[row] for row in rows[elsewhere].tolist()]
    if within:
        smallest: dict[int, str] = {}
        for row in sorted(rows[~elsewhere].tolist(), key=images.keys.__getitem__):
            if smallest.setdefault(int(groups[row]), images.keys[row]) != images.keys[row]:
                gone.append(images.keys[row])
    return gone


def shared(images: Images, groups: np.ndarray) -> dict[str, dict[str, int]]:
    """{set: {other set: how many images of the set have a duplicate in the other one}}, the set itself included."""
    rows = _of_several(groups)
    roots, place = np.unique(groups[rows], return_inverse=True)
    table = np.zeros((len(roots), len(images.sets)), dtype=np.int64)
    np.add.at(table, (place, images.member[rows]), 1)
    return {
        one: {other: int(table[table[:, b] > (a == b), a].sum()) for b, other in enumerate(images.sets)}
        for a, one in enumerate(images.sets)
    }


def sizes(groups: np.ndarray) -> dict[str, int]:
    """How many groups of at least two images there are, the images in them, and the largest."""
    counts = np.bincount(groups, minlength=1)
    several = counts[counts > 1]
    return {"groups": len(several), "pictures": int(several.sum()), "largest": int(several.max(initial=0))}


def _of_several(groups: np.ndarray) -> np.ndarray:
    """The rows whose groups have at least two images."""
    return np.flatnonzero(np.bincount(groups, minlength=1)[groups] > 1) if len(groups) else np.zeros(0, np.int64)


def _semantic(out: Path, sets: Mapping[str, ShardSet], kinds: Kinds, images: Images) -> tuple[Kind, dict[str, Any]]:
    from dejavu_lit.duplicates.semantic import semantic_groups

    side = Side(str(kinds.encoder), out / "embeddings", kinds.device, kinds.workers)
    if side.captions_only:
        raise UserError(f"encoder={kinds.encoder} embeds captions only; give a model that embeds images")
    embedded = {name: side.embeddings(shards, name, "image") for name, shards in sets.items()}
    rows, parts = [], []
    for code, name in enumerate(images.sets):
        here = [
            row for row in np.flatnonzero(images.member == code).tolist() if images.keys[row] in embedded[name].rows
        ]
        rows += here
        parts.append(embedded[name].load([images.keys[row] for row in here]))
    found = semantic_groups(np.concatenate(parts), kinds.similarity)
    place = np.array(rows, dtype=np.int64)
    groups = np.arange(len(images.keys))
    groups[place] = place[found.groups]
    about = {"encoder": kinds.encoder, "similarity": kinds.similarity, "cells": found.cells, "recall": found.recall}
    about["recall_of"] = "all pairs, by proof" if found.checked is None else f"{found.checked} pairs of a sample"
    return Kind("semantic", groups, place[found.links], 1 - found.cosines), about


def _write_pairs(path: Path, images: Images, together: np.ndarray, made: Sequence[Kind]) -> None:
    """One row a pair that connects a group: a group of n images has n − 1 of each kind that holds it together."""
    links = np.concatenate([kind.links for kind in made])
    names = pa.array(images.sets, pa.string())
    columns: dict[str, Any] = {"group": pa.array([images.keys[row] for row in together[links[:, 0]].tolist()])}
    for side, rows in (("a", links[:, 0]), ("b", links[:, 1])):
        columns[f"key_{side}"] = pa.array([images.keys[row] for row in rows.tolist()], pa.string())
        columns[f"set_{side}"] = pa.DictionaryArray.from_arrays(pa.array(images.member[rows]), names)
    columns["kind"] = pa.array([kind.name for kind in made for _ in kind.links], pa.string())
    columns["distance"] = pa.array(np.concatenate([kind.distances for kind in made]), pa.float64())
    with atomic(path) as part:
        pq.write_table(pa.table(columns), part)


def _write_counts(path: Path, counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("kind", "set", "with", "pictures"))
    writer.writerows((k, a, b, n) for k, of in counts.items() for a, row in of.items() for b, n in row.items())
    write_text(path, text.getvalue())


def _examples(sets: Mapping[str, ShardSet], images: Images, made: Sequence[Kind]) -> list[Image.Image]:
    """The least alike pairs of each kind, those across sets before those within one."""
    shards = list(sets.values())
    wanted = []
    for kind in made:
        across = images.member[kind.links[:, 0]] != images.member[kind.links[:, 1]]
        for link in np.lexsort((-kind.distances, ~across))[:SHOWN].tolist():
            wanted.append((kind, *kind.links[link].tolist(), float(kind.distances[link])))
    rows = {row for _, one, other, _ in wanted for row in (one, other)}
    looked = {images.keys[row] for row in rows}
    thumbnails: dict[str, Image.Image] = {}
    for code, each in enumerate(shards):
        here = {images.keys[row] for row in rows if images.member[row] == code}
        if not here:
            continue
        for shard in range(len(each.names)):
            index = each.index(shard)
            for position in [p for p, key in enumerate(index.keys) if key in here & looked]:
                with opened(index.read(position).image) as image:
                    thumbnails[index.keys[position]] = _thumbnail(image)
    font = ImageFont.load_default(11)
    tiles = []
    for kind, one, other, distance in wanted:
        tile = Image.new("RGB", (2 * THUMBNAIL + 4, THUMBNAIL + 15), "white")
        for place, row in enumerate((one, other)):
            tile.paste(thumbnails[images.keys[row]], (place * (THUMBNAIL + 4), 0))
        measured = {"exact": "", "hash": f" {distance:.0f} bits", "semantic": f" {1 - distance:.4f}"}[kind.name]
        where = " and ".join(images.sets[images.member[row]] for row in (one, other))
        ImageDraw.Draw(tile).text((1, THUMBNAIL + 1), f"{kind.name}{measured}, {where}", fill="black", font=font)
        tiles.append(tile)
    return tiles


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    scale = THUMBNAIL / max(small.size)
    size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
    page = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    page.paste(small.resize(size))
    return page
