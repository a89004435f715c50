"""What a source of pairs offers to ``prepare`` (keys, pairs by key, a fingerprint), and what readers share.

A new source is one class with these five members in one file of this folder; ``prepare`` does the rest.
"""

import hashlib
import os
import re
import stat
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.shards import LARGEST_IMAGE, BadPair, Pair
from dejavu_lit.utils.errors import UserError

Paths = str | Path | Sequence[str | Path]
LONGEST_KEY = 80  # characters; with an extension it still fits a plain tar header


class Reader(Protocol):
    """A source of pairs. Readers are handed to worker processes, so their state should be small or shareable."""

    @property
    def name(self) -> str:
        """The source's name: "coco", "folder", …"""

    @property
    def annotator(self) -> Annotator | None:
        """Who annotated the objects this reader brings along; None when it brings none."""

    def keys(self) -> list[str]:
        """The key of every pair: unique, without dot or slash. Raises UserError when there is nothing to read."""

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair and its objects (None: it has none). The image need not decode.

        Raises BadPair with a short reason that is the same for all pairs with that fault ("it has no caption"):
        reasons are counted, and the key is added to them.
        """

    def fingerprint(self) -> dict[str, Any]:
        """The options, and sizes and times of the files read: JSON values that differ when the pairs may differ."""


class KeyIndex:
    """Sorted unique keys and the row of the source each stands for; 8 bytes a key beside the string itself."""

    def __init__(self, keys: Sequence[str]) -> None:
        """``keys[row]`` is the key of the source's row; raises UserError naming a key that occurs twice."""
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys = [keys[row] for row in order]
        self.rows = np.array(order, dtype=np.int64)
        for one, other in zip(self.keys, self.keys[1:], strict=False):
            if one == other:
                raise UserError(f"the key {one!r} occurs twice; keys must be unique within a source")

    def row(self, key: str) -> int:
        """The source's row for ``key``; raises KeyError."""
        position = bisect_left(self.keys, key)
        if position == len(self.keys) or self.keys[position] != key:
            raise KeyError(key)
        return int(self.rows[position])


def clean_keys(names: Sequence[str]) -> list[str]:
    """A key for each name: letters, digits, ``_`` and ``-`` stay, ``/`` becomes ``-``, the rest ``_``; all unique.

    Names that would get the same key, or one longer than LONGEST_KEY, get a hash of the name behind it, and equal names
    a number as well, so a key depends on no more than the names it would clash with.
    """
    keys = [re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", name).replace("/", "-")) for name in names]
    seen = Counter(keys)
    times: Counter[str] = Counter()
    for row, (name, key) in enumerate(zip(names, keys, strict=True)):
        if seen[key] == 1 and 0 < len(key) <= LONGEST_KEY:
            continue
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=5).hexdigest()
        times[name] += 1
        number = f"-{times[name]}" if times[name] > 1 else ""
        keys[row] = f"{key[: LONGEST_KEY - 20]}-{digest}{number}"
    return keys


def image_extension(data: bytes) -> str:
    """``jpg``, ``png`` or ``webp`` by the image's first bytes, whatever its file is called; raises BadPair for others."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise BadPair("the image is no JPEG, PNG or WebP")


def read_image(path: Path) -> tuple[bytes, str]:
    """An image file's bytes and extension; raises BadPair when it is missing, unreadable, too large or of another format."""
    try:
        data = read_file(path, LARGEST_IMAGE + 1)
    except PermissionError:
        raise BadPair("the image may not be read (permissions)") from None
    except (OSError, ValueError):  # ValueError: a NUL byte in a table's path
        raise BadPair("the image does not exist") from None
    extension = image_extension(data)
    if len(data) > LARGEST_IMAGE:
        raise BadPair(f"the image has more than {LARGEST_IMAGE >> 20} MiB")
    return data, extension


def read_file(path: Path, most: int) -> bytes:
    """The first ``most`` bytes of a file; raises OSError, also for a pipe or a device, from which reading might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise FileNotFoundError(f"{path} is no file")
        return file.read(min(most, state.st_size))


def file_state(path: Path) -> dict[str, Any]:
    """Size and modification time of a file, for fingerprints."""
    state = path.stat()
    return {"path": str(path.resolve()), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def as_list(paths: Paths | None) -> list[Path]:
    """One path or several as a list."""
    if paths is None:
        return []
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
