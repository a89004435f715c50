"""An approximate index for public sets too large to compare with every query: faiss's inverted file over fp16 vectors."""

from collections.abc import Sequence

import numpy as np

from dejavu_lit.evaluation.search import Best, best_k, chunks, prepare, row_ids
from dejavu_lit.evaluation.search_index import Chunk, Rows
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.threads import threads

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
