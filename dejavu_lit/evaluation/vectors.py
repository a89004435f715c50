"""Stored vectors in memory, read in chunks of many parts, and the compiled loops of an exact search."""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate

import numpy as np

from dejavu_lit.evaluation.embeddings import check_norms
from dejavu_lit.measure.score_kernels import compiled
from dejavu_lit.utils.parallel import for_blocks

CHUNK_BYTES = 128 * 2**20  # of stored vectors at once; in memory they take twice as much, scaled four times
ROWS_AT_ONCE = 1024  # vectors that a thread converts at a time
NEARLY_UNIT = 2.0**-11  # the most that rounding to float16 changes a norm of 1, subnormal values apart
FLOAT32 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)  # of the bits of each float16


@dataclass(frozen=True)
class Vectors:
    """Stored vectors in memory.

    stored: float32 [m, d], the values of float16 vectors; norms: float64 [m].
    """

    stored: np.ndarray
    norms: np.ndarray

    @classmethod
    def load(cls, *arrays: np.ndarray, names: Sequence[str]) -> "Vectors":
        """Read float16 vectors [m₁, d], [m₂, d], …, perhaps of memory maps, into one.

        Raises UserError for a vector with zero norm, NaN or infinity; it says which of ``names`` has it.
        """
        ends = list(accumulate(map(len, arrays)))
        shape = ends[-1], arrays[0].shape[1]
        vectors = cls(np.empty(shape, np.float32), np.empty(ends[-1]))
        for name, array, end in zip(names, arrays, ends, strict=True):
            vectors[end - len(array) : end]._fill(array, name)
        return vectors

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: slice | np.ndarray) -> "Vectors":
        return Vectors(self.stored[rows], self.norms[rows])

    @cached_property
    def length_error(self) -> float:
        """How much the norms of ``units`` differ from 1, apart from the rounding of scaled ones."""
        error = float(np.abs(self.norms - 1).max(initial=0))
        return error if error <= NEARLY_UNIT else 0.0

    @cached_property
    def units(self) -> np.ndarray:
        """float32 [m, d]: the vectors with norms of about 1, scaled only if the stored ones are not such."""
        return self.stored if self.length_error else self.scaled()

    def scaled(self) -> np.ndarray:
        """float32 [m, d]: the vectors divided by their norms."""
        return np.asarray(self.stored / self.norms.astype(np.float32)[:, None])

    def _fill(self, array: np.ndarray, name: str) -> None:
        def compute(start: int) -> None:
            block = slice(start, start + ROWS_AT_ONCE)
            bits = np.array(array[block], np.float16).view(np.uint16)
            _decode(bits, FLOAT32, self.stored[block], self.norms[block])

        for_blocks(compute, len(array), ROWS_AT_ONCE)
        check_norms(self.norms, name)


@partial(compiled, exact_sums=True)
def _decode(bits: np.ndarray, values: np.ndarray, stored: np.ndarray, norms: np.ndarray) -> None:
    """Write the vectors of the float16 ``bits``, uint16 [m, d], whose ``values`` are float32 [65536], as ``Vectors`` has them."""
    for row in range(len(bits)):
        total = 0.0
        for column in range(bits.shape[1]):
            value = values[bits[row, column]]
            stored[row, column] = value
            total += np.float64(value) * np.float64(value)
        norms[row] = np.sqrt(total)


@partial(compiled, exact_sums=True)
def write_cosines(
    queries: np.ndarray,
    query_norms: np.ndarray,
    public: np.ndarray,
    public_norms: np.ndarray,
    candidates: np.ndarray,
    cosines: np.ndarray,
) -> None:
    """Write the cosines of queries, float32 [n, d], and their candidates, int64 [n, c], as float64 [n, c].

    A candidate is a row of ``public``, float32 [m, d]; for a candidate of −1 the cosine is −∞. The norms are float64.
    """
    for query in range(len(candidates)):
        for number in range(candidates.shape[1]):
            row = candidates[query, number]
            if row < 0:
                cosines[query, number] = -np.inf
                continue
            total = 0.0
            for column in range(queries.shape[1]):
                total += np.float64(queries[query, column]) * np.float64(public[row, column])
            cosines[query, number] = total / (query_norms[query] * public_norms[row])


def chunks(public: Sequence[np.ndarray]) -> Iterator[tuple[int, Vectors]]:
    """(first position, vectors in memory) in chunks of CHUNK_BYTES, which span parts; raises UserError for an unusable vector."""
    size = max(1, CHUNK_BYTES // (2 * max([1, *(part.shape[1] for part in public)])))
    ends = list(accumulate(map(len, public)))
    for start in range(0, sum(map(len, public)), size):
        pieces, names = [], []
        for number, (part, end) in enumerate(zip(public, ends, strict=True)):
            first = end - len(part)
            if first < start + size and end > start:
                pieces.append(part[max(start - first, 0) : start + size - first])
                names.append(str(getattr(part, "filename", f"part {number} of the public set")))
        vectors = Vectors.load(*pieces, names=names)
        for piece in pieces:
            _release_pages(piece)
        yield start, vectors
        del vectors


def _release_pages(part: np.ndarray) -> None:
    """Drop a memory map's pages, which would count as this process's memory until the system reclaims them."""
    mapping = getattr(part, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
