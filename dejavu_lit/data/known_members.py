"""Pairs that the user lists for a set (``keys`` of ``prepare``): members of A and non-members of H, known beforehand."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dejavu_lit.data.exclude import read_keys
from dejavu_lit.data.readers.base import clean_keys
from dejavu_lit.data.shards import IMAGE_EXTENSIONS
from dejavu_lit.data.splits import ANY, NONE, SETS
from dejavu_lit.utils.errors import UserError, suggest

log = logging.getLogger(__name__)


def read_lists(files: Mapping[str, Path | str | None]) -> dict[str, list[str]]:
    """{set: lines of its list} from {set: a text file, a key a line}; sets without a file are left out.

    Raises:
        UserError: an unknown set, or a file that cannot be read or is empty.
    """
    for name in files:
        if name not in SETS:
            raise UserError(f"keys names a set {name!r}{suggest(name, SETS)}; the sets are {', '.join(SETS)}")
    lists: dict[str, list[str]] = {}
    for name in SETS:
        if (file := files.get(name)) is None:
            continue
        if not isinstance(file, str | Path):
            raise UserError(f"keys.{name}={file} is no file; give a text file with one key a line")
        lists[name] = read_keys(file, f"keys.{name}")
        if not lists[name]:
            raise UserError(f"keys.{name}={file} lists no keys; give one a line, or leave keys.{name} out")
    return lists


def find_listed(lists: Mapping[str, Sequence[str]], keys: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """{set: its listed keys that are in the data} and {set: how many are not}, with a warning where some are not.

    A line that is no key may be what the reader makes a key from: a column's text, or an image's path.

    Args:
        lists: of ``read_lists``; keys: those of the data, at least one.

    Raises:
        UserError: a key is listed for two sets, or none of a list is in the data: then one of either is shown, since most
            often they are written otherwise.
    """
    there, place, absent = set(keys), dict[str, str](), dict[str, int]()
    for name, listed in lists.items():
        unknown = []
        for line in listed:
            if (key := next((form for form in _forms(line) if form in there), None)) is None:
                unknown.append(line)
            elif (other := place.setdefault(key, name)) != name:
                raise UserError(f"keys.{other} and keys.{name} both list {key!r}; a pair goes into one set, drop one")
        absent[name] = len(unknown)
        if len(unknown) == len(listed):
            raise UserError(
                f"none of the {len(listed)} keys of keys.{name} is in the data: it lists {listed[0]!r}, the data have keys "
                f"such as {min(there)!r}; list keys as the data have them"
            )
        if unknown:
            which = (len(unknown), len(listed), name, unknown[0])
            log.warning("%d of %d keys of keys.%s are not in the data, the first is %r", *which)
    return {name: [key for key, its in place.items() if its == name] for name in lists}, absent


def _forms(line: str) -> Iterator[str]:
    """What a line may stand for: a key, a text that readers make one from, or an image's path."""
    yield line
    yield clean_keys([line])[0]
    stem, dot, extension = line.rpartition(".")
    if dot and extension.lower() in IMAGE_EXTENSIONS:
        yield clean_keys([stem])[0]


def listed_sets(lists: Mapping[str, Sequence[str]], keys: Sequence[str]) -> np.ndarray:
    """The set that each of ``keys`` is listed for: int8 [n], an index into SETS, or ANY."""
    codes = {key: SETS.index(name) for name, listed in lists.items() for key in listed}
    return np.fromiter((codes.get(key, ANY) for key in keys), dtype=np.int8, count=len(keys))


def count_left_out(groups: np.ndarray, listed: np.ndarray, claimed: np.ndarray) -> dict[str, int]:
    """{set: how many pairs listed for it are left out as duplicates of another set's}, "" for those listed nowhere; told.

    Args:
        groups, listed: int [n], as ``claims`` takes them; claimed: int8 [n], what it gives.
    """
    owner = np.full(len(groups), ANY, dtype=np.int8)  # by root
    np.maximum.at(owner, groups, claimed)
    own = owner[groups]
    count = {}
    for code in (*range(len(SETS)), ANY):
        gone = (claimed == NONE) & (listed == code)
        count[SETS[code] if code != ANY else ""] = int(gone.sum())
        for other in np.unique(own[gone]).tolist():
            which = f"of {SETS[code]}" if code != ANY else "that are listed nowhere"
            log.warning(
                "%d pairs %s left out: duplicates of pairs of %s", (gone & (own == other)).sum(), which, SETS[other]
            )
    return {name: pairs for name, pairs in count.items() if pairs}
