"""Lists of keys: ``data.exclude`` leaves pairs out of everything, ``mitigation.dedup`` out of training only.

``keys`` of ``prepare`` names the pairs that may go into a set: members of A and non-members of H known beforehand.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from pathlib import Path

import numpy as np

from dejavu_lit.data.epoch import Positions, nested_sizes
from dejavu_lit.data.manifest import duplicate_groups
from dejavu_lit.data.readers.base import MAX_KEY_CHARS, clean_keys
from dejavu_lit.data.shard_index import IMAGE_EXTENSIONS
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.data.splits import ANY, NONE, SETS, check_sets
from dejavu_lit.utils.errors import UserError, counted, explained
from dejavu_lit.utils.io import check_regular, fingerprint

PLAIN_KEY = re.compile(rf"[\w-]{{1,{MAX_KEY_CHARS}}}", re.ASCII)
log = logging.getLogger(__name__)


def read_keys(path: Path | str, option: str) -> list[str]:
    """The distinct keys in a text file with one key per line, in their order; raises UserError naming ``option``.

    Only line feeds (and a carriage return before them) end a line: foreign keys may contain any other character.
    """
    check_regular(path)
    remedy = "give a text file with one key per line"
    with explained(f"{option}={path} cannot be read", remedy, errors=(OSError, UnicodeDecodeError)):
        lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
    return list(dict.fromkeys(line.removesuffix("\r") for line in lines if line.strip()))


def keys_fingerprint(keys: Collection[str]) -> str:
    """A fingerprint of a set of keys; their order does not matter."""
    return fingerprint(sorted(set(keys)))


def positions_of(shards: ShardSet, keys: Set[str]) -> dict[int, tuple[int, ...]]:
    """{shard: positions} of those of ``keys`` that are in the set; without keys no shard is opened."""
    if not keys:
        return {}
    positions = (tuple(p for p, key in enumerate(index.keys) if key in keys) for index in shards.indexes())
    return {shard: matches for shard, matches in enumerate(positions) if matches}


def prefix(shards: ShardSet, limit: int | None, excluded: Set[str]) -> tuple[list[str], int]:
    """The first ``limit`` keys (None: all) of a set that are not excluded, and how many of its pairs they span.

    Raises UserError for fewer pairs than ``limit``.
    """
    keys = spanned_keys(shards, limit, excluded)
    return [key for key in keys if key not in excluded], len(keys)


def spanned_keys(shards: ShardSet, limit: int | None, excluded: Set[str]) -> list[str]:
    """As ``prefix``, with the excluded keys in between: the set's first keys without a gap."""
    return shards.keys(sum(nested_sizes(shards.sizes, limit, positions_of(shards, excluded))))


def later_duplicates(
    manifest: Path, shards: ShardSet, train_size: int | None, excluded: Positions
) -> dict[int, tuple[int, ...]]:
    """{shard: positions} of the pairs that ``mitigation.dedup`` removes from training.

    Of each group of near-duplicates in the manifest, the pair with the smallest key stays, among those that are trained
    on (not excluded, within the training size). ``shards`` has pairs of A, of B or (in a random half) of both.
    Raises UserError if the manifest lists no groups.
    """
    groups = [group for name in ("A", "B") for group in duplicate_groups(manifest, name)]  # keys are unique over both
    used = nested_sizes(shards.sizes, train_size, excluded)
    location = {
        shards.index(shard).keys[position]: (shard, position)
        for shard, positions in positions_of(shards, {key for group in groups for key in group}).items()
        for position in set(positions).difference(excluded.get(shard, ()))
        if position < used[shard]
    }
    removed: dict[int, list[int]] = {}
    for group in groups:
        for key in [key for key in sorted(group) if key in location][1:]:
            shard, position = location[key]
            removed.setdefault(shard, []).append(position)
    return {shard: tuple(sorted(positions)) for shard, positions in removed.items()}


def read_lists(files: Mapping[str, Path | str | None]) -> dict[str, list[str]]:
    """{set: lines of its list} from {set: a text file with one key per line}; sets without a file are skipped.

    Raises UserError for an unknown set, or a file that cannot be read.
    """
    check_sets("keys", files)
    return {name: read_keys(file, f"keys.{name}") for name in SETS if (file := files.get(name)) is not None}


def match_lists(
    lists: Mapping[str, Sequence[str]], keys: Sequence[str], listed_name: Callable[[str], str] = str
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """{set: its listed keys that are in the data (``keys``)} and {set: how many are missing}, with a warning if any are.

    Raises UserError if a key is listed for two sets, or no key of a list is in the data.
    """
    known, set_of, missing = set(keys), dict[str, str](), dict[str, int]()
    for name, lines in lists.items():
        meant = meant_keys(lines, known, listed_name)
        for key in meant.values():
            if (earlier := set_of.setdefault(key, name)) != name:
                raise UserError(
                    f"keys.{earlier} and keys.{name} both list {key!r}; a pair goes into one set, remove it from one list"
                )
        unknown = [line for line in lines if line not in meant]
        missing[name] = len(unknown)
        check_known(f"keys.{name}", lines, unknown, min(known))
    return {name: [key for key, owner in set_of.items() if owner == name] for name in lists}, missing


def check_known(option: str, listed: Collection[str], unknown: Sequence[str], key: str) -> None:
    """Warn of the ``unknown`` keys that ``option`` lists; raise UserError if all are, showing how a ``key`` of the data looks."""
    if unknown and len(unknown) == len(listed):
        raise UserError(
            f"none of the {len(listed)} keys in {option} is in the data: it lists {unknown[0]!r}, the data has keys such as "
            f"{key!r}; write the keys as in the data"
        )
    if unknown:
        log.warning(
            "%d of %d keys in %s are not in the data; the first is %r", len(unknown), len(listed), option, unknown[0]
        )


def meant_keys(lines: Iterable[str], keys: Set[str], listed_name: Callable[[str], str] = str) -> dict[str, str]:
    """{line: the one of ``keys`` that it means}, without the lines that mean none.

    ``listed_name``: the reader's own function from a line to a name that a key is made from, if it has one.
    """
    meant = {line: next((k for k in possible_keys(line, listed_name) if k in keys), None) for line in lines}
    return {line: key for line, key in meant.items() if key is not None}


def possible_keys(line: str, listed_name: Callable[[str], str] = str) -> Iterator[str]:
    """What a line may stand for: a key, a text that readers make a key from, or an image's path."""
    yield line
    if listed_name is str and PLAIN_KEY.fullmatch(line):  # readers make the same of it; most lists have no other lines
        return
    line = listed_name(line)
    yield clean_keys([line])[0]
    stem, dot, extension = line.rpartition(".")
    if dot and extension.lower() in IMAGE_EXTENSIONS:
        yield clean_keys([stem])[0]


def excluded_keys(lines: Iterable[str]) -> frozenset[str]:
    """All that the lines of ``data.exclude`` may stand for; see ``possible_keys``."""
    return frozenset(chain.from_iterable(map(possible_keys, lines)))


def listed_sets(lists: Mapping[str, Sequence[str]], keys: Sequence[str]) -> np.ndarray:
    """The set that each of ``keys`` is listed for: int8 [n], an index into SETS, or ANY."""
    codes = {key: SETS.index(name) for name, listed in lists.items() for key in listed}
    return np.fromiter((codes.get(key, ANY) for key in keys), dtype=np.int8, count=len(keys))


def count_excluded_duplicates(listed: np.ndarray, allowed: np.ndarray, owner: np.ndarray) -> dict[str, int]:
    """{set: how many of its listed pairs are left out as duplicates of another set's}, with a warning for each.

    The key "" counts the pairs that are listed nowhere. ``listed`` is what ``allowed_sets`` took, the others its
    results, all int8 [n].
    """
    excluded, counts = allowed == NONE, Counter[str]()
    pairs = Counter(zip(listed[excluded].tolist(), owner[excluded].tolist(), strict=True))
    for (code, owning), count in sorted(pairs.items()):
        counts["" if code == ANY else SETS[code]] += count
        whose = "in no list" if code == ANY else f"of {SETS[code]}"
        log.warning("left out %s %s: duplicates of pairs of %s", counted(count, "pair"), whose, SETS[owning])
    return dict(counts)
