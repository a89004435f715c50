"""The shards, sizes.json and object parts of sets whose pairs and order are given, written in parallel."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dejavu_lit.data.manifest import SIZES
from dejavu_lit.data.near_duplicates import content_digest
from dejavu_lit.data.objects import Annotation, write_objects
from dejavu_lit.data.readers.base import Reader
from dejavu_lit.data.scan import Scan
from dejavu_lit.data.shard_index import images_fingerprint, index_shard, read_index
from dejavu_lit.data.shards import BadPair, write_shard
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, fingerprint, write_json
from dejavu_lit.utils.parallel import map_unordered
from dejavu_lit.utils.progress import progress


@dataclass(frozen=True)
class PairSet:
    """A set to write: the rows of its pairs in the source's scan, int64 [n], in the order of writing."""

    name: str
    reader: Reader
    scan: Scan
    rows: np.ndarray


def write_sets(out: Path, sets: Sequence[PairSet], pairs_per_shard: int, workers: int) -> dict[str, str]:
    """Write ``out/SET/NNNNN.tar``, ``out/objects/NAME/SET/NNNNN.parquet`` and ``out/SET/sizes.json``.

    Existing shards with the right keys are kept; an interrupted call with another split has left others. Raises UserError for
    a pair that can no longer be read, or whose image changed since the scan.

    Returns:
        {set: fingerprint of the contents of its shards}.
    """
    fingerprints = {}
    for pairs in sets:
        starts = range(0, len(pairs.rows), pairs_per_shard)
        shards = {f"{n:05d}": pairs.rows[start : start + pairs_per_shard] for n, start in enumerate(starts)}
        hashes: dict[str, str] = {}
        with progress(None, f"writing {pairs.name}", total=len(pairs.rows), unit="pair") as bar:
            for name, sha256 in map_unordered(_write_shard, (out, pairs), shards.items(), workers):
                hashes[name] = sha256
                bar.update(len(shards[name]))
        for path in (*out.glob(f"{pairs.name}/[0-9]*.tar"), *out.glob(f"objects/*/{pairs.name}/[0-9]*.parquet")):
            if path.stem not in shards:
                path.unlink()
        if not shards:  # every command that takes the sets that are there would refuse a folder without shards
            shutil.rmtree(out / pairs.name, ignore_errors=True)
            continue
        write_json(out / pairs.name / SIZES, {f"{name}.tar": len(rows) for name, rows in shards.items()})
        fingerprints[pairs.name] = fingerprint([hashes[name] for name in shards])
    index_shard.cache_clear()  # of shards that were written again
    return fingerprints


def _write_shard(place: tuple[Path, PairSet], shard: tuple[str, np.ndarray]) -> tuple[str, str]:
    """Write a shard, given by its name and rows, if it is missing or has other pairs; returns its name and SHA-256."""
    (out, pairs), (name, rows) = place, shard
    annotator, tar = pairs.reader.annotator, out / pairs.name / f"{name}.tar"
    objects = out / "objects" / annotator.name / pairs.name / f"{name}.parquet" if annotator else None
    exists = tar.exists() and (objects is None or objects.exists())
    if not exists or read_index(tar).keys != tuple(pairs.scan.keys[row] for row in rows.tolist()):
        _write_pairs(pairs, rows, tar, objects)
    return name, file_sha256(tar)


def _write_pairs(pairs: PairSet, rows: np.ndarray, tar: Path, objects: Path | None) -> None:
    annotations: list[Annotation] = []
    images: list[tuple[str, int]] = []
    with write_shard(tar) as write:
        for row in rows.tolist():
            key = pairs.scan.keys[row]
            try:
                pair, annotation = pairs.reader.read(key)
                if not np.array_equal(content_digest(pair.image), pairs.scan.images.digests[row]):
                    raise BadPair("another image")
            except BadPair as change:
                raise UserError(
                    f"the pair {key} changed while its set was prepared ({change}); remove {tar.parents[1]} and start over"
                ) from None
            write(pair)
            images.append((key, len(pair.image)))
            annotations.append(annotation or Annotation(key, [], [], []))
        # Before the tar gets its name, so that a tar exists only with its objects.
        if objects is not None and pairs.reader.annotator is not None:
            write_objects(objects, annotations, pairs.reader.annotator, images_fingerprint(images))
