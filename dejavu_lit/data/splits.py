"""Which pair goes into which set, A, B, H, V or P, and in which order: pure functions of keys, groups, sizes and a seed.

Groups of near-duplicates are walked in the order of the seeded hash of their smallest key, and A, B, H, V, P are filled
one after the other with whole groups; so every set is an i.i.d. sample of the source. Within a set the pairs stand in the
order of another seeded hash of their own key, so a prefix is an i.i.d. sample of the set, and a smaller training set is
nested in a larger one.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from dejavu_lit.errors import UserError, suggest

SETS = ("A", "B", "H", "V", "P")
UNUSED = -1


def seeded_hash(keys: Sequence[str], seed: int, purpose: str) -> np.ndarray:
    """64 bits of BLAKE2b of each key, uint64 [n]; independent for different (seed, purpose)."""
    start = hashlib.blake2b(digest_size=8, key=f"{seed}/{purpose}".encode())

    def digest(key: str) -> bytes:
        state = start.copy()
        state.update(key.encode("utf-8", "surrogatepass"))
        return state.digest()

    return np.frombuffer(b"".join(map(digest, keys)), dtype="<u8")


def set_sizes(asked: Mapping[str, float | int], pairs: int) -> dict[str, int]:
    """{set: number of pairs} from counts and shares of ``pairs``, for the sets with more than none.

    Raises:
        UserError: an unknown set, a size below 0, a share above 1, or more pairs asked for than there are.
    """
    sizes: dict[str, int] = {}
    for name, size in asked.items():
        if name not in SETS:
            raise UserError(f"sizes names a set {name!r}{suggest(name, SETS)}; the sets are {', '.join(SETS)}")
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < float("inf"):
            raise UserError(f"sizes.{name}={size} is no size; give a number of pairs, or a share of all pairs below 1")
        if isinstance(size, float) and size >= 1:
            raise UserError(f"sizes.{name}={size} is no share below 1; write a whole number for a number of pairs")
        # The small term keeps 0.29 of 100 at 29, where the product of floats lies just below.
        sizes[name] = int(size * pairs + 1e-6) if isinstance(size, float) else size
    total = sum(sizes.values())
    if total > pairs:
        wanted = ", ".join(f"{name}={sizes[name]}" for name in SETS if name in sizes)
        raise UserError(
            f"sizes ask for {total} pairs ({wanted}), but there are only {pairs}; ask for fewer or bring more data"
        )
    if not total:
        raise UserError("sizes ask for no pairs at all; give at least one set a size, e.g. sizes.A=2000")
    return {name: sizes[name] for name in SETS if sizes.get(name)}


def split(keys: Sequence[str], groups: np.ndarray, sizes: Mapping[str, int], seed: int) -> np.ndarray:
    """The set of each pair: int8 [n], an index into SETS or UNUSED.

    A group that has no room left in a set is offered to the next one, so a set falls short of its size only when none
    of the groups left is small enough, and is never larger.

    Args:
        keys: sorted keys [n].
        groups: int64 [n], for each pair the row of the smallest key of its group (its own row when it is alone).
        sizes: {set: number of pairs}.
        seed: of the splits.
    """
    roots = np.flatnonzero(groups == np.arange(len(groups)))
    members = np.bincount(groups, minlength=len(groups))[roots]
    order = np.argsort(seeded_hash([keys[root] for root in roots.tolist()], seed, "set"), kind="stable")
    chosen = np.full(len(groups), UNUSED, dtype=np.int8)  # by root
    left = roots[order].tolist()
    weight = members[order].tolist()
    for code, name in enumerate(SETS):
        room = sizes.get(name, 0)
        passed: list[int] = []
        for position, (root, size) in enumerate(zip(left, weight, strict=True)):
            if room == 0:
                passed.extend(range(position, len(left)))
                break
            if size <= room:
                chosen[root] = code
                room -= size
            else:
                passed.append(position)
        left, weight = [left[p] for p in passed], [weight[p] for p in passed]
    return chosen.take(groups)


def shard_order(keys: Sequence[str], seed: int) -> np.ndarray:
    """The rows of ``keys`` (sorted) in the order in which a set is written, int64 [n]."""
    return np.argsort(seeded_hash(keys, seed, "order"), kind="stable")
