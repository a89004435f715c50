"""Raw shards, used as img2dataset wrote them: the set of a pair follows from the hash of its key, and nothing is copied.

Only the samples that an evaluation measures and searches are written, as an ordinary prepared folder, in one reading of as
many shards as they take (``write_samples``). Its manifest has, under "raw_shards", what is known of all shards.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit import __version__
from dejavu_lit.data.decode import EMPTY_CAPTION, open_image
from dejavu_lit.data.manifest import MANIFEST, SCHEMA, check_settings
from dejavu_lit.data.readers.base import clean_keys
from dejavu_lit.data.readers.shards import expand_braces, matching_tars
from dejavu_lit.data.remote import is_remote, local_shard
from dejavu_lit.data.shards import SIZES, BadPair, Pair, ShardIndex, index_shard, write_shard
from dejavu_lit.data.splits import SETS, seeded_hash
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, fingerprint, read_json_object, write_json
from dejavu_lit.utils.progress import progress

LEAST_SHARDS = 8  # a sample comes from at least so many shards, or from half of them
COUNTED_SHARDS = 32  # so many local shards are counted, if the samples do not take more
PAIRS_PER_SHARD = 1000  # of the samples
NO_SET = -1


@dataclass(frozen=True)
class RawShards:
    """Shards by path or address, and which of their pairs are in which set."""

    shards: str | Sequence[str]
    """Tars, folders of tars, addresses (s3://…, http://…, 'pipe:COMMAND') and patterns: ``{000..999}``; local also ``*``."""
    fractions: Mapping[str, float]
    """{set: share of the pairs}."""
    seed: int = 0
    """Of the hash."""
    excluded: frozenset[str] = frozenset()
    """Keys that are in no set."""

    def __post_init__(self) -> None:
        shares = dict(self.fractions)
        valid = all(name in SETS and isinstance(f, int | float) and 0 < f <= 1 for name, f in shares.items())
        if not shares or not valid or sum(shares.values()) > 1 + 1e-9:
            raise UserError(
                f"data.fractions={shares} must give shares above 0 to some of {', '.join(SETS)}, together at most 1"
            )

    @cached_property
    def addresses(self) -> list[str]:
        """Every shard's path or address, without repetitions.

        Raises:
            UserError: a pattern that matches nothing, or a shard in braces that does not exist.
        """
        found: list[str] = []
        for pattern in [self.shards] if isinstance(self.shards, str) else self.shards:
            tars = (
                list(expand_braces(pattern)) if is_remote(pattern) else [str(p) for p in matching_tars(Path(pattern))]
            )
            if not tars:
                raise UserError(f"data.shards={pattern} has no shards; give tars, a folder of tars, or a pattern")
            found += tars
        return list(dict.fromkeys(found))

    def sets(self, keys: Sequence[str]) -> np.ndarray:
        """The set of each key, int8 [n], an index into SETS or NO_SET."""
        names = [name for name in SETS if name in self.fractions]
        codes = np.array([*(SETS.index(name) for name in names), NO_SET], dtype=np.int8)
        edges = np.cumsum([self.fractions[name] for name in names])
        found = codes[np.searchsorted(edges, seeded_hash(keys, self.seed, "raw") / 2.0**64, side="right")]
        if self.excluded:
            found[[key in self.excluded for key in keys]] = NO_SET
        return found

    def read(self, address: str, name: str) -> Iterator[tuple[str, Pair | BadPair]]:
        """(key, pair) of the pairs of one shard that are in the set ``name``."""
        index = index_shard(local_shard(address))
        positions = np.flatnonzero(self.sets(index.keys) == SETS.index(name)).tolist()
        yield from zip((index.keys[p] for p in positions), index.pairs(positions), strict=True)


def write_samples(raw: RawShards, sizes: Mapping[str, float | None], out: Path) -> None:
    """Write ``sizes`` pairs of each set into the prepared folder ``out``, unless they are there.

    The shards are read in a seeded order until the samples are complete; no shard gives more than its LEAST_SHARDS-th part
    of a sample. A pair that does not decode, or has no caption, is skipped and counted.

    Raises:
        UserError: a size that is not a whole number, fewer pairs than asked for, or another sample in ``out``.
    """
    wanted = _checked_sizes(raw, sizes)
    settings = {
        "shards": fingerprint(raw.addresses),
        "fractions": dict(raw.fractions),
        "sizes": wanted,
        "seed": raw.seed,
        "exclude": fingerprint(sorted(raw.excluded)) if raw.excluded else None,
    }
    if (out / MANIFEST).is_file():
        check_settings(out, settings, read_json_object(out / MANIFEST, SCHEMA).get("settings", {}))
        return
    order = random.Random(f"{raw.seed}/samples").sample(raw.addresses, len(raw.addresses))
    samples = _Samples(out, wanted, min(LEAST_SHARDS, len(order) // 2))
    counts: Counter[str] = Counter()  # of all pairs of each set in the shards that were opened
    opened = 0
    with progress(None, "drawing samples", total=sum(wanted.values()), unit="pair") as bar:
        for address in order:
            if samples.complete and (opened >= COUNTED_SHARDS or is_remote(address)):
                break
            opened += 1
            index = index_shard(local_shard(address))
            member = raw.sets(index.keys)
            counts.update({name: int((member == SETS.index(name)).sum()) for name in raw.fractions})
            bar.update(0 if samples.complete else samples.take(index, member))
    samples.finish()
    pairs = {name: round(counts[name] * len(order) / opened) for name in raw.fractions}
    write_json(
        out / MANIFEST,
        {
            "schema": SCHEMA,
            "version": __version__,
            "settings": settings,
            "sets": samples.describe(),
            "skipped": {reason: {"count": count} for reason, count in samples.skipped.items()},
            "raw_shards": {"shards": len(order), "opened": opened, "pairs": pairs, "counted": opened == len(order)},
        },
    )


def _checked_sizes(raw: RawShards, sizes: Mapping[str, float | None]) -> dict[str, int]:
    checked: dict[str, int] = {}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1 or name not in raw.fractions:
            raise UserError(
                f"data.sizes.{name}={size} must be a number of pairs of one of the sets of data.fractions: "
                f"{', '.join(raw.fractions)}"
            )
        checked[name] = size
    return checked


class _Samples:
    """The samples while they are drawn; full blocks are written at once, so few pairs are held."""

    def __init__(self, out: Path, sizes: Mapping[str, int], shards: int) -> None:
        self.out, self.sizes = out, sizes
        self.quota = {name: -(-size // max(shards, 1)) for name, size in sizes.items()}  # pairs from one shard
        self.taken = dict.fromkeys(sizes, 0)
        self.skipped: Counter[str] = Counter()
        self._held: dict[str, list[Pair]] = {name: [] for name in sizes}
        self._shards: dict[str, dict[str, int]] = {name: {} for name in sizes}
        self._keys: set[str] = set()

    @property
    def complete(self) -> bool:
        return all(self.taken[name] == size for name, size in self.sizes.items())

    def take(self, index: ShardIndex, member: np.ndarray) -> int:
        """Take pairs from one shard; returns how many."""
        room = {name: min(self.quota[name], size - self.taken[name]) for name, size in self.sizes.items()}
        before = sum(self.taken.values())
        wanted = [code for code in map(SETS.index, self.sizes) if room[SETS[code]]]
        positions = np.flatnonzero(np.isin(member, wanted)).tolist()
        for position, pair in zip(positions, index.pairs(positions), strict=True):
            name = SETS[member[position]]
            if room[name] and self._is_usable(pair):
                assert isinstance(pair, Pair)
                self._add(name, pair)
                room[name] -= 1
            if not any(room.values()):
                break
        return sum(self.taken.values()) - before

    def _is_usable(self, pair: Pair | BadPair) -> bool:
        try:
            if isinstance(pair, BadPair):
                raise pair
            if not pair.caption:
                raise BadPair(EMPTY_CAPTION)
            with open_image(pair.image) as image:
                image.load()
        except BadPair as reason:
            self.skipped[str(reason)] += 1
            return False
        return True

    def _add(self, name: str, pair: Pair) -> None:
        key = clean_keys([pair.key])[0]
        if key in self._keys:
            raise UserError(f"the key {key!r} occurs twice in data.shards; make keys unique over all shards")
        self._keys.add(key)
        self._held[name].append(Pair(key, pair.image, pair.extension, pair.caption, pair.meta))
        self.taken[name] += 1
        if len(self._held[name]) == PAIRS_PER_SHARD:
            self._write(name)

    def _write(self, name: str) -> None:
        tar = f"{len(self._shards[name]):05d}.tar"
        with write_shard(self.out / name / tar) as write:
            for pair in self._held[name]:
                write(pair)
        self._shards[name][tar] = len(self._held[name])
        self._held[name] = []

    def finish(self) -> None:
        """Write what is held; raises UserError if a sample is smaller than asked for."""
        for name, size in self.sizes.items():
            if self.taken[name] < size:
                raise UserError(
                    f"data.sizes.{name}={size}, but data.shards has only {self.taken[name]} usable pairs of {name}; ask for "
                    f"fewer, raise data.fractions.{name}, or give more shards"
                )
            if self._held[name]:
                self._write(name)
            write_json(self.out / name / SIZES, self._shards[name])

    def describe(self) -> dict[str, Any]:
        """The manifest's entries of the sets."""
        return {
            name: {
                "pairs": self.taken[name],
                "shards": len(tars),
                "objects": None,
                "fingerprint": fingerprint([file_sha256(self.out / name / tar) for tar in tars]),
            }
            for name, tars in self._shards.items()
        }
