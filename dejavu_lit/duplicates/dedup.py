"""Duplicates within and across prepared sets, and a list of keys for ``data.exclude``.

There are three kinds: exact (the same bytes), hash (perceptual hashes that differ in few bits, ``data/near_duplicates.py``) and
semantic (embeddings with a large cosine, ``duplicates/semantic.py``). Groups are the connected components of all three
together. The command is ``dejavu dedup``; docs/duplicates.md reports how many duplicates each kind finds.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dejavu_lit.data.manifest import MANIFEST
from dejavu_lit.data.near_duplicates import exact_groups, join, near_groups
from dejavu_lit.data.scan import ImageHashes, hash_sets
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.duplicates.examples import DuplicateKind, Images, write_examples
from dejavu_lit.duplicates.semantic import semantic_groups
from dejavu_lit.duplicates.settings import DuplicateCriteria
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, file_sha256, fingerprint, read_json_object, write_csv, write_json, write_text

SCHEMA = 1  # of report.json
REPORT, PAIRS, COUNTS, LIST, EXAMPLES = "report.json", "duplicates.parquet", "counts.csv", "exclude.txt", "examples.png"
RULE = "in each group, the images of the first of its sets are kept"
RULE_WITHIN = "in each group, one image is kept: the one with the smallest key in the first of its sets"
CHAIN = 10  # images, the smallest group that is suspected of being a chain of images that merely look alike
log = logging.getLogger(__name__)


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

    Raises UserError if a key is in two sets or contains a line break, the model cannot be loaded or embeds no images,
    or a set has changed since ``out`` was finished.
    """
    data = {name: _state(shards) for name, shards in sets.items()}
    if (finished := _finished_report(out, data, force)) is not None:
        return finished
    keys = _keys(sets)
    images, hashes, unusable = _hashed_images(sets, keys, out / "hashes", criteria, excluded)
    if broken := ", ".join(f"{count} of {name}" for name, count in unusable.items() if count):
        log.warning("images that do not decode are not compared: %s", broken)
    kinds = _kinds(out, sets, criteria, images, hashes)
    groups = np.arange(len(images.keys))
    for kind in kinds:
        join(groups, np.arange(len(groups)), kind.groups)
    exclude = excluded | set(keys_to_exclude(images, groups, within))
    listed = force or not _is_chained(images, groups, kinds[0].groups)
    counts = {kind.name: shared_counts(images, kind.groups) for kind in kinds} | {"any": shared_counts(images, groups)}
    report = {
        "schema": SCHEMA,
        "data": data,
        "sets": {
            name: {
                "pictures": int((images.set_numbers == number).sum()),
                "unusable": unusable[name],
                "left_out": sum(key in exclude for key in keys[name]),
            }
            for number, name in enumerate(sets)
        },
        "kinds": {kind.name: kind.details | group_sizes(kind.groups) for kind in kinds} | {"any": group_sizes(groups)},
        "shared": counts,
        "exclude": {"file": LIST if listed else None, "keys": len(exclude), "rule": RULE_WITHIN if within else RULE},
    }
    _write_pairs(out / PAIRS, images, groups, kinds)
    rows = ((kind, a, b, n) for kind, table in counts.items() for a, row in table.items() for b, n in row.items())
    write_csv(out / COUNTS, [dict(zip(("kind", "set", "with", "pictures"), row, strict=True)) for row in rows])
    write_examples(out / EXAMPLES, sets, images, kinds)
    (out / LIST).unlink(missing_ok=True)  # of a killed call with other settings
    if listed:
        write_text(out / LIST, "".join(f"{key}\n" for key in sorted(exclude)))
    write_json(out / REPORT, report)
    return report


def _finished_report(out: Path, data: Mapping[str, str], force: bool) -> dict[str, Any] | None:
    """report.json of an earlier call that has done all that is asked, else None; raises UserError if a set has changed since."""
    if not (out / REPORT).is_file():
        return None
    report = read_json_object(out / REPORT, SCHEMA)
    if changed := sorted(name for name, state in report.get("data", {}).items() if data.get(name) != state):
        raise UserError(f"{changed[0]} has changed since {out} was written; choose another out= or remove it")
    if force and not report["exclude"]["file"]:
        return None
    log.info("%s is finished; nothing to do", out)
    return report


def _is_chained(images: Images, groups: np.ndarray, exact: np.ndarray) -> bool:
    """Whether the largest group has more than half of a set, with a warning if so.

    Images of the same bytes (the groups ``exact``) count once: many copies of one image are no chain.
    """
    largest = groups == np.bincount(groups[np.unique(exact)], minlength=1).argmax()
    for number, name in enumerate(images.sets):
        members = images.set_numbers == number
        count, total = (len(np.unique(exact[rows])) for rows in (largest & members, members))
        if count >= CHAIN and 2 * count > total:
            log.warning(
                "one group has %d of the %d different images of %s: they are linked by similarity, not copies of each other, so "
                "no %s was written; look at %s, then raise similarity= or lower distance= with another out=, or pass force=true",
                *(count, total, name, LIST, EXAMPLES),
            )
            return True
    return False


def keys_to_exclude(images: Images, groups: np.ndarray, within: bool) -> list[str]:
    """The keys to exclude so that no group (int64 [n]) spans two sets and, with ``within``, so that each has one image."""
    rows = _duplicated(groups)
    keys = [images.keys[row] for row in rows.tolist()]
    first_set: dict[int, int] = {}  # {group: the first of its sets, which keeps its images}
    exclude = []
    for number, key, group in sorted(zip(images.set_numbers[rows].tolist(), keys, groups[rows].tolist(), strict=True)):
        if group not in first_set:
            first_set[group] = number
        elif within or number != first_set[group]:
            exclude.append(key)
    return exclude


def shared_counts(images: Images, groups: np.ndarray) -> dict[str, dict[str, int]]:
    """{set: {second set: number of the set's images with a duplicate in the second set}}; both may be the same set.

    ``groups``: the group of each image, int64 [n].
    """
    rows = _duplicated(groups)
    roots, group_of_row = np.unique(groups[rows], return_inverse=True)
    table = np.zeros((len(roots), len(images.sets)), dtype=np.int64)
    np.add.at(table, (group_of_row, images.set_numbers[rows]), 1)
    return {
        name: {second: int(table[table[:, b] > (a == b), a].sum()) for b, second in enumerate(images.sets)}
        for a, name in enumerate(images.sets)
    }


def group_sizes(groups: np.ndarray) -> dict[str, int]:
    """The number of groups [n] with at least two images, of the images in them, and the size of the largest."""
    counts = np.bincount(groups, minlength=1)
    several = counts[counts > 1]
    return {"groups": len(several), "pictures": int(several.sum()), "largest": int(several.max(initial=0))}


def _duplicated(groups: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.bincount(groups, minlength=1)[groups] > 1)


def _state(shards: ShardSet) -> str:
    """By which a set is known to be the same: the SHA-256 of its data's manifest, or the shards' sizes and times."""
    if (manifest := shards.folder.parent / MANIFEST).is_file():
        return file_sha256(manifest)
    states = [(shards.folder / name).stat() for name in shards.names]
    return fingerprint([shards.names, [(state.st_size, state.st_mtime_ns) for state in states]])


def _keys(sets: Mapping[str, ShardSet]) -> dict[str, list[str]]:
    """{set: its keys}; raises UserError for one that occurs twice or contains a line break."""
    keys_by_set = {name: shards.keys() for name, shards in sets.items()}
    keys = list(chain.from_iterable(keys_by_set.values()))
    if len(set(keys)) != len(keys):
        repeated = Counter(keys).most_common(1)[0][0]
        raise UserError(
            f"the key {repeated!r} occurs twice in the sets {', '.join(sets)}; name sets without common keys in sets="
        )
    if broken := [key for key in keys if "\n" in key or key.endswith("\r")]:  # its lines would name other pairs
        raise UserError(f"the key {broken[0]!r} contains a line break and cannot be in a list of keys; rename the pair")
    return keys_by_set


def _hashed_images(
    sets: Mapping[str, ShardSet],
    keys_by_set: Mapping[str, Sequence[str]],
    folder: Path,
    criteria: DuplicateCriteria,
    excluded: frozenset[str],
) -> tuple[Images, ImageHashes, dict[str, int]]:
    """The images that can be decoded and are not excluded, their hashes, and {set: images that cannot be decoded}."""
    keys = list(chain.from_iterable(keys_by_set.values()))
    set_numbers = np.repeat(np.arange(len(sets), dtype=np.int8), [len(shards) for shards in sets.values()])
    hashes = hash_sets(sets, folder, criteria.workers)
    rows = np.array([row for row in np.flatnonzero(hashes.usable).tolist() if keys[row] not in excluded], np.int64)
    images = Images(tuple(sets), [keys[row] for row in rows.tolist()], set_numbers[rows])
    unusable = {name: int((~hashes.usable[set_numbers == number]).sum()) for number, name in enumerate(sets)}
    return images, hashes[rows].view(ImageHashes), unusable


def _kinds(
    out: Path, sets: Mapping[str, ShardSet], criteria: DuplicateCriteria, images: Images, hashes: ImageHashes
) -> list[DuplicateKind]:
    exact = exact_groups(hashes.digests)
    copies = np.flatnonzero(exact != np.arange(len(exact)))
    kinds = [DuplicateKind("exact", exact, np.stack([exact[copies], copies], axis=1), np.zeros(len(copies)))]
    if criteria.distance is not None:
        groups, links = near_groups(exact, hashes.hashes, hashes.hashed, criteria.distance)
        bits = np.bitwise_count(hashes.hashes[links[:, 0]] ^ hashes.hashes[links[:, 1]]).astype(np.float64)
        details = {"distance": criteria.distance, "without_hash": int((~hashes.hashed).sum())}
        kinds.append(DuplicateKind("hash", groups, links, bits, details))
    if criteria.encoder is not None:
        kinds.append(_semantic(out, sets, criteria, images))
    return kinds


def _semantic(out: Path, sets: Mapping[str, ShardSet], criteria: DuplicateCriteria, images: Images) -> DuplicateKind:
    # Not in a run, which has embeddings of its own data.
    model = AuditedModel(
        str(criteria.encoder), out / "embeddings", criteria.device, criteria.workers, keep_in_run=False
    )
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
        "recall_of": "all pairs" if result.checked is None else f"{result.checked} pairs of a sample",
    }
    return DuplicateKind("semantic", groups, row_of[result.links], 1 - result.cosines, details)


def _write_pairs(path: Path, images: Images, groups: np.ndarray, kinds: Sequence[DuplicateKind]) -> None:
    """Write one row per pair that connects a group: a group of n images has n − 1 pairs of each kind that connects it."""
    links = np.concatenate([kind.links for kind in kinds])
    keys, names = pa.array(images.keys, pa.string()), pa.array(images.sets, pa.string())
    columns: dict[str, Any] = {"group": keys.take(pa.array(groups[links[:, 0]]))}
    for side, rows in (("a", links[:, 0]), ("b", links[:, 1])):
        columns[f"key_{side}"] = keys.take(pa.array(rows))
        columns[f"set_{side}"] = pa.DictionaryArray.from_arrays(pa.array(images.set_numbers[rows]), names)
    columns["kind"] = pa.array([kind.name for kind in kinds for _ in kind.links], pa.string())
    columns["distance"] = pa.array(np.concatenate([kind.distances for kind in kinds]), pa.float64())
    with atomic(path) as part:
        pq.write_table(pa.table(columns), part)
