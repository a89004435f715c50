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


@dataclass(frozen=True)
class _Shard:
    """One shard: the number of its set, its rows in the source's scan, and its files."""

    number: int
    rows: np.ndarray
    tar: Path
    objects: Path | None


def write_sets(out: Path, sets: Sequence[PairSet], pairs_per_shard: int, workers: int) -> dict[str, str]:
    """Write ``out/SET/NNNNN.tar``, ``out/objects/NAME/SET/NNNNN.parquet`` and ``out/SET/sizes.json``.

    Existing shards with the right keys are kept; an interrupted call with another split has left others. Raises UserError for
    a pair that can no longer be read, or whose image changed since the scan.

    Returns:
        {set: fingerprint of the contents of its shards}.
    """
    shards: list[_Shard] = []
    for number, pairs in enumerate(sets):
        annotator = pairs.reader.annotator
        for start in range(0, len(pairs.rows), pairs_per_shard):
            name = f"{start // pairs_per_shard:05d}"
            objects = out / "objects" / annotator.name / pairs.name / f"{name}.parquet" if annotator else None
            rows = pairs.rows[start : start + pairs_per_shard]
            shards.append(_Shard(number, rows, out / pairs.name / f"{name}.tar", objects))
    hashes: dict[Path, str] = {}
    with progress(None, "writing shards", total=sum(len(shard.rows) for shard in shards), unit="pair") as bar:
        for shard, sha256 in map_unordered(_write_shard, sets, shards, workers):
            hashes[shard.tar] = sha256
            bar.update(len(shard.rows))
    fingerprints = {}
    index_shard.cache_clear()  # of shards that were written again
    planned = {path for shard in shards for path in (shard.tar, shard.objects)}
    for number, pairs in enumerate(sets):
        for path in (*out.glob(f"{pairs.name}/[0-9]*.tar"), *out.glob(f"objects/*/{pairs.name}/[0-9]*.parquet")):
            if path not in planned:
                path.unlink()
        own = [shard for shard in shards if shard.number == number]
        if not own:  # every command that takes the sets that are there would refuse a folder without shards
            shutil.rmtree(out / pairs.name, ignore_errors=True)
            continue
        write_json(out / pairs.name / SIZES, {shard.tar.name: len(shard.rows) for shard in own})
        fingerprints[pairs.name] = fingerprint([hashes[shard.tar] for shard in own])
    return fingerprints


def _write_shard(sets: Sequence[PairSet], shard: _Shard) -> tuple[_Shard, str]:
    """Write a shard if it is missing or has other pairs; returns it and its SHA-256."""
    pairs = sets[shard.number]
    exists = shard.tar.exists() and (shard.objects is None or shard.objects.exists())
    if not exists or read_index(shard.tar).keys != tuple(pairs.scan.keys[row] for row in shard.rows.tolist()):
        _write_pairs(pairs, shard)
    return shard, file_sha256(shard.tar)


def _write_pairs(pairs: PairSet, shard: _Shard) -> None:
    objects: list[Annotation] = []
    images: list[tuple[str, int]] = []
    with write_shard(shard.tar) as write:
        for row in shard.rows.tolist():
            key = pairs.scan.keys[row]
            try:
                pair, annotation = pairs.reader.read(key)
                if not np.array_equal(content_digest(pair.image), pairs.scan.images.digests[row]):
                    raise BadPair("another image")
            except BadPair as change:
                out = shard.tar.parent.parent
                raise UserError(
                    f"the pair {key} changed while its set was prepared ({change}); remove {out} and start over"
                ) from None
            write(pair)
            images.append((key, len(pair.image)))
            objects.append(annotation or Annotation(key, [], [], []))
        # Before the tar gets its name, so that a tar exists only with its objects.
        if shard.objects is not None and pairs.reader.annotator is not None:
            write_objects(shard.objects, objects, pairs.reader.annotator, images_fingerprint(images))
