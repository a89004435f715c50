"""Scores of single records: |G ∩ Ô|, |Ô| and |G|, from neighbors and objects, for every k of a list in one pass.

G = the objects of the record's own image, Ô = the union of the objects of its k nearest public images, or with
``top_m`` the m objects found in most of them (ties: larger summed similarity, then label order).
precision = hits / |Ô| (0 if Ô is empty), recall = hits / |G|, F1 = their harmonic mean (0 if both are 0)
(Jayaraman, Guo, Chaudhuri, NeurIPS 2024, arXiv 2402.02103).

Objects are integer codes in compressed rows, the cost is linear in the number of the neighbors' objects, and memory beyond
the inputs is a few bytes per record and per label.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dejavu_lit.data.objects import Objects
from dejavu_lit.measure.score_kernels import count_all, count_bits, count_top, list_predicted, pack
from dejavu_lit.utils.errors import UserError

# With few labels, the objects of an image are joined as 64-bit words: faster up to this many words per object.
WORDS_PER_OBJECT = 6
CHUNK = 8192  # records per task of a thread: bounds the copies of memory-mapped neighbors


@dataclass(frozen=True)
class Neighbors:
    """The nearest public images of n records, nearest first.

    rows: int32 [n, K], row numbers in the public ``Objects`` (sorted by key); distances: float32 [n, K],
    1 − cosine similarity, ascending; equal distances are in the order of the rows.

    Raises:
        UserError: different shapes, negative rows, or distances that are not finite.
    """

    rows: np.ndarray
    distances: np.ndarray

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape != self.distances.shape:
            raise UserError(
                f"neighbors need rows and distances of the same shape [records, k], not {self.rows.shape} and "
                f"{self.distances.shape}"
            )
        for start in range(0, len(self), CHUNK):
            if (self.rows[start : start + CHUNK] < 0).any():
                raise UserError("neighbors have a negative row; each row must be that of a public image")
            if not np.isfinite(self.distances[start : start + CHUNK]).all():
                raise UserError("neighbors have a distance that is not a finite number; check the embeddings for NaN")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def k(self) -> int:
        """The number of neighbors per record."""
        return int(self.rows.shape[1])

    def __getitem__(self, records: slice | np.ndarray) -> "Neighbors":
        """The neighbors of some records: a slice, or an array of indices or booleans."""
        return Neighbors(self.rows[records], self.distances[records])


@dataclass(frozen=True)
class Scores:
    """How well one model's neighbors predict the objects: ``hits`` |G ∩ Ô| and ``predicted`` |Ô|, both int32 [n, len(ks)].

    ks: the numbers of neighbors, increasing; truth: |G|, int32 [n]; records with |G| = 0 are excluded from every figure.
    """

    ks: tuple[int, ...]
    hits: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def has_objects(self) -> np.ndarray:
        """Which records have objects, bool [n]."""
        return self.truth > 0

    def column(self, k: int) -> int:
        """The position of ``k`` in ``ks``; raises UserError if it was not scored."""
        if k not in self.ks:
            raise UserError(f"k={k} was not scored, only ks={list(self.ks)}; add it to ks=")
        return self.ks.index(k)

    def precision(self, k: int) -> np.ndarray:
        """hits / |Ô| of each record, float64 [n]; 0 if Ô is empty."""
        column = self.column(k)
        shares: np.ndarray = self.hits[:, column] / np.maximum(self.predicted[:, column], 1)
        return shares

    def recall(self, k: int) -> np.ndarray:
        """hits / |G| of each record, float64 [n]; NaN if the image has no objects."""
        truth = np.where(self.has_objects, self.truth, np.nan)
        shares: np.ndarray = self.hits[:, self.column(k)] / truth
        return shares

    def f1(self, k: int) -> np.ndarray:
        """2 · hits / (|Ô| + |G|), the harmonic mean of precision and recall, float64 [n]; NaN without objects."""
        column = self.column(k)
        total = self.predicted[:, column] + np.where(self.has_objects, self.truth, np.nan)
        means: np.ndarray = 2 * self.hits[:, column] / total
        return means


def score(neighbors: Neighbors, public: Objects, truth: Objects, ks: Sequence[int], top_m: int | None = None) -> Scores:
    """Score each record's neighbors against its own objects, for every k of ``ks``.

    Args:
        neighbors: n records with at least max(ks) neighbors.
        public: the objects of the public images, in the order that ``neighbors.rows`` refers to.
        truth: the objects of the n records, in the order of ``neighbors``, with the same labels as ``public``.
        ks: increasing numbers of neighbors.
        top_m: predict only the m objects found in most neighbors; None predicts all of them.

    Raises:
        UserError: ks are not increasing or exceed the neighbors, the labels differ, or a row is outside the public set.
    """
    _check(neighbors, public, truth, ks, top_m)
    starts, codes = _plain(public.starts, np.int64), _plain(public.codes, np.int32)
    truth_starts, truth_codes = _plain(truth.starts, np.int64), _plain(truth.codes, np.int32)
    hits = np.zeros((len(neighbors), len(ks)), np.int32)
    predicted = np.zeros((len(neighbors), len(ks)), np.int32)
    words = -(-len(public.labels) // 64)
    dense = top_m is None and words * len(public) <= WORDS_PER_OBJECT * len(codes)
    bits = pack(starts, codes, words) if dense else None

    def work(part: slice) -> None:
        rows = _plain(neighbors.rows[part, : ks[-1]], np.int32)
        if rows.size and rows.max() >= len(public):
            raise UserError(
                f"a neighbor is row {rows.max()} of the public set, which has objects for {len(public)} images; "
                "the objects must be those of the public set that was searched"
            )
        own = truth_starts[part.start : part.stop + 1]
        sizes, out = np.array(ks, np.int64), (hits[part], predicted[part])
        if bits is not None:
            count_bits(rows, own, truth_codes, bits, sizes, *out)
        elif top_m is None:
            count_all(rows, own, truth_codes, starts, codes, sizes, len(public.labels), *out)
        else:
            distances = _plain(neighbors.distances[part, : ks[-1]], np.float32)
            count_top(rows, distances, own, truth_codes, starts, codes, sizes, len(public.labels), *out, top_m)

    parallel(work, len(neighbors))
    return Scores(tuple(ks), hits, predicted, truth.counts().astype(np.int32))


def predict(neighbors: Neighbors, public: Objects, k: int, top_m: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The predicted objects Ô: (starts int64 [n + 1], codes int32), the codes of each record ascending.

    Meant for a block of records at a time: it needs memory for all objects of the neighbors.
    """
    starts, codes = _plain(public.starts, np.int64), _plain(public.codes, np.int32)
    rows = _plain(neighbors.rows[:, :k], np.int32)
    largest = np.minimum(public.counts()[rows].sum(axis=1), len(public.labels))
    begin = np.concatenate([[0], np.cumsum(largest)]).astype(np.int64)
    out, sizes = np.empty(begin[-1], np.int32), np.zeros(len(rows), np.int64)
    distances = _plain(neighbors.distances[:, :k], np.float32)
    list_predicted(
        rows, distances, starts, codes, len(public.labels), -1 if top_m is None else top_m, begin, out, sizes
    )
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return ends, out[np.repeat(begin[:-1] - ends[:-1], sizes) + np.arange(ends[-1])]


def parallel(work: Callable[[slice], None], records: int) -> None:
    """Call ``work`` on every chunk of the records, on OMP_NUM_THREADS threads (default: every core)."""
    # Python threads around kernels that release the GIL: numba's own thread pools do not survive a fork, and data loaders
    # fork.
    parts = list(_chunks(records))
    threads = min(_cores(), len(parts))
    if threads < 2:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, parts):
            pass


def _cores() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdigit() and int(limit) > 0 else available


def _chunks(records: int) -> Iterator[slice]:
    # Equal numbers of chunks per core, none above CHUNK.
    size = max(1, -(-records // (_cores() * max(1, -(-records // (CHUNK * _cores()))))))
    for start in range(0, records, size):
        yield slice(start, min(start + size, records))


def _check(neighbors: Neighbors, public: Objects, truth: Objects, ks: Sequence[int], top_m: int | None) -> None:
    if not ks or any(b <= a for a, b in zip([0, *ks], ks, strict=False)):
        raise UserError(f"ks={list(ks)} must be increasing numbers of at least 1")
    if ks[-1] > neighbors.k:
        raise UserError(f"k={ks[-1]} exceeds the {neighbors.k} neighbors of each record; lower ks= or search again")
    if top_m is not None and top_m < 1:
        raise UserError(f"top_m={top_m} must be at least 1, or null to predict every object of the neighbors")
    if public.labels != truth.labels:
        raise UserError("the records' and the public objects have different labels; read both with one read_objects()")
    if len(truth) != len(neighbors):
        raise UserError(f"there are objects for {len(truth)} records and neighbors for {len(neighbors)}")


def _plain(array: np.ndarray, dtype: type) -> np.ndarray:
    """A contiguous, writable array of ``dtype``: one type for the kernels, hence one compilation."""
    return np.require(array, dtype, ["C", "W"])
