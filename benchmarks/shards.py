"""Shards of given pairs, for the benchmarks and the tests; ``dejavu prepare`` writes them from a source."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from dejavu_lit.data.manifest import SIZES
from dejavu_lit.data.shards import Pair, ShardSet, write_shard
from dejavu_lit.utils.io import write_json


def write_shards(folder: Path | str, pairs: Iterable[Pair], pairs_per_shard: int = 1000) -> ShardSet:
    """Write pairs into numbered shards with their ``sizes.json``, and open them."""
    folder, sizes, remaining, number = Path(folder), {}, iter(pairs), 0
    while block := list(islice(remaining, pairs_per_shard)):
        with write_shard(folder / f"{number:05d}.tar") as write:
            for pair in block:
                write(pair)
        sizes[f"{number:05d}.tar"] = len(block)
        number += 1
    write_json(folder / SIZES, sizes)
    return ShardSet.open(folder)
