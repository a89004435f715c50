"""Exact nearest neighbours by cosine, streamed over public vectors that need not fit in memory.

A score is the cosine of the stored fp16 vectors in float64. The products of fp16 numbers are multiples of 2⁻⁴⁸, so as long
as norms stay below 4 their sums are exact in float64, in any order: the scores, hence the neighbours, are the same to the
last bit on any machine, for any index that is exact. Equal scores are ordered by public row.

How it is done: the public vectors pass once, in chunks. A cheap search (float32, or half precision) names the candidates of a
chunk; its scores differ from the exact ones by at most ε, proven in ``float32_error``. What can be among the
best k has an approximate score of at least t − ε, where t is any lower bound of the final k-th score; all those are scored
exactly and merged into the best k so far. Where the cheap search returned too few to be sure (many equal scores), the
chunk is searched again for these queries, without a limit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dejavu_lit.errors import UserError
from dejavu_lit.measure import search_kernels as kernels
from dejavu_lit.measure.scores import Neighbors

CHUNK_BYTES = 256 * 2**20  # of a chunk of public vectors as float32
QUERIES = 8192  # searched at once
SPARE = 4  # candidates beyond k: rarely more lie within the error bound of float32
TILE = 1024  # public rows compared at once where there is no limit


@dataclass(frozen=True)
class Best:
    """The best k of each query among the public vectors seen so far.

    rows: int32 [n, k] public rows, −1 where there were fewer; scores: float64 [n, k] cosines, descending, ties by row.
    """

    rows: np.ndarray
    scores: np.ndarray

    @property
    def k(self) -> int:
        """How many of each query."""
        return int(self.rows.shape[1])

    def neighbors(self) -> Neighbors:
        """The same as Neighbors; raises UserError where k public vectors were not seen."""
        if (self.rows < 0).any():
            raise UserError(f"k={self.k} is more than the public vectors searched; lower k or enlarge P")
        return Neighbors(self.rows, np.maximum(1 - self.scores, 0).astype(np.float32))


def search(
    queries: np.ndarray, public: Sequence[np.ndarray], k: int, index: str = "flat", ids: np.ndarray | None = None
) -> tuple[Neighbors, float]:
    """The k public vectors nearest to each query, and the recall of the index (1.0 where it is exact by proof).

    Args:
        queries: float16 [n, d].
        public: float16 arrays or memory maps [m, d], read once, one after another.
        k: neighbours of each query.
        index: ``flat`` (faiss, float32).
        ids: int [total m], the public row of each vector, each once; its place in ``public`` by default.

    Raises:
        UserError: k larger than the public set, widths that differ, a vector with NaN, infinity or zero norm, an index
            that is unknown or not available.
    """
    total = sum(len(part) for part in public)
    if not 1 <= k <= total:
        raise UserError(f"k={k} needs at least {k} public vectors, and there are {total}; lower k or enlarge P")
    return best_k(queries, public, k, index, ids).neighbors(), 1.0


def best_k(
    queries: np.ndarray, public: Sequence[np.ndarray], k: int, index: str = "flat", ids: np.ndarray | None = None
) -> Best:
    """As ``search``, for a share of the public vectors: ``merge`` joins the results of disjoint shares exactly."""
    _check(queries, public)
    found = Best(np.full((len(queries), k), -1, np.int32), np.full((len(queries), k), -np.inf))
    for start, chunk in _chunks(public):
        rows = np.arange(start, start + len(chunk)) if ids is None else ids[start : start + len(chunk)]
        scorer = _Chunk(chunk, rows.astype(np.int32))
        if len(bad := _unusable(scorer.norms)):
            raise UserError(f"{_place(public, start + bad[0])} {_why(scorer.norms[bad[0]])}")
        for first in range(0, len(queries), QUERIES):
            block = slice(first, first + QUERIES)
            scorer.flat(_Queries.prepare(queries[block], first), Best(found.rows[block], found.scores[block]))
    return found


def merge(shares: Sequence[Best]) -> Best:
    """The best k over disjoint shares of the public vectors, exactly as if they had been searched together."""
    rows, scores = shares[0].rows.copy(), shares[0].scores.copy()
    for share in shares[1:]:
        width = share.rows.shape[1]
        for i in range(len(rows)):
            pool_rows = np.concatenate([rows[i], share.rows[i]])
            pool_scores = np.concatenate([scores[i], share.scores[i]])
            order = np.lexsort((pool_rows, -pool_scores))
            order = order[pool_rows[order] >= 0][:width]
            rows[i, : len(order)], scores[i, : len(order)] = pool_rows[order], pool_scores[order]
    return Best(rows, scores)


def float32_error(width: int) -> float:
    """ε of scores by float32: |score − cosine| ≤ ε for vectors of ``width`` values.

    With u = 2⁻²⁴: an element of a normalised row is a stored value (exact in float32) times the rounded inverse of
    the norm, so its relative error is below 2.01 u, that of a product of two elements below 4.03 u, and by Cauchy-Schwarz
    this moves the sum of the products by at most 4.03 u. Adding up ``width`` products in float32, in any order, with or
    without fused operations, errs by at most γ = width · u / (1 − width · u) times the sum of their magnitudes, which is
    at most 1 + 4.03 u (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). ε = (width + 8) · u · 1.01
    covers both, and what underflows, for widths up to 2¹⁶/10.
    """
    return (width + 8) * 2.0**-24 * 1.01


@dataclass(frozen=True)
class _Queries:
    """A block of queries, prepared: their values and unit vectors in float32, their norms in float64."""

    values: np.ndarray
    unit: np.ndarray
    norms: np.ndarray

    @classmethod
    def prepare(cls, stored: np.ndarray, first: int) -> "_Queries":
        bits = np.ascontiguousarray(stored).view(np.uint16)
        unit, norms = np.empty(bits.shape, np.float32), np.empty(len(bits))
        kernels.normalise(bits, unit, norms)
        if len(bad := _unusable(norms)):
            raise UserError(f"queries: the vector in row {first + bad[0]} {_why(norms[bad[0]])}")
        return cls(stored.astype(np.float32), unit, norms)

    def __getitem__(self, chosen: np.ndarray) -> "_Queries":
        return _Queries(self.values[chosen], self.unit[chosen], self.norms[chosen])


class _Chunk:
    """Some public vectors in memory, and the ways to find the candidates among them."""

    def __init__(self, stored: np.ndarray, ids: np.ndarray) -> None:
        self.ids = ids
        self.bits = stored.view(np.uint16)
        self.unit: np.ndarray = np.empty(stored.shape, np.float32)
        self.norms = np.empty(len(stored))
        kernels.normalise(self.bits, self.unit, self.norms)
        self.values: np.ndarray = np.empty_like(self.unit)
        kernels.decode(self.bits, self.values)

    def flat(self, queries: _Queries, best: Best) -> None:
        """Merge this chunk's neighbours into ``best``, in place; candidates by faiss in float32."""
        import faiss

        k, error = best.k, float32_error(self.unit.shape[1])
        count = min(k + SPARE, len(self.unit))
        approximate, rows = faiss.knn(queries.unit, self.unit, count, metric=faiss.METRIC_INNER_PRODUCT)
        floors = best.scores[:, k - 1]
        if count >= k:
            floors = np.maximum(floors, approximate[:, k - 1] - error)
        rows[approximate < (floors - error)[:, None]] = -1
        self._absorb(queries, rows, best)
        if count < len(self.unit):
            self._exhaust(queries, best, np.flatnonzero(approximate[:, -1] >= floors - error), error)

    def _absorb(self, queries: _Queries, rows: np.ndarray, best: Best) -> None:
        scores = np.empty(rows.shape)
        kernels.score(queries.values, queries.norms, self.values, self.norms, rows, scores)
        kernels.absorb(rows, scores, self.ids, best.rows, best.scores)

    def _exhaust(self, queries: _Queries, best: Best, chosen: np.ndarray, error: float) -> None:
        """The whole chunk for some queries, without a limit on the number of candidates."""
        if not len(chosen):
            return
        part, some = Best(best.rows[chosen], best.scores[chosen]), queries[chosen]
        rows = np.empty((len(chosen), TILE), np.int64)
        for start in range(0, len(self.unit), TILE):
            scores = some.unit @ self.unit[start : start + TILE].T
            here = rows[:, : scores.shape[1]]
            kernels.above(scores, part.scores[:, -1] - error, start, here)
            self._absorb(some, here, part)
        best.rows[chosen], best.scores[chosen] = part.rows, part.scores


def _check(queries: np.ndarray, public: Sequence[np.ndarray]) -> None:
    for what, array in (
        ("queries", queries),
        *((f"part {i} of the public set", part) for i, part in enumerate(public)),
    ):
        if array.dtype != np.float16 or array.ndim != 2:
            raise UserError(f"{what}: embeddings are float16 [rows, width], not {array.dtype} {list(array.shape)}")
        if len(array) and array.shape[1] != queries.shape[1]:
            raise UserError(
                f"{what}: the vectors are {array.shape[1]} wide and the queries {queries.shape[1]}; text and image embeddings "
                "must come from one model"
            )


def _chunks(public: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """(first place, vectors copied to memory) in chunks that span parts; pages of memory maps are given back."""
    rows = max(1, CHUNK_BYTES // (4 * max((part.shape[1] for part in public), default=1)))
    start, count = 0, 0
    held: list[np.ndarray] = []
    for part in public:
        first = 0
        while first < len(part):
            held.append(np.array(part[first : first + rows - count]))
            first, count = first + len(held[-1]), count + len(held[-1])
            if count == rows:
                yield start, np.concatenate(held) if len(held) > 1 else held[0]
                start, count, held = start + rows, 0, []
        _give_back(part)
    if held:
        yield start, np.concatenate(held) if len(held) > 1 else held[0]


def _give_back(part: np.ndarray) -> None:
    """Drop a memory map's pages from this process; they would count as its memory although the system may take them."""
    import mmap

    mapping = getattr(part, "_mmap", None)
    if mapping is not None and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _unusable(norms: np.ndarray) -> np.ndarray:
    """Rows with zero norm, NaN or infinity (which decode to values from 65536 on)."""
    return np.flatnonzero(~((norms > 0) & (norms < 65536)))


def _why(norm: float) -> str:
    return f"{'has zero norm' if norm == 0 else 'holds NaN or infinity'}; mend the model or leave these pairs out"


def _place(public: Sequence[np.ndarray], place: int) -> str:
    """What to call the vector at a place of the public set: its part and its row there."""
    number = 0
    while place >= len(public[number]):
        place -= len(public[number])
        number += 1
    name = getattr(public[number], "filename", None) or f"part {number} of the public set"
    return f"{name}: the vector in row {place}"
