"""Sets on disk: the shards, sizes and object parts of sets whose pairs and order are settled, written in parallel."""

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
from dejavu_lit.utils.io import write_json
from dejavu_lit.utils.parallel import spread
from dejavu_lit.utils.progress import progress


@dataclass(frozen=True)
class PairSet:
    """A set to write: the rows of its pairs in the source's scan, int64 [n], in the order of writing."""

    name: str
    reader: Reader
    found: Scan
    rows: np.ndarray


@dataclass(frozen=True)
class _Layout:
    out: Path
    sets: Sequence[PairSet]
    pairs_per_shard: int

    def shards(self, pairs: PairSet) -> list[np.ndarray]:
        """The rows of each shard."""
        return [pairs.rows[at : at + self.pairs_per_shard] for at in range(0, len(pairs.rows), self.pairs_per_shard)]

    def tar(self, pairs: PairSet, shard: int) -> Path:
        return self.out / pairs.name / f"{shard:05d}.tar"

    def objects(self, pairs: PairSet, shard: int) -> Path | None:
        annotator = pairs.reader.annotator
        return self.out / "objects" / annotator.name / pairs.name / f"{shard:05d}.parquet" if annotator else None

    def whole(self, pairs: PairSet, shard: int) -> bool:
        objects = self.objects(pairs, shard)
        return self.tar(pairs, shard).exists() and (objects is None or objects.exists())


def write_sets(out: Path, sets: Sequence[PairSet], pairs_per_shard: int, workers: int) -> None:
    """Write ``out/SET/NNNNN.tar``, ``out/objects/NAME/SET/NNNNN.parquet`` and ``out/SET/sizes.json``.

    Shards that are there already are left as they are.

    Raises:
        UserError: a pair cannot be read any more, or its image is not the one that was scanned.
    """
    layout = _Layout(out, sets, pairs_per_shard)
    shards = [
        (number, shard, len(rows)) for number, each in enumerate(sets) for shard, rows in enumerate(layout.shards(each))
    ]
    missing = [(number, shard) for number, shard, _ in shards if not layout.whole(sets[number], shard)]
    with progress(None, "writing shards", total=sum(size for _, _, size in shards), unit="pair") as bar:
        bar.update(sum(size for number, shard, size in shards if layout.whole(sets[number], shard)))
        for written in spread(_write_shard, layout, missing, workers):
            bar.update(written)
    for each in sets:
        sizes = {layout.tar(each, shard).name: len(rows) for shard, rows in enumerate(layout.shards(each))}
        write_json(out / each.name / SIZES, sizes)


def _write_shard(layout: _Layout, job: tuple[int, int]) -> int:
    pairs, shard = layout.sets[job[0]], job[1]
    rows = layout.shards(pairs)[shard]
    objects: list[Annotation] = []
    with write_shard(layout.tar(pairs, shard)) as write:
        for row in rows.tolist():
            key = pairs.found.keys[row]
            try:
                pair, annotation = pairs.reader.read(key)
            except BadPair as reason:
                raise _changed(key, layout.out, str(reason)) from None
            if not np.array_equal(content_digest(pair.image), pairs.found.digests[row]):
                raise _changed(key, layout.out, "another image")
            write(pair)
            objects.append(annotation or Annotation(key, [], [], []))
        # Before the tar gets its name: a tar is there only when its objects are.
        path = layout.objects(pairs, shard)
        if path is not None and pairs.reader.annotator is not None:
            write_objects(path, objects, pairs.reader.annotator)
    return len(rows)


def _changed(key: str, out: Path, how: str) -> UserError:
    return UserError(f"the pair {key} changed while its set was prepared ({how}); remove {out} and start again")
