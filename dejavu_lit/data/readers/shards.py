"""Existing shards as pairs: WebDataset tars, among them what img2dataset writes.

A pair's caption is its ``txt`` member, or ``caption`` of its ``json`` where there is none.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit.data.decode import LARGEST_JSON, meta_caption, read_meta, read_text
from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import KeyIndex, Paths, as_list, clean_keys, image_extension
from dejavu_lit.data.shards import IMAGE_EXTENSIONS, LARGEST_IMAGE, BadPair, Pair, index_shard
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint
from dejavu_lit.utils.progress import progress

MEMBERS = ("image", "txt", "json")


@dataclass(frozen=True)
class ShardReader:
    """The pairs of all tars in one folder or several; 52 bytes a pair beside its key."""

    path: Paths
    """Folder(s) of tars."""
    name: str = "shards"

    @property
    def annotator(self) -> Annotator | None:
        """None: shards bring no objects; give those of an earlier annotation to the evaluation by objects=."""
        return None

    @cached_property
    def _tars(self) -> list[Path]:
        tars: list[Path] = []
        for folder in as_list(self.path):
            found = sorted(folder.glob("*.tar")) if folder.is_dir() else []
            if not found:
                raise UserError(f"{folder} holds no shards (*.tar); check path=")
            tars.extend(found)
        return tars

    @cached_property
    def _members(self) -> tuple[KeyIndex, np.ndarray, np.ndarray]:
        """Keys; the tar of each row, int32 [n]; offset and size of image, txt and json, int64 [n, 3, 2], size −1: none."""
        names: list[str] = []
        shard: list[np.ndarray] = []
        where: list[np.ndarray] = []
        for number, tar in enumerate(progress(self._tars, "indexing shards", unit="shard")):
            index = index_shard(tar)
            names.extend(index.keys)
            shard.append(np.full(len(index), number, dtype=np.int32))
            rows = np.full((len(index), len(MEMBERS), 2), -1, dtype=np.int64)
            for row, members in zip(rows, index.members, strict=True):
                image = next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)
                for column, member in enumerate((image, members.get("txt"), members.get("json"))):
                    if member is not None:
                        row[column] = member
            where.append(rows)
        if not names:
            raise UserError(f"the shards in {self._tars[0].parent} hold no pairs; check path=")
        return KeyIndex(clean_keys(names)), np.concatenate(shard), np.concatenate(where)

    def keys(self) -> list[str]:
        """The keys of all pairs, sorted; a slash in a shard's key becomes ``-``."""
        return self._members[0].keys

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair; raises BadPair for a missing image or caption, or text or JSON that does not decode."""
        index, shards, where = self._members
        row = index.row(key)
        tar = self._tars[shards[row]]
        try:
            with open(tar, "rb") as file:
                limits = (LARGEST_IMAGE + 1, LARGEST_JSON + 1, LARGEST_JSON + 1)  # enough to see that it is too large
                image, text, extra = (
                    _read(file.fileno(), int(offset), min(int(size), limit), tar)
                    for (offset, size), limit in zip(where[row], limits, strict=True)
                )
        except FileNotFoundError:
            raise UserError(f"the shard {tar} has vanished; restore it and start again") from None
        if image is None:
            raise BadPair("it has no image")
        if len(image) > LARGEST_IMAGE:
            raise BadPair(f"the image has more than {LARGEST_IMAGE >> 20} MiB")
        meta = read_meta(extra) if extra is not None else {}
        caption = read_text(text) if text is not None else meta_caption(meta)
        return Pair(key, image, image_extension(image), caption, meta), None

    def fingerprint(self) -> dict[str, Any]:
        """The folders, and a hash of the tars' names, sizes and times."""
        states = [(str(tar), tar.stat().st_size, tar.stat().st_mtime_ns) for tar in self._tars]
        folders = [str(folder.resolve()) for folder in as_list(self.path)]
        return {"reader": self.name, "path": folders, "shards": len(states), "files": fingerprint(states)}


def _read(descriptor: int, offset: int, size: int, tar: Path) -> bytes | None:
    if size < 0:
        return None
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise UserError(f"the shard {tar} was cut short while being read; restore it and start again")
    return data
