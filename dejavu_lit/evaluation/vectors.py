"""Stored vectors in memory, read in chunks of many parts, and their exact inner products."""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dejavu_lit.measure.score_kernels import compiled
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.parallel import for_blocks

CHUNK_BYTES = 64 * 2**20  # of stored vectors at once, which take four times as much in memory
ROWS_AT_ONCE = 4096  # vectors that a thread converts at a time


@dataclass(frozen=True)
class Vectors:
    """Stored vectors in memory: ``stored`` [m, d], float16 or the same values as float32, and their norms, float64 [m]."""

    stored: np.ndarray
    norms: np.ndarray

    @classmethod
    def load(cls, stored: np.ndarray, name: str = "queries", dtype: type[np.floating[Any]] = np.float32) -> "Vectors":
        """Copy float16 vectors [m, d], perhaps of a memory map, as ``dtype``, and compute their norms.

        Raises:
            UserError: a vector with zero norm, NaN or infinity (which decode to values from 65536 on); it names ``name``.
        """
        stored = np.array(stored, dtype)
        norms = np.empty(len(stored))

        def compute(start: int) -> None:
            values = stored[start : start + ROWS_AT_ONCE].astype(np.float64)
            norms[start : start + ROWS_AT_ONCE] = np.sqrt(np.einsum("ij,ij->i", values, values))

        for_blocks(compute, len(stored), ROWS_AT_ONCE)
        if len(bad := np.flatnonzero(~((norms > 0) & (norms < 65536)))):
            problem = "has zero norm" if norms[bad[0]] == 0 else "has NaN or infinity"
            raise UserError(
                f"{name}: a vector {problem} ({len(bad)} of {len(norms)}); fix the model or exclude these pairs"
            )
        return cls(stored, norms)

    @classmethod
    def joined(cls, pieces: "Sequence[Vectors]") -> "Vectors":
        """All vectors of ``pieces``, one after another, [m₁ + m₂ + …, d]."""
        if len(pieces) == 1:
            return pieces[0]
        return cls(
            np.concatenate([piece.stored for piece in pieces]), np.concatenate([piece.norms for piece in pieces])
        )

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: slice | np.ndarray) -> "Vectors":
        return Vectors(self.stored[rows], self.norms[rows])

    def unit(self) -> np.ndarray:
        """Unit vectors, float32 [m, d]."""
        units = np.empty(self.stored.shape, np.float32)
        inverse = (1 / self.norms).astype(np.float32)

        def compute(start: int) -> None:
            block = slice(start, start + ROWS_AT_ONCE)
            np.multiply(self.stored[block], inverse[block, None], out=units[block], dtype=np.float32)

        for_blocks(compute, len(units), ROWS_AT_ONCE)
        return units


@partial(compiled, exact_sums=True)
def inner_products(queries: np.ndarray, public: np.ndarray, q: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The inner products of the rows ``q`` of ``queries`` and ``p`` of ``public``, float32 [·, d], in float64 [pairs]."""
    products = np.empty(len(q))
    for pair in range(len(q)):
        total = 0.0
        for column in range(queries.shape[1]):
            total += np.float64(queries[q[pair], column]) * np.float64(public[p[pair], column])
        products[pair] = total
    return products


def chunks(public: Sequence[np.ndarray]) -> Iterator[tuple[int, Vectors]]:
    """(first position, vectors in memory) in chunks of CHUNK_BYTES, which span parts; raises UserError for an unusable vector."""
    start, pieces = 0, list[Vectors]()
    size = max(1, CHUNK_BYTES // (2 * max([1, *(part.shape[1] for part in public)])))
    for number, part in enumerate(public):
        name = str(getattr(part, "filename", f"part {number} of the public set"))
        first = 0
        while first < len(part):
            room = size - sum(len(piece) for piece in pieces)
            pieces.append(Vectors.load(part[first : first + room], name))
            _release_pages(part)
            first += len(pieces[-1])
            if len(pieces[-1]) == room:
                yield start, Vectors.joined(pieces)
                start, pieces = start + size, []
    if pieces:
        yield start, Vectors.joined(pieces)


def _release_pages(part: np.ndarray) -> None:
    """Drop a memory map's pages, which would count as this process's memory until the system reclaims them."""
    mapping = getattr(part, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
