"""The split into the sets A, B, H, V and P and the order within them: pure functions of keys, groups, sizes and a seed.

Groups of near-duplicates are taken in the order of a seeded hash of their smallest key, and A, B, H, V, P are filled in
turn with whole groups, so every set is an i.i.d. sample of the source. Within a set the pairs are in the order of another
seeded hash of their own key, so a prefix is an i.i.d. sample of the set, and a smaller training set is nested in a larger
one. A set that pairs are listed for (``data/key_lists.py``) is filled in the same way, with these pairs only.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dejavu_lit.utils.errors import UserError, suggest

SETS = ("A", "B", "H", "V", "P")
UNUSED = -1
ANY, NONE = -1, -2  # of allowed_sets: the pair may go into any set without a list; into none


def seeded_hash(keys: Sequence[str], seed: int, purpose: str) -> np.ndarray:
    """64 bits of BLAKE2b of each key, uint64 [n]; independent for different (seed, purpose)."""
    keyed = hashlib.blake2b(digest_size=8, key=f"{seed}/{purpose}".encode())

    def digest(key: str) -> bytes:
        state = keyed.copy()
        state.update(key.encode("utf-8", "surrogatepass"))
        return state.digest()

    return np.frombuffer(b"".join(map(digest, keys)), dtype="<u8")


def hash_order(keys: Sequence[str], seed: int, purpose: str) -> np.ndarray:
    """The rows of ``keys`` in the order of their hash, int64 [n]; the first of them are a random draw."""
    return np.argsort(seeded_hash(keys, seed, purpose), kind="stable")


def check_sets(option: str, names: Iterable[str]) -> None:
    """Raise UserError if ``option`` names a set that is not one of SETS."""
    if unknown := [name for name in names if name not in SETS]:
        raise UserError(
            f"{option} names an unknown set {unknown[0]!r}{suggest(unknown[0], SETS)}; the sets are {', '.join(SETS)}"
        )


def count_by_set(names: Iterable[str], codes: np.ndarray) -> dict[str, int]:
    """{set: how often its index into SETS is in ``codes``} for the sets ``names``."""
    return {name: int((codes == SETS.index(name)).sum()) for name in names}


def set_sizes(
    requested: Mapping[str, float | int | None],
    pairs: int,
    listed: Mapping[str, int] | None = None,
    excluded: int = 0,
) -> dict[str, int]:
    """{set: number of pairs} from counts and shares of ``pairs``; sets of size 0 are dropped.

    Args:
        requested: counts, shares, or None for all pairs that are listed for the set.
        pairs: number of pairs available; excluded: how many of them may go into no set.
        listed: {set: how many of them are listed for it}; the other sets share the unlisted ones.

    Raises:
        UserError: an unknown set, no size, or more pairs requested than available.
    """
    listed = listed or {}
    sizes: dict[str, int] = {}
    check_sets("data.sizes", requested)
    for name, size in {**dict.fromkeys(listed), **requested}.items():
        _check_size(name, size, name in listed)
        # The small term keeps 0.29 of 100 at 29: the product of the floats is slightly less.
        sizes[name] = (
            listed[name] if size is None else int(size * pairs + 1e-6) if isinstance(size, float) else int(size)
        )
        if name in listed and not 0 < sizes[name] <= listed[name]:
            raise UserError(
                f"data.sizes.{name} asks for {sizes[name]} pairs, but keys.{name} lists {listed[name]} that can be used (not "
                "skipped, excluded, or duplicates of pairs of another set); list others, give another number, or null for all"
            )
    total = sum(size for name, size in sizes.items() if name not in listed)
    free = pairs - sum(listed.values()) - excluded
    if total > free:
        request = ", ".join(f"{name}={sizes[name]}" for name in SETS if name in sizes and name not in listed)
        note = " for these sets: keys lists the others, or near-duplicates of them" if listed else ""
        raise UserError(
            f"sizes ask for {total} pairs ({request}), but there are only {free}{note}; ask for fewer or add data"
        )
    if not any(sizes.values()):
        raise UserError(
            f"sizes ask for no pairs at all of the {pairs}; give at least one set a size, e.g. data.sizes.A=1.0"
        )
    return {name: sizes[name] for name in SETS if sizes.get(name)}


def _check_size(name: str, size: float | int | None, has_list: bool) -> None:
    if size is None and not has_list:
        raise UserError(
            f"data.sizes.{name}=null takes all pairs that keys.{name} lists, but it lists none; give a number"
        )
    is_count = size is None or (type(size) is int and size >= 0)
    if not is_count and not (isinstance(size, float) and 0 <= size <= 1):
        raise UserError(
            f"data.sizes.{name}={size} is not a size; give a whole number of pairs, or a share of all pairs (1.0: all)"
        )


def allowed_sets(groups: np.ndarray, listed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which set each pair may go into, int8 [n], an index into SETS, ANY or NONE; and which set its group belongs to.

    A group of near-duplicates belongs to the first of the SETS that one of its pairs is listed for. Its pairs that are
    listed for another set, or nowhere, go into no set: otherwise other sets would contain copies of the listed pairs.

    Args:
        groups: int64 [n], for each pair the row of the smallest key of its group.
        listed: int8 [n], the set that each pair is listed for; ANY if it is listed nowhere.
    """
    set_of_root = np.full(len(groups), len(SETS), dtype=np.int8)
    is_listed = listed != ANY
    np.minimum.at(set_of_root, groups[is_listed], listed[is_listed])
    owner = set_of_root[groups]  # len(SETS): none of them
    return np.where(owner == len(SETS), ANY, np.where(listed == owner, listed, NONE)).astype(np.int8), owner


def split(
    keys: Sequence[str], groups: np.ndarray, sizes: Mapping[str, int], seed: int, allowed: np.ndarray
) -> np.ndarray:
    """The set of each pair: int8 [n], an index into SETS or UNUSED.

    A group that does not fit into a set is offered to the next one, so a set is smaller than its size only if none of the
    remaining groups is small enough, and it is never larger.

    Args:
        keys: sorted [n]; sizes: {set: number of pairs}.
        groups: int64 [n], for each pair the row of the smallest key of its group (its own row if it is alone).
        allowed: int8 [n], from ``allowed_sets``: a set that occurs in it gets no other pairs.
    """
    roots = np.flatnonzero(groups == np.arange(len(groups)))
    group_sizes = np.bincount(groups[allowed != NONE], minlength=len(groups))
    set_of_root = np.full(len(groups), NONE, dtype=np.int8)
    np.maximum.at(set_of_root, groups, allowed)
    order = roots[hash_order([keys[root] for root in roots.tolist()], seed, "set")]
    queues = {code: order[set_of_root[order] == code] for code in (ANY, *np.unique(allowed[allowed >= 0]).tolist())}
    chosen = np.full(len(groups), UNUSED, dtype=np.int8)  # by root
    for code, name in enumerate(SETS):
        capacity = sizes.get(name, 0)
        source = code if code in queues else ANY
        queue = queues[source]
        remaining = np.ones(len(queue), dtype=bool)
        for position, size in enumerate(group_sizes[queue].tolist()):
            if capacity == 0:
                break
            if size <= capacity:
                chosen[queue[position]] = code
                remaining[position] = False
                capacity -= size
        queues[source] = queue[remaining]
    return np.where(allowed == NONE, UNUSED, chosen.take(groups)).astype(np.int8)
