"""Random halves: the pool A ∪ B is dealt again to the two sides, for the error by design of a study; no data is written.

Half 0 is the prepared split. In half j groups of near-duplicates stay together; in the order of hash(data.seed, j, smallest key)
they go to A and to B alternately until both have their prepared size. A group that fits into neither is left out. With a
training size the pool is what half 0 trains on, the first pairs of A and of B, so all halves of a size have the same pairs.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from dejavu_lit.data.key_lists import spanned_keys
from dejavu_lit.data.manifest import MANIFEST, duplicate_groups, listed_members
from dejavu_lit.data.shards import ShardIndex, ShardSet, index_shard
from dejavu_lit.data.splits import UNUSED, hash_order
from dejavu_lit.utils.errors import UserError

POOL = ("A", "B")  # the sets that are dealt again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DealtSet(ShardSet):
    """A side of a half: some pairs of each shard of A and of B; read as if they were shards of their own."""

    paths: tuple[Path, ...] = ()  # the shards of the pool
    positions: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)  # in each of them, ascending

    def index(self, shard: int) -> ShardIndex:
        whole, chosen = index_shard(self.paths[shard]), self.positions[shard].tolist()
        if chosen and chosen[-1] >= len(whole):
            raise UserError(f"{whole.path} has fewer pairs than when the halves were dealt; restore the shard")
        return whole.subset(chosen)


def open_half(
    folder: Path, name: str, seed: int, half: int, train_size: int | None = None, excluded: frozenset[str] = frozenset()
) -> ShardSet:
    """The pairs that a half deals to A or to B and that are trained on: ``train_size`` (None: all), without excluded keys.

    Raises UserError if the members of A or B were listed, not drawn, or the manifest has no groups of near-duplicates.
    """
    manifest = folder / MANIFEST
    return _dealt_sets(folder, seed, half, train_size, excluded, manifest.stat().st_mtime_ns)[name]


def open_pool(folder: Path) -> DealtSet:
    """All pairs of A and of B of a prepared data folder as one set, of which a half's A and B are parts."""
    sets = [(name, ShardSet.open(folder / name)) for name in POOL]
    shards = [
        (f"{name}-{tar}", folder / name / tar, np.arange(size))
        for name, opened in sets
        for tar, size in zip(opened.names, opened.sizes, strict=True)
    ]
    return _dealt_set(folder / POOL[0], shards)


@lru_cache(maxsize=4)
def _dealt_sets(
    folder: Path, seed: int, half: int, train_size: int | None, excluded: frozenset[str], _changed: int
) -> dict[str, ShardSet]:
    option = f"data.half={half}"
    manifest = folder / MANIFEST
    if given := [name for name in listed_members(manifest) if name in POOL]:
        raise UserError(
            f"{option}: the pairs of {given[0]} in {folder} were listed by keys.{given[0]}= of dejavu prepare; membership was "
            "given, not drawn, so it cannot be dealt again; use halves=1"
        )
    sets = {name: ShardSet.open(folder / name) for name in POOL}
    spans = {name: spanned_keys(shards, train_size, excluded) for name, shards in sets.items()}
    members = {name: [key for key in keys if key not in excluded] for name, keys in spans.items()}
    keys = [key for name in POOL for key in members[name]]
    groups = [group for name in POOL for group in duplicate_groups(manifest, name, option)]
    sides = deal(keys, groups, (len(members["A"]), len(members["B"])), seed, half)
    if unused := int((sides == UNUSED).sum()):
        log.info("%s leaves out %d of %d pairs, whose groups of duplicates fit neither side", option, unused, len(keys))
    side_of = dict(zip(keys, sides.tolist(), strict=True))
    dealt: dict[str, list[tuple[str, Path, np.ndarray]]] = {name: [] for name in POOL}
    # Shards of A and of B in turn, so that the first pairs of a side come from both.
    for shard, source in sorted((shard, name) for name in POOL for shard in range(len(sets[name].names))):
        shards = sets[source]
        start, end = shards.starts[shard : shard + 2]
        codes = np.array([side_of.get(key, UNUSED) for key in spans[source][start:end]])
        for code, name in enumerate(POOL):
            if len(positions := np.flatnonzero(codes == code)):
                dealt[name].append((f"{source}-{shards.names[shard]}", shards.paths[shard], positions))
    return {name: _dealt_set(folder / name, shards) for name, shards in dealt.items()}


def _dealt_set(folder: Path, shards: Sequence[tuple[str, Path, np.ndarray]]) -> DealtSet:
    stems, paths, positions = zip(*shards, strict=True) if shards else ((), (), ())
    return DealtSet(folder, stems, tuple(map(len, positions)), paths, positions)


def deal(
    keys: Sequence[str], groups: Sequence[Sequence[str]], sizes: tuple[int, int], seed: int, half: int
) -> np.ndarray:
    """The side of each pair of the pool, int8 [n]: 0 (A), 1 (B) or UNUSED.

    Args:
        keys: of the pool, in any order; groups: of near-duplicates, by their keys; sizes: pairs of A and of B.
    """
    row_of = {key: row for row, key in enumerate(keys)}
    units: dict[str, list[int]] = {}
    grouped: set[str] = set()
    for group in groups:
        if members := sorted(key for key in group if key in row_of):
            units[members[0]] = [row_of[key] for key in members]
            grouped.update(members)
    units |= {key: [row] for key, row in row_of.items() if key not in grouped}
    first_keys = sorted(units)
    order = hash_order(first_keys, seed, f"half {half}")
    sides, free = np.full(len(keys), UNUSED, np.int8), list(sizes)
    for turn, unit in enumerate(order.tolist()):
        rows = units[first_keys[unit]]
        side = turn % 2 if len(rows) <= free[turn % 2] else 1 - turn % 2
        if len(rows) <= free[side]:
            sides[rows] = side
            free[side] -= len(rows)
    return sides
