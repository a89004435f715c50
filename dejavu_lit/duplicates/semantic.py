"""Semantic duplicates: images whose embeddings have a cosine of at least ``similarity``, found cell by cell.

The vectors are clustered into cells (k-means on the sphere, by faiss). With θ = arccos(similarity), the nearest centroids of
two duplicates x and y satisfy  ∠(x, c(y)) ≤ ∠(x, c(x)) + 2θ  (triangle inequality), so an image is compared only with
the cells within that angle. If these are more than PROBES, it is compared with the nearest PROBES, and the recall is measured
on a sample. Clustering embeddings to find duplicates follows Abbas et al., SemDeDup, arXiv 2303.09540.
"""

from dataclasses import dataclass

import numpy as np

from dejavu_lit.data.near_duplicates import apart, flatten, join
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.progress import progress

SINGLE_CELL = 20_000  # up to this many images form one cell: all pairs are compared
PER_CELL = 2_500  # images in an average cell
PROBES = 8  # most cells that an image is compared with
PER_CENTROID = 64  # images per cell that k-means is trained on
TILE = 4096  # rows and columns of a block of products
SLACK = 2e-3  # error of float32 products: candidates are compared again in float64
SAMPLE = 500  # images compared with all others if the search is not exact by proof
BLOCK = 20_000  # candidates compared in float64 at once


@dataclass(frozen=True)
class SemanticGroups:
    """Groups of semantic duplicates."""

    groups: np.ndarray
    """int64 [n]: the first row of each row's group."""
    links: np.ndarray
    """int64 [m, 2]: the pairs of rows that connect the groups."""
    cosines: np.ndarray
    """float64 [m]: the cosine of each pair."""
    cells: int
    """Number of cells."""
    recall: float
    """Share of the true pairs that are in one group: 1.0 by proof if ``checked`` is None, else measured on a sample."""
    checked: int | None
    """Number of true pairs in the sample (the recall is 1.0 if there are none)."""


def semantic_groups(vectors: np.ndarray, similarity: float, cells: int | None = None, seed: int = 0) -> SemanticGroups:
    """Group the rows of ``vectors`` by the connected components of "cosine at least ``similarity``".

    Cosines are those of the stored values, in float64. Memory: one tile beside the vectors.

    Args:
        vectors: float16 [n, d], none zero; similarity: above 0, below 1.
        cells: number of cells; by default one up to SINGLE_CELL rows, else one per PER_CELL rows.
        seed: of the clustering.

    Raises:
        UserError: ``similarity`` is out of range, or faiss is needed and not installed.
    """
    if not 0 < similarity < 1:
        raise UserError(f"similarity={similarity} must lie between 0 and 1, e.g. 0.95")
    if cells is None:
        cells = 1 if len(vectors) <= SINGLE_CELL else len(vectors) // PER_CELL
    norms = np.concatenate([np.linalg.norm(block.astype(np.float64), axis=1) for block in _blocks(vectors)] or [[]])
    unit = _Unit(vectors, norms)
    probed, proved = _probe(unit, cells, similarity, seed)
    groups = np.arange(len(vectors))
    links, cosines = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    order = np.argsort(probed[:, 0], kind="stable")
    ends = np.searchsorted(probed[order, 0], np.arange(cells + 1))
    visits = _visits(probed, cells)
    for cell in progress(range(cells), "comparing embeddings", unit="cell"):
        members = order[ends[cell] : ends[cell + 1]]
        for first in range(0, len(members), TILE):
            rows = members[first : first + TILE]
            peers = np.concatenate([members[first:], visits[cell]])
            for start in range(0, len(peers), TILE):
                tile_links, tile_cosines = _compare(unit, rows, peers[start : start + TILE], similarity, groups)
                links.append(tile_links)
                cosines.append(tile_cosines)
    groups = flatten(groups)
    recall, checked = (1.0, None) if proved else _recall(unit, groups, similarity, seed)
    return SemanticGroups(groups, np.concatenate(links), np.concatenate(cosines), cells, recall, checked)


@dataclass(frozen=True)
class _Unit:
    """Stored vectors that are normalized only when they are needed."""

    vectors: np.ndarray
    norms: np.ndarray

    def rows(self, rows: np.ndarray, dtype: type = np.float32) -> np.ndarray:
        units: np.ndarray = self.vectors[rows].astype(np.float64) / self.norms[rows, None]
        return units.astype(dtype)


def _blocks(vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK)]


def _probe(unit: _Unit, cells: int, similarity: float, seed: int) -> tuple[np.ndarray, bool]:
    """The cells that each row is compared with, its own first, int32 [n, PROBES] (−1: none); whether these provably suffice."""
    total, width = unit.vectors.shape
    if cells == 1:
        return np.zeros((total, 1), np.int32), True
    try:
        import faiss
    except ImportError:
        raise UserError(
            f"semantic duplicates of more than {SINGLE_CELL:,} images need faiss; pip install 'dejavu-lit[cpu]'"
        ) from None
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(total, min(total, PER_CENTROID * cells), replace=False))
    clusters = faiss.Kmeans(width, cells, niter=10, seed=seed, spherical=True, min_points_per_centroid=1)
    clusters.train(unit.rows(sample))
    probes = min(PROBES + 1, cells)  # one more than the limit, to see whether the limit matters
    probed, proved = np.empty((total, probes), np.int32), True
    for start in range(0, total, BLOCK):
        rows = np.arange(start, min(start + BLOCK, total))
        scores, near = clusters.index.search(unit.rows(rows), probes)
        angles = np.arccos(np.clip(scores, -1, 1))
        within = angles <= angles[:, :1] + 2 * np.arccos(similarity) + 1e-3
        proved &= probes == cells or not within[:, -1].any()
        probed[rows] = np.where(within, near, -1)
    return probed[:, :PROBES], proved


def _visits(probed: np.ndarray, cells: int) -> list[np.ndarray]:
    """For each cell, the rows of other cells that are compared with it."""
    row, column = np.nonzero(probed[:, 1:] >= 0)
    cell = probed[row, column + 1]
    order = np.argsort(cell, kind="stable")
    return np.split(row[order], np.searchsorted(cell[order], np.arange(1, cells)))


def _compare(
    unit: _Unit, rows: np.ndarray, peers: np.ndarray, similarity: float, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Join the groups of all duplicates between ``rows`` and ``peers``; the pairs that joined groups and their cosines."""
    first, second = np.nonzero(unit.rows(rows) @ unit.rows(peers).T >= similarity - SLACK)
    left, right = rows[first], peers[second]
    links, cosines = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    while len(left):
        block_left, block_right = left[:BLOCK], right[:BLOCK]
        duplicate = _cosines(unit, block_left, block_right) >= similarity
        joined = join(groups, block_left[duplicate], block_right[duplicate])
        if len(joined):
            links.append(joined)
            cosines.append(_cosines(unit, joined[:, 0], joined[:, 1]))
        left, right = left[BLOCK:], right[BLOCK:]
        separate = apart(groups, left, right)  # if nearly all are duplicates, few pairs remain after the first block
        left, right = left[separate], right[separate]
    return np.concatenate(links), np.concatenate(cosines)


def _cosines(unit: _Unit, rows: np.ndarray, peers: np.ndarray) -> np.ndarray:
    """The float64 cosines of pairs of rows."""
    cosines: np.ndarray = np.einsum("ij,ij->i", unit.rows(rows, np.float64), unit.rows(peers, np.float64))
    return cosines


def _recall(unit: _Unit, groups: np.ndarray, similarity: float, seed: int) -> tuple[float, int]:
    """The share of a sample's true pairs that are in one group, and the number of these pairs."""
    sample = np.sort(np.random.default_rng(seed).choice(len(groups), min(SAMPLE, len(groups)), replace=False))
    queries, pairs, grouped = unit.rows(sample, np.float64), 0, 0
    for start in range(0, len(groups), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(groups)))
        first, second = np.nonzero(queries @ unit.rows(block, np.float64).T >= similarity)
        rows, peers = sample[first], block[second]
        distinct = rows != peers
        pairs += int(distinct.sum())
        grouped += int((groups[rows[distinct]] == groups[peers[distinct]]).sum())
    return (grouped / pairs if pairs else 1.0), pairs
