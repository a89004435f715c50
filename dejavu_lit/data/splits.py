"""Which pair goes into which set, A, B, H, V or P, and in which order: pure functions of keys, groups, sizes and a seed.

Groups of near-duplicates are walked in the order of the seeded hash of their smallest key, and A, B, H, V, P are filled
one after the other with whole groups; so every set is an i.i.d. sample of the source. Within a set the pairs stand in the
order of another seeded hash of their own key, so a prefix is an i.i.d. sample of the set, and a smaller training set is
nested in a larger one. A set that pairs are listed for (``data/listed.py``) is filled in the same way, with these pairs alone.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from dejavu_lit.utils.errors import UserError, suggest

SETS = ("A", "B", "H", "V", "P")
UNUSED = -1
ANY, NONE = -1, -2  # claims: the pair may go into any set that no pair is listed for; into none


def seeded_hash(keys: Sequence[str], seed: int, purpose: str) -> np.ndarray:
    """64 bits of BLAKE2b of each key, uint64 [n]; independent for different (seed, purpose)."""
    start = hashlib.blake2b(digest_size=8, key=f"{seed}/{purpose}".encode())

    def digest(key: str) -> bytes:
        state = start.copy()
        state.update(key.encode("utf-8", "surrogatepass"))
        return state.digest()

    return np.frombuffer(b"".join(map(digest, keys)), dtype="<u8")


def set_sizes(
    asked: Mapping[str, float | int | None],
    pairs: int,
    listed: Mapping[str, int] | None = None,
    left_out: int = 0,
) -> dict[str, int]:
    """{set: number of pairs} from counts and shares of ``pairs``, for the sets with more than none.

    Args:
        asked: counts, shares, or None for all pairs that are listed for the set.
        pairs: how many there are.
        listed: {set: how many of them are listed for it}; the other sets share those that are listed for none.
        left_out: how many pairs may go into no set.

    Raises:
        UserError: an unknown set, a size below 0, a share above 1, or more pairs asked for than there are.
    """
    listed = listed or {}
    sizes: dict[str, int] = {}
    for name, size in {**dict.fromkeys(listed), **asked}.items():
        if name not in SETS:
            raise UserError(f"data.sizes names a set {name!r}{suggest(name, SETS)}; the sets are {', '.join(SETS)}")
        if size is None and name not in listed:
            raise UserError(
                f"data.sizes.{name}=null means all pairs that keys.{name} lists, which lists none; give a number"
            )
        if isinstance(size, bool) or not isinstance(size, int | float | None) or not 0 <= (size or 0) < float("inf"):
            raise UserError(
                f"data.sizes.{name}={size} is no size; give a number of pairs, or a share of all pairs below 1"
            )
        if isinstance(size, float) and size >= 1:
            raise UserError(f"data.sizes.{name}={size} is no share below 1; write a whole number for a number of pairs")
        # The small term keeps 0.29 of 100 at 29, where the product of floats lies just below.
        sizes[name] = (
            listed[name] if size is None else int(size * pairs + 1e-6) if isinstance(size, float) else int(size)
        )
        if name in listed:
            _check_listed(name, size, sizes[name], listed[name])
    total = sum(size for name, size in sizes.items() if name not in listed)
    free = pairs - sum(listed.values()) - left_out
    if total > free:
        wanted = ", ".join(f"{name}={sizes[name]}" for name in SETS if name in sizes and name not in listed)
        there = f"{free} that may go there: keys lists the others, or near-duplicates of them" if listed else f"{free}"
        raise UserError(
            f"sizes ask for {total} pairs ({wanted}), but there are only {there}; ask for fewer or bring more data"
        )
    if not any(sizes.values()):
        raise UserError("sizes ask for no pairs at all; give at least one set a size, e.g. data.sizes.A=2000")
    return {name: sizes[name] for name in SETS if sizes.get(name)}


def _check_listed(name: str, asked: float | int | None, size: int, listed: int) -> None:
    if not listed:
        raise UserError(
            f"no pair that keys.{name} lists can be used: all are skipped, left out, or duplicates of pairs of another set"
        )
    if asked == 0:
        raise UserError(
            f"keys.{name} lists pairs for {name}, but data.sizes.{name} is 0; give a number, or null for all"
        )
    if size > listed:
        raise UserError(
            f"data.sizes.{name}={asked} asks for {size} pairs, but keys.{name} lists only {listed} that can be used; ask for "
            f"fewer, or for all of them with data.sizes.{name}=null"
        )


def claims(groups: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Which set each pair may go into: int8 [n], an index into SETS, ANY or NONE.

    A group of near-duplicates belongs to the first of the SETS that one of its pairs is listed for. Its other pairs, listed
    for another set or nowhere, are left out whatever is drawn: else the other sets would hold copies of what is in that one.

    Args:
        groups: int64 [n], for each pair the row of the smallest key of its group.
        listed: int8 [n], the set that each pair is listed for, ANY where it is listed nowhere.
    """
    owner = np.full(len(groups), len(SETS), dtype=np.int8)  # by root
    named = listed != ANY
    np.minimum.at(owner, groups[named], listed[named])
    own = owner[groups]
    return np.where(own == len(SETS), ANY, np.where(listed == own, own, NONE)).astype(np.int8)


def split(
    keys: Sequence[str], groups: np.ndarray, sizes: Mapping[str, int], seed: int, claimed: np.ndarray | None = None
) -> np.ndarray:
    """The set of each pair: int8 [n], an index into SETS or UNUSED.

    A group that has no room left in a set is offered to the next one, so a set falls short of its size only when none
    of the groups left is small enough, and is never larger.

    Args:
        keys: sorted keys [n].
        groups: int64 [n], for each pair the row of the smallest key of its group (its own row when it is alone).
        sizes: {set: number of pairs}.
        seed: of the splits.
        claimed: int8 [n], the result of ``claims``: a set that is in it gets no other pairs; by default all are ANY.
    """
    claimed = np.full(len(groups), ANY, dtype=np.int8) if claimed is None else claimed
    roots = np.flatnonzero(groups == np.arange(len(groups)))
    members = np.bincount(groups[claimed != NONE], minlength=len(groups))
    owner = np.full(len(groups), NONE, dtype=np.int8)  # by root
    np.maximum.at(owner, groups, claimed)
    order = roots[np.argsort(seeded_hash([keys[root] for root in roots.tolist()], seed, "set"), kind="stable")]
    queues = {claim: order[owner[order] == claim] for claim in (ANY, *np.unique(claimed[claimed >= 0]).tolist())}
    chosen = np.full(len(groups), UNUSED, dtype=np.int8)  # by root
    for code, name in enumerate(SETS):
        room = sizes.get(name, 0)
        queue = queues[claim := code if code in queues else ANY]
        passed = np.ones(len(queue), dtype=bool)
        for position, size in enumerate(members[queue].tolist()):
            if room == 0:
                break
            if size <= room:
                chosen[queue[position]] = code
                passed[position] = False
                room -= size
        queues[claim] = queue[passed]
    return np.where(claimed == NONE, UNUSED, chosen.take(groups)).astype(np.int8)


def shard_order(keys: Sequence[str], seed: int) -> np.ndarray:
    """The rows of ``keys`` (sorted) in the order in which a set is written, int64 [n]."""
    return np.argsort(seeded_hash(keys, seed, "order"), kind="stable")
