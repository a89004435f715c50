"""Neighbors of many captions, searched in blocks: ranks share the blocks, and an interrupted search keeps those it has.

A block is a stretch of the queries, and meets all public vectors. So a rank holds its own queries alone (float32 copies of
them are most of what a search takes; the public vectors are streamed anyway), and nothing has to be merged: a query's
neighbors do not depend on what is searched beside it, so they are those of one process to the last bit, ties included.
What this costs is that every rank reads the whole public set, a gigabyte for a million vectors of 512 values, once a block.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dejavu_lit.evaluation.embeddings import Embeddings, Selection, keys_digest
from dejavu_lit.evaluation.search import search
from dejavu_lit.measure.scores import Neighbors
from dejavu_lit.utils.io import atomic, fingerprint

BLOCK = 65_536  # queries: minutes of products against a million public vectors, beside which reading those is nothing
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """The k nearest of ``public`` to the vectors of ``keys`` in ``queries``, in parts below ``folder`` for ``world`` ranks."""

    queries: Embeddings
    keys: Sequence[str]
    public: Selection
    k: int
    index: str
    folder: Path
    world: int = 1

    @cached_property
    def identity(self) -> str:
        """What a part depends on: all that is searched, and how."""
        return fingerprint([self.queries.state(), keys_digest(self.keys), self.public.identity, self.k, self.index])

    def run(self, share: tuple[int, int] = (0, 1)) -> None:
        """Search the blocks that have no whole part; of ``share`` = (i, n) every n-th one from the i-th on.

        Raises:
            UserError: as ``search`` and ``Embeddings.load`` do.
        """
        for number, block in enumerate(self._blocks()):
            if number % share[1] == share[0] and self._read(block) is None:
                found, recall = search(
                    self.queries.load(self.keys[block]), self.public.parts, self.k, self.index, self.public.ids
                )
                with atomic(self._path(block)) as part, open(part, "wb") as file:
                    np.savez(
                        file,
                        rows=found.rows,
                        distances=found.distances,
                        recall=np.array(recall),
                        identity=np.array(self.identity),
                    )

    def result(self) -> tuple[Neighbors, float]:
        """The neighbors of all queries, and the recall of the index; what no rank has written is searched now."""
        self.run()
        parts = [part for block in self._blocks() if (part := self._read(block)) is not None]
        if not parts:
            return Neighbors(np.zeros((0, self.k), np.int32), np.zeros((0, self.k), np.float32)), 1.0
        found = [part[0] for part in parts]
        recall = np.average([part[1] for part in parts], weights=[len(part) for part in found])
        return (
            Neighbors(np.concatenate([p.rows for p in found]), np.concatenate([p.distances for p in found])),
            float(recall),
        )

    def _blocks(self) -> list[slice]:
        """Stretches of the queries, as many for each rank; for an index that is built anew for each, one a rank."""
        share = max(1, -(-len(self.keys) // self.world))
        each = 1 if self.index == "ivf" else -(-share // BLOCK)
        size = max(1, -(-len(self.keys) // (each * self.world)))
        return [slice(first, first + size) for first in range(0, len(self.keys), size)]

    def _path(self, block: slice) -> Path:
        return self.folder / f"{block.start:09d}-{min(block.stop, len(self.keys)):09d}.npz"

    def _read(self, block: slice) -> tuple[Neighbors, float] | None:
        """What was found for a block; None where that is not there, damaged, or of another search."""
        try:
            with np.load(self._path(block), allow_pickle=False) as part:
                if str(part["identity"]) != self.identity:
                    return None
                return Neighbors(part["rows"], part["distances"]), float(part["recall"])
        except FileNotFoundError:
            return None
        except Exception:  # of a damaged archive numpy raises nearly anything
            log.warning("%s is damaged and made again", self._path(block))
            return None
