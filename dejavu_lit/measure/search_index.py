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

from dejavu_lit.errors import UserError, suggest
from dejavu_lit.measure import search_kernels as kernels

EXACT = ("flat", "bf16", "gpu")
TILE = 2048  # public rows compared at once, a multiple of kernels.BLOCK
BF16_ROUNDING = 2.0**-8
GPU_MOST = 2048  # candidates that faiss can return on a GPU


@dataclass(frozen=True)
class Queries:
    """Some queries, prepared: their values and unit vectors in float32, their norms in float64."""

    values: np.ndarray
    unit: np.ndarray
    norms: np.ndarray

    @classmethod
    def prepare(cls, stored: np.ndarray) -> "Queries":
        """From float16 [n, d]. The caller looks for unusable norms."""
        bits = np.ascontiguousarray(stored).view(np.uint16)
        values, unit = np.empty(bits.shape, np.float32), np.empty(bits.shape, np.float32)
        norms = np.empty(len(bits))
        kernels.normalise(bits, values, unit, norms)
        return cls(values, unit, norms)

    def __getitem__(self, chosen: np.ndarray) -> "Queries":
        return Queries(self.values[chosen], self.unit[chosen], self.norms[chosen])


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


def bfloat16_error(width: int, query_rests: np.ndarray, largest_rest: float) -> np.ndarray:
    """ε of the sums behind scores by bfloat16 products, for each query.

    A unit vector q = q' + r in float32, q' its bfloat16 rounding, r the rest, which is known; p = p' + s alike. Then
    q·p − q'·p' = r·p + q'·s, at most |r| |p| + |q'| |s| ≤ 1.001 (|r| + (1 + |r|) max |s|). Products of bfloat16 are exact in
    float32, where they are added up: γ as in ``float32_error``. That the scores are rounded to bfloat16 at the end is ρ's part.
    """
    return 1.001 * (query_rests + (1 + query_rests) * largest_rest) + 1.01 * float32_error(width)


class Chunk:
    """Some public vectors in memory. ``merge`` adds their share to the best k of some queries, in place.

    stored: float16 [m, d]; ids: int32 [m], their public rows; index: one of EXACT.
    """

    def __init__(self, stored: np.ndarray, ids: np.ndarray, index: str) -> None:
        self._ids = ids
        self._values: np.ndarray = np.empty(stored.shape, np.float32)
        self._unit: np.ndarray = np.empty(stored.shape, np.float32)
        self.norms: np.ndarray = np.empty(len(stored))
        kernels.normalise(np.ascontiguousarray(stored).view(np.uint16), self._values, self._unit, self.norms)
        self._width = stored.shape[1]
        self._error = float32_error(self._width)
        self._merge = {"flat": self._flat, "bf16": self._bf16, "gpu": self._gpu}[index]

    def merge(self, queries: Queries, rows: np.ndarray, scores: np.ndarray) -> None:
        """Merge this chunk's neighbours into rows int32 [n, k] and scores float64 [n, k]."""
        left = self._merge(queries, rows, scores)
        if len(left):
            some, some_rows, some_scores = queries[left], rows[left], scores[left]
            self._exhaust(some, some_rows, some_scores)
            rows[left], scores[left] = some_rows, some_scores

    def _flat(self, queries: Queries, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        errors = np.full(len(rows), self._error, np.float32)

        def multiply(part: slice, out: np.ndarray) -> None:
            np.matmul(queries.unit, self._unit[part].T, out=out)

        tile = np.empty((len(rows), TILE), np.float32)
        return self._collect(queries, rows, scores, errors, 0.0, tile, multiply, kernels.collect_float32)

    def _bf16(self, queries: Queries, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        import torch

        public, rests = _bfloat16(self._unit)
        asked, query_rests = _bfloat16(queries.unit)
        errors = bfloat16_error(self._width, query_rests, float(rests.max())).astype(np.float32)

        def multiply(part: slice, out: np.ndarray) -> None:
            torch.matmul(asked, public[part].T, out=torch.from_numpy(out).view(torch.bfloat16))

        tile = np.empty((len(rows), TILE), np.int16)
        return self._collect(queries, rows, scores, errors, BF16_ROUNDING, tile, multiply, kernels.collect_bfloat16)

    def _collect(
        self,
        queries: Queries,
        rows: np.ndarray,
        scores: np.ndarray,
        errors: np.ndarray,
        rounding: float,
        tile: np.ndarray,
        multiply: Callable[[slice, np.ndarray], None],
        collect: Callable[..., None],
    ) -> np.ndarray:
        """Candidates from tiles of cheap scores, merged; gives the queries that must be searched without a limit."""
        n, k = rows.shape
        room = max(4 * k, k + 256)
        floors = np.array(
            [kernels.floor_of(t, e, rounding) for t, e in zip(scores[:, -1], errors, strict=True)], np.float32
        )
        values, found = np.empty((n, room), np.float32), np.empty((n, room), np.int32)
        counts = np.zeros(n, np.int64)
        for start in range(0, len(self._unit), TILE):
            part = slice(start, min(start + TILE, len(self._unit)))
            size = part.stop - start
            here = tile
            if size < TILE:  # the last one: its rest is filled with what is never a candidate
                here = np.empty((n, -(-size // kernels.BLOCK) * kernels.BLOCK), tile.dtype)
                cut = np.empty((n, size), tile.dtype)
                multiply(part, cut)
                here[:, :size] = cut
                here[:, size:] = -np.inf if tile.dtype == np.float32 else _MINUS_INFINITY
            else:
                multiply(part, here)
            collect(here.reshape(n, -1, kernels.BLOCK), start, k, errors, rounding, floors, values, found, counts)
        kernels.finish(k, errors, rounding, values, found, counts)
        self.absorb(queries, found, np.maximum(counts, 0), rows, scores)
        return np.flatnonzero(counts < 0)

    def _gpu(self, queries: Queries, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        faiss = gpu_faiss()
        k = rows.shape[1]
        # Tensor cores may round the float32 factors to 10 bits, by less than 2⁻¹⁰ each.
        error = self._error + 2.0**-9 * 1.01
        count = min(2 * k + 64, GPU_MOST, len(self._unit))
        cheap, found = faiss.knn_gpu(
            faiss.StandardGpuResources(), queries.unit, self._unit, count, metric=faiss.METRIC_INNER_PRODUCT
        )
        least = scores[:, -1]
        if count >= k:
            least = np.maximum(least, cheap[:, k - 1] - error)
        found[cheap < (least - error)[:, None]] = -1
        self.absorb(queries, found.astype(np.int32), np.full(len(rows), count), rows, scores)
        return np.flatnonzero(cheap[:, -1] >= least - error) if count < len(self._unit) else np.zeros(0, np.int64)

    def _exhaust(self, queries: Queries, rows: np.ndarray, scores: np.ndarray) -> None:
        """The whole chunk in float32, whatever reaches the k-th score so far."""
        found, counts = np.empty((len(rows), TILE), np.int32), np.empty(len(rows), np.int64)
        for start in range(0, len(self._unit), TILE):
            cheap = queries.unit @ self._unit[start : start + TILE].T
            floors = np.maximum(scores[:, -1] - self._error - 2.0**-22, -2).astype(np.float32)
            kernels.above(cheap, floors, start, found, counts)
            self.absorb(queries, found, counts, rows, scores)

    def absorb(
        self, queries: Queries, found: np.ndarray, counts: np.ndarray, rows: np.ndarray, scores: np.ndarray
    ) -> None:
        """Score the candidates found[i, :counts[i]] (places in this chunk, negative ones skipped) and merge them in."""
        kernels.absorb(queries.values, queries.norms, self._values, self.norms, found, counts, self._ids, rows, scores)


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
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)


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
