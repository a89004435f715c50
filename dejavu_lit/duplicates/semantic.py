"""Semantic duplicates: images whose embeddings have a cosine of at least ``similarity``: faiss proposes, float64 decides.

Up to SINGLE_CELL images are all compared. More are clustered into cells, an image is compared with those of the PROBES nearest
cells, and the recall is measured on a sample. Clustering embeddings to find duplicates follows Abbas et al., SemDeDup, arXiv
2303.09540.
"""

from typing import Any, NamedTuple

import numpy as np

from dejavu_lit.data.near_duplicates import join
from dejavu_lit.evaluation.search import load_faiss
from dejavu_lit.evaluation.vectors import Vectors
from dejavu_lit.utils.parallel import thread_count
from dejavu_lit.utils.progress import progress

SINGLE_CELL = 20_000  # up to this many images form one cell: all pairs are compared
PER_CELL = 2_500  # images in an average cell
PROBES = 8  # cells that an image is compared with
PER_CENTROID = 64  # images per cell that k-means is trained on
SLACK = 2e-3  # error of the products of float32 and fp16 unit vectors: candidates are compared again in float64
SAMPLE = 500  # images compared with all others if not all cells are
QUERIES = 256  # images that are compared with their cells at once
SEED = 0  # of the clustering and of the sample
BLOCK = 20_000  # vectors added, or candidates compared in float64, at once


class SemanticGroups(NamedTuple):
    """Groups of semantic duplicates."""

    groups: np.ndarray  # int64 [n]: the first row of each row's group
    links: np.ndarray  # int64 [m, 2]: the pairs of rows that connect the groups
    cosines: np.ndarray  # float64 [m]: of each pair
    cells: int
    recall: float  # share of the true pairs that are in one group: 1.0 if all were compared, else measured on a sample
    checked: int | None  # true pairs in the sample (the recall is 1.0 if there are none); None if all were compared


def semantic_groups(vectors: np.ndarray, similarity: float, cells: int | None = None) -> SemanticGroups:
    """Group the rows of ``vectors`` by the connected components of "cosine at least ``similarity``".

    Cosines are those of the stored values, in float64. faiss keeps another copy of the vectors. Raises UserError
    without faiss.

    Args:
        vectors: float16 [n, d], none zero; similarity: above 0, below 1.
        cells: number of cells; by default one up to SINGLE_CELL rows, else one per PER_CELL rows.
    """
    if cells is None:
        cells = 1 if len(vectors) <= SINGLE_CELL else len(vectors) // PER_CELL
    index = _index(vectors, cells)
    groups = np.arange(len(vectors))
    links, cosines = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for start in progress(range(0, len(vectors), QUERIES), "comparing embeddings", unit="block"):
        ends, _, peers = index.range_search(_load(vectors[start : start + QUERIES]).units, similarity - SLACK)
        rows = start + np.repeat(np.arange(len(ends) - 1), np.diff(ends.astype(np.int64)))
        while len(rows):
            separate = groups[rows] != groups[peers]  # of many duplicates few remain after the first block
            rows, peers = rows[separate], peers[separate]
            block_rows, block_peers = rows[:BLOCK], peers[:BLOCK]
            is_duplicate = _cosines(vectors, block_rows, block_peers) >= similarity
            joined = join(groups, block_rows[is_duplicate], block_peers[is_duplicate])
            links.append(joined)
            cosines.append(_cosines(vectors, joined[:, 0], joined[:, 1]))
            rows, peers = rows[BLOCK:], peers[BLOCK:]
    recall, checked = (1.0, None) if cells <= PROBES else _recall(vectors, groups, similarity)
    return SemanticGroups(groups, np.concatenate(links), np.concatenate(cosines), cells, recall, checked)


def _load(vectors: np.ndarray) -> Vectors:
    return Vectors.load(vectors, names=["the embeddings"])


def _index(vectors: np.ndarray, cells: int) -> Any:
    """The vectors as faiss searches them: all of them for one cell, else those of the PROBES nearest cells."""
    faiss = load_faiss("flat")
    faiss.omp_set_num_threads(thread_count())
    total, width = vectors.shape
    index: Any = faiss.IndexFlatIP(width)
    if cells > 1:
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(index, width, cells, kind, faiss.METRIC_INNER_PRODUCT)
        index.nprobe, index.cp.seed, index.cp.min_points_per_centroid = PROBES, SEED, 1
        chosen = np.random.default_rng(SEED).choice(total, min(total, PER_CENTROID * cells), replace=False)
        index.train(_load(vectors[chosen]).units)
    for start in range(0, total, BLOCK):
        index.add(_load(vectors[start : start + BLOCK]).units)
    return index


def _cosines(vectors: np.ndarray, rows: np.ndarray, peers: np.ndarray) -> np.ndarray:
    left, right = vectors[rows].astype(np.float64), vectors[peers].astype(np.float64)
    squared = np.einsum("ij,ij->i", left, left), np.einsum("ij,ij->i", right, right)
    cosines: np.ndarray = np.einsum("ij,ij->i", left, right) / (np.sqrt(squared[0]) * np.sqrt(squared[1]))
    return cosines


def _recall(vectors: np.ndarray, groups: np.ndarray, similarity: float) -> tuple[float, int]:
    """The share of a sample's true pairs that are in one group, and the number of these pairs."""
    sample = np.sort(np.random.default_rng(SEED).choice(len(groups), min(SAMPLE, len(groups)), replace=False))
    queries, pairs, grouped = _load(vectors[sample]), 0, 0
    for start in range(0, len(groups), BLOCK):
        block = _load(vectors[start : start + BLOCK])
        products = queries.stored.astype(np.float64) @ block.stored.astype(np.float64).T
        first, second = np.nonzero(products / (queries.norms[:, None] * block.norms) >= similarity)
        rows, peers = sample[first], start + second
        distinct = rows != peers
        pairs += int(distinct.sum())
        grouped += int((groups[rows[distinct]] == groups[peers[distinct]]).sum())
    return (grouped / pairs if pairs else 1.0), pairs
