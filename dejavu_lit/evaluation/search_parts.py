"""Neighbors of many captions, searched in blocks that ranks share; an interrupted search keeps its finished blocks.

A block is a slice of the queries, and is searched against all public vectors. So a rank keeps only its own queries in
memory, and nothing has to be merged: a query's neighbors do not depend on the other queries, so they equal those of one
process to the last bit, ties included. The cost is that every rank reads the whole public set once per block: a gigabyte for
a million vectors of 512 values.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dejavu_lit.evaluation.embeddings import Embeddings, Selection
from dejavu_lit.evaluation.search import search
from dejavu_lit.measure.scores import Neighbors
from dejavu_lit.utils.io import atomic, fingerprint

BLOCK = 65_536  # queries; products with a million public vectors take minutes, so reading these hardly counts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """The k vectors of ``public`` nearest to those of ``keys``, at least one, in ``queries``; parts for ``world`` ranks."""

    queries: Embeddings
    keys: Sequence[str]
    public: Selection
    k: int
    index: str
    folder: Path
    world: int = 1

    @cached_property
    def identity(self) -> str:
        """A fingerprint of all that a part depends on: what is searched, and how."""
        return fingerprint([self.queries.state(), list(self.keys), self.public.identity, self.k, self.index])

    def run(self, share: tuple[int, int] = (0, 1)) -> None:
        """Search the blocks without a complete part; for ``share`` = (i, n) every n-th block from the i-th on.

        Raises UserError as ``search`` and ``Embeddings.load`` do.
        """
        for number, block in enumerate(self._blocks()):
            if number % share[1] == share[0] and self._read(block) is None:
                queries = self.queries.load(self.keys[block])
                neighbors, recall = search(queries, self.public.parts, self.k, self.index, self.public.ids)
                with atomic(self._path(block)) as part, open(part, "wb") as file:
                    np.savez(
                        file, rows=neighbors.rows, distances=neighbors.distances, recall=recall, identity=self.identity
                    )

    def result(self) -> tuple[Neighbors, float]:
        """The neighbors of all queries, and the recall of the index; missing blocks are searched now."""
        self.run()
        parts = [part for block in self._blocks() if (part := self._read(block)) is not None]
        recall = np.average([recall for _, recall in parts], weights=[len(neighbors) for neighbors, _ in parts])
        return Neighbors.joined([neighbors for neighbors, _ in parts]), float(recall)

    def _blocks(self) -> list[slice]:
        """Slices of the queries, as many for each rank; one per rank for an index that is built again for each slice."""
        share = -(-len(self.keys) // self.world)
        per_rank = 1 if self.index == "ivf" else -(-share // BLOCK)
        size = -(-len(self.keys) // (per_rank * self.world))
        return [slice(first, first + size) for first in range(0, len(self.keys), size)]

    def _path(self, block: slice) -> Path:
        return self.folder / f"{block.start:09d}-{min(block.stop, len(self.keys)):09d}.npz"

    def _read(self, block: slice) -> tuple[Neighbors, float] | None:
        """The saved result of a block; None if it is missing, damaged, or of another search."""
        try:
            with np.load(self._path(block), allow_pickle=False) as part:
                if str(part["identity"]) != self.identity:
                    return None
                return Neighbors(part["rows"], part["distances"]), float(part["recall"])
        except FileNotFoundError:
            return None
        except Exception:  # a damaged archive can raise any exception
            log.warning("%s is damaged and will be computed again", self._path(block))
            return None
