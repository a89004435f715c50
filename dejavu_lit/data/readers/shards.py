"""Pairs from existing shards: WebDataset tars, including those of img2dataset.

A pair's caption is its ``txt`` member or, if missing, ``caption`` in its ``json``, or its class (``cls``, ``label``).
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from braceexpand import braceexpand

from dejavu_lit.data.decode import TEXTS, BadPair, Pair, caption_lines, meta_captions, with_captions
from dejavu_lit.data.readers.base import KeyIndex, as_list, as_text, clean_keys, image_extension
from dejavu_lit.data.shard_index import IMAGE_EXTENSIONS, Member, ShardIndex, image_extension_of, read_index, read_pair
from dejavu_lit.utils.errors import UserError, explained, suggest
from dejavu_lit.utils.io import fingerprint, is_hidden, visible_files, warn_unread
from dejavu_lit.utils.progress import progress

if TYPE_CHECKING:
    from dejavu_lit.data.objects import Annotation

MEMBERS = (IMAGE_EXTENSIONS[0], *TEXTS)  # the first stands for any image
TEXT = TEXTS[0]
LINES = "lines"
LOOKED_AT = 20  # pairs whose texts are looked at for several captions
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardReader:
    """The pairs of all tars in one folder or several; 68 bytes per pair on top of its key."""

    name = "shards"  # in fingerprints and messages
    annotator = None  # pass the objects of an earlier annotation to the evaluation with objects=
    path: Any
    """Folder(s) of tars, tars, or patterns of tars: ``*.tar``, ``{000..012}.tar``."""
    caption: str = TEXT
    """txt: a pair's text is one caption; lines: each of its lines is one, as in clip_benchmark's tars; or the entry of the
    JSON that has the caption or a list of them, such as re_caption."""
    key: str | None = None
    """The entry of a pair's JSON that is its key, such as DataComp's uid; null: the name of its members."""

    @cached_property
    def _tars(self) -> list[Path]:
        tars = map(matching_tars, as_list(self.path, "data.reader.path"))
        return list(dict.fromkeys(chain.from_iterable(tars)))

    @cached_property
    def _members(self) -> tuple[KeyIndex, np.ndarray, np.ndarray, dict[str, int]]:
        """Keys; the tar of each row, int32 [n]; (offset, size) of MEMBERS, int64 [n, 4, 2], −1: missing; unread ones."""
        names: list[str] = []
        shards: list[np.ndarray] = []
        ranges: list[np.ndarray] = []
        unused: Counter[str] = Counter()
        for number, tar in enumerate(progress(self._tars, "indexing shards", unit="shard")):
            index = read_index(tar)
            names.extend(index.keys if self.key is None else self._json_keys(index))
            unused.update(index.unused)
            shards.append(np.full(len(index), number, dtype=np.int32))
            rows = [
                [m.get(e, (-1, -1))[:2] for e in (image_extension_of(m) or MEMBERS[0], *TEXTS)] for m in index.members
            ]
            ranges.append(np.array(rows, dtype=np.int64).reshape(-1, len(MEMBERS), 2))
        warn_unread(self.name, "member", unused)
        if self.key is not None and len(set(names)) < len(names):
            value = Counter(names).most_common(1)[0][0]
            raise UserError(
                f"{self.key} {value!r} occurs in several pairs; choose an entry of unique values with data.reader.key="
            )
        return KeyIndex(clean_keys(names)), np.concatenate(shards), np.concatenate(ranges), dict(unused)

    def _json_keys(self, index: ShardIndex) -> Iterator[str]:
        for key, pair in zip(index.keys, index.pairs(image=False), strict=True):
            if isinstance(pair, BadPair):  # which is skipped under the name of its members
                yield key
            elif pair.meta.get(str(self.key)) in (None, ""):
                raise UserError(
                    f"the JSON of {key} in {index.path} has no {self.key!r}; choose another entry with data.reader.key="
                )
            else:
                yield as_text(pair.meta[str(self.key)])

    @property
    def unread(self) -> dict[str, int]:
        """{kind: number of members} of those that belong to no pair."""
        return self._members[3]

    def keys(self) -> list[str]:
        """The keys of all pairs, cleaned (a slash becomes ``-``) and sorted.

        Logs if the texts of the first pairs look like several captions, or if they have none; raises UserError if none has
        the entry ``caption``.
        """
        keys = self._members[0].keys
        pairs: list[Pair] = []
        for key in keys[:LOOKED_AT]:
            with suppress(BadPair):
                pairs.append(self._pair(key))
        known = [TEXT, LINES, *dict.fromkeys(chain.from_iterable(pair.meta for pair in pairs))]
        if pairs and self.caption not in known:
            raise UserError(
                f"{self.name}: none of the first pairs has {self.caption!r} in its JSON{suggest(self.caption, known)}; choose "
                f"one of {', '.join(known)} with data.reader.caption="
            )
        if pairs and self.caption == TEXT and all("\n" in pair.caption for pair in pairs):
            logger.warning(
                "%s: the texts of the first pairs have several lines, which are read as one caption; if each line is one, "
                "give data.reader.caption=lines",
                self.name,
            )
        if len(known) > 2 and self.caption == TEXT and not any(pair.caption for pair in pairs):
            logger.info(
                "%s: the first pairs have no caption; if it is an entry of their JSON, give data.reader.caption=, one of %s",
                *(self.name, ", ".join(known[2:])),
            )
        return keys

    def _pair(self, key: str) -> Pair:
        """The pair with its members' caption; raises BadPair as ``read``."""
        index, shards, ranges, _ = self._members
        row = index.row(key)
        members = {
            name: Member(int(at), int(size)) for name, (at, size) in zip(MEMBERS, ranges[row], strict=True) if size >= 0
        }
        return read_pair(self._tars[shards[row]], key, members)

    def read(self, key: str) -> "tuple[Pair, Annotation | None]":
        """The pair; raises BadPair for a missing image, or text or JSON that does not decode."""
        pair = self._pair(key)
        if self.caption == LINES:
            pair = _recaptioned(pair, caption_lines(pair.caption))
        elif self.caption != TEXT:
            if (value := pair.meta.pop(self.caption, None)) is None:
                raise BadPair(f"its JSON has no {self.caption!r}")
            pair.meta.pop("captions", None)  # others
            pair = _recaptioned(pair, meta_captions({"caption": value}))
        return replace(pair, extension=image_extension(pair.image)), None

    def fingerprint(self) -> dict[str, Any]:
        """The folders, the number of tars, and a hash of the tars' paths, sizes and times."""
        states = [(str(tar), tar.stat().st_size, tar.stat().st_mtime_ns) for tar in self._tars]
        folders = [str(folder.resolve()) for folder in as_list(self.path)]
        options = {"caption": self.caption} if self.caption != TEXT else {}
        options |= {"key": self.key} if self.key is not None else {}
        return {"reader": self.name, "path": folders, "shards": len(states), "files": fingerprint(states), **options}


def _recaptioned(pair: Pair, captions: Sequence[str]) -> Pair:
    return replace(pair, caption=next(iter(captions), ""), meta=with_captions(pair.meta, captions))


def matching_tars(path: Path) -> list[Path]:
    """The tars that a folder, a file or a pattern means; raises UserError if one of the names in its braces means none."""
    tars: list[Path] = []
    # Not Path.exists, which raises for a name as long as some patterns.
    for name in [str(path)] if os.path.exists(path) else expand_braces(str(path)):
        if os.path.isdir(name):
            matches = visible_files(name, "*.tar")
        elif os.path.exists(name):
            matches = [Path(name)]
        else:
            matches = [Path(match) for match in sorted(glob(name)) if not is_hidden(Path(match).name)]
        if not matches and name != str(path):
            raise UserError(
                f"{name} of the pattern {path} does not exist or has no shards; restore it or correct the pattern"
            )
        tars += matches
    if not tars:
        raise UserError(
            f"{path} has no shards; give a folder of *.tar, a tar, or a pattern such as '*/*.tar' or '{{0..9}}.tar'"
        )
    return tars


def expand_braces(pattern: str) -> list[str]:
    """The names that ``{a,b}`` and ``{000..012}`` in a pattern stand for, as in bash; raises UserError if one is not closed."""
    with explained(f"the braces in {pattern} do not match", "write {0..9} or {a,b}", errors=(ValueError,)):
        return list(braceexpand(pattern, escape=False))
