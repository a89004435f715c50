"""Exact and perceptual hashes of the images of prepared sets, saved in one part per shard so that hashing can resume."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dejavu_lit.data.near_duplicates import HASH, content_digest
from dejavu_lit.data.readers.base import file_state
from dejavu_lit.data.scan import decode_and_hash, read_arrays
from dejavu_lit.data.shards import BadPair, ShardSet, index_shard
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, fingerprint
from dejavu_lit.utils.parallel import map_unordered
from dejavu_lit.utils.progress import progress

ARRAYS = ("digests", "hashes", "hashed", "usable")  # in the order of the fields of ImageHashes


@dataclass(frozen=True)
class ImageHashes:
    """The hashes of the images of several sets, one row per image, in the order of the sets and their shards."""

    digests: np.ndarray
    """uint64 [n, 2]: digest of the bytes."""
    hashes: np.ndarray
    """uint64 [n]: perceptual hash, valid where ``hashed``."""
    hashed: np.ndarray
    """bool [n]: whether the image has a perceptual hash."""
    usable: np.ndarray
    """bool [n]: whether the image can be decoded."""

    def select(self, rows: np.ndarray) -> "ImageHashes":
        """The hashes of some rows."""
        return ImageHashes(*(getattr(self, name)[rows] for name in ARRAYS))


@dataclass(frozen=True)
class _Layout:
    """The files of the parts."""

    folder: Path
    perceptual: bool

    def part(self, name: str, shard: Path) -> Path:
        return self.folder / name / f"{shard.stem}.npz"

    def identity(self, shard: Path) -> str:
        """Fingerprint of what a part depends on: the state of its tar, and which hashes are computed."""
        return fingerprint([file_state(shard), HASH if self.perceptual else None])


def hash_sets(sets: Mapping[str, ShardSet], folder: Path, perceptual: bool, workers: int) -> ImageHashes:
    """Hash every image of ``sets``, with parts in ``folder``; complete parts of unchanged shards are reused.

    Args:
        sets: {name: shards}; perceptual: whether to compute perceptual hashes, too; workers: number of processes.
    """
    layout = _Layout(folder, perceptual)
    jobs = [(name, shards.folder / shard) for name, shards in sets.items() for shard in shards.names]
    sizes = {
        (name, shards.folder / shard): size
        for name, shards in sets.items()
        for shard, size in zip(shards.names, shards.sizes, strict=True)
    }
    missing = [job for job in jobs if not _is_complete(layout, *job)]
    with progress(None, "hashing images", total=sum(sizes.values()), unit="image") as bar:
        bar.update(sum(sizes.values()) - sum(sizes[job] for job in missing))
        for done in map_unordered(_hash_shard, layout, missing, workers):
            bar.update(done)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    for job in jobs:
        content = read_arrays(layout.part(*job), ARRAYS)
        if content is None:
            raise UserError(f"{layout.part(*job)} cannot be read; run the same command again")
        for name in ARRAYS:
            parts[name].append(content[name])
    return ImageHashes(*(np.concatenate(parts[name]) for name in ARRAYS))


def _is_complete(layout: _Layout, name: str, shard: Path) -> bool:
    """Whether the part exists and belongs to the current state of the shard."""
    content = read_arrays(layout.part(name, shard), (*ARRAYS, "of"))
    return content is not None and str(content["of"]) == layout.identity(shard)


def _hash_shard(layout: _Layout, job: tuple[str, Path]) -> int:
    """Hash one shard and save its part; returns the number of its images."""
    name, shard = job
    index, identity = index_shard(shard), layout.identity(shard)
    digests = np.zeros((len(index), 2), dtype=np.uint64)
    hashes = np.zeros(len(index), dtype=np.uint64)
    hashed, usable = np.zeros((2, len(index)), dtype=bool)
    for row, pair in enumerate(index.pairs()):
        try:
            if isinstance(pair, BadPair):
                continue
            value = decode_and_hash(pair.image, layout.perceptual)
        except BadPair:
            continue
        digests[row], usable[row] = content_digest(pair.image), True
        if value is not None:
            hashes[row], hashed[row] = value, True
    with atomic(layout.part(name, shard)) as path, open(path, "wb") as file:
        np.savez(file, digests=digests, hashes=hashes, hashed=hashed, usable=usable, of=np.array(identity))
    return len(index)
