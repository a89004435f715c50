"""Sets of shards: WebDataset tars of pairs (``KEY.jpg|png|webp`` + ``KEY.txt`` + ``KEY.json``), read and written.

``sizes.json`` beside the tars maps each shard's name to its number of pairs; if missing, the pairs are counted. It is written in
prepared data only: shards elsewhere are those of others.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np

from dejavu_lit.data.decode import TEXTS, BadPair, Pair
from dejavu_lit.data.manifest import MANIFEST, SIZES
from dejavu_lit.data.remote import source
from dejavu_lit.data.shard_index import ShardIndex, index_shard, open_shard, read_member
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, read_json, visible_files, warn_unread, write_json
from dejavu_lit.utils.progress import progress

__all__ = ["BadPair", "Pair", "ShardIndex", "ShardSet", "index_shard", "read_pairs", "write_shard"]

MAX_SHARD_PAIRS = 1 << 40  # more is a damaged sizes.json


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards in the order of their names, with the number of pairs in each."""

    folder: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path | str) -> "ShardSet":
        """Open a folder of tars; count the pairs that ``sizes.json`` does not, and add them there in prepared data.

        Raises UserError for no such folder, no tars in it, or a ``sizes.json`` that lists other shards.
        """
        folder = Path(folder)
        known: dict[str, int] = read_json(folder / SIZES) if (folder / SIZES).exists() else {}
        if not isinstance(known, dict) or not all(
            type(size) is int and 0 <= size < MAX_SHARD_PAIRS and "/" not in name for name, size in known.items()
        ):
            raise UserError(
                f"{folder / SIZES} is not {{shard: number of pairs}}; remove it to have the pairs counted again"
            )
        names = tuple(path.name for path in visible_files(folder, "*.tar"))
        if known and source(folder.parent) is not None:
            names = tuple(sorted(known))  # some may not have been downloaded yet
        if not names:
            raise UserError(f"{folder} has no shards (*.tar); check data.dir or run dejavu prepare")
        if missing := sorted(set(known) - set(names)):
            raise UserError(
                f"{folder / SIZES} lists {missing[0]}, which does not exist; restore the shard or remove {SIZES}"
            )
        if unknown := [name for name in names if name not in known]:
            unread: Counter[str] = Counter()
            for name in progress(unknown, f"counting pairs in {folder.name}", unit="shard"):
                index = index_shard(folder / name)
                known[name] = len(index)
                unread.update(index.unused)
            warn_unread(folder, "member", unread)
            if (folder.parent / MANIFEST).is_file() and os.access(folder, os.W_OK):
                write_json(folder / SIZES, {name: known[name] for name in names})
        return cls(folder, names, tuple(known[name] for name in names))

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in self.names)

    @cached_property
    def starts(self) -> np.ndarray:
        """The position of each shard's first pair in the set, int64 [shards + 1]; the last entry is the set's size."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    def index(self, shard: int) -> ShardIndex:
        """The index of shard number ``shard``; raises UserError if it disagrees with ``sizes.json``."""
        index = index_shard(self.folder / self.names[shard])
        if len(index) != self.sizes[shard]:
            raise UserError(
                f"{index.path} has {len(index)} pairs, but {SIZES} says {self.sizes[shard]}; "
                f"restore the shard, or remove {self.folder / SIZES} to have it counted again"
            )
        return index

    def indexes(self) -> Iterator[ShardIndex]:
        return map(self.index, range(len(self.names)))

    def keys(self, limit: int | None = None) -> list[str]:
        """The keys of the first ``limit`` pairs (by default all), in the order of the shards."""
        indexes = progress(self.indexes(), f"reading the keys of {self.folder.name}", len(self.names), "shard")
        return list(islice(chain.from_iterable(index.keys for index in indexes), limit))

    def images(self) -> dict[str, str]:
        """{name of a shard without .tar: fingerprint of its images}."""
        indexes = progress(self.indexes(), f"indexing {self.folder.name}", len(self.names), "shard")
        return {Path(name).stem: index.images for name, index in zip(self.names, indexes, strict=True)}

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """{shard: hash of keys, texts that have captions, and sizes of members}; images are not read."""
        indexes = progress(self.indexes(), f"reading the captions of {self.folder.name}", len(self.names), "shard")
        return {name: _digest(index) for name, index in zip(self.names, indexes, strict=True)}


def _digest(index: ShardIndex) -> str:
    digest = hashlib.sha256()
    with open_shard(index.path) as file:
        for key, members in zip(index.keys, index.members, strict=True):
            digest.update(repr((key, sorted((name, member.size) for name, member in members.items()))).encode())
            for name in TEXTS:
                if name in members:
                    digest.update(content := read_member(file.fileno(), index.path, members[name]))
                    if name == "txt" and not content.startswith(b"["):  # what looks like a list may be that of the JSON
                        break
    return digest.hexdigest()[:16]


def read_pairs(shards: ShardSet, image: bool = True) -> Iterator[Pair | BadPair]:
    """Every pair of a set in the order of the shards; an unusable pair is yielded as the BadPair with its reason."""
    for index in shards.indexes():
        yield from index.pairs(image=image)


@contextmanager
def write_shard(path: Path | str) -> Iterator[Callable[[Pair], None]]:
    """Yield a function that appends one pair; the shard appears under its name only when the block ends without error.

    The same pairs give the same bytes. Written with tarfile: WebDataset's own writer would import torch into every
    process that writes. Raises ValueError for a key that WebDataset or a list of keys could not return unchanged
    (empty, with a dot, slash or line break, or with surrounding white space).
    """
    with atomic(path) as part, tarfile.open(part, "w") as tar:

        def write(pair: Pair) -> None:
            if pair.key != pair.key.strip() or len(pair.key.splitlines()) != 1 or set("./") & set(pair.key):
                raise ValueError(
                    f"the key {pair.key!r} must be one line without dot, slash and surrounding white space"
                )
            meta = json.dumps(pair.meta, sort_keys=True, ensure_ascii=False)
            # Lone surrogates, which JSON from the web sometimes contains, become question marks.
            texts = {n: text.encode("utf-8", "replace") for n, text in (("txt", pair.caption), ("json", meta))}
            for extension, data in ((pair.extension, pair.image), *texts.items()):
                member = tarfile.TarInfo(f"{pair.key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

        yield write
