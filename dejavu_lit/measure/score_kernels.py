"""Compiled loops for ``scores`` that count objects over neighbors in compressed rows, without the GIL.

They take a block of records: rows int32 [n, k] and distances float32 [n, k] of the neighbors; record i's own objects are
truth_codes[truth_starts[i] : truth_starts[i + 1]], and starts and codes are those of the public images. All starts are int64 and
all codes int32; truth_starts [n + 1] points from the block into the codes of all records.
Under NUMBA_DISABLE_JIT=1 they run as plain Python.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def compiled(kernel: Callable[..., Any], exact_sums: bool = False) -> Callable[..., Any]:
    """Compile with numba, without the GIL; the result is cached on disk for the next process if the folder is writable.

    ``exact_sums``: every order of its additions gives the same sum, so it may add several numbers at once.
    """
    fastmath = {"reassoc"} if exact_sums else False
    try:
        return numba.njit(nogil=True, cache=True, fastmath=fastmath)(kernel)
    except RuntimeError:  # numba found no writable cache folder
        return numba.njit(nogil=True, fastmath=fastmath)(kernel)


@compiled
def count_all(
    rows: np.ndarray,
    truth_starts: np.ndarray,
    truth_codes: np.ndarray,
    starts: np.ndarray,
    codes: np.ndarray,
    ks: np.ndarray,
    labels: int,
    hits: np.ndarray,
    predicted: np.ndarray,
) -> None:
    """Write the numbers of right and of predicted labels of each record into ``hits`` and ``predicted``, int32 [n, len(ks)].

    Predicted are all labels of the first k neighbors, for each k in ``ks``; ``labels`` is the size of the vocabulary.
    """
    # stamp[code] = i + 1 once a neighbor of record i has the label, so the array is never cleared. There is no branch, because
    # the processor could not predict it, and the index is unsigned, which saves the test for a negative one: together this is
    # 2.3 times faster.
    stamp = np.zeros(labels, np.int32)
    for i in range(rows.shape[0]):
        total, done = 0, 0
        for column in range(len(ks)):
            for j in range(done, ks[column]):
                row = rows[i, j]
                for p in range(starts[row], starts[row + 1]):
                    code = np.uint32(codes[p])
                    total += stamp[code] != i + 1
                    stamp[code] = i + 1
            done = ks[column]
            right = 0
            for p in range(truth_starts[i], truth_starts[i + 1]):
                right += stamp[truth_codes[p]] == i + 1
            hits[i, column] = right
            predicted[i, column] = total


@compiled
def ones(x: np.uint64) -> np.uint64:
    """The number of bits set, summed in ever wider fields (Warren, Hacker's Delight, section 5-1).

    numpy's bitwise_count, which the perceptual hashes use, is unknown to numba.
    """
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    x = x + (x >> np.uint64(8))
    x = x + (x >> np.uint64(16))
    return (x + (x >> np.uint64(32))) & np.uint64(127)


@compiled
def count_bits(
    rows: np.ndarray,
    truth_starts: np.ndarray,
    truth_codes: np.ndarray,
    bits: np.ndarray,
    ks: np.ndarray,
    hits: np.ndarray,
    predicted: np.ndarray,
) -> None:
    """As ``count_all`` for public images whose objects are bits, uint64 [images, words].

    The loops over words have a fixed length, so they compile to vector instructions.
    """
    words = bits.shape[1]
    union = np.zeros(words, np.uint64)
    for i in range(rows.shape[0]):
        union[:] = 0
        done = 0
        for column in range(len(ks)):
            for j in range(done, ks[column]):
                row = rows[i, j]
                for w in range(words):
                    union[w] |= bits[row, w]
            done = ks[column]
            right, total = np.uint64(0), np.uint64(0)
            for p in range(truth_starts[i], truth_starts[i + 1]):
                code = truth_codes[p]
                right += (union[code >> 6] >> np.uint64(code & 63)) & np.uint64(1)
            for w in range(words):
                total += ones(union[w])
            hits[i, column] = right
            predicted[i, column] = total


@compiled
def most_frequent(
    rows: np.ndarray, distances: np.ndarray, starts: np.ndarray, codes: np.ndarray, labels: int, chosen: np.ndarray
) -> None:
    """Fill chosen[i], int32 [n, m], with the objects found in most of record i's neighbors; the rest of it stays.

    Of those found in equally many, the one in the more similar images comes first, then the one with the smaller code.
    """
    count = np.zeros(labels, np.int32)
    weight = np.zeros(labels, np.float64)
    touched = np.empty(labels, np.int32)
    for i in range(rows.shape[0]):
        met = 0
        for j in range(rows.shape[1]):
            for p in range(starts[rows[i, j]], starts[rows[i, j] + 1]):
                code = codes[p]
                if count[code] == 0:
                    touched[met] = code
                    met += 1
                count[code] += 1
                weight[code] += 1.0 - distances[i, j]
        for place in range(min(met, chosen.shape[1])):
            for t in range(place + 1, met):  # the best of the rest comes to this place
                best, other = touched[place], touched[t]
                if (count[other], weight[other], best) > (count[best], weight[best], other):
                    touched[place], touched[t] = other, best
            chosen[i, place] = touched[place]
        for code in touched[:met]:
            count[code] = 0
            weight[code] = 0.0
