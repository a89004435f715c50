"""The assignment of a source's pairs to the sets: groups of duplicates, the split, and what both did, for the manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dejavu_lit.data.key_lists import count_excluded_duplicates, listed_sets
from dejavu_lit.data.manifest import GROUPS
from dejavu_lit.data.near_duplicates import HASH, count_duplicates, exact_groups, named_groups, near_groups
from dejavu_lit.data.scan import ImageHashes, Scan
from dejavu_lit.data.splits import SETS, UNUSED, allowed_sets, count_by_set, set_sizes, split


@dataclass(frozen=True)
class Assignment:
    """Which set each of the n usable pairs of the main source goes into."""

    scan: Scan
    distance: int | None
    exact: np.ndarray  # int64 [n]: the row of the smallest key in the pair's group of exact duplicates
    groups: np.ndarray  # the same for exact and near duplicates
    member: np.ndarray  # int8 [n]: an index into SETS, or UNUSED
    sizes: dict[str, int]  # {set: number of pairs requested}
    excluded: dict[str, int]  # {set: how many of its listed pairs are left out as duplicates of another set's}

    def is_new(self, extra: Scan) -> np.ndarray:
        """Whether the image of each pair of an extra source is in no set, bool [n]."""
        used = self.scan.images[self.member != UNUSED]
        _, groups = _groups(np.concatenate([used, extra.images]).view(ImageHashes), self.distance)
        is_new: np.ndarray = groups[len(used) :] >= len(used)
        return is_new

    def duplicates(self) -> dict[str, Any]:
        """The manifest's "duplicates": groups in the source, within each set, across sets (0), and their keys."""
        used = self.member != UNUSED
        across = {
            kind: len(np.unique(np.stack([roots[used], self.member[used]]), axis=1)[0]) - len(np.unique(roots[used]))
            for kind, roots in (("exact", self.exact), ("near", self.groups))
        }
        if any(across.values()):
            raise AssertionError(f"groups of duplicates are spread over sets: {across}")
        chosen = {name: self.member == SETS.index(name) for name in self.sizes}
        return {
            "hash": HASH if self.distance is not None else None,
            "distance": self.distance,
            "source": count_duplicates(self.exact, self.groups),
            "within": {name: count_duplicates(self.exact[rows], self.groups[rows]) for name, rows in chosen.items()},
            "across": across,
            GROUPS: {name: named_groups(self.scan.keys, self.groups, rows) for name, rows in chosen.items()},
        }


def assign(
    scan: Scan,
    members: Mapping[str, Sequence[str]],
    sizes: Mapping[str, float | int | None],
    seed: int,
    distance: int | None,
) -> Assignment:
    """Group the duplicates of a source and split it into sets.

    Args:
        members: {set: keys listed for it}; sizes: as ``set_sizes`` takes them; raises UserError as that does.
        distance: largest number of different bits of near-duplicates; None: exact duplicates only.
    """
    exact, groups = _groups(scan.images, distance)
    listed = listed_sets(members, scan.keys)
    allowed, owner = allowed_sets(groups, listed)
    excluded = count_excluded_duplicates(listed, allowed, owner)
    counts = set_sizes(sizes, len(scan.keys), count_by_set(members, allowed), sum(excluded.values()))
    member = split(scan.keys, groups, counts, seed, allowed)
    return Assignment(scan, distance, exact, groups, member, counts, excluded)


def _groups(images: ImageHashes, distance: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The groups of exact duplicates, and of exact and near ones, each int64 [n]."""
    exact = exact_groups(images.digests)
    return exact, exact if distance is None else near_groups(exact, images.hashes, images.hashed, distance)[0]
