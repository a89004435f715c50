"""Semantic duplicates: images whose embeddings have a cosine of at least ``similarity``, searched cell by cell.

The vectors are clustered into cells (k-means on the sphere, by faiss). With θ = arccos(similarity), the nearest centroids of
two duplicates x and y satisfy  ∠(x, c(y)) ≤ ∠(x, c(x)) + 2θ  (triangle inequality), so an image is compared with the cells
within that angle only; where more than PROBES cells are, with the nearest PROBES, and the recall is measured on a sample.
Finding duplicates by clusters of embeddings: Abbas et al., SemDeDup, arXiv 2303.09540.
"""

from dataclasses import dataclass

import numpy as np

from dejavu_lit.data.near_duplicates import apart, flatten, join
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.progress import progress

WHOLE = 20_000  # so many images are one cell: all pairs are compared
PER_CELL = 2_500  # images of an average cell
PROBES = 8  # cells that an image is compared with, at most
PER_CENTROID = 64  # images that k-means sees for each cell
TILE = 4096  # images compared at once with as many others
SLACK = 2e-3  # of float32 products: candidates are judged again in float64
SAMPLE = 500  # images compared with all others where the search is not exact by proof
BLOCK = 20_000  # candidates judged at once


@dataclass(frozen=True)
class Semantic:
    """What was found: ``groups`` int64 [n] (the first row of each row's group); ``links`` int64 [m, 2], the pairs that connect
    the groups, and their ``cosines`` float64 [m]; ``cells``; ``recall`` of pairs, 1.0 by proof where ``checked`` is None,
    else the share of ``checked`` pairs of a sample that are in one group (1.0 where the sample holds none).
    """

    groups: np.ndarray
    links: np.ndarray
    cosines: np.ndarray
    cells: int
    recall: float
    checked: int | None


def semantic_groups(vectors: np.ndarray, similarity: float, cells: int | None = None, seed: int = 0) -> Semantic:
    """Group the rows of ``vectors`` by the connected components of "cosine at least ``similarity``".

    Cosines are those of the stored values, in float64. Memory: a tile beside the vectors.

    Args:
        vectors: float16 [n, d], none zero; similarity: above 0, below 1; cells: how many; by default one up to WHOLE rows,
            else one for PER_CELL.
        seed: of the clustering.

    Raises:
        UserError: ``similarity`` out of range, or faiss is needed and not installed.
    """
    if not 0 < similarity < 1:
        raise UserError(f"similarity={similarity} must lie between 0 and 1, e.g. 0.95")
    if cells is None:
        cells = 1 if len(vectors) <= WHOLE else len(vectors) // PER_CELL
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
            here = members[first : first + TILE]
            others = np.concatenate([members[first:], visits[cell]])
            for start in range(0, len(others), TILE):
                found = _compare(unit, here, others[start : start + TILE], similarity, groups)
                links.append(found[0])
                cosines.append(found[1])
    groups = flatten(groups)
    recall, checked = (1.0, None) if proved else _recall(unit, groups, similarity, seed)
    return Semantic(groups, np.concatenate(links), np.concatenate(cosines), cells, recall, checked)


@dataclass(frozen=True)
class _Unit:
    """Stored vectors as unit vectors, made row by row when they are needed."""

    vectors: np.ndarray
    norms: np.ndarray

    def rows(self, rows: np.ndarray, kind: type = np.float32) -> np.ndarray:
        units: np.ndarray = self.vectors[rows].astype(np.float64) / self.norms[rows, None]
        return units.astype(kind)


def _blocks(vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK)]


def _probe(unit: _Unit, cells: int, similarity: float, seed: int) -> tuple[np.ndarray, bool]:
    """The cells of each row, its own first, int32 [n, PROBES] (−1: none), and whether no duplicate can be missed."""
    total, width = unit.vectors.shape
    if cells == 1:
        return np.zeros((total, 1), np.int32), True
    try:
        import faiss
    except ImportError:
        raise UserError("semantic duplicates of so many images need faiss (pip install 'dejavu-lit[cpu]')") from None
    draw = np.random.default_rng(seed)
    seen = np.sort(draw.choice(total, min(total, PER_CENTROID * cells), replace=False))
    clusters = faiss.Kmeans(width, cells, niter=10, seed=seed, spherical=True, min_points_per_centroid=1)
    clusters.train(unit.rows(seen))
    probes = min(PROBES + 1, cells)  # one more, to see whether the cap binds
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
    """For each cell the rows of other cells that are compared with it."""
    row, place = np.nonzero(probed[:, 1:] >= 0)
    cell = probed[row, place + 1]
    order = np.argsort(cell, kind="stable")
    return np.split(row[order], np.searchsorted(cell[order], np.arange(1, cells)))


def _compare(
    unit: _Unit, here: np.ndarray, others: np.ndarray, similarity: float, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Join every two duplicates of the two lists of rows; the pairs that joined groups and their cosines."""
    one, other = np.nonzero(unit.rows(here) @ unit.rows(others).T >= similarity - SLACK)
    ones, others = here[one], others[other]
    links, cosines = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    while len(ones):
        now_ones, now_others = ones[:BLOCK], others[:BLOCK]
        exact = np.einsum("ij,ij->i", unit.rows(now_ones, np.float64), unit.rows(now_others, np.float64))
        near = exact >= similarity
        joined = join(groups, now_ones[near], now_others[near])
        if len(joined):
            links.append(joined)
            cosines.append(
                np.einsum("ij,ij->i", unit.rows(joined[:, 0], np.float64), unit.rows(joined[:, 1], np.float64))
            )
        ones, others = ones[BLOCK:], others[BLOCK:]
        left = apart(groups, ones, others)  # where nearly all are duplicates, few pairs remain after the first block
        ones, others = ones[left], others[left]
    return np.concatenate(links), np.concatenate(cosines)


def _recall(unit: _Unit, groups: np.ndarray, similarity: float, seed: int) -> tuple[float, int]:
    """The share of a sample's true pairs that are in one group, and how many pairs these are."""
    rows = np.sort(np.random.default_rng(seed).choice(len(groups), min(SAMPLE, len(groups)), replace=False))
    asked, pairs, found = unit.rows(rows, np.float64), 0, 0
    for start in range(0, len(groups), BLOCK):
        others = np.arange(start, min(start + BLOCK, len(groups)))
        one, other = np.nonzero(asked @ unit.rows(others, np.float64).T >= similarity)
        true = rows[one] != others[other]
        pairs += int(true.sum())
        found += int((groups[rows[one[true]]] == groups[others[other[true]]]).sum())
    return (found / pairs if pairs else 1.0), pairs
