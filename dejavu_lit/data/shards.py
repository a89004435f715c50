"""Shards: WebDataset tars of pairs (``KEY.jpg|png|webp`` + ``KEY.txt`` + ``KEY.json``), their index, reader and writer.

A shard is read through the offsets of its members, so pairs can be read in any order without unpacking anything.
Beside the tars lies ``sizes.json``, {shard name: number of pairs}; it is counted once where it is absent.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dejavu_lit.data.decode import LARGEST_JSON, meta_caption, read_meta, read_text
from dejavu_lit.data.decode import BadPair as BadPair  # part of what this module offers
from dejavu_lit.data.remote import STATE as REMOTE
from dejavu_lit.data.remote import fetch_shard
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, read_json, read_object, write_json
from dejavu_lit.utils.progress import progress

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
SIZES = "sizes.json"
MOST_PAIRS = 1 << 40  # of a shard
LARGEST_IMAGE = 256 << 20  # bytes of its file


@dataclass(frozen=True)
class Pair:
    """One (image, caption) pair: the encoded image, its caption and whatever the ``json`` member holds."""

    key: str
    image: bytes
    extension: str
    caption: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardIndex:
    """Where each pair of one tar lies: ``members[i]`` maps an extension to (offset, size) in bytes."""

    path: Path
    keys: tuple[str, ...]
    members: tuple[dict[str, tuple[int, int]], ...]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, position: int, image: bool = True) -> Pair:
        """The pair at ``position``; with ``image=False`` its image is left empty (captions only).

        Raises:
            BadPair: no image, text and JSON that do not decode, or a caption that is no text or too long. It may be empty.
            UserError: the file has vanished or was cut since it was indexed.
        """
        members = self.members[position]
        extension = next((e for e in IMAGE_EXTENSIONS if e in members), None)
        if extension is None:
            raise BadPair("it has no image")
        if members[extension][1] > LARGEST_IMAGE:
            raise BadPair(f"the image has more than {LARGEST_IMAGE >> 20} MiB")
        try:
            with _open(self.path) as file:
                content: dict[str, bytes] = {}
                for name in ("txt", "json", "cls"):
                    if name in members:  # of one that is too large, enough to see it
                        offset, size = members[name]
                        content[name] = _read(file.fileno(), self.path, offset, min(size, LARGEST_JSON + 1))
                content["image"] = _read(file.fileno(), self.path, *members[extension]) if image else b""
        except FileNotFoundError:
            raise UserError(f"the shard {self.path} has vanished; restore it and start again") from None
        meta = read_meta(content["json"]) if "json" in content else {}
        if "cls" in content:  # the class, where WebDataset keeps it
            meta.setdefault("label", read_text(content["cls"]))
        caption = read_text(content["txt"]) if "txt" in content else meta_caption(meta)
        return Pair(self.keys[position], content["image"], extension, caption, meta)


def _open(path: Path) -> BinaryIO:
    """The file of a shard, copied again where it made room in a mirror."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        if not fetch_shard(path):
            raise
        return open(path, "rb")


def _read(descriptor: int, path: Path, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise UserError(f"the shard {path} was cut short while being read; restore it and start again")
    return data


@lru_cache(maxsize=64)
def index_shard(path: Path) -> ShardIndex:
    """Index one tar by reading its headers only.

    Members are grouped as WebDataset does: by the name up to the first dot of its last component. Anything but a
    regular file with a plain relative name is refused.

    Raises:
        UserError: not a tar, compressed, cut short, an unsafe member, or a key that occurs twice.
    """
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    if path.exists() and not path.is_file():  # opening a pipe would wait for whoever fills it
        raise UserError(
            f"{path} is no file (a pipe, a folder or a device); put the shard itself there, or read what a command gives by "
            "data.dir=pipe:…"
        )
    try:
        with _open(path) as whole, tarfile.open(fileobj=whole, mode="r:") as tar:
            end = 0  # where the last member's data ends, in tar's blocks of 512 bytes
            for member in tar:
                start, end = end, member.offset_data + -(-member.size // 512) * 512
                if member.offset_data < start:  # a header can lead back to members before it, for ever
                    raise UserError(f"{path} is damaged (a member begins within another); make it again or remove it")
                if member.isdir():
                    continue
                parts = Path(member.name.encode("utf-8", "backslashreplace").decode()).parts
                plain = member.isreg() and not member.issparse() and member.size >= 0
                if not plain or member.name.startswith("/") or ".." in parts or not parts:
                    raise UserError(f"{path} holds {member.name!r}, which is no plain file inside the archive; refused")
                base, _, extension = parts[-1].partition(".")
                key = "/".join((*parts[:-1], base))
                group = groups.setdefault(key, {})
                if extension.lower() in group:
                    raise UserError(f"{path} holds two members {member.name!r}; keys must be unique within a shard")
                group[extension.lower()] = (member.offset_data, member.size)
            if os.pread(whole.fileno(), 512, end) != bytes(512):
                raise UserError(f"{path} is cut short (it has no end mark); make it again or remove it")
    except FileNotFoundError:
        raise UserError(f"the shard {path} does not exist") from None
    except UserError:
        raise
    except Exception as error:  # tarfile raises nearly anything for damaged headers
        raise UserError(f"{path} is not a whole, uncompressed tar ({error}); make it again or remove it") from None
    groups = {key: m for key, m in groups.items() if "txt" in m or "json" in m or set(m) & set(IMAGE_EXTENSIONS)}
    return ShardIndex(path, tuple(groups), tuple(groups.values()))


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards, in the order of their names, with the number of pairs of each."""

    folder: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path | str) -> "ShardSet":
        """Open a folder of tars; counts the pairs once and writes ``sizes.json`` where it is absent or incomplete.

        Raises:
            UserError: no such folder, no tars in it, or a ``sizes.json`` that names other shards.
        """
        folder = Path(folder)
        names = tuple(sorted(p.name for p in folder.glob("*.tar"))) if folder.is_dir() else ()
        if (folder.parent / REMOTE).is_file() and (folder / SIZES).is_file():
            names = tuple(sorted(read_object(folder / SIZES)))  # some may not be on this node yet
        if not names:
            raise UserError(f"{folder} holds no shards (*.tar); check data.dir or run dejavu prepare")
        known: dict[str, int] = read_json(folder / SIZES) if (folder / SIZES).exists() else {}
        if not isinstance(known, dict) or not all(
            type(size) is int and 0 <= size < MOST_PAIRS and "/" not in name for name, size in known.items()
        ):
            raise UserError(
                f"{folder / SIZES} is not {{shard: number of pairs}}; remove it, and the pairs are counted again"
            )
        if missing := sorted(set(known) - set(names)):
            raise UserError(
                f"{folder / SIZES} names {missing[0]}, which is not there; restore the shard or remove {SIZES}"
            )
        if unknown := [name for name in names if name not in known]:
            for name in progress(unknown, f"counting pairs in {folder.name}", unit="shard"):
                known[name] = len(index_shard(folder / name))
            if os.access(folder, os.W_OK):
                write_json(folder / SIZES, {name: known[name] for name in names})
        return cls(folder, names, tuple(known[name] for name in names))

    def __len__(self) -> int:
        return sum(self.sizes)

    @cached_property
    def starts(self) -> np.ndarray:
        """The position of each shard's first pair in the whole set, int64 [shards + 1]."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    def index(self, shard: int) -> ShardIndex:
        """The index of the shard number ``shard``; raises UserError where it disagrees with ``sizes.json``."""
        index = index_shard(self.folder / self.names[shard])
        if len(index) != self.sizes[shard]:
            raise UserError(
                f"{index.path} holds {len(index)} pairs, {SIZES} says {self.sizes[shard]}; "
                f"restore the shard, or remove {self.folder / SIZES} to have it counted again"
            )
        return index

    def keys(self, limit: int | None = None) -> list[str]:
        """The keys of the first ``limit`` pairs (all of them by default), in the order of the shards."""
        keys: list[str] = []
        for shard in range(len(self.names)):
            if limit is not None and len(keys) >= limit:
                break
            keys.extend(self.index(shard).keys)
        return keys[:limit]

    def fingerprint(self) -> dict[str, str]:
        """{shard: hash of its keys, its captions and the sizes of its members}: images themselves are not read."""
        return {name: self._digest(shard) for shard, name in enumerate(self.names)}

    def _digest(self, shard: int) -> str:
        index, digest = self.index(shard), hashlib.sha256()
        with _open(index.path) as file:
            for key, members in zip(index.keys, index.members, strict=True):
                digest.update(repr((key, sorted((name, size) for name, (_, size) in members.items()))).encode())
                if "txt" in members:
                    digest.update(_read(file.fileno(), index.path, *members["txt"]))
        return digest.hexdigest()[:16]


@contextmanager
def write_shard(path: Path | str) -> Iterator[Callable[[Pair], None]]:
    """Yield a function that appends one pair; the shard appears under its name when the block ends well, and only then.

    The same pairs give the same bytes. Plain tar members are all there is to it, while WebDataset's own writer would bring
    torch into every process that writes.

    Raises:
        ValueError: a key that WebDataset or a list of keys could not give back (a dot, a slash or a line break in it, white
            space around it, or empty).
    """
    with atomic(path) as part, tarfile.open(part, "w") as tar:

        def write(pair: Pair) -> None:
            if not pair.key or "." in pair.key or "/" in pair.key:
                raise ValueError(f"the key {pair.key!r} must be non-empty and hold no dot or slash")
            if pair.key != pair.key.strip() or len(pair.key.splitlines()) > 1:
                raise ValueError(f"the key {pair.key!r} must hold no line break and no white space around it")
            meta = json.dumps(pair.meta, sort_keys=True, ensure_ascii=False)
            for extension, data in ((pair.extension, pair.image), ("txt", _utf8(pair.caption)), ("json", _utf8(meta))):
                member = tarfile.TarInfo(f"{pair.key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

        yield write


def write_shards(folder: Path | str, pairs: Iterable[Pair], pairs_per_shard: int = 1000) -> ShardSet:
    """Write pairs into numbered shards with their ``sizes.json``, and open them."""
    folder, sizes, rest, number = Path(folder), {}, iter(pairs), 0
    while block := list(islice(rest, pairs_per_shard)):
        with write_shard(folder / f"{number:05d}.tar") as write:
            for pair in block:
                write(pair)
        sizes[f"{number:05d}.tar"] = len(block)
        number += 1
    write_json(folder / SIZES, sizes)
    return ShardSet.open(folder)


def _utf8(text: str) -> bytes:
    """UTF-8; half surrogates, which JSON from the web sometimes holds, become question marks."""
    return text.encode("utf-8", "replace")


def read_pairs(shards: ShardSet, image: bool = True) -> Iterator[Pair | BadPair]:
    """Every pair of a set in the order of the shards; a pair that cannot be used comes as the BadPair that says why."""
    for shard in range(len(shards.names)):
        index = shards.index(shard)
        for position in range(len(index)):
            try:
                yield index.read(position, image)
            except BadPair as bad:
                yield bad
