"""Exact nearest neighbors by cosine over public vectors that need not fit in memory: faiss proposes, float64 decides.

A score is the cosine of the stored fp16 vectors in float64. The products of fp16 numbers are multiples of 2⁻⁴⁸. So while
norms stay below 4, their sums are exact in float64 in any order, and the scores and neighbors are the same to the last bit
on any machine, for any exact index, chunk, batch or number of threads. Equal scores are ordered by public row.

The public vectors are read once, in chunks. Of each chunk faiss returns the k + MARGIN best by a float32 score, which differs
from the cosine by at most ε: the rounding, and by how much the norms of stored unit vectors differ from 1. A vector that is
not returned has a cosine of at most c + ε, with c the last float32 score. If the k-th exact cosine is larger, no neighbor is
missing; otherwise (many equal vectors) the query is compared with the whole chunk in float64.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from dejavu_lit.evaluation.vectors import Vectors, chunks, write_cosines
from dejavu_lit.measure.scores import Neighbors
from dejavu_lit.utils.distributed import current_ranks
from dejavu_lit.utils.errors import UserError, check_choice, explained
from dejavu_lit.utils.parallel import for_blocks, thread_count
from dejavu_lit.utils.progress import progress

INDEXES = ("flat", "gpu", "ivf")
MARGIN = 32  # candidates beyond k, so that rounding and a few equal vectors leave none out
QUERIES_PER_THREAD = 128  # whose candidates a thread scores in float64 at a time
QUERIES_AT_ONCE = 1024  # queries that are compared with a whole chunk at a time
ROWS_AT_ONCE = 4096  # vectors that are compared in float64 at a time
MAX_GPU_CANDIDATES = 2048  # the most that faiss returns on a GPU
RECALL_SAMPLE = 200  # queries on which the recall of an approximate index is measured
TRAINING_ROWS_PER_LIST = 64  # vectors that faiss needs to train each list of an IVF index
LISTS_PER_PROBE = 16  # one of so many lists is searched


class Best:
    """The best k of each query among the public vectors seen so far.

    rows: int32 [n, k] public rows, −1 if there were fewer than k; scores: float64 [n, k] cosines, descending, ties by row.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.rows = np.full((queries, k), -1, np.int32)
        self.scores = np.full((queries, k), -np.inf)

    def merge(self, queries: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> None:
        """Add candidates of some queries: rows int [q, c] and scores float64 [q, c], −∞ where there is none."""

        def compute(start: int) -> None:
            block = slice(start, start + QUERIES_PER_THREAD)
            own = queries[block]
            all_rows = np.concatenate([self.rows[own], rows[block]], axis=1)
            all_scores = np.concatenate([self.scores[own], scores[block]], axis=1)
            order = np.lexsort((all_rows, -all_scores), axis=1)[:, : self.rows.shape[1]]
            self.rows[own] = np.take_along_axis(all_rows, order, axis=1)
            self.scores[own] = np.take_along_axis(all_scores, order, axis=1)

        for_blocks(compute, len(queries), QUERIES_PER_THREAD)


def search(
    queries: np.ndarray, public: Sequence[np.ndarray], k: int, index: str = "flat", ids: np.ndarray | None = None
) -> tuple[Neighbors, float]:
    """The k public vectors nearest to each query, and the recall of the index: 1.0 for an exact one.

    Args:
        queries: float16 [n, d]; public: float16 arrays or memory maps [m, d], read in this order.
        index: how faiss finds candidates: ``flat`` on the CPU or ``gpu``, both exact with the same result; ``ivf`` is
            approximate, its recall is measured on a sample.
        ids: int [total m], the public row of each vector, each once; its position in ``public`` by default.

    Raises UserError for k larger than the public set, different widths, a vector with NaN, infinity or zero norm, or an index
    that is unknown or not available.
    """
    total = sum(map(len, public))
    if not 1 <= k <= total:
        raise UserError(f"k={k} needs at least {k} public vectors, but there are {total}; lower k or enlarge P")
    width = queries.shape[1]
    if others := {part.shape[1] for part in public if len(part)} - {width}:
        raise UserError(
            f"the public vectors have {min(others)} values, the queries {width}; use text and image embeddings of one model"
        )
    ids = np.arange(total) if ids is None else ids
    best = search_ivf(queries, public, k, ids) if index == "ivf" else best_k(queries, public, k, index, ids)
    neighbors = Neighbors(best.rows, np.maximum(1 - best.scores, 0).astype(np.float32))
    if index != "ivf":
        return neighbors, 1.0
    sample = np.unique(np.linspace(0, max(len(queries) - 1, 0), RECALL_SAMPLE).astype(np.int64))[: len(queries)]
    exact = best_k(queries[sample], public, k, "flat", ids).rows
    hits = [len(np.intersect1d(a, b)) for a, b in zip(exact, best.rows[sample], strict=True)]
    return neighbors, sum(hits) / exact.size if exact.size else 1.0


def best_k(queries: np.ndarray, public: Sequence[np.ndarray], k: int, index: str, ids: np.ndarray) -> Best:
    """As ``search`` with an exact index: rows and cosines [n, k]; if there are fewer than k public vectors, rows end in −1."""
    load_faiss(index)
    asked, best = Vectors.load(queries, names=["queries"]), Best(len(queries), k)
    units = asked.scaled()
    rounding, most = float32_error(queries.shape[1]), k + MARGIN
    if index == "gpu":  # its tensor cores may round the factors to 10 bits, by less than 2⁻¹⁰ each
        rounding, most = rounding + 2.0**-9 * 1.01, min(2 * k + 2 * MARGIN, MAX_GPU_CANDIDATES)
    with progress(None, "searching", len(ids), "vector") as bar:
        for start, chunk in chunks(public):
            rows, before = ids[start : start + len(chunk)], deepcopy(best)
            cheap, candidates = _knn(units, chunk.units, min(most, len(chunk)), index)
            error = (1 + chunk.length_error) * rounding + chunk.length_error
            least = best.scores[:, -1]  # a lower bound of the final k-th cosine
            if cheap.shape[1] >= k:
                least = np.maximum(least, cheap[:, k - 1] - error)
            candidates[cheap < (least - error)[:, None]] = -1
            _score(asked, chunk, candidates, rows, best)
            if cheap.shape[1] < len(chunk):
                unsure = np.flatnonzero(cheap[:, -1] + error >= best.scores[:, -1])
                best.rows[unsure], best.scores[unsure] = before.rows[unsure], before.scores[unsure]
                _compare_all(asked, chunk, rows, unsure, best)
            bar.update(len(chunk))
            del chunk  # before the next one is read
    return best


def float32_error(width: int) -> float:
    """The rounding of float32 scores: |score − cosine| ≤ ε for vectors of ``width`` values, scaled to a norm of 1.

    With u = 2⁻²⁴: an element of a scaled row is a stored value (exact in float32) divided by the rounded norm, and the
    quotient is rounded, so its relative error is below 2.01 u, that of a product of two elements below 4.03 u, and by
    Cauchy-Schwarz this moves the sum of the products by at most 4.03 u. Adding up ``width`` products in float32, in any
    order, with or without fused operations, errs by at most γ = width · u / (1 − width · u) times the sum of their
    magnitudes, which is at most 1 + 4.03 u (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
    ε = (width + 8) · u · 1.01 covers both, and underflow, for widths below 100,000.
    """
    return (width + 8) * 2.0**-24 * 1.01


def _knn(queries: np.ndarray, public: np.ndarray, count: int, index: str) -> tuple[np.ndarray, np.ndarray]:
    """(float32 scores, positions) of the ``count`` best public vectors for each query by faiss, descending."""
    faiss = load_faiss(index)
    if index == "gpu":
        own = current_ranks().local % faiss.get_num_gpus()  # each rank of a node uses its own GPU
        resources = faiss.StandardGpuResources()
        results = faiss.knn_gpu(resources, queries, public, count, metric=faiss.METRIC_INNER_PRODUCT, device=own)
    else:
        faiss.omp_set_num_threads(thread_count())
        results = faiss.knn(queries, public, count, metric=faiss.METRIC_INNER_PRODUCT)
    return results[0], results[1]


def _score(queries: Vectors, chunk: Vectors, candidates: np.ndarray, rows: np.ndarray, best: Best) -> None:
    """Score candidates [n, c] (positions in the chunk, −1 for none) exactly and merge them into ``best``."""
    asked = np.flatnonzero((candidates >= 0).any(axis=1))
    candidates = candidates[asked]
    scores = np.empty(candidates.shape)

    def compute(start: int) -> None:
        block = slice(start, start + QUERIES_PER_THREAD)
        own = queries[asked[block]]
        write_cosines(own.stored, own.norms, chunk.stored, chunk.norms, candidates[block], scores[block])

    for_blocks(compute, len(asked), QUERIES_PER_THREAD)
    best.merge(asked, rows[candidates], scores)


def _compare_all(queries: Vectors, chunk: Vectors, rows: np.ndarray, asked: np.ndarray, best: Best) -> None:
    """Merge all vectors of the chunk into ``best`` for some queries, compared in float64."""
    for first in range(0, len(asked), QUERIES_AT_ONCE):
        block = asked[first : first + QUERIES_AT_ONCE]
        values = queries.stored[block].astype(np.float64)
        for start in range(0, len(chunk), ROWS_AT_ONCE):
            tile = slice(start, start + ROWS_AT_ONCE)
            products = values @ chunk.stored[tile].astype(np.float64).T
            scores = products / (queries.norms[block, None] * chunk.norms[tile])
            best.merge(block, np.broadcast_to(rows[tile], scores.shape), scores)


def search_ivf(queries: np.ndarray, public: Sequence[np.ndarray], k: int, ids: np.ndarray) -> Best:
    """The best k, [n, k], of the vectors in the lists nearest to each query; scores and order are exact, the recall may be < 1.

    There are about 4 √N lists; a sixteenth of them is searched. Queries with fewer than k results get an exact search. The
    index keeps the public vectors in memory as fp16.
    """
    faiss = load_faiss("ivf")
    total, width = sum(map(len, public)), queries.shape[1]
    lists = max(1, min(int(4 * total**0.5), total // TRAINING_ROWS_PER_LIST))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.nprobe = max(1, lists // LISTS_PER_PROBE)
    step = max(1, total // (TRAINING_ROWS_PER_LIST * lists))
    training = np.concatenate([part[::step] for part in public if len(part)])
    index.train(Vectors.load(training, names=["the public set"]).units)
    for _, chunk in chunks(public):
        index.add(chunk.units)
        del chunk
    asked, best = Vectors.load(queries, names=["queries"]), Best(len(queries), k)
    positions = index.search(asked.units, k)[1]
    del index
    for start, chunk in chunks(public):
        in_chunk = (positions >= start) & (positions < start + len(chunk))
        _score(asked, chunk, np.where(in_chunk, positions - start, -1), ids[start : start + len(chunk)], best)
        del chunk
    short = np.flatnonzero((best.rows < 0).any(axis=1))
    if len(short):
        exact = best_k(queries[short], public, k, "flat", ids)
        best.rows[short], best.scores[short] = exact.rows, exact.scores
    return best


def load_faiss(index: str) -> Any:
    """faiss; raises UserError if ``index`` is unknown, or if what it needs is missing: faiss, or faiss-gpu and a GPU."""
    check_choice("index", index, INDEXES)
    with explained("the neighbor search cannot start", "install faiss again", "gpu" if index == "gpu" else "cpu"):
        import faiss
    if index == "gpu" and not (hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus()):
        raise UserError("index=gpu needs faiss-gpu (pip install 'dejavu-lit[gpu]') and an NVIDIA GPU; use index=flat")
    return faiss
