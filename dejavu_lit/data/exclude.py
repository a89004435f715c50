"""Pairs that are left out: of everything by ``data.exclude`` (a file of keys), of training alone by ``mitigation.dedup``."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from dejavu_lit.data.epoch import Positions, nested_sizes
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint, read_object

GROUPS = "groups"  # in the manifest's "duplicates": {set: [[key, …], …]}, each group sorted
log = logging.getLogger(__name__)


def read_keys(path: Path | str, option: str) -> list[str]:
    """The keys in a text file, one a line, each once; raises UserError naming the option where it can't be read.

    Only line feeds (and a carriage return before them) end a line: other people's keys may hold whatever else.
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}={path} cannot be read ({error}); give a text file with one key a line") from None
    keys = list(dict.fromkeys(line.removesuffix("\r") for line in lines if line.strip()))
    if odd := [key for key in keys if key != key.strip()]:
        log.warning("%d keys in %s have white space around them, which is part of the key: %r", len(odd), path, odd[0])
    return keys


def keys_fingerprint(keys: Collection[str]) -> str:
    """The same for the same keys in any order."""
    return fingerprint(sorted(set(keys)))


def positions_of(shards: ShardSet, keys: Collection[str]) -> dict[int, tuple[int, ...]]:
    """{shard: positions} of those of ``keys`` that are in the set; no shard is opened where there are no keys."""
    if not keys:
        return {}
    wanted = keys if isinstance(keys, set | frozenset) else set(keys)
    found = {
        shard: tuple(p for p, key in enumerate(shards.index(shard).keys) if key in wanted)
        for shard in range(len(shards.names))
    }
    return {shard: positions for shard, positions in found.items() if positions}


def tell_unknown(option: str, keys: Collection[str], folders: Sequence[Path]) -> None:
    """Warn where some of ``keys`` are in none of the sets in ``folders``: a misspelt key leaves nothing out."""
    unknown = set(keys)
    for folder in folders:
        if not unknown:
            return
        shards = ShardSet.open(folder)
        for shard in range(len(shards.names)):
            unknown.difference_update(shards.index(shard).keys)
    if unknown:
        which = (len(unknown), len(keys), option, min(unknown))
        log.warning("%d of %d keys in %s are in no set of the data, the first is %r", *which)


def count(positions: Positions) -> int:
    """How many pairs these are."""
    return sum(map(len, positions.values()))


def prefix(shards: ShardSet, limit: int | None, excluded: Collection[str]) -> tuple[list[str], int]:
    """The first ``limit`` keys of a set (all by default) that are not excluded, and how many of its pairs they span.

    Raises:
        UserError: fewer pairs than ``limit``.
    """
    reach = sum(nested_sizes(shards.sizes, limit, positions_of(shards, excluded)))
    return [key for key in shards.keys(reach) if key not in excluded], reach


def later_duplicates(
    manifest: Path, name: str, shards: ShardSet, train_size: int | None, excluded: Positions
) -> dict[int, tuple[int, ...]]:
    """{shard: positions} of the pairs that ``mitigation.dedup`` removes from training.

    Of each group of near-duplicates in the manifest, the pair with the smallest key stays, among those that are trained
    on (not excluded, within the training size).

    Args:
        manifest: the data's manifest.json; name: the set, "A" or "B"; shards: the set itself.

    Raises:
        UserError: the manifest lists no groups.
    """
    duplicates = read_object(manifest).get("duplicates")
    groups = duplicates.get(GROUPS) if isinstance(duplicates, dict) else None
    if groups is None:
        raise UserError(
            f"mitigation.dedup=true needs the groups of near-duplicates, which {manifest} does not list: prepare the data "
            "again into another data.dir=, or use data.exclude= with a list by dejavu dedup within=true"
        )
    mine = groups.get(name, []) if isinstance(groups, dict) else None
    if not isinstance(mine, list) or not all(isinstance(g, list) and all(isinstance(k, str) for k in g) for g in mine):
        raise UserError(f"the groups of duplicates in {manifest} are damaged; prepare the data again")
    used = nested_sizes(shards.sizes, train_size, excluded)
    found = positions_of(shards, {key for group in mine for key in group})
    gone = {
        shard: frozenset(positions) for shard, positions in excluded.items()
    }  # a long tuple would be searched each time
    place = {
        shards.index(shard).keys[position]: (shard, position)
        for shard, positions in found.items()
        for position in positions
        if position < used[shard] and position not in gone.get(shard, ())
    }
    removed: dict[int, list[int]] = {}
    for group in mine:
        for key in _there(group, place)[1:]:
            shard, position = place[key]
            removed.setdefault(shard, []).append(position)
    return {shard: tuple(sorted(positions)) for shard, positions in removed.items()}


def _there(group: Sequence[str], place: Collection[str]) -> list[str]:
    return [key for key in sorted(group) if key in place]
