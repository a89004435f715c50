"""The shards, sizes.json and object parts of sets whose pairs and order are given, written in parallel."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dejavu_lit.data.near_duplicates import content_digest
from dejavu_lit.data.objects import Annotation, write_objects
from dejavu_lit.data.readers.base import Reader
from dejavu_lit.data.scan import Scan
from dejavu_lit.data.shards import SIZES, BadPair, write_shard
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
class _Layout:
    out: Path
    sets: Sequence[PairSet]
    pairs_per_shard: int

    def shards(self, pairs: PairSet) -> list[np.ndarray]:
        """The rows of each shard."""
        return [
            pairs.rows[start : start + self.pairs_per_shard]
            for start in range(0, len(pairs.rows), self.pairs_per_shard)
        ]

    def tar(self, pairs: PairSet, shard: int) -> Path:
        return self.out / pairs.name / f"{shard:05d}.tar"

    def objects(self, pairs: PairSet, shard: int) -> Path | None:
        annotator = pairs.reader.annotator
        return self.out / "objects" / annotator.name / pairs.name / f"{shard:05d}.parquet" if annotator else None

    def is_complete(self, pairs: PairSet, shard: int) -> bool:
        objects = self.objects(pairs, shard)
        return self.tar(pairs, shard).exists() and (objects is None or objects.exists())


def write_sets(out: Path, sets: Sequence[PairSet], pairs_per_shard: int, workers: int) -> dict[str, str]:
    """Write ``out/SET/NNNNN.tar``, ``out/objects/NAME/SET/NNNNN.parquet`` and ``out/SET/sizes.json``.

    Existing shards are kept.

    Returns:
        {set: fingerprint of the contents of its shards}.

    Raises:
        UserError: a pair can no longer be read, or its image changed since the scan.
    """
    layout = _Layout(out, sets, pairs_per_shard)
    shards = [(number, shard) for number, pairs in enumerate(sets) for shard in range(len(layout.shards(pairs)))]
    hashes: dict[tuple[int, int], str] = {}
    with progress(None, "writing shards", total=sum(len(pairs.rows) for pairs in sets), unit="pair") as bar:
        for job, sha256 in map_unordered(_write_shard, layout, shards, workers):
            hashes[job] = sha256
            bar.update(len(layout.shards(sets[job[0]])[job[1]]))
    for pairs in sets:
        sizes = {layout.tar(pairs, shard).name: len(rows) for shard, rows in enumerate(layout.shards(pairs))}
        write_json(out / pairs.name / SIZES, sizes)
    return {
        pairs.name: fingerprint([hashes[job] for job in shards if job[0] == number])
        for number, pairs in enumerate(sets)
    }


def _write_shard(layout: _Layout, job: tuple[int, int]) -> tuple[tuple[int, int], str]:
    """Write a shard if it is missing; returns ``job`` and the SHA-256 of the shard."""
    pairs, shard = layout.sets[job[0]], job[1]
    if not layout.is_complete(pairs, shard):
        _write_pairs(layout, pairs, shard)
    return job, file_sha256(layout.tar(pairs, shard))


def _write_pairs(layout: _Layout, pairs: PairSet, shard: int) -> None:
    rows = layout.shards(pairs)[shard]
    objects: list[Annotation] = []
    with write_shard(layout.tar(pairs, shard)) as write:
        for row in rows.tolist():
            key = pairs.scan.keys[row]
            try:
                pair, annotation = pairs.reader.read(key)
            except BadPair as reason:
                raise _changed(key, layout.out, str(reason)) from None
            if not np.array_equal(content_digest(pair.image), pairs.scan.digests[row]):
                raise _changed(key, layout.out, "another image")
            write(pair)
            objects.append(annotation or Annotation(key, [], [], []))
        # Before the tar gets its name, so that a tar exists only with its objects.
        path = layout.objects(pairs, shard)
        if path is not None and pairs.reader.annotator is not None:
            write_objects(path, objects, pairs.reader.annotator)


def _changed(key: str, out: Path, change: str) -> UserError:
    return UserError(f"the pair {key} changed while its set was prepared ({change}); remove {out} and start over")
