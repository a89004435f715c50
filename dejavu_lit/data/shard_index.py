"""The index of a shard: its headers are checked before anything is read, then webdataset reads the pairs.

webdataset reads a tar from its start. A single pair is therefore read by the offset that the index has of it.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dejavu_lit.data.decode import MAX_JSON_BYTES, TEXTS, BadPair, Pair, decode_texts, json_safe
from dejavu_lit.data.remote import fetch_shard
from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import check_regular, fingerprint, is_hidden, name_file_in_errors

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "jfif", "jpe")
NO_IMAGE = f"it has no image member KEY.{', KEY.'.join(IMAGE_EXTENSIONS)} (a key ends at the first dot of the name)"
MAX_IMAGE_BYTES = 256 << 20  # of the encoded file
WEBDATASET_METADATA = re.compile(r"__[^/]*__($|/)")  # members that webdataset skips


class Member(NamedTuple):
    """Where the data of a file in a tar is, in bytes, and the file's name there."""

    offset: int
    size: int
    name: str = ""


Members = dict[str, Member]  # of one pair, by extension


@dataclass(frozen=True)
class ShardIndex:
    """Where the pairs of one tar are."""

    path: Path
    keys: tuple[str, ...]
    members: tuple[Members, ...]
    unused: dict[str, int] = field(default_factory=dict)  # {KEY.extension, or "hidden": number of members of no pair}

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def images(self) -> str:
        """A fingerprint of the images, by which their objects are known (``images_fingerprint``)."""
        extensions = map(image_extension_of, self.members)
        sizes = (m[e].size if e else 0 for m, e in zip(self.members, extensions, strict=True))
        return images_fingerprint(zip(self.keys, sizes, strict=True))

    def subset(self, positions: Sequence[int]) -> "ShardIndex":
        keys, members = (self.keys[position] for position in positions), (self.members[p] for p in positions)
        return ShardIndex(self.path, tuple(keys), tuple(members))

    def pairs(self, positions: Sequence[int] | None = None, image: bool = True) -> Iterator[Pair | BadPair]:
        """The pairs at ``positions`` (by default all) in their order, read by webdataset in one pass over the tar.

        A pair that cannot be used comes as the BadPair with the reason. Pairs are held until their turn, so the memory is
        at most that of the shard's encoded pairs; in the order of the tar it is that of one pair. Else as ``read``.
        """
        from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch

        order = range(len(self)) if positions is None else positions
        last = {position: turn for turn, position in enumerate(order)}
        needed = {position: _needed(self.members[position], image) for position in last}
        places = {self.members[p][e].name: (p, e) for p, extensions in needed.items() for e in extensions}
        held: dict[int, dict[str, Any]] = {position: {} for position in last}
        with open_shard(self.path) as stream:
            files = tar_file_expander([{"url": str(self.path), "stream": stream}], select_files=places.__contains__)
            samples = group_by_keys(files, keys=places.__getitem__)
            for turn, position in enumerate(order):
                while not needed[position] <= held[position].keys():
                    sample = self._next(samples)
                    held[sample["__key__"]] |= sample
                try:
                    yield _decode(self.keys[position], self.members[position], held[position], image)
                except BadPair as bad:
                    yield bad
                if last[position] == turn:
                    del held[position]

    def read(self, position: int, image: bool = True) -> Pair:
        """The pair at ``position``; with ``image=False`` its image is empty (captions only). The caption may be empty.

        Raises BadPair if it cannot be used, UserError if the file is missing or was cut short since it was indexed.
        """
        return read_pair(self.path, self.keys[position], self.members[position], image)

    def _next(self, samples: Iterator[dict[str, Any]]) -> dict[str, Any]:
        problem = f"the shard {self.path} was cut short while being read"
        with name_file_in_errors(self.path), explained(problem, "restore it and start again"):
            if (sample := next(samples, None)) is None:
                raise EOFError("it ends early")
            return sample


def read_pair(path: Path, key: str, members: Members, image: bool = True) -> Pair:
    """The pair of these members of a shard; raises as ``ShardIndex.read`` does."""
    with open_shard(path) as file:
        content = {e: read_member(file.fileno(), path, members[e]) for e in _needed(members, image)}
    return _decode(key, members, content, image)


def _needed(members: Members, image: bool) -> set[str]:
    """The extensions of the members to read: none of a pair without an image, and none that is too large."""
    extension = image_extension_of(members)
    if extension is None or members[extension].size > MAX_IMAGE_BYTES:
        return set()
    texts = {name for name in TEXTS if name in members and members[name].size <= MAX_JSON_BYTES}
    return texts | ({extension} if image else set())


def _decode(key: str, members: Members, content: Mapping[str, bytes], image: bool) -> Pair:
    """A pair from the content of those of its members that are needed."""
    extension = image_extension_of(members)
    if extension is None:
        raise BadPair(NO_IMAGE)
    if members[extension].size > MAX_IMAGE_BYTES:
        raise BadPair(f"the image has more than {MAX_IMAGE_BYTES >> 20} MiB")
    # What was not read is too long, and is rejected by its length.
    texts = {n: content[n] if n in content else bytes(MAX_JSON_BYTES + 1) for n in TEXTS if n in members}
    return Pair(key, content[extension] if image else b"", extension, *decode_texts(texts))


def read_index(path: Path) -> ShardIndex:
    """Index one tar; only its headers are read. An index takes 1.1 KB per pair.

    Members are grouped as in WebDataset: by their name up to the first dot of its last component. An image with a text of
    the same dotted name (``IMG_7.edited.jpg``, ``IMG_7.edited.txt``) is a pair of its own. Hidden members, and those that
    webdataset keeps for itself (``__index__``), are not read.

    Raises:
        UserError: not a tar, compressed, cut short, a member but a regular file with a plain relative name, or a duplicate key.
    """
    groups: dict[str, Members] = {}
    unused = Counter[str]()
    for member, (*folders, file) in _members(path):
        if is_hidden("/".join((*folders, file))) or WEBDATASET_METADATA.match(member.name):
            unused["hidden"] += 1
            continue
        base, _, extension = file.partition(".")
        group = groups.setdefault("/".join((*folders, base)), {})
        if extension.lower() in group:
            raise UserError(f"{path} has two members {member.name!r}; make keys unique within the shard")
        group[extension.lower()] = Member(member.offset_data, member.size, member.name)
    pairs = {key: m for name, group in groups.items() for key, m in _pairs(name, group)}
    used = {m[e].offset for m in pairs.values() for e in (image_extension_of(m), *TEXTS) if e in m}
    members = ((e, member) for group in groups.values() for e, member in group.items())
    unused.update(f"KEY.{json_safe(e)}" for e, member in members if member.offset not in used)
    return ShardIndex(path, tuple(pairs), tuple(pairs.values()), unused)


# For the shards of a set, which are indexed several times. Raw shards, each of ten times as many pairs, are not kept.
index_shard = lru_cache(maxsize=64)(read_index)


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tuple[str, ...]]]:
    """The files in a tar and the parts of their names; raises UserError as ``read_index`` does."""
    check_regular(path)
    problem = f"{path} is not a complete, uncompressed tar"
    with (
        name_file_in_errors(path),
        explained(problem, "make it again or remove it"),
        open_shard(path) as file,
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
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
            yield member, parts
        if os.pread(file.fileno(), 512, end) != bytes(512):
            raise UserError(f"{path} is cut short (it has no end mark); make it again or remove it")
        while block := os.pread(file.fileno(), 1 << 20, end):
            if block.strip(b"\0"):
                raise UserError(
                    f"{path} has data after its end mark, as tars joined by cat do; those pairs would be ignored; make it "
                    "again, or join tars with tar --concatenate"
                )
            end += len(block)


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


def images_fingerprint(images: Iterable[tuple[str, int]]) -> str:
    """A fingerprint of the images of a shard, given by their keys and sizes in bytes."""
    return fingerprint(list(images))


def image_extension_of(members: Collection[str]) -> str | None:
    """The extension of a pair's image among those of its members; None if it has no image."""
    return next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)


def read_member(descriptor: int, path: Path, member: Member) -> bytes:
    """The data of a member of an open shard; raises UserError naming ``path`` if the file is shorter."""
    with name_file_in_errors(path):
        data = os.pread(descriptor, member.size, member.offset)
    if len(data) != member.size:
        raise UserError(f"the shard {path} was cut short while being read; restore it and start again")
    return data


def open_shard(path: Path) -> BinaryIO:
    """The file of a shard, which is downloaded again if it was evicted from a mirror; raises UserError if it is missing."""
    while True:
        try:
            return open(path, "rb")
        except FileNotFoundError:
            if not fetch_shard(path):  # another process may evict what was just fetched
                raise UserError(
                    f"the shard {path} does not exist; restore it and start again, or check data.dir"
                ) from None
