"""The inner loops of the search, compiled: collect candidates from tiles of cheap scores, score them exactly, keep the best.

numba has no half type, so fp16 arrays come as their bits (``array.view(np.uint16)``). NaN and infinity are not decoded
as such: they give norms from 65536 on, which the caller refuses.

A tile is [queries, blocks, 64]: whether any of 64 scores reaches the floor is one vectorised comparison, and few do.
"""

import numpy as np
from numba import njit, prange

BLOCK = 64
# Sums may be reordered: those of float64 are exact in any order (see search.py), those of float32 have an error bound.
FAST = {"reassoc", "contract", "nsz"}


@njit(inline="always")
def half(bits):  # type: ignore[no-untyped-def]
    """The value of one fp16 from its bits, float32; exact, subnormals included."""
    sign = (np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16)
    rest = (np.uint32(bits) & np.uint32(0x7FFF)) << np.uint32(13)
    return np.uint32(sign | rest).view(np.float32) * np.float32(2.0**112)


@njit(parallel=True, cache=True, fastmath=FAST)
def normalise(bits: np.ndarray, values: np.ndarray, unit: np.ndarray, norms: np.ndarray) -> None:
    """fp16 bits [n, d] → values float32 [n, d], unit float32 [n, d] (values / norms), norms float64 [n]."""
    n, d = bits.shape
    for i in prange(n):
        total = 0.0
        for j in range(d):
            value = half(bits[i, j])
            values[i, j] = value
            total += np.float64(value) * np.float64(value)
        norms[i] = np.sqrt(total)
        factor = np.float32(1.0 / norms[i]) if total > 0 else np.float32(0)
        for j in range(d):
            unit[i, j] = values[i, j] * factor


@njit(parallel=True, cache=True, fastmath=FAST)
def absorb(
    queries: np.ndarray,
    query_norms: np.ndarray,
    public: np.ndarray,
    norms: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
    ids: np.ndarray,
    best_rows: np.ndarray,
    best_scores: np.ndarray,
) -> None:
    """Score candidates by their float64 cosine and insert them into the best k so far.

    queries float32 [n, d] and public float32 [m, d] hold the stored values, norms theirs in float64. Candidates of query
    i are rows[i, :counts[i]] of ``public`` (negative ones are skipped), known outside as ids[row]. best_* [n, k] stay
    sorted by score descending, then id ascending; a candidate that is among them is not inserted twice.
    """
    n, k = best_rows.shape
    d = queries.shape[1]
    for i in prange(n):
        for c in range(counts[i]):
            row = rows[i, c]
            if row < 0:
                continue
            total = 0.0
            for j in range(d):
                total += np.float64(queries[i, j]) * np.float64(public[row, j])
            score = total / (query_norms[i] * norms[row])
            name = ids[row]
            last = best_rows[i, k - 1]
            if last >= 0 and (score < best_scores[i, k - 1] or (score == best_scores[i, k - 1] and name >= last)):
                continue
            low = 0
            high = k
            while low < high:
                middle = (low + high) // 2
                ahead = best_scores[i, middle]
                if best_rows[i, middle] >= 0 and (ahead > score or (ahead == score and best_rows[i, middle] <= name)):
                    low = middle + 1
                else:
                    high = middle
            if low > 0 and best_rows[i, low - 1] == name:
                continue
            for j in range(k - 1, low, -1):
                best_rows[i, j] = best_rows[i, j - 1]
                best_scores[i, j] = best_scores[i, j - 1]
            best_rows[i, low] = name
            best_scores[i, low] = score


@njit(parallel=True, cache=True)
def above(scores: np.ndarray, floors: np.ndarray, start: int, rows: np.ndarray, counts: np.ndarray) -> None:
    """rows[i, :counts[i]] = the columns of scores [n, m] with a value ≥ floors[i], counted from ``start``; rows is [n, m]."""
    n, m = scores.shape
    for i in prange(n):
        found = 0
        for j in range(m):
            if scores[i, j] >= floors[i]:
                rows[i, found] = start + j
                found += 1
        counts[i] = found


@njit(cache=True)
def floor_of(score, error, rounding):  # type: ignore[no-untyped-def]
    """The lowest cheap score of what may have a true score of at least ``score`` (see search_index.py), float32.

    Never below −4, which no score is: the padding of a tile is, and must not be taken for candidates.
    """
    true = max(score, -2.0) - error
    return np.float32(true - abs(true) * rounding - 2.0**-22)


@njit(cache=True)
def _trim(values, rows, count, k, error, rounding):  # type: ignore[no-untyped-def]
    """Drop candidates that can't be among the best k of these ``count``; gives (how many stay, their floor)."""
    kth = np.partition(values[:count], count - k)[count - k]
    floor = floor_of(kth - abs(kth) * rounding - error, error, rounding)
    kept = 0
    for c in range(count):
        if values[c] >= floor:
            values[kept] = values[c]
            rows[kept] = rows[c]
            kept += 1
    return kept, floor


@njit(inline="always")
def _keep(value, row, values, rows, count, floor, k, error, rounding):  # type: ignore[no-untyped-def]
    """Append one candidate, trimming when the room is used up; a count of −1 says that too many are alike."""
    if count == len(values):
        count, trimmed = _trim(values, rows, count, k, error, rounding)
        floor = max(floor, trimmed)
        if 4 * count > 3 * len(values):
            return -1, floor
    if value >= floor:
        values[count] = value
        rows[count] = row
        count += 1
    return count, floor


@njit(parallel=True, cache=True)
def collect_float32(
    tile: np.ndarray,
    start: int,
    k: int,
    errors: np.ndarray,
    rounding: float,
    floors: np.ndarray,
    values: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Add the columns of tile float32 [n, blocks, 64] that may be among the best k to the candidates, from row ``start`` on.

    floors float32 [n]: lowest scores that count, raised in place; values float32, rows int32 [n, room] and counts [n]: the
    candidates so far (−1: given up, too many alike).
    """
    for i in prange(len(tile)):
        count, floor = counts[i], floors[i]
        for b in range(tile.shape[1]):
            if count < 0:
                break
            reached = np.int32(0)
            for j in range(BLOCK):
                reached += np.int32(tile[i, b, j] >= floor)
            if reached == 0:
                continue
            for j in range(BLOCK):
                if tile[i, b, j] >= floor and count >= 0:
                    row = start + b * BLOCK + j
                    count, floor = _keep(tile[i, b, j], row, values[i], rows[i], count, floor, k, errors[i], rounding)
        counts[i], floors[i] = count, floor


@njit(inline="always")
def _ordered(bits):  # type: ignore[no-untyped-def]
    """int16 bits of a bfloat16 → an int16 in the order of the values."""
    return np.int16(bits ^ np.int16((bits >> np.int16(15)) & np.int16(0x7FFF)))


@njit(inline="always")
def _ordered_floor(value):  # type: ignore[no-untyped-def]
    """The ordered int16 of the largest bfloat16 that is not above ``value``."""
    bits = np.float32(value).view(np.int32)
    high = np.int16(bits >> np.int32(16))
    if bits < 0 and (bits & np.int32(0xFFFF)) != 0 and np.isfinite(value):
        high = np.int16(high + np.int16(1))  # the magnitude one step up
    return _ordered(high)


@njit(parallel=True, cache=True)
def collect_bfloat16(
    tile: np.ndarray,
    start: int,
    k: int,
    errors: np.ndarray,
    rounding: float,
    floors: np.ndarray,
    values: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
) -> None:
    """As ``collect_float32``, for a tile of bfloat16 that comes as its bits, int16 [n, blocks, 64]."""
    for i in prange(len(tile)):
        count, floor = counts[i], floors[i]
        least = _ordered_floor(floor)
        for b in range(tile.shape[1]):
            if count < 0:
                break
            reached = np.int16(0)
            for j in range(BLOCK):
                reached |= np.int16(_ordered(tile[i, b, j]) >= least)
            if reached == 0:
                continue
            for j in range(BLOCK):
                if _ordered(tile[i, b, j]) >= least and count >= 0:
                    value = np.int32(np.int32(tile[i, b, j]) << np.int32(16)).view(np.float32)
                    row = start + b * BLOCK + j
                    count, floor = _keep(value, row, values[i], rows[i], count, floor, k, errors[i], rounding)
                    least = _ordered_floor(floor)
        counts[i], floors[i] = count, floor


@njit(parallel=True, cache=True)
def finish(
    k: int, errors: np.ndarray, rounding: float, values: np.ndarray, rows: np.ndarray, counts: np.ndarray
) -> None:
    """Trim every query's candidates a last time."""
    for i in prange(len(counts)):
        if counts[i] > k:
            counts[i], _ = _trim(values[i], rows[i], counts[i], k, errors[i], rounding)
