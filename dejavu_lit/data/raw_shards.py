"""Raw shards, used as img2dataset wrote them: the set of a pair follows from the hash of its key, and nothing is copied.

Only the samples that an evaluation measures and searches are written, as an ordinary prepared folder, in one reading of as
many shards as they take (``write_samples``). Its manifest has, under "raw_shards", what is known of all shards.
"""

import logging
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dejavu_lit import __version__
from dejavu_lit.data.decode import EMPTY_CAPTION, open_image
from dejavu_lit.data.manifest import MANIFEST, SCHEMA, SIZES, check_settings, refuse_foreign
from dejavu_lit.data.readers.base import clean_keys
from dejavu_lit.data.readers.shards import expand_braces, matching_tars
from dejavu_lit.data.remote import is_remote, local_shard
from dejavu_lit.data.shard_index import read_index
from dejavu_lit.data.shards import BadPair, Pair, ShardIndex, write_shard
from dejavu_lit.data.splits import SETS, UNUSED, count_by_set, seeded_hash
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, fingerprint, read_json_object, warn_unread, write_json
from dejavu_lit.utils.progress import progress

UNFINISHED = ".samples"  # a folder that is there until the samples are complete
LEAST_SHARDS = 8  # a sample comes from at least so many shards, or from half of them
COUNTED_SHARDS = 32  # so many local shards are counted, if the samples do not take more
PAIRS_PER_SHARD = 1000  # of the samples
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawShards:
    """Shards by path or address, and which of their pairs are in which set."""

    shards: str | Sequence[str]  # tars, folders of tars, addresses and patterns: ``{000..999}``; local also ``*``
    fractions: Mapping[str, float]  # {set: share of the pairs}
    seed: int = 0  # of the hash
    excluded: frozenset[str] = frozenset()  # keys that are in no set

    def __post_init__(self) -> None:
        shares = dict(self.fractions)
        valid = all(name in SETS and isinstance(f, int | float) and f > 0 for name, f in shares.items())
        if not shares or not valid or sum(shares.values()) > 1 + 1e-9:
            raise UserError(
                f"data.fractions={shares} must give shares above 0 to some of {', '.join(SETS)}, together at most 1"
            )

    @cached_property
    def addresses(self) -> list[str]:
        """Every shard's path or address; links and other spellings of one file count once.

        Raises UserError for a pattern that matches nothing, a shard in braces that does not exist, or a remote folder.
        """
        patterns = [self.shards] if isinstance(self.shards, str) else list(map(str, self.shards))
        if folders := [
            p for p in patterns if "://" in p and not p.startswith("pipe:") and (p.endswith("/") or "*" in p)
        ]:
            raise UserError(
                f"data.shards={folders[0]}: the shards at an address cannot be listed; name them, as in {{00000..00999}}.tar"
            )
        shards = (expand_braces(p) if is_remote(p) else matching_tars(Path(p)) for p in patterns)
        unique: dict[str, str] = {}
        for address in map(str, chain.from_iterable(shards)):
            unique.setdefault(address if is_remote(address) else os.path.realpath(address), address)
        return list(unique.values())

    def check_samples(self, out: Path) -> None:
        """Raise UserError if the samples in ``out`` were drawn otherwise, or from other local shards.

        With other fractions, another seed or other excluded keys, pairs that the samples have in one set are trained on
        as those of another. Addresses are not compared.
        """
        manifest = read_json_object(out / MANIFEST)
        known = manifest.get("settings", {})
        check_settings(out, self.settings, {name: known.get(name) for name in self.settings})
        if manifest.get("files", self.files) != self.files:
            raise UserError(
                f"data.shards has other shards than when the samples in {out} were drawn (a name, size or time differs); "
                "restore them, or give another data.dir= to draw new samples"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the set of a pair, as the manifest of samples holds it."""
        exclude = fingerprint(sorted(self.excluded)) if self.excluded else None
        return {"fractions": dict(self.fractions), "seed": self.seed, "exclude": exclude}

    @property
    def files(self) -> str:
        """A fingerprint of the local shards' names, sizes and times."""
        local = [Path(address) for address in self.addresses if not is_remote(address)]
        return fingerprint([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in local])

    def sets(self, keys: Sequence[str]) -> np.ndarray:
        """The set of each key, int8 [n], an index into SETS or UNUSED."""
        names = [name for name in SETS if name in self.fractions]
        numbers = np.array([*(SETS.index(name) for name in names), UNUSED], dtype=np.int8)
        edges = np.cumsum([self.fractions[name] for name in names])
        codes = numbers[np.searchsorted(edges, seeded_hash(keys, self.seed, "raw") / 2.0**64, side="right")]
        if self.excluded:
            codes[self.is_excluded(keys)] = UNUSED
        return codes

    def is_excluded(self, keys: Sequence[str]) -> np.ndarray:
        """bool [n]: whether ``excluded`` has each key of a shard, as it is there or as the samples and reports write it."""
        return np.array([key in self.excluded or clean_keys([key])[0] in self.excluded for key in keys], dtype=bool)

    def read(self, address: str, name: str) -> Iterator[tuple[str, Pair | BadPair]]:
        """(key, pair) of the pairs of one shard that are in the set ``name``."""
        index = read_index(local_shard(address))
        positions = np.flatnonzero(self.sets(index.keys) == SETS.index(name)).tolist()
        yield from zip((index.keys[p] for p in positions), index.pairs(positions), strict=True)


def write_samples(raw: RawShards, sizes: Mapping[str, float | None], out: Path) -> None:
    """Write ``sizes`` pairs of each set into the prepared folder ``out``, unless they are there.

    The shards are read in a seeded order until the samples are complete; no shard gives more than its LEAST_SHARDS-th
    part of a sample, unless the others have too few. A pair that does not decode, or has no caption and is not of P, is
    skipped and counted. Raises UserError for a size that is not a whole number, fewer pairs than asked for, and another
    sample or foreign sets in ``out``.
    """
    wanted: dict[str, int] = {}
    for name, size in sizes.items():
        if size == 0:
            continue
        if not isinstance(size, int) or size < 1 or name not in raw.fractions:
            raise UserError(
                f"data.sizes.{name}={size} must be a number of pairs of one of the sets of data.fractions: "
                f"{', '.join(raw.fractions)}"
            )
        wanted[name] = size
    if not wanted:
        raise UserError(
            "data.sizes asks for no pairs at all; training and evaluation need samples, e.g. data.sizes.A=10000"
        )
    settings = {"shards": fingerprint(raw.addresses), "sizes": wanted, **raw.settings}
    if (out / MANIFEST).is_file():
        check_settings(out, settings, read_json_object(out / MANIFEST, SCHEMA).get("settings", {}))
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        return
    unfinished = out / UNFINISHED
    if unfinished.exists():  # an earlier call was interrupted
        for name in SETS:
            shutil.rmtree(out / name, ignore_errors=True)
    refuse_foreign(out, SETS)
    unfinished.mkdir(parents=True, exist_ok=True)
    order = random.Random(f"{raw.seed}/samples").sample(raw.addresses, len(raw.addresses))
    shards = max(1, min(LEAST_SHARDS, len(order) // 2))
    draw = _Draw(raw, {name: _Sample(out / name, size, -(-size // shards)) for name, size in wanted.items()})
    draw.fill(order)
    warn_unread("data.shards", "member", draw.unread)
    draw.check_complete()
    opened = len(draw.opened)
    pairs = {name: round(sum(n[name] for _, n, _ in draw.opened) * len(order) / opened) for name in raw.fractions}
    write_json(
        out / MANIFEST,
        {
            "schema": SCHEMA,
            "version": __version__,
            "settings": settings,
            "files": raw.files,
            "sets": {name: sample.finish() for name, sample in draw.samples.items()},
            "skipped": {reason: {"count": count} for reason, count in draw.skipped.items()},
            "unread": draw.unread,
            "raw_shards": {"shards": len(order), "opened": opened, "pairs": pairs, "counted": opened == len(order)},
        },
    )
    shutil.rmtree(unfinished)


class _Draw:
    """The drawing of the samples {set: sample} from shards."""

    def __init__(self, raw: RawShards, samples: Mapping[str, "_Sample"]) -> None:
        self.raw, self.samples = raw, samples
        self.opened: list[tuple[str, dict[str, int], Counter[str]]] = []  # address, {set: its pairs}, {set: those read}
        self.skipped = Counter[str]()  # unusable pairs by reason
        self.unread = Counter[str]()  # members of no pair by kind
        self._keys: set[str] = set()

    def fill(self, addresses: Sequence[str]) -> None:
        """Fill the samples from shards in this order, or as far as these have usable pairs."""
        excluded, samples = 0, self.samples.values()
        with progress(None, "drawing samples", total=sum(s.size for s in samples), unit="pair") as bar:
            for address in addresses:
                is_enough = len(self.opened) >= COUNTED_SHARDS or is_remote(address)
                if is_enough and not any(s.missing for s in samples):
                    break
                index = read_index(local_shard(address))
                self.unread.update(index.unused)
                excluded += int(self.raw.is_excluded(index.keys).sum()) if self.raw.excluded else 0
                count = count_by_set(self.raw.fractions, self.raw.sets(index.keys))
                read = Counter[str]()
                self.opened.append((address, count, read))
                self._take(index, {name: min(s.quota, s.missing) for name, s in self.samples.items()}, read, bar)
            for address, count, read in self.opened:  # what was beyond the quota
                if any(s.missing and count[name] > read[name] for name, s in self.samples.items()):
                    index = read_index(local_shard(address))
                    self._take(index, {name: s.missing for name, s in self.samples.items()}, read, bar)
        if self.raw.excluded and not excluded:
            log.warning(
                "no key in data.exclude is in the %d shards that were opened (of %d); it lists %r, the shards have keys such as "
                "%r",
                *(len(self.opened), len(addresses)),
                *(min(self.raw.excluded), min(self._keys, default="")),
            )

    def check_complete(self) -> None:
        """Raise UserError if a sample is too small, with the commonest reason why pairs cannot be used."""
        (reason, count), *_ = self.skipped.most_common() or [("", 0)]
        unusable = f" ({count} in all sets cannot be used: {reason})" if count else ""
        for name, sample in self.samples.items():
            if sample.missing:
                raise UserError(
                    f"data.sizes.{name}={sample.size}, but data.shards has only {sample.size - sample.missing} usable pairs of "
                    f"{name}{unusable}; ask for fewer, raise data.fractions.{name}, or give more shards"
                )

    def _take(self, index: ShardIndex, room: dict[str, int], read: Counter[str], bar: "tqdm[Any]") -> None:
        """Add usable pairs of one shard to the samples, at most {set: ``room``}; updates {set: ``read`` pairs of the shard}."""
        member = self.raw.sets(index.keys)
        rest = (np.flatnonzero(member == SETS.index(name))[read[name] :].tolist() for name in room if room[name])
        positions = sorted(chain.from_iterable(rest))
        for position, pair in zip(positions, index.pairs(positions), strict=True):
            name = SETS[member[position]]
            if not room[name]:
                continue
            read[name] += 1
            try:
                if isinstance(pair, BadPair):
                    raise pair
                if name != "P" and not pair.caption:
                    raise BadPair(EMPTY_CAPTION)
                with open_image(pair.image) as image:
                    image.load()
            except BadPair as reason:
                self.skipped[str(reason)] += 1
                continue
            key = clean_keys([pair.key])[0]
            if key in self._keys:
                raise UserError(
                    f"the key {key!r} occurs twice in data.shards; make keys unique, or run dejavu prepare data=shards"
                )
            self._keys.add(key)
            self.samples[name].add(replace(pair, key=key))
            bar.update()
            room[name] -= 1
            if not any(room.values()):
                break


@dataclass
class _Sample:
    """The sample of one set while it is drawn; full shards are written at once, so few pairs are held."""

    folder: Path
    size: int
    quota: int  # pairs from one raw shard
    tars: dict[str, int] = field(default_factory=dict)  # {shard: number of pairs} of those written
    held: list[Pair] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return self.size - sum(self.tars.values()) - len(self.held)

    def add(self, pair: Pair) -> None:
        self.held.append(pair)
        if len(self.held) < PAIRS_PER_SHARD and self.missing:
            return
        tar = f"{len(self.tars):05d}.tar"
        with write_shard(self.folder / tar) as write:
            for held in self.held:
                write(held)
        self.tars[tar] = len(self.held)
        self.held = []

    def finish(self) -> dict[str, Any]:
        """Write ``sizes.json``; returns the manifest's entry."""
        write_json(self.folder / SIZES, self.tars)
        content = fingerprint([file_sha256(self.folder / tar) for tar in self.tars])
        return {"pairs": self.size, "shards": len(self.tars), "objects": None, "fingerprint": content}
