"""The exact indexes: a cheap search names the candidates of a chunk, and its proven error decides how many it must name.

For a query and a public vector let x be the cosine and a the cheap score: |a − x| ≤ ε, or a = round(y) to bfloat16 with
|y − x| ≤ ε. Of any k cheap scores of a chunk the smallest, a_k, gives a lower bound of the final k-th cosine,
t = a_k − ρ|a_k| − ε, where ρ = 2⁻⁸ covers the rounding (0 where there is none). The k-th cosine of earlier chunks is such a
bound, too. What can be among the best k has x ≥ t, hence y ≥ t − ε and a ≥ (t − ε) − ρ|t − ε|. Everything else is dropped,
and what stays is scored exactly. Where too many stay to be held (equal vectors), the chunk is searched again for these
queries, with the exact k-th score as t from tile to tile and no limit on the number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from dejavu_lit.evaluation import search_kernels as kernels
from dejavu_lit.utils.distributed import started
from dejavu_lit.utils.errors import UserError, suggest

EXACT = ("flat", "float32", "bf16", "gpu")
TILE = 1024  # public rows compared at once, a multiple of kernels.BLOCK
ASKED = 1024  # queries compared at once
BF16_ROUNDING = 2.0**-8
GPU_MOST = 2048  # candidates that faiss can return on a GPU


@dataclass(frozen=True)
class Rows:
    """Stored vectors as the kernels take them: fp16 bits, uint16 [n, d], and their norms, float64 [n]."""

    bits: np.ndarray
    norms: np.ndarray

    @classmethod
    def empty(cls, count: int, width: int) -> "Rows":
        """Room for ``count`` vectors."""
        return cls(np.empty((count, width), np.uint16), np.empty(count))

    def load(self, stored: np.ndarray) -> "Rows":
        """Fill these rows from float16 [n, d]. The caller looks for unusable norms."""
        kernels.load(np.asarray(stored).view(np.uint16), self.bits, self.norms)
        return self

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, chosen: slice | np.ndarray) -> "Rows":
        return Rows(self.bits[chosen], self.norms[chosen])

    def unit(self, out: np.ndarray | None = None) -> np.ndarray:
        """Unit vectors, float32 [n, d]."""
        out = np.empty(self.bits.shape, np.float32) if out is None else out[: len(self)]
        kernels.normalise(self.bits, self.norms, out)
        return out

    def values(self, out: np.ndarray | None = None) -> np.ndarray:
        """The values as stored, float32 [n, d]."""
        out = np.empty(self.bits.shape, np.float32) if out is None else out[: len(self)]
        kernels.decode(self.bits, out)
        return out


def float32_error(width: int) -> float:
    """ε of scores by float32: |score − cosine| ≤ ε for vectors of ``width`` values.

    With u = 2⁻²⁴: an element of a normalised row is a stored value (exact in float32) times the rounded inverse of
    the norm, so its relative error is below 2.01 u, that of a product of two elements below 4.03 u, and by Cauchy-Schwarz
    this moves the sum of the products by at most 4.03 u. Adding up ``width`` products in float32, in any order, with or
    without fused operations, errs by at most γ = width · u / (1 − width · u) times the sum of their magnitudes, which is
    at most 1 + 4.03 u (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). ε = (width + 8) · u · 1.01
    covers both, and what underflows, for widths below 100,000.
    """
    return (width + 8) * 2.0**-24 * 1.01


def bfloat16_error(width: int, query_rests: np.ndarray) -> np.ndarray:
    """ε of the sums behind scores by bfloat16 products, for each query.

    A unit vector q = q' + r in float32, q' its bfloat16 rounding, r the rest, which is known; p = p' + s alike, where
    |s| ≤ 2⁻⁹|p|. Then q·p − q'·p' = r·p + q'·s, at most |r| |p| + |q'| |s| ≤ 1.001 (|r| + (1 + |r|) 2⁻⁹). Products of
    bfloat16 are exact in float32, where they are added up: γ as in ``float32_error``. That the scores are rounded to
    bfloat16 at the end is ρ's part.
    """
    return 1.001 * (query_rests + (1 + query_rests) * 2.0**-9) + 1.01 * float32_error(width)


class Chunk:
    """Some public vectors in memory. ``merge`` adds their share to the best k of some queries, in place.

    rows: the vectors; ids: int32 [m], their public rows; index: one of EXACT (``flat``: bf16 where the CPU has it, else
    float32).
    """

    def __init__(self, rows: Rows, ids: np.ndarray, index: str) -> None:
        self._rows, self._ids = rows, ids
        self._width = rows.bits.shape[1]
        self._error = float32_error(self._width)
        ways = {"float32": [], "bf16": [self._bf16], "gpu": [self._gpu]}
        ways["flat"] = ways["bf16" if has_bfloat16() else "float32"]
        self._ways = [*ways[index], self._float32, self._unlimited]

    def merge(self, queries: Rows, rows: np.ndarray, scores: np.ndarray) -> None:
        """Merge this chunk's neighbors into rows int32 [n, k] and scores float64 [n, k]."""
        left = np.arange(len(rows))
        for way in self._ways:  # each leaves the queries for which it found too many candidates to the next
            some_rows, some_scores = rows[left], scores[left]
            failed = way(queries[left], some_rows, some_scores)
            rows[left], scores[left] = some_rows, some_scores
            left = left[failed]
            if not len(left):
                return

    def _float32(self, queries: Rows, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        asked = queries.unit()
        errors = np.full(len(rows), self._error, np.float32)

        def multiply(block: slice, public: np.ndarray, out: np.ndarray) -> None:
            np.matmul(asked[block], public.T, out=out)

        return self._collect(queries, rows, scores, errors, 0.0, np.float32, multiply, kernels.collect_float32)

    def _bf16(self, queries: Rows, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        import torch

        asked, rests = _bfloat16(queries.unit())
        errors = bfloat16_error(self._width, rests).astype(np.float32)

        def multiply(block: slice, public: np.ndarray, out: np.ndarray) -> None:
            rounded = torch.from_numpy(public).bfloat16()
            torch.matmul(asked[block], rounded.T, out=torch.from_numpy(out).view(torch.bfloat16))

        kernel = kernels.collect_bfloat16
        return self._collect(queries, rows, scores, errors, BF16_ROUNDING, np.int16, multiply, kernel)

    def _collect(
        self,
        queries: Rows,
        rows: np.ndarray,
        scores: np.ndarray,
        errors: np.ndarray,
        rounding: float,
        kind: type,
        multiply: Callable[[slice, np.ndarray, np.ndarray], None],
        collect: Callable[..., None],
    ) -> np.ndarray:
        """Candidates from tiles of cheap scores, merged; gives the queries that must be searched without a limit."""
        n, k = rows.shape
        room = max(4 * k, k + 256)
        floors = _floors(scores[:, -1], errors, rounding)
        values, found, counts = np.empty((n, room), np.float32), np.empty((n, room), np.int32), np.zeros(n, np.int64)
        buffer = np.empty((TILE, self._width), np.float32)
        tile: np.ndarray = np.empty((min(n, ASKED), TILE), kind)
        for start in range(0, len(self._rows), TILE):
            size = len(self._rows[start : start + TILE].unit(buffer))
            buffer[size:] = 0
            for first in range(0, n, ASKED):
                block = slice(first, min(first + ASKED, n))
                here = tile[: block.stop - first]
                multiply(block, buffer, here)
                here[:, size:] = -np.inf if kind is np.float32 else _MINUS_INFINITY  # never a candidate
                if start == 0 and k <= size:  # a first bound, so that not everything is a candidate
                    cheap = here if kind is np.float32 else (here.astype(np.int32) << 16).view(np.float32)
                    kth = np.partition(cheap, -k, axis=1)[:, -k]
                    bound = kth - np.abs(kth) * rounding - errors[block]
                    floors[block] = np.maximum(floors[block], _floors(bound, errors[block], rounding))
                held = values[block], found[block], counts[block]
                cells = here.reshape(len(here), -1, kernels.BLOCK)
                collect(cells, start, k, errors[block], rounding, floors[block], *held)
        kernels.finish(k, errors, rounding, values, found, counts)
        self.absorb(queries, found, np.maximum(counts, 0), rows, scores)
        return np.flatnonzero(counts < 0)

    def _gpu(self, queries: Rows, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        faiss = gpu_faiss()
        k, total = rows.shape[1], len(self._rows)
        # Tensor cores may round the float32 factors to 10 bits, by less than 2⁻¹⁰ each.
        error = self._error + 2.0**-9 * 1.01
        count = min(2 * k + 64, GPU_MOST, total)
        resources, asked, public = faiss.StandardGpuResources(), queries.unit(), self._rows.unit()
        own = started().local % faiss.get_num_gpus()  # each rank of a node takes a GPU of its own
        cheap, found = faiss.knn_gpu(resources, asked, public, count, metric=faiss.METRIC_INNER_PRODUCT, device=own)
        least = scores[:, -1]
        if count >= k:
            least = np.maximum(least, cheap[:, k - 1] - error)
        found[cheap < (least - error)[:, None]] = -1
        self.absorb(queries, np.sort(found, axis=1).astype(np.int32), np.full(len(rows), count), rows, scores)
        return np.flatnonzero(cheap[:, -1] >= least - error) if count < total else np.zeros(0, np.int64)

    def _unlimited(self, queries: Rows, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The whole chunk in float32, whatever reaches the k-th score so far; leaves none."""
        asked, values = queries.unit(), queries.values()
        found, counts = np.empty((len(rows), TILE), np.int32), np.empty(len(rows), np.int64)
        errors = np.full(len(rows), self._error)
        for start in range(0, len(self._rows), TILE):
            tile = self._rows[start : start + TILE]
            kernels.above(asked @ tile.unit().T, _floors(scores[:, -1], errors, 0.0), start, found, counts)
            done, best = np.zeros_like(counts), (self._ids, rows, scores)
            kernels.absorb(values, queries.norms, tile.values(), tile.norms, start, found, done, counts, *best)
        return np.zeros(0, np.int64)

    def absorb(
        self, queries: Rows, found: np.ndarray, counts: np.ndarray, rows: np.ndarray, scores: np.ndarray
    ) -> None:
        """Score the candidates found[i, :counts[i]] (ascending places in this chunk, negative ones skipped), merge them in."""
        asked, done = queries.values(), np.zeros_like(counts)
        buffer = np.empty((TILE, self._width), np.float32)
        for start in range(0, len(self._rows), TILE):  # tile by tile: they stay in the cache
            tile = self._rows[start : start + TILE]
            public, best = tile.values(buffer), (self._ids, rows, scores)
            kernels.absorb(asked, queries.norms, public, tile.norms, start, found, done, counts, *best)


def _floors(bounds: np.ndarray, errors: np.ndarray, rounding: float) -> np.ndarray:
    """kernels.floor_of for many: the lowest cheap scores that may belong to a cosine of at least ``bounds``, float32 [n]."""
    true = np.maximum(bounds, -2.0) - errors
    lowest: np.ndarray = true - np.abs(true) * rounding - 2.0**-22
    return lowest.astype(np.float32)


_MINUS_INFINITY = np.int16(-0x80)  # the bits of bfloat16's −∞, 0xff80


def check_index(index: str) -> None:
    """Raise UserError where ``index`` is unknown or this machine can't do it."""
    known = (*EXACT, "ivf")
    if index not in known:
        raise UserError(f"index={index} is not known{suggest(index, known)}; choose one of {', '.join(known)}")
    if index == "bf16" and not has_bfloat16():
        raise UserError("index=bf16 needs a CPU with bfloat16 instructions (AVX512-BF16 or AMX); use index=flat")
    if index == "gpu":
        gpu_faiss()


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware, adding up in float32."""
    import torch

    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return bool(fast) and any(bool(getattr(torch.cpu, name, bool)()) for name in names)


def gpu_faiss() -> Any:
    """faiss with GPU support; raises UserError where it or the GPU is missing."""
    if find_spec("faiss") is not None:
        import faiss

        if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
            return faiss
    raise UserError("index=gpu needs faiss-gpu (pip install 'dejavu-lit[gpu]') and an NVIDIA GPU; use index=flat")


def _bfloat16(unit: np.ndarray) -> tuple[Any, np.ndarray]:
    """(the rows as a bfloat16 tensor, the norms of what rounding left out, float64 [n])."""
    import torch

    exact = torch.from_numpy(unit)
    rounded = exact.bfloat16()
    rests = torch.linalg.vector_norm(exact - rounded.float(), dim=1)
    return rounded, rests.double().numpy() * 1.0001
