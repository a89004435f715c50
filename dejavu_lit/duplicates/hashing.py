"""The images of prepared sets hashed, exactly and perceptually, in parts of one shard each, so that it can go on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dejavu_lit.data.near_duplicates import HASH, content_digest
from dejavu_lit.data.readers.base import file_state
from dejavu_lit.data.scan import look, read_arrays
from dejavu_lit.data.shards import BadPair, ShardSet, index_shard
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, fingerprint
from dejavu_lit.utils.parallel import spread
from dejavu_lit.utils.progress import progress

ARRAYS = ("digests", "hashes", "hashed", "usable")


@dataclass(frozen=True)
class Hashed:
    """The images of several sets in one long row, in the order of the sets and their shards.

    digests uint64 [n, 2], of the bytes; hashes uint64 [n], perceptual, where ``hashed`` bool [n]; usable bool [n]: whether
    the image can be decoded.
    """

    digests: np.ndarray
    hashes: np.ndarray
    hashed: np.ndarray
    usable: np.ndarray


@dataclass(frozen=True)
class _Layout:
    folder: Path
    perceptual: bool

    def part(self, name: str, shard: Path) -> Path:
        return self.folder / name / f"{shard.stem}.npz"

    def identity(self, shard: Path) -> str:
        """What a part depends on: the state of its tar, and which hashes are wanted."""
        return fingerprint([file_state(shard), HASH if self.perceptual else None])


def hash_sets(sets: Mapping[str, ShardSet], folder: Path, perceptual: bool, workers: int) -> Hashed:
    """Hash every image of ``sets``, with parts in ``folder``; whole parts of unchanged shards are read back.

    Args:
        sets: {name: shards}; perceptual: whether images get a perceptual hash, too; workers: processes.
    """
    layout = _Layout(folder, perceptual)
    jobs = [(name, shards.folder / shard) for name, shards in sets.items() for shard in shards.names]
    sizes = {
        (name, shards.folder / s): n
        for name, shards in sets.items()
        for s, n in zip(shards.names, shards.sizes, strict=True)
    }
    missing = [job for job in jobs if not _whole(layout, *job)]
    with progress(None, "hashing images", total=sum(sizes.values()), unit="image") as bar:
        bar.update(sum(sizes.values()) - sum(sizes[job] for job in missing))
        for done in spread(_hash_shard, layout, missing, workers):
            bar.update(done)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    for job in jobs:
        content = read_arrays(layout.part(*job), ARRAYS)
        if content is None:
            raise UserError(f"{layout.part(*job)} was damaged while it was read; start the same command again")
        for name in ARRAYS:
            parts[name].append(content[name])
    return Hashed(*(np.concatenate(parts[name]) for name in ARRAYS))


def _whole(layout: _Layout, name: str, shard: Path) -> bool:
    """Whether the part is there and of this shard as it is now."""
    content = read_arrays(layout.part(name, shard), (*ARRAYS, "of"))
    return content is not None and str(content["of"]) == layout.identity(shard)


def _hash_shard(layout: _Layout, job: tuple[str, Path]) -> int:
    name, shard = job
    index, of = index_shard(shard), layout.identity(shard)
    digests = np.zeros((len(index), 2), dtype=np.uint64)
    hashes = np.zeros(len(index), dtype=np.uint64)
    hashed, usable = np.zeros((2, len(index)), dtype=bool)
    for row in range(len(index)):
        try:
            image = index.read(row).image
            value = look(image, layout.perceptual)
        except BadPair:
            continue
        digests[row], usable[row] = content_digest(image), True
        if value is not None:
            hashes[row], hashed[row] = value, True
    with atomic(layout.part(name, shard)) as path, open(path, "wb") as file:
        np.savez(file, digests=digests, hashes=hashes, hashed=hashed, usable=usable, of=np.array(of))
    return len(index)
