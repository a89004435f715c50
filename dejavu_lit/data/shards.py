"""Shards: WebDataset tars of pairs (``KEY.jpg|png|webp`` + ``KEY.txt`` + ``KEY.json``), with their index, reader and writer.

A shard is read by the offsets of its members, so pairs can be read in any order and nothing is unpacked.
``sizes.json`` beside the tars maps each shard's name to its number of pairs; if missing, the pairs are counted once.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dejavu_lit.data.decode import (
    MAX_CAPTION_CHARS,
    MAX_JSON_BYTES,
    meta_captions,
    read_caption,
    read_meta,
    with_captions,
)
from dejavu_lit.data.decode import BadPair as BadPair  # re-exported: whoever reads pairs handles it
from dejavu_lit.data.remote import fetch_shard, source
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, is_hidden, read_json, read_json_object, visible_files, write_json
from dejavu_lit.utils.progress import progress

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json", "cls")  # a pair's members beside the image; cls is WebDataset's for the class
NO_IMAGE = f"it has no image member KEY.{', KEY.'.join(IMAGE_EXTENSIONS)} (a key ends at the first dot of the name)"
SIZES = "sizes.json"
MAX_SHARD_PAIRS = 1 << 40  # more is a damaged sizes.json
MAX_IMAGE_BYTES = 256 << 20  # of the encoded file

Members = dict[str, tuple[int, int]]  # {extension: (offset, size) in bytes}


@dataclass(frozen=True)
class Pair:
    """One (image, caption) pair: the encoded image, its caption and the content of its ``json`` member."""

    key: str
    image: bytes
    extension: str
    caption: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardIndex:
    """Where the pairs of one tar are: ``members[i]`` maps an extension to (offset, size) in bytes.

    unused: {extension, or "hidden": number of members that no pair uses}.
    """

    path: Path
    keys: tuple[str, ...]
    members: tuple[Members, ...]
    unused: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, position: int, image: bool = True) -> Pair:
        """The pair at ``position``; with ``image=False`` its image is empty (captions only). The caption may be empty.

        Raises:
            BadPair: no image, text or JSON that does not decode, or a caption that is not text or too long.
            UserError: the file has disappeared or was cut short since it was indexed.
        """
        members = self.members[position]
        extension = image_extension_of(members)
        if extension is None:
            raise BadPair(NO_IMAGE)
        if members[extension][1] > MAX_IMAGE_BYTES:
            raise BadPair(f"the image has more than {MAX_IMAGE_BYTES >> 20} MiB")
        try:
            with _open(self.path) as file:
                content: dict[str, bytes] = {}
                for name in TEXTS:
                    if name in members:  # one byte over the limit is enough to reject it
                        offset, size = members[name]
                        content[name] = read_range(file.fileno(), self.path, offset, min(size, MAX_JSON_BYTES + 1))
                content["image"] = read_range(file.fileno(), self.path, *members[extension]) if image else b""
        except FileNotFoundError:
            raise UserError(f"the shard {self.path} has disappeared; restore it and start again") from None
        return Pair(self.keys[position], content["image"], extension, *decode_texts(content))


def decode_texts(content: Mapping[str, bytes]) -> tuple[str, dict[str, Any]]:
    """The caption and the JSON of a pair from those of its members TEXTS that exist; a class becomes ``label``.

    Raises:
        BadPair: text or JSON that does not decode, or a caption that is not text or too long.
    """
    meta = read_meta(content["json"]) if "json" in content else {}
    if "cls" in content:
        meta.setdefault("label", read_caption(content["cls"]))
    if "txt" in content:
        return read_caption(content["txt"]), meta
    captions = meta_captions(meta)
    return next(iter(captions), ""), with_captions(meta, captions)


def caption_candidates(pair: Pair) -> tuple[str, ...]:
    """The list ``captions`` of the pair's JSON, from which ``mitigation.caption_choice`` draws; often empty."""
    captions = pair.meta.get("captions")
    if not isinstance(captions, list):
        return ()
    texts = (text.strip() for text in captions if isinstance(text, str))
    return tuple(text for text in texts if 0 < len(text) <= MAX_CAPTION_CHARS)


@lru_cache(maxsize=64)
def index_shard(path: Path) -> ShardIndex:
    """Index one tar; only its headers are read.

    Members are grouped as in WebDataset: by their name up to the first dot of its last component. An image with a text of
    the same dotted name (``IMG_7.edited.jpg``, ``IMG_7.edited.txt``) is a pair of its own. Hidden members are not read.
    Anything but a regular file with a plain relative name is rejected.

    Raises:
        UserError: not a tar, compressed, cut short, an unsafe member, or a duplicate key.
    """
    groups: dict[str, Members] = {}
    hidden = 0
    if path.exists() and not path.is_file():  # opening a pipe would block until somebody writes to it
        raise UserError(
            f"{path} is not a regular file (but a pipe, a folder or a device); put the shard itself there, or read a command's "
            "output with data.dir=pipe:…"
        )
    try:
        with _open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0  # of the last member's data, in tar's blocks of 512 bytes
            for member in tar:
                start, end = end, member.offset_data + -(-member.size // 512) * 512
                if member.offset_data < start:  # a header that points back to earlier members would loop forever
                    raise UserError(f"{path} is damaged (a member begins within another); make it again or remove it")
                if member.isdir():
                    continue
                parts = Path(member.name.encode("utf-8", "backslashreplace").decode()).parts
                is_plain = member.isreg() and not member.issparse() and member.size >= 0
                if not is_plain or member.name.startswith("/") or ".." in parts or not parts:
                    raise UserError(
                        f"{path} contains {member.name!r}, which is not a plain file inside the archive; remove that member"
                    )
                if is_hidden("/".join(parts)):
                    hidden += 1
                    continue
                base, _, extension = parts[-1].partition(".")
                key = "/".join((*parts[:-1], base))
                group = groups.setdefault(key, {})
                if extension.lower() in group:
                    raise UserError(f"{path} has two members {member.name!r}; make keys unique within the shard")
                group[extension.lower()] = (member.offset_data, member.size)
            if os.pread(file.fileno(), 512, end) != bytes(512):
                raise UserError(f"{path} is cut short (it has no end mark); make it again or remove it")
    except FileNotFoundError:
        raise UserError(f"the shard {path} does not exist; restore it or check data.dir") from None
    except UserError:
        raise
    except Exception as error:  # tarfile raises nearly any exception for damaged headers
        raise UserError(f"{path} is not a complete, uncompressed tar ({error}); make it again or remove it") from None
    pairs = {key: m for name, group in groups.items() for key, m in _pairs(name, group)}
    used = {m[e] for m in pairs.values() for e in (image_extension_of(m), *TEXTS) if e in m}
    unused = Counter(e for group in groups.values() for e, place in group.items() if place not in used)
    return ShardIndex(path, tuple(pairs), tuple(pairs.values()), dict(unused) | ({"hidden": hidden} if hidden else {}))


def _pairs(name: str, group: Members) -> Iterator[tuple[str, Members]]:
    """(key, members) of the pairs in one group of WebDataset: the group itself, and images whose names have more dots.

    Those are pairs of their own if they have a text of the same name, or if the whole group has nothing but such images.
    Other dotted members (``a.seg.png``) belong to the group, as in WebDataset.
    """
    stems: dict[str, Members] = {}
    for extension, place in group.items():
        stem, _, last = extension.rpartition(".")
        stems.setdefault(stem, {})[last] = place
    images = [stem for stem, members in stems.items() if image_extension_of(members)]
    only_images = "" not in stems and all(members.keys() <= set(IMAGE_EXTENSIONS) for members in stems.values())
    own = [stem for stem in images if stem and (only_images or not stems[stem].keys().isdisjoint(TEXTS))]
    rest = {e: place for e, place in group.items() if e.rpartition(".")[0] not in own}
    if "txt" in rest or "json" in rest or len(images) > len(own):
        yield name, rest
    for stem in own:
        yield f"{name}.{stem}", stems[stem]


def image_extension_of(members: Collection[str]) -> str | None:
    """The extension of a pair's image among those of its members; None if it has no image."""
    return next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards in the order of their names, with the number of pairs in each."""

    folder: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path | str) -> "ShardSet":
        """Open a folder of tars; if ``sizes.json`` is missing or incomplete, count the pairs and write it.

        Raises:
            UserError: no such folder, no tars in it, or a ``sizes.json`` that lists other shards.
        """
        folder = Path(folder)
        names = tuple(path.name for path in visible_files(folder, "*.tar"))
        if (folder / SIZES).is_file() and source(folder.parent) is not None:
            names = tuple(sorted(read_json_object(folder / SIZES)))  # some may not have been downloaded yet
        if not names:
            raise UserError(f"{folder} has no shards (*.tar); check data.dir or run dejavu prepare")
        known: dict[str, int] = read_json(folder / SIZES) if (folder / SIZES).exists() else {}
        if not isinstance(known, dict) or not all(
            type(size) is int and 0 <= size < MAX_SHARD_PAIRS and "/" not in name for name, size in known.items()
        ):
            raise UserError(
                f"{folder / SIZES} is not {{shard: number of pairs}}; remove it to have the pairs counted again"
            )
        if missing := sorted(set(known) - set(names)):
            raise UserError(
                f"{folder / SIZES} lists {missing[0]}, which does not exist; restore the shard or remove {SIZES}"
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

    def keys(self, limit: int | None = None) -> list[str]:
        """The keys of the first ``limit`` pairs (by default all), in the order of the shards."""
        keys: list[str] = []
        for shard in range(len(self.names)):
            if limit is not None and len(keys) >= limit:
                break
            keys.extend(self.index(shard).keys)
        return keys[:limit]

    def fingerprint(self) -> dict[str, str]:
        """{shard: hash of its keys, its captions and the sizes of its members}; image data is not read."""
        return {name: self._digest(shard) for shard, name in enumerate(self.names)}

    def _digest(self, shard: int) -> str:
        index, digest = self.index(shard), hashlib.sha256()
        with _open(index.path) as file:
            for key, members in zip(index.keys, index.members, strict=True):
                digest.update(repr((key, sorted((name, size) for name, (_, size) in members.items()))).encode())
                if "txt" in members:
                    digest.update(read_range(file.fileno(), index.path, *members["txt"]))
        return digest.hexdigest()[:16]


def read_pairs(shards: ShardSet, image: bool = True) -> Iterator[Pair | BadPair]:
    """Every pair of a set in the order of the shards; an unusable pair is yielded as the BadPair with its reason."""
    for shard in range(len(shards.names)):
        index = shards.index(shard)
        for position in range(len(index)):
            try:
                yield index.read(position, image)
            except BadPair as bad:
                yield bad


@contextmanager
def write_shard(path: Path | str) -> Iterator[Callable[[Pair], None]]:
    """Yield a function that appends one pair; the shard appears under its name only when the block ends without error.

    The same pairs give the same bytes. Written with tarfile: WebDataset's own writer would import torch into every
    process that writes.

    Raises:
        ValueError: a key that WebDataset or a list of keys could not return unchanged (empty, with a dot, slash or line
            break, or with surrounding white space).
    """
    with atomic(path) as part, tarfile.open(part, "w") as tar:

        def write(pair: Pair) -> None:
            if not pair.key or "." in pair.key or "/" in pair.key:
                raise ValueError(f"the key {pair.key!r} must be non-empty, without dot or slash")
            if pair.key != pair.key.strip() or len(pair.key.splitlines()) > 1:
                raise ValueError(f"the key {pair.key!r} must have no line break and no surrounding white space")
            meta = json.dumps(pair.meta, sort_keys=True, ensure_ascii=False)
            for extension, data in ((pair.extension, pair.image), ("txt", _utf8(pair.caption)), ("json", _utf8(meta))):
                member = tarfile.TarInfo(f"{pair.key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

        yield write


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


def read_range(descriptor: int, path: Path, offset: int, size: int) -> bytes:
    """``size`` bytes of an open shard from ``offset`` on; raises UserError naming ``path`` if the file is shorter."""
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise UserError(f"the shard {path} was cut short while being read; restore it and start again")
    return data


def _open(path: Path) -> BinaryIO:
    """The file of a shard; a shard that was evicted from a mirror is downloaded again."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        if not fetch_shard(path):
            raise
        return open(path, "rb")


def _utf8(text: str) -> bytes:
    """UTF-8; lone surrogates, which JSON from the web sometimes contains, become question marks."""
    return text.encode("utf-8", "replace")
