"""Duplicate images: exact ones by a hash of the bytes, near ones by a 64-bit perceptual hash.

The perceptual hash is the sign of 64 coefficients of a two-dimensional DCT-II of the image, gray, resized to 32 × 32:
horizontal and vertical frequencies 1 to 8, so neither brightness nor contrast matters. Two images are near-duplicates
if at most ``distance`` of the 64 bits differ, and groups are the connected components of that relation.

Recompressed and resized copies of photographs differ in at most 5 bits, different photographs in 16 or more
(docs/duplicates.md). Images without enough structure for 64 reliable signs (a plain background, a gradient, a few marks on
white) get no perceptual hash and are compared by their bytes only.
"""

import hashlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import combinations

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from dejavu_lit.data.manifest import MANIFEST
from dejavu_lit.data.shards import BadPair, ShardSet, read_pairs
from dejavu_lit.utils.io import read_json_object
from dejavu_lit.utils.progress import progress

HASH = "dct-sign-8x8"
_SIDE = 32
_SCALE = 4096
# Integers, so that every machine computes the same bits.
_BASIS = np.rint(_SCALE * np.cos(np.pi * np.outer(np.arange(1, 9), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))).astype(
    np.int64
)
# Median magnitude of the 64 coefficients below which their signs are noise: 4 gray levels of the orthonormal DCT
# (photographs from COCO: 14 to 110; sensor noise of 3 gray levels on a plain background: 0.3).
_MIN_MAGNITUDE = 4 * _SCALE * _SCALE * _SIDE // 2
_WEIGHTS = np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64))


def content_digest(data: bytes) -> np.ndarray:
    """128 bits of BLAKE2b of an image's bytes, uint64 [2]."""
    return np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), dtype="<u8")


def perceptual_hash(image: Image.Image) -> int | None:
    """The 64-bit perceptual hash of an image just opened; None if it has too little structure.

    Raises whatever Pillow raises for an image that does not decode.
    """
    # JPEG only: reads the whole file, but decodes at 1/2, 1/4 or 1/8 of the size.
    image.draft("L", (2 * _SIDE, 2 * _SIDE))
    gray = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.int64)
    coefficients = (_BASIS @ gray @ _BASIS.T).ravel()
    if np.median(np.abs(coefficients)) < _MIN_MAGNITUDE:
        return None
    return int(_WEIGHTS[coefficients > 0].sum())


def exact_copies(shards: ShardSet, excluded: Collection[str] = ()) -> int:
    """How many pairs have the same image, to the byte, as another one that counts; the images are read if need be."""
    if not excluded and (manifest := shards.folder.parent / MANIFEST).is_file():
        with suppress(KeyError, TypeError, ValueError):  # a set without duplicates listed
            exact = read_json_object(manifest)["duplicates"]["within"][shards.folder.name]["exact"]
            return int(exact["pairs"]) - int(exact["groups"])
    pairs = progress(read_pairs(shards), f"comparing images of {shards.folder.name}", total=len(shards), unit="image")
    digests = [
        content_digest(pair.image).tobytes()
        for pair in pairs
        if not isinstance(pair, BadPair) and pair.key not in excluded
    ]
    return len(digests) - len(set(digests))


def exact_groups(digests: np.ndarray) -> np.ndarray:
    """For each row of ``digests`` (uint64 [n, 2]) the first row with the same digest, int64 [n]."""
    _, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    return first[inverse.ravel()]


def near_groups(
    exact: np.ndarray, hashes: np.ndarray, hashed: np.ndarray, distance: int
) -> tuple[np.ndarray, np.ndarray]:
    """The groups of exact and near duplicates, and the pairs of rows that connect them beyond exact copies.

    The 64 bits are cut into ``distance`` + 2 blocks: pairs within ``distance`` agree in at least two blocks, so only
    images that agree in two blocks are compared, once for each pair of blocks.

    Args:
        exact: int64 [n], the groups of exact duplicates; distance: largest number of different bits, 0 to 12.
        hashes: uint64 [n], perceptual hashes; hashed: bool [n], whether an image has one.

    Returns:
        For each image the first row of its group, int64 [n]; and pairs that differ in at most ``distance`` bits, int64
        [m, 2], n − 1 for a group of n different images.
    """
    groups = exact.copy()
    rows = np.flatnonzero(hashed)
    values, first_row, inverse = np.unique(hashes[rows], return_index=True, return_inverse=True)
    links = [join(groups, rows[first_row[inverse]], rows)]
    blocks = distance + 2
    edges = [64 * block // blocks for block in range(blocks + 1)]
    pairs = list(combinations(range(blocks), 2)) if distance else []
    for high, low in progress(pairs, "comparing images", unit="block"):
        width = np.uint64(edges[low + 1] - edges[low])
        high_bits = _bits(values, edges[high], edges[high + 1])
        blocks_value = (high_bits << width | _bits(values, edges[low], edges[low + 1])).astype(np.uint32)
        order = np.argsort(blocks_value, kind="stable")
        links.append(_join_within(groups, rows[first_row[order]], blocks_value[order], values[order], distance))
    return groups, np.concatenate(links)


def count_duplicates(exact: np.ndarray, groups: np.ndarray) -> dict[str, dict[str, int]]:
    """The number of groups of at least two images and of images in them: exact, and near (not all the same bytes)."""
    _, exact_sizes = np.unique(exact, return_counts=True)
    distinct = np.unique(np.stack([groups, exact]), axis=1)[0]  # a group's row once for each of its distinct images
    distinct_counts = np.unique(distinct, return_counts=True)[1]
    sizes = np.unique(groups, return_counts=True)[1]
    near = sizes[distinct_counts > 1]
    copies = exact_sizes[exact_sizes > 1]
    return {
        "exact": {"groups": len(copies), "pairs": int(copies.sum())},
        "near": {"groups": len(near), "pairs": int(near.sum()), "largest": int(near.max(initial=0))},
    }


def named_groups(keys: Sequence[str], groups: np.ndarray, chosen: np.ndarray) -> list[list[str]]:
    """The keys of each group of at least two images among the ``chosen`` (bool [n]): sorted groups of sorted keys."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.bincount(groups[rows], minlength=len(groups))[groups[rows]] > 1]
    rows = rows[np.argsort(groups[rows], kind="stable")]
    parts = np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)
    return sorted(sorted(keys[row] for row in part.tolist()) for part in parts if len(part))


def _bits(values: np.ndarray, start: int, end: int) -> np.ndarray:
    return values >> np.uint64(start) & np.uint64((1 << (end - start)) - 1)


def join(groups: np.ndarray, rows: np.ndarray, peers: np.ndarray) -> np.ndarray:
    """Join the groups (in place) of ``rows`` and ``peers``, pair by pair; returns the pairs that connect them, int64 [m, 2]."""
    new = np.flatnonzero(groups[rows] != groups[peers])
    links = np.stack([rows[new], peers[new]], axis=1).astype(np.int64)
    if not len(new):
        return links
    roots, ends = np.unique(groups[links], return_inverse=True)
    low, high = np.sort(ends.reshape(-1, 2), axis=1).T
    first = np.unique(low * len(roots) + high, return_index=True)[1]  # one pair of every two groups
    shape = (len(roots), len(roots))
    forest = minimum_spanning_tree(coo_array((first + 1.0, (low[first], high[first])), shape))
    labels = connected_components(forest, directed=False)[1]
    root_of = np.arange(len(groups))
    root_of[roots] = roots[np.unique(labels, return_index=True)[1]][labels]
    groups[:] = root_of[groups]
    connecting: np.ndarray = links[np.sort(forest.data.astype(np.int64)) - 1]
    return connecting


def _join_within(
    groups: np.ndarray, rows: np.ndarray, blocks: np.ndarray, values: np.ndarray, distance: int
) -> np.ndarray:
    """Join all pairs within a run of equal ``blocks`` whose ``values`` differ in at most ``distance`` bits."""
    links = [np.zeros((0, 2), np.int64)]
    left = np.arange(len(rows))
    for step in range(1, len(rows)):  # the pairs of neighbors in a run, then those with one between them, and so on
        left = left[: np.searchsorted(left, len(rows) - step)]
        left = left[blocks[left] == blocks[left + step]]
        if not len(left):
            break
        near = left[np.bitwise_count(values[left] ^ values[left + step]) <= distance]
        links.append(join(groups, rows[near], rows[near + step]))
    return np.concatenate(links)
