"""The search's inner loops, compiled, each for one thread: collect candidates, score them exactly, keep the best.

numba has no half type, so fp16 arrays come as their bits (``array.view(np.uint16)``). NaN and infinity are not decoded
as such: they give norms from 65536 on, which the caller refuses.

A tile is [queries, blocks, 64]: whether any of 64 scores reaches the floor is one vectorised comparison, and few do.
"""

import numpy as np
from numba import njit

BLOCK = 64
BINS = 256  # of the histogram that finds a k-th largest score
# Sums may be reordered: those of float64 are exact in any order (see search.py), those of float32 have an error bound.
FAST = {"reassoc", "contract", "nsz"}


@njit(inline="always")
def half(bits: np.uint16) -> np.float32:
    """The value of one fp16 from its bits, float32; exact, subnormals included."""
    sign = (np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16)
    rest = (np.uint32(bits) & np.uint32(0x7FFF)) << np.uint32(13)
    return np.uint32(sign | rest).view(np.float32) * np.float32(2.0**112)


@njit(nogil=True, cache=True, fastmath=FAST)
def load(bits: np.ndarray, copy: np.ndarray, norms: np.ndarray) -> None:
    """copy = fp16 bits [n, d], which may lie on disk, and norms float64 [n]."""
    n, d = bits.shape
    for i in range(n):
        total = 0.0
        for j in range(d):
            copy[i, j] = bits[i, j]
            value = np.float64(half(bits[i, j]))
            total += value * value
        norms[i] = np.sqrt(total)


@njit(nogil=True, cache=True, fastmath=FAST)
def normalise(bits: np.ndarray, norms: np.ndarray, unit: np.ndarray) -> None:
    """unit float32 [n, d]: the rows of fp16 bits [n, d] divided by their norms."""
    n, d = bits.shape
    for i in range(n):
        factor = np.float32(1.0 / norms[i]) if norms[i] > 0 else np.float32(0)
        for j in range(d):
            unit[i, j] = half(bits[i, j]) * factor


@njit(nogil=True, cache=True, fastmath=FAST)
def decode(bits: np.ndarray, values: np.ndarray) -> None:
    """values float32 [n, d] of fp16 bits [n, d]."""
    n, d = bits.shape
    for i in range(n):
        for j in range(d):
            values[i, j] = half(bits[i, j])


@njit(nogil=True, cache=True, fastmath=FAST)
def absorb(
    queries: np.ndarray,
    query_norms: np.ndarray,
    public: np.ndarray,
    norms: np.ndarray,
    start: int,
    rows: np.ndarray,
    done: np.ndarray,
    counts: np.ndarray,
    ids: np.ndarray,
    best_rows: np.ndarray,
    best_scores: np.ndarray,
) -> None:
    """Score the candidates of one tile by their float64 cosine and insert them into the best k so far.

    queries float32 [n, d] and public float32 [m, d] hold the stored values, norms theirs in float64; ``public`` has the rows
    from ``start`` on. Candidates of query i are rows[i, :counts[i]], ascending; done[i] of them have had their turn, which
    is counted on. Row r is known outside as ids[r]. best_* [n, k] stay sorted by score descending, then id ascending; a
    candidate that is among them is not inserted twice.
    """
    n, k = best_rows.shape
    d = queries.shape[1]
    for i in range(n):
        kept_rows = best_rows[i]
        kept_scores = best_scores[i]
        c = done[i]
        while c < counts[i] and rows[i, c] < start + len(public):
            row = rows[i, c] - start
            c += 1
            if row < 0:
                continue
            total = 0.0
            for j in range(d):
                total += np.float64(queries[i, j]) * np.float64(public[row, j])
            score = total / (query_norms[i] * norms[row])
            name = ids[row + start]
            last = kept_rows[k - 1]
            if last >= 0 and (score < kept_scores[k - 1] or (score == kept_scores[k - 1] and name >= last)):
                continue
            low = 0
            high = k
            while low < high:
                middle = (low + high) // 2
                ahead = kept_scores[middle]
                if kept_rows[middle] >= 0 and (ahead > score or (ahead == score and kept_rows[middle] <= name)):
                    low = middle + 1
                else:
                    high = middle
            if low > 0 and kept_rows[low - 1] == name:
                continue
            for j in range(k - 1, low, -1):
                kept_rows[j] = kept_rows[j - 1]
                kept_scores[j] = kept_scores[j - 1]
            kept_rows[low] = name
            kept_scores[low] = score
        done[i] = c


@njit(nogil=True, cache=True)
def above(scores: np.ndarray, floors: np.ndarray, start: int, rows: np.ndarray, counts: np.ndarray) -> None:
    """rows[i, :counts[i]] = the columns of scores [n, m] with a value ≥ floors[i], counted from ``start``; rows is [n, m]."""
    n, m = scores.shape
    for i in range(n):
        found = 0
        for j in range(m):
            if scores[i, j] >= floors[i]:
                rows[i, found] = start + j
                found += 1
        counts[i] = found


@njit(cache=True)
def floor_of(score: float | np.float32, error: float, rounding: float) -> np.float32:
    """The lowest cheap score of what may have a true score of at least ``score`` (see search_index.py), float32.

    Never below −4, which no score is: the padding of a tile is, and must not be taken for candidates.
    """
    true = max(float(score), -2.0) - error
    return np.float32(true - abs(true) * rounding - 2.0**-22)


@njit(cache=True)
def _low_kth(values: np.ndarray, count: int, k: int) -> np.float32:
    """A value that at least k of the first ``count`` reach, at or slightly below the k-th largest; by a histogram."""
    low: np.float32 = values[0]
    high: np.float32 = values[0]
    for c in range(count):
        low = min(low, values[c])
        high = max(high, values[c])
    if not high > low:
        return low
    scale = np.float32((BINS - 1) / (high - low))
    histogram = np.zeros(BINS, np.int64)
    for c in range(count):
        histogram[int((values[c] - low) * scale)] += 1
    reached = 0
    bin = BINS
    while reached < k:
        bin -= 1
        reached += histogram[bin]
    for c in range(count):
        if int((values[c] - low) * scale) >= bin:
            high = min(high, values[c])
    return high


@njit(cache=True)
def _trim(
    values: np.ndarray, rows: np.ndarray, count: int, k: int, error: float, rounding: float
) -> tuple[int, np.float32]:
    """Drop candidates that can't be among the best k of these ``count``; gives (how many stay, their floor)."""
    kth = _low_kth(values, count, k)
    floor = floor_of(kth - abs(kth) * rounding - error, error, rounding)
    kept = 0
    for c in range(count):
        values[kept] = values[c]
        rows[kept] = rows[c]
        if values[c] >= floor:
            kept += 1
    return kept, floor


@njit(cache=True)
def _make_room(
    values: np.ndarray, rows: np.ndarray, count: int, k: int, error: float, rounding: float, floor: np.float32
) -> tuple[int, np.float32]:
    """Trim so that a block fits in; a count of −1 says that too many candidates are alike. Gives (count, floor)."""
    count, trimmed = _trim(values, rows, count, k, error, rounding)
    return (count if count + 2 * BLOCK <= len(values) else -1), max(floor, trimmed)


@njit(nogil=True, cache=True)
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
    for i in range(len(tile)):
        count, floor, held, held_rows = counts[i], floors[i], values[i], rows[i]
        for b in range(tile.shape[1]):
            reached = np.int32(0)
            for j in range(BLOCK):
                reached += np.int32(tile[i, b, j] >= floor)
            if reached == 0 or count < 0:
                continue
            if count + BLOCK > len(held):
                count, floor = _make_room(held, held_rows, count, k, errors[i], rounding, floor)
                if count < 0:
                    continue
            for j in range(BLOCK):  # without a branch: written anyway, counted where it is a candidate
                held[count] = tile[i, b, j]
                held_rows[count] = start + b * BLOCK + j
                count += tile[i, b, j] >= floor
        counts[i], floors[i] = count, floor


@njit(inline="always")
def _ordered(bits: np.int16) -> np.int16:
    """int16 bits of a bfloat16 → an int16 in the order of the values."""
    return np.int16(bits ^ np.int16((bits >> np.int16(15)) & np.int16(0x7FFF)))


@njit(inline="always")
def _ordered_floor(value: np.float32) -> np.int16:
    """The ordered int16 of the largest bfloat16 that is not above ``value``."""
    bits = np.float32(value).view(np.int32)
    high = np.int16(bits >> np.int32(16))
    if bits < 0 and (bits & np.int32(0xFFFF)) != 0 and np.isfinite(value):
        high = np.int16(high + np.int16(1))  # the magnitude one step up
    return _ordered(high)


@njit(nogil=True, cache=True)
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
    for i in range(len(tile)):
        count, floor, held, held_rows = counts[i], floors[i], values[i], rows[i]
        least = _ordered_floor(floor)
        for b in range(tile.shape[1]):
            reached = np.int16(0)
            for j in range(BLOCK):
                reached |= np.int16(_ordered(tile[i, b, j]) >= least)
            if reached == 0 or count < 0:
                continue
            if count + BLOCK > len(held):
                count, floor = _make_room(held, held_rows, count, k, errors[i], rounding, floor)
                least = _ordered_floor(floor)
                if count < 0:
                    continue
            for j in range(BLOCK):
                held[count] = np.int32(np.int32(tile[i, b, j]) << np.int32(16)).view(np.float32)
                held_rows[count] = start + b * BLOCK + j
                count += _ordered(tile[i, b, j]) >= least
        counts[i], floors[i] = count, floor


@njit(nogil=True, cache=True)
def finish(
    k: int, errors: np.ndarray, rounding: float, values: np.ndarray, rows: np.ndarray, counts: np.ndarray
) -> None:
    """Trim every query's candidates a last time."""
    for i in range(len(counts)):
        if counts[i] > k:
            counts[i], _ = _trim(values[i], rows[i], counts[i], k, errors[i], rounding)
