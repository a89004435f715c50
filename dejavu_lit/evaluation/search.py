"""Exact nearest neighbors by cosine, streamed over public vectors that need not fit in memory.

A score is the cosine of the stored fp16 vectors in float64. The products of fp16 numbers are multiples of 2⁻⁴⁸, so as long
as norms stay below 4 their sums are exact in float64, in any order: the scores, hence the neighbors, are the same to the
last bit on any machine, for any exact index, chunk, batch or number of threads. Equal scores are ordered by public row.

The public vectors pass once, in chunks; ``search_index`` finds each chunk's candidates and proves that none is missed.
"""

import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dejavu_lit.evaluation.search_index import Chunk, Rows, check_index
from dejavu_lit.measure.scores import Neighbors
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.parallel import threads, threads_wanted
from dejavu_lit.utils.progress import progress

CHUNK_BYTES = 128 * 2**20  # of public vectors held at once
ROOM = 2**22  # candidates held at once, for all queries of a block
LOADED = 4096  # vectors that a thread reads at a time
SAMPLE = 200  # queries on which the recall of an approximate index is measured


@dataclass(frozen=True)
class Best:
    """The best k of each query among the public vectors seen so far.

    rows: int32 [n, k] public rows, −1 where there were fewer; scores: float64 [n, k] cosines, descending, ties by row.
    """

    rows: np.ndarray
    scores: np.ndarray

    @classmethod
    def none(cls, queries: int, k: int) -> "Best":
        """Nothing seen yet."""
        return cls(np.full((queries, k), -1, np.int32), np.full((queries, k), -np.inf))

    def __getitem__(self, block: slice) -> "Best":
        return Best(self.rows[block], self.scores[block])

    def neighbors(self) -> Neighbors:
        """The same as Neighbors; raises UserError where k public vectors were not seen."""
        if (self.rows < 0).any():
            raise UserError(f"k={self.rows.shape[1]} is more than the public vectors searched; lower k or enlarge P")
        return Neighbors(self.rows, np.maximum(1 - self.scores, 0).astype(np.float32))


def search(
    queries: np.ndarray, public: Sequence[np.ndarray], k: int, index: str = "flat", ids: np.ndarray | None = None
) -> tuple[Neighbors, float]:
    """The k public vectors nearest to each query, and the recall of the index: 1.0 where it is exact by proof.

    Args:
        queries: float16 [n, d].
        public: float16 arrays or memory maps [m, d], read one after another.
        k: neighbors of each query.
        index: how candidates are found. Exact, so with one result: ``float32`` or ``bf16`` products, ``flat`` for the
            faster of the two that the CPU has, ``gpu`` by faiss. Approximate: ``ivf`` by faiss; its recall is measured on
            a sample.
        ids: int [total m], the public row of each vector, each once; its place in ``public`` by default.

    Raises:
        UserError: k larger than the public set, widths that differ, a vector with NaN, infinity or zero norm, an index
            that is unknown or not available.
    """
    total = sum(len(part) for part in public)
    if not 1 <= k <= total:
        raise UserError(f"k={k} needs at least {k} public vectors, and there are {total}; lower k or enlarge P")
    if index != "ivf":
        return best_k(queries, public, k, index, ids).neighbors(), 1.0
    check(queries, public)
    found = search_ivf(queries, public, k, ids)
    sample = np.unique(np.linspace(0, max(len(queries) - 1, 0), SAMPLE).astype(np.int64))[: len(queries)]
    exact = best_k(queries[sample], public, k, "flat", ids).rows
    hits = [len(np.intersect1d(a, b)) for a, b in zip(exact, found.rows[sample], strict=True)]
    return found.neighbors(), sum(hits) / exact.size if exact.size else 1.0


def best_k(
    queries: np.ndarray, public: Sequence[np.ndarray], k: int, index: str = "flat", ids: np.ndarray | None = None
) -> Best:
    """As ``search`` by an exact index, of the public vectors that there are: fewer than k leave rows of −1."""
    from threadpoolctl import threadpool_limits

    check_index(index)
    check(queries, public)
    best = Best.none(len(queries), k)
    asked = prepare(queries)
    total = sum(len(part) for part in public)
    with threads() as pool, threadpool_limits(1, "blas"), progress(None, "searching", total, "vector") as bar:
        # Each thread takes its own queries through all of a chunk, products included: nothing waits for anything.
        rows = max(1, min(-(-len(queries) // threads_wanted()), ROOM // (4 * k + 256)))
        blocks = [slice(first, first + rows) for first in range(0, len(queries), rows)]
        for start, stored in chunks(public, pool):
            chunk = Chunk(stored, row_ids(ids, start, len(stored)), index)
            shares = [(asked[block], best[block].rows, best[block].scores) for block in blocks]
            list(pool.map(chunk.merge, *zip(*shares, strict=True)))
            bar.update(len(stored))
    return best


def row_ids(ids: np.ndarray | None, start: int, count: int) -> np.ndarray:
    """The public rows of ``count`` vectors from place ``start`` on, int32."""
    return (np.arange(start, start + count) if ids is None else ids[start : start + count]).astype(np.int32)


def check(queries: np.ndarray, public: Sequence[np.ndarray]) -> None:
    """Raise UserError for arrays that are no embeddings, or not of one width."""
    named = [("queries", queries), *((f"part {number} of the public set", part) for number, part in enumerate(public))]
    for what, array in named:
        if array.dtype != np.float16 or array.ndim != 2:
            raise UserError(f"{what}: embeddings are float16 [rows, width], not {array.dtype} {list(array.shape)}")
        if len(array) and array.shape[1] != queries.shape[1]:
            raise UserError(
                f"{what}: the vectors are {array.shape[1]} wide and the queries {queries.shape[1]}; text and image embeddings "
                "must come from one model"
            )


def prepare(queries: np.ndarray) -> Rows:
    """Queries as the kernels take them; raises UserError for one that can't be used."""
    rows = Rows.empty(*queries.shape).load(np.ascontiguousarray(queries))
    _refuse_unusable(rows.norms, None, 0)
    return rows


def chunks(public: Sequence[np.ndarray], pool: ThreadPoolExecutor) -> Iterator[tuple[int, Rows]]:
    """(first place, vectors in memory) in chunks that span parts; each is overwritten by the next.

    Raises:
        UserError: a vector that can't be used.
    """
    width = max((part.shape[1] for part in public if len(part)), default=1)
    held = Rows.empty(min(max(1, CHUNK_BYTES // (2 * width)), sum(map(len, public))), width)
    start, count = 0, 0
    for part in public:
        first = 0
        while first < len(part):
            taken = min(len(part) - first, len(held) - count)
            rows, piece = held[count : count + taken], part[first : first + taken]
            cuts = [slice(at, at + LOADED) for at in range(0, taken, LOADED)]
            list(pool.map(Rows.load, [rows[cut] for cut in cuts], [piece[cut] for cut in cuts]))
            _refuse_unusable(rows.norms, public, start + count)
            _give_back(part)
            first, count = first + taken, count + taken
            if count == len(held):
                yield start, held
                start, count = start + count, 0
    if count:
        yield start, held[:count]


def _give_back(part: np.ndarray) -> None:
    """Drop a memory map's pages: they would count as this process's memory until the system took them."""
    mapping = getattr(part, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _refuse_unusable(norms: np.ndarray, public: Sequence[np.ndarray] | None, start: int) -> None:
    """Raise UserError for the first vector with zero norm, NaN or infinity (which decode to values from 65536 on).

    norms: of the vectors from place ``start`` of ``public`` (of the queries where that is None) on.
    """
    bad = np.flatnonzero(~((norms > 0) & (norms < 65536)))
    if not len(bad):
        return
    place, name = int(start + bad[0]), "queries"
    if public is not None:
        number = 0
        while place >= len(public[number]):
            place, number = place - len(public[number]), number + 1
        name, first = _origin(public[number])
        name, place = name or f"part {number} of the public set", place + first
    what = "has zero norm" if norms[bad[0]] == 0 else "holds NaN or infinity"
    raise UserError(f"{name}: the vector in row {place} {what}; mend the model or leave these pairs out")


def _origin(part: np.ndarray) -> tuple[str, int]:
    """The file of a memory map and the row at which this stretch of it begins; ("", 0) for an array in memory."""
    whole = part
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    file = getattr(part, "filename", None)
    if file is None or not part.strides[0]:
        return "", 0
    return str(file), (part.ctypes.data - whole.ctypes.data) // part.strides[0]


PER_LIST = 64  # vectors that faiss wants to train each list on


SHARE = 16  # one list in so many is searched


def search_ivf(queries: np.ndarray, public: Sequence[np.ndarray], k: int, ids: np.ndarray | None) -> Best:
    """The best k among the vectors in the lists nearest to each query; scores and order are exact, recall is not 1.

    About 4 √N lists, a sixteenth of them searched; queries that find fewer than k get an exact search. The index holds
    the public vectors as fp16 in memory.

    Raises:
        UserError: faiss is not installed, or a vector with NaN, infinity or zero norm.
    """
    try:
        import faiss
    except ImportError:
        raise UserError("index=ivf needs faiss (pip install 'dejavu-lit[cpu]'); use index=flat") from None
    total, width = sum(len(part) for part in public), queries.shape[1]
    lists = max(1, min(int(4 * total**0.5), total // PER_LIST))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.nprobe = max(1, lists // SHARE)
    index.train(_sample(public, PER_LIST * lists, total))
    with threads() as pool:
        for _, rows in chunks(public, pool):
            index.add(rows.unit())
    asked = prepare(queries)
    places = np.sort(index.search(asked.unit(), k)[1], axis=1)
    del index
    best = Best.none(len(queries), k)
    with threads() as pool:
        for start, stored in chunks(public, pool):
            chunk = Chunk(stored, row_ids(ids, start, len(stored)), "flat")
            here = np.where((places >= start) & (places < start + len(stored)), places - start, -1).astype(np.int32)
            chunk.absorb(asked, here, np.full(len(queries), k), best.rows, best.scores)
    short = np.flatnonzero((best.rows < 0).any(axis=1))
    if len(short):
        exact = best_k(queries[short], public, k, "flat", ids)
        best.rows[short], best.scores[short] = exact.rows, exact.scores
    return best


def _sample(public: Sequence[np.ndarray], count: int, total: int) -> np.ndarray:
    """About ``count`` unit vectors spread evenly over the public set, float32."""
    step = max(1, total // count)
    stored = np.concatenate([np.array(part[::step]) for part in public if len(part)])
    rows = Rows.empty(*stored.shape).load(stored)
    return rows.unit()[rows.norms > 0]
