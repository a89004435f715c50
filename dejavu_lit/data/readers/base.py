"""The Reader protocol, which every source of pairs implements for ``prepare``, and the helpers that readers share.

A new source is one class with these five members, in one file of this folder. If it also has
``unread``, {kind: number of files or members that belong to no pair}, the manifest holds that; if it has ``listed_name``,
a function from a line in a list of keys to the name that a key is made from, lists may also name pairs in other ways.
"""

import errno
import hashlib
import os
import re
import stat
import unicodedata
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dejavu_lit.data.shard_index import MAX_IMAGE_BYTES
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import name_file_in_errors

if TYPE_CHECKING:  # pyarrow would take a third of the time of --help
    from dejavu_lit.data.objects import Annotation, Annotator

Paths = str | Path | Sequence[str | Path]
NO_FILE = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # like ENOENT
MAX_KEY_CHARS = 80  # with an extension, such a key still fits a plain tar header


class Reader(Protocol):
    """A source of pairs. Readers are sent to worker processes, so their state should be small or shareable."""

    @property
    def name(self) -> str:
        """The source's name: "coco", "folder", …"""

    @property
    def annotator(self) -> "Annotator | None":
        """Who annotated the objects that this reader provides; None if it provides none."""

    def keys(self) -> list[str]:
        """The key of every pair: unique, without dot or slash. Raises UserError if there is nothing to read."""

    def read(self, key: str) -> "tuple[Pair, Annotation | None]":
        """The pair and its objects (None: not annotated). The image need not decode.

        Raises BadPair with a short reason ("it has no caption"). The reason is the same for all pairs with that
        problem, because reasons are counted; the caller adds the key.
        """

    def fingerprint(self) -> dict[str, Any]:
        """The options, and the sizes and times of the files read: JSON values that differ if the pairs may differ."""


class KeyIndex:
    """Sorted keys, each with its row in the source: 8 bytes per key on top of the string."""

    def __init__(self, keys: Sequence[str]) -> None:
        """``keys[row]`` is the key of the source's row."""
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys = [keys[row] for row in order]
        self.rows = np.array(order, dtype=np.int64)

    def find(self, key: str) -> list[int]:
        """The source's rows for ``key``, ascending."""
        rows: list[int] = self.rows[bisect_left(self.keys, key) : bisect_right(self.keys, key)].tolist()
        return rows

    def row(self, key: str) -> int:
        """The source's only row for ``key``; raises ValueError for none."""
        (row,) = self.find(key)
        return row


def clean_keys(names: Sequence[str]) -> list[str]:
    """A unique key for each name: letters, digits, ``_`` and ``-`` stay, ``/`` becomes ``-``, anything else ``_``.

    Names whose keys would collide or exceed MAX_KEY_CHARS get a hash of the name appended, and equal names a number as
    well. So a key depends only on its name and the names that it would collide with.
    """
    keys = [re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", name).replace("/", "-")) for name in names]
    key_counts = Counter(keys)
    name_counts: Counter[str] = Counter()
    for row, (name, key) in enumerate(zip(names, keys, strict=True)):
        if key_counts[key] == 1 and 0 < len(key) <= MAX_KEY_CHARS:
            continue
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=5).hexdigest()
        name_counts[name] += 1
        number = f"-{name_counts[name]}" if name_counts[name] > 1 else ""
        keys[row] = f"{key[: MAX_KEY_CHARS - 20]}-{digest}{number}"
    return keys


def below(root: str, path: str) -> str:
    """An absolute path relative to ``root`` if it lies below it; any other path as it is."""
    if not root or not os.path.isabs(path):
        return path
    normal = os.path.normpath(path)
    return normal[len(root.rstrip("/")) + 1 :] if normal.startswith(root.rstrip("/") + "/") else path


def image_extension(data: bytes) -> str:
    """``jpg``, ``png`` or ``webp`` by the first bytes; raises BadPair for another format, or more than MAX_IMAGE_BYTES."""
    if len(data) > MAX_IMAGE_BYTES:
        raise BadPair(f"the image has more than {MAX_IMAGE_BYTES >> 20} MiB")
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise BadPair("the image is not a JPEG, PNG or WebP")


def read_image(path: Path) -> tuple[bytes, str]:
    """An image file's bytes and extension; raises BadPair if it is missing, not readable, too large or in another format.

    Other errors, of a network file system for instance, are passed on: the image may be good.
    """
    try:
        data = read_file(path, MAX_IMAGE_BYTES + 1)
    except PermissionError:
        raise BadPair("the image is not readable (permissions)") from None
    except (FileNotFoundError, ValueError):  # ValueError: a NUL byte in a table's path
        raise BadPair("the image does not exist") from None
    return data, image_extension(data)


def read_file(path: Path, limit: int) -> bytes:
    """The first ``limit`` bytes of a file; a folder, a pipe or a device, whose reading might never end, counts as missing.

    Raises FileNotFoundError for a missing file, another OSError that names the file if it cannot be read.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
        with name_file_in_errors(path), open(path, "rb") as file:
            return file.read(min(limit, state.st_size))
    except OSError as error:
        if error.errno in NO_FILE:
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
        raise


def file_state(path: Path) -> dict[str, Any]:
    """Size and modification time of a file, for fingerprints."""
    state = path.stat()
    return {"path": str(path.resolve()), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns}


def as_list(paths: Paths | None, needed: str | None = None) -> list[Path]:
    """One path or several, as a list; None gives []. Raises UserError naming the option ``needed`` if there is none."""
    if not paths:
        if needed is not None:
            raise UserError(f"{needed}= is empty; give a file or a folder")
        return []
    return [Path(str(path)) for path in ([paths] if isinstance(paths, str | Path) else paths)]


def as_text(value: Any) -> str:
    """A cell as text, "" for null; bytes, as some writers store text, as UTF-8 or, such as digests, hexadecimal.

    A whole number has no fraction, as pandas gives it if another one is missing.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)
