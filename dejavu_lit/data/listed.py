"""Pairs that the user lists for a set (``keys`` of ``prepare``): members of A and non-members of H, known beforehand."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dejavu_lit.data.left_out import read_keys
from dejavu_lit.data.splits import ANY, NONE, SETS
from dejavu_lit.errors import UserError, suggest

log = logging.getLogger(__name__)


def read_lists(files: Mapping[str, Path | str | None]) -> dict[str, list[str]]:
    """{set: keys listed for it} from {set: a text file, a key a line}; sets without a file are left out.

    Raises:
        UserError: an unknown set, a file that cannot be read or is empty, or a key that is listed for two sets.
    """
    lists: dict[str, list[str]] = {}
    place: dict[str, str] = {}
    for name in files:
        if name not in SETS:
            raise UserError(f"keys names a set {name!r}{suggest(name, SETS)}; the sets are {', '.join(SETS)}")
    for name in SETS:
        if (file := files.get(name)) is None:
            continue
        if not isinstance(file, str | Path):
            raise UserError(f"keys.{name}={file} is no file; give a text file with one key a line")
        lists[name] = read_keys(file, f"keys.{name}")
        if not lists[name]:
            raise UserError(f"keys.{name}={file} lists no keys; give one a line, or leave keys.{name} out")
        for key in lists[name]:
            if (other := place.setdefault(key, name)) != name:
                raise UserError(f"keys.{other} and keys.{name} both list {key!r}; a pair goes into one set, drop one")
    return lists


def count_absent(lists: Mapping[str, Sequence[str]], keys: Sequence[str]) -> dict[str, int]:
    """{set: how many of its listed keys are not in the data}, with a warning where there are some.

    Args:
        lists: of ``read_lists``; keys: those of the data, at least one.

    Raises:
        UserError: none of a set's keys is in the data; shows one of either, since most often they are written otherwise.
    """
    there = set(keys)
    absent = {}
    for name, listed in lists.items():
        unknown = [key for key in listed if key not in there]
        absent[name] = len(unknown)
        if len(unknown) == len(listed):
            raise UserError(
                f"none of the {len(listed)} keys of keys.{name} is in the data: it lists {listed[0]!r}, the data have keys "
                f"such as {min(there)!r}; list keys as the data have them"
            )
        if unknown:
            log.warning(
                "%d of %d keys of keys.%s are not in the data, the first is %r",
                len(unknown),
                len(listed),
                name,
                unknown[0],
            )
    return absent


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
