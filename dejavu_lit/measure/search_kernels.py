"""The inner loops of the search, compiled: fp16 rows as they are stored in, exact scores and candidates out.

numba has no half type, so fp16 arrays come as their bits (``array.view(np.uint16)``). NaN and infinity are not decoded
as such: they give norms above 65535, which the caller refuses.
"""

import numpy as np
from numba import njit, prange

# Sums may be reordered: those of float64 are exact in any order (see search.py), those of float32 have an error bound.
FAST = {"reassoc", "contract", "nsz"}


@njit(inline="always")
def half(bits):  # type: ignore[no-untyped-def]
    """The value of one fp16 from its bits, float32; exact, subnormals included."""
    sign = (np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16)
    rest = (np.uint32(bits) & np.uint32(0x7FFF)) << np.uint32(13)
    return np.uint32(sign | rest).view(np.float32) * np.float32(2.0**112)


@njit(parallel=True, cache=True, fastmath=FAST)
def normalise(bits: np.ndarray, out: np.ndarray, norms: np.ndarray) -> None:
    """fp16 bits [n, d] → out float32 [n, d], the rows divided by their norms, and norms float64 [n]."""
    n, d = bits.shape
    for i in prange(n):
        total = 0.0
        for j in range(d):
            value = half(bits[i, j])
            out[i, j] = value
            total += np.float64(value) * np.float64(value)
        norms[i] = np.sqrt(total)
        factor = np.float32(1.0 / norms[i]) if total > 0 else np.float32(0)
        for j in range(d):
            out[i, j] *= factor


@njit(parallel=True, cache=True, fastmath=FAST)
def decode(bits: np.ndarray, out: np.ndarray) -> None:
    """fp16 bits [n, d] → out float32 [n, d], the same values."""
    n, d = bits.shape
    for i in prange(n):
        for j in range(d):
            out[i, j] = half(bits[i, j])


@njit(parallel=True, cache=True, fastmath=FAST)
def score(
    queries: np.ndarray,
    query_norms: np.ndarray,
    public: np.ndarray,
    norms: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
) -> None:
    """Cosines of chosen pairs in float64: scores[i, c] of query i and public row rows[i, c]; −inf where that is −1.

    queries float32 [n, d] and public float32 [m, d] hold the stored values; norms are theirs in float64.
    """
    n, d = queries.shape
    for i in prange(n):
        for c in range(rows.shape[1]):
            row = rows[i, c]
            if row < 0:
                scores[i, c] = -np.inf
                continue
            total = 0.0
            for j in range(d):
                total += np.float64(queries[i, j]) * np.float64(public[row, j])
            scores[i, c] = total / (query_norms[i] * norms[row])


@njit(parallel=True, cache=True)
def absorb(
    rows: np.ndarray, scores: np.ndarray, ids: np.ndarray, best_rows: np.ndarray, best_scores: np.ndarray
) -> None:
    """Insert candidates into the best k so far, which stay sorted by score descending, then public row ascending.

    rows int [n, m] (−1: none) index ids [.], the public rows; scores float64 [n, m]; best_* [n, k]. A candidate that is
    among the best already is not inserted twice.
    """
    n, k = best_rows.shape
    for i in prange(n):
        for c in range(rows.shape[1]):
            if rows[i, c] < 0:
                continue
            s = scores[i, c]
            r = ids[rows[i, c]]
            last_s = best_scores[i, k - 1]
            if s < last_s or (s == last_s and r >= best_rows[i, k - 1] and best_rows[i, k - 1] >= 0):
                continue
            low = 0
            high = k
            while low < high:
                middle = (low + high) // 2
                ahead = best_scores[i, middle]
                if best_rows[i, middle] >= 0 and (ahead > s or (ahead == s and best_rows[i, middle] <= r)):
                    low = middle + 1
                else:
                    high = middle
            if low > 0 and best_rows[i, low - 1] == r:
                continue
            for j in range(k - 1, low, -1):
                best_rows[i, j] = best_rows[i, j - 1]
                best_scores[i, j] = best_scores[i, j - 1]
            best_rows[i, low] = r
            best_scores[i, low] = s


@njit(parallel=True, cache=True)
def above(scores: np.ndarray, floors: np.ndarray, start: int, rows: np.ndarray) -> None:
    """rows[i] = the columns of scores [n, m] with a value ≥ floors[i], counted from ``start``, then −1; rows is [n, m]."""
    n, m = scores.shape
    for i in prange(n):
        found = 0
        for j in range(m):
            if scores[i, j] >= floors[i]:
                rows[i, found] = start + j
                found += 1
        for j in range(found, m):
            rows[i, j] = -1
