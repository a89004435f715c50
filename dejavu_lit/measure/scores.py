"""Scores of single records: |G ∩ Ô|, |Ô| and |G|, from neighbors and objects, for every k of a list in one pass.

G = the objects of the record's own image, Ô = the union of the objects of its k nearest public images, or with
``top_m`` the m objects found in most of them (ties: larger summed similarity, then label order).
precision = hits / |Ô| (0 if Ô is empty), recall = hits / |G| (Jayaraman, Guo, Chaudhuri, NeurIPS 2024, arXiv 2402.02103).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dejavu_lit.data.objects import Objects
from dejavu_lit.measure.score_kernels import count_all, count_bits, most_frequent
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.parallel import for_blocks, thread_count

# With few labels, the objects of an image are joined as 64-bit words: faster up to this many words per object.
WORDS_PER_OBJECT = 6
CHUNK = 8192  # records per task of a thread: bounds the copies of memory-mapped neighbors


@dataclass(frozen=True)
class Neighbors:
    """The nearest public images of n records, nearest first.

    rows: int32 [n, K], row numbers in the public ``Objects`` (sorted by key); distances: float32 [n, K],
    1 − cosine similarity, ascending; equal distances are in the order of the rows. Raises UserError for different shapes,
    negative rows, or distances that are not finite.
    """

    rows: np.ndarray
    distances: np.ndarray

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape != self.distances.shape:
            raise UserError(
                f"neighbors need rows and distances of the same shape [records, k], not {self.rows.shape} and "
                f"{self.distances.shape}"
            )
        if self.rows.min(initial=0) < 0:
            raise UserError("neighbors have a negative row; each row must be that of a public image")
        if not np.isfinite([self.distances.min(initial=0), self.distances.max(initial=0)]).all():
            raise UserError("neighbors have a distance that is not a finite number; check the embeddings for NaN")

    @classmethod
    def joined(cls, parts: Sequence["Neighbors"]) -> "Neighbors":
        """The neighbors of several blocks of records, at least one, in their order."""
        return cls(np.concatenate([part.rows for part in parts]), np.concatenate([part.distances for part in parts]))

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

    def __getitem__(self, records: np.ndarray) -> "Scores":
        return Scores(self.ks, self.hits[records], self.predicted[records], self.truth[records])

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
        return np.asarray(self.hits[:, column] / np.maximum(self.predicted[:, column], 1))

    def recall(self, k: int) -> np.ndarray:
        """hits / |G| of each record, float64 [n]; NaN if the image has no objects."""
        truth = np.where(self.has_objects, self.truth, np.nan)
        return np.asarray(self.hits[:, self.column(k)] / truth)


def score(neighbors: Neighbors, public: Objects, truth: Objects, ks: Sequence[int], top_m: int | None = None) -> Scores:
    """Score each record's neighbors against its own objects, for every k of ``ks``.

    Args:
        neighbors: n records with at least max(ks) neighbors; their rows refer to ``public``.
        truth: the objects of the n records, in the order of ``neighbors``, with the same labels as ``public``.
        top_m: predict only the m ≥ 1 objects found in most neighbors; None predicts all of them.

    Raises UserError if ks are not increasing or exceed the neighbors, the labels differ, or a row is outside the public set.
    """
    if not ks or any(b <= a for a, b in pairwise([0, *ks])):
        raise UserError(f"ks={list(ks)} must be increasing numbers of at least 1")
    if ks[-1] > neighbors.k:
        raise UserError(f"k={ks[-1]} exceeds the {neighbors.k} neighbors of each record; lower ks= or search again")
    if public.labels != truth.labels:
        raise UserError("the records' and the public objects have different labels; read both with one read_objects()")
    if len(truth) != len(neighbors):
        raise UserError(f"there are objects for {len(truth)} records and neighbors for {len(neighbors)}")
    labels = len(public.labels)
    (starts, codes), public_rows = _rows(truth), _rows(public)
    is_dense = top_m is None and -(-labels // 64) * len(public) <= WORDS_PER_OBJECT * len(public.codes)
    bits = _bits(public) if is_dense else None
    hits = np.zeros((len(neighbors), len(ks)), np.int32)
    predicted = np.zeros((len(neighbors), len(ks)), np.int32)

    def work(start: int) -> None:
        part = slice(start, start + size)
        rows, own = _plain(neighbors.rows[part, : ks[-1]], np.int32), starts[start : start + size + 1]
        if rows.size and rows.max() >= len(public):
            raise UserError(
                f"a neighbor is row {rows.max()} of the public set, which has objects for {len(public)} images; "
                "the objects must be those of the public set that was searched"
            )
        sizes = np.array(ks, np.int64)
        if bits is not None:
            count_bits(rows, own, codes, bits, sizes, hits[part], predicted[part])
            return
        if top_m is None:
            count_all(rows, own, codes, *public_rows, sizes, labels, hits[part], predicted[part])
            return
        own_objects = np.repeat(np.arange(len(rows)), np.diff(own)) * labels + codes[own[0] : own[-1]]
        for column, k in enumerate(ks):
            objects = _predicted(neighbors[part], public, k, top_m)
            right = own_objects[np.isin(own_objects, objects)]
            predicted[part, column] = np.bincount(objects // max(1, labels), minlength=len(rows))
            hits[part, column] = np.bincount(right // max(1, labels), minlength=len(rows))

    size = max(1, min(CHUNK, -(-len(neighbors) // thread_count())))
    for_blocks(work, len(neighbors), size)
    return Scores(tuple(ks), hits, predicted, truth.counts().astype(np.int32))


def predict(neighbors: Neighbors, public: Objects, k: int, top_m: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The predicted objects Ô: (starts int64 [n + 1], codes int32), the codes of each record ascending.

    Meant for a block of records at a time: it needs memory for all objects of the neighbors.
    """
    record, codes = np.divmod(_predicted(neighbors, public, k, top_m), max(1, len(public.labels)))
    return np.searchsorted(record, np.arange(len(neighbors) + 1)), codes.astype(np.int32)


def _predicted(neighbors: Neighbors, public: Objects, k: int, top_m: int | None) -> np.ndarray:
    """The predicted objects of all records, ascending: record · labels + code, int64."""
    rows, labels = neighbors.rows[:, :k], max(1, len(public.labels))
    if top_m is not None:
        chosen = np.full((len(rows), min(top_m, labels)), -1, np.int32)
        distances = _plain(neighbors.distances[:, :k], np.float32)
        most_frequent(_plain(rows, np.int32), distances, *_rows(public), labels, chosen)
        return np.sort((np.arange(len(rows))[:, None] * labels + chosen)[chosen >= 0])
    counts = public.counts()[rows]
    first = np.cumsum(counts) - counts.ravel()
    gather = np.repeat(public.starts[rows].ravel() - first, counts.ravel()) + np.arange(counts.sum())
    record = np.repeat(np.arange(len(rows)), counts.sum(axis=1))
    return np.unique(record * labels + public.codes[gather])


def _bits(objects: Objects) -> np.ndarray:
    """Each image's objects as bits, uint64 [images, words]."""
    bits = np.zeros((len(objects), -(-len(objects.labels) // 64)), np.uint64)
    owners = np.repeat(np.arange(len(objects)), objects.counts())
    np.bitwise_or.at(bits, (owners, objects.codes >> 6), np.uint64(1) << (objects.codes & 63).astype(np.uint64))
    return bits


def _rows(objects: Objects) -> tuple[np.ndarray, np.ndarray]:
    return _plain(objects.starts, np.int64), _plain(objects.codes, np.int32)


def _plain(array: np.ndarray, dtype: type) -> np.ndarray:
    """A contiguous, writable array of ``dtype``: one type for the kernels, hence one compilation."""
    return np.require(array, dtype, ["C", "W"])
