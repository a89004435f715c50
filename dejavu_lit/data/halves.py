"""Random halves: the pool A ∪ B is dealt anew to the two sides, for the error by design of a study; no data is written.

Half 0 is the prepared split. In half j groups of near-duplicates stay together; in the order of hash(data.seed, j, smallest key)
they go to A and to B alternately until both have their prepared size. A group that fits into neither is left out.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from dejavu_lit.data.manifest import MANIFEST, duplicate_groups
from dejavu_lit.data.shards import ShardIndex, ShardSet, index_shard
from dejavu_lit.data.splits import UNUSED, seeded_hash
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json_object

POOL = ("A", "B")  # the sets that are dealt anew

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DealtSet(ShardSet):
    """A side of a half: some pairs of each shard of A and of B; read as if they were shards of their own."""

    paths: tuple[Path, ...] = ()
    """The shards of the pool."""
    positions: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    """The positions of this side's pairs in each of them, ascending."""

    def index(self, shard: int) -> ShardIndex:
        """The index of this side's pairs of one shard."""
        whole, chosen = index_shard(self.paths[shard]), self.positions[shard].tolist()
        if chosen and chosen[-1] >= len(whole):
            raise UserError(f"{whole.path} has fewer pairs than when the halves were dealt; restore the shard")
        return whole.subset(chosen)


def open_half(folder: Path, name: str, seed: int, half: int) -> ShardSet:
    """The set A or B of a half.

    Args:
        folder: a prepared data folder; seed: ``data.seed``.

    Raises:
        UserError: the members of A or B were listed, not drawn, or the manifest has no groups of near-duplicates.
    """
    manifest = folder / MANIFEST
    return _dealt_sets(folder, seed, half, manifest.stat().st_mtime_ns)[name]


@lru_cache(maxsize=4)
def _dealt_sets(folder: Path, seed: int, half: int, _changed: int) -> dict[str, ShardSet]:
    option = f"data.half={half}"
    manifest = folder / MANIFEST
    listed = (read_json_object(manifest).get("settings") or {}).get("keys") or {}
    if given := [name for name in POOL if name in listed]:
        raise UserError(
            f"{option}: the pairs of {given[0]} in {folder} were listed by keys.{given[0]}= of dejavu prepare; membership was "
            "given, not drawn, so it cannot be dealt anew; use halves=1"
        )
    sets = {name: ShardSet.open(folder / name) for name in POOL}
    paths = [(name, sets[name].folder / shard) for name in POOL for shard in sets[name].names]
    keys = [key for name in POOL for key in sets[name].keys()]
    groups = [group for name in POOL for group in duplicate_groups(manifest, name, option)]
    sides = deal(keys, groups, (len(sets["A"]), len(sets["B"])), seed, half)
    if unused := int((sides == UNUSED).sum()):
        log.info(
            "%s leaves out %d of %d pairs, whose groups of duplicates fit into neither side", option, unused, len(keys)
        )
    starts = np.cumsum([0, *(size for name in POOL for size in sets[name].sizes)])
    stems = tuple(f"{name}-{path.name}" for name, path in paths)
    dealt: dict[str, ShardSet] = {}
    for code, name in enumerate(POOL):
        positions = tuple(np.flatnonzero(sides[a:b] == code) for a, b in pairwise(starts))
        sizes = tuple(map(len, positions))
        dealt[name] = DealtSet(folder / name, stems, sizes, tuple(path for _, path in paths), positions)
    return dealt


def deal(
    keys: Sequence[str], groups: Sequence[Sequence[str]], sizes: tuple[int, int], seed: int, half: int
) -> np.ndarray:
    """The side of each pair of the pool, int8 [n]: 0 (A), 1 (B) or UNUSED.

    Args:
        keys: of the pool, in any order; groups: of near-duplicates, by their keys; sizes: pairs of A and of B.
        seed, half: of the deal.
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
    order = np.argsort(seeded_hash(first_keys, seed, f"half {half}"), kind="stable")
    sides, free = np.full(len(keys), UNUSED, np.int8), list(sizes)
    for turn, unit in enumerate(order.tolist()):
        rows = units[first_keys[unit]]
        side = turn % 2 if len(rows) <= free[turn % 2] else 1 - turn % 2
        if len(rows) <= free[side]:
            sides[rows] = side
            free[side] -= len(rows)
    return sides


def source_sets(shards: ShardSet, name: str) -> tuple[str, ...]:
    """The prepared sets that the pairs of a training set come from: its own, or both of the pool."""
    return POOL if isinstance(shards, DealtSet) else (name,)
