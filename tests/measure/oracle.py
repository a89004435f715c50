"""An independent brute force with plain Python sets and exact fractions, and random cases to compare against."""

from fractions import Fraction

import numpy as np

from dejavu_lit.data.objects import Objects
from dejavu_lit.measure.records import Records
from dejavu_lit.measure.scores import Neighbors


def objects(sets: list[set[str]], labels: list[str], prefix: str) -> Objects:
    """Objects from plain sets; image i has the key ``{prefix}{i:05d}``."""
    names = sorted(labels)
    codes = [sorted(names.index(name) for name in s) for s in sets]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in codes])]).astype(np.int64)
    flat = np.array([c for row in codes for c in row], dtype=np.int32)
    return Objects(tuple(f"{prefix}{i:05d}" for i in range(len(sets))), starts, flat, tuple(names))


def predicted(rows: list[int], distances: list[float], public: list[set[str]], k: int, top_m: int | None) -> set[str]:
    """Ô of one record, by the letter of docs/definitions.md."""
    if top_m is None:
        return set().union(*(public[row] for row in rows[:k]))
    similarities: dict[str, list[float]] = {}
    for row, distance in zip(rows[:k], distances[:k], strict=True):
        for name in public[row]:
            similarities.setdefault(name, []).append(1.0 - distance)
    ranked = sorted(similarities, key=lambda name: (-len(similarities[name]), -sum(similarities[name]), name))
    return set(ranked[:top_m])


def figures(guess: set[str], truth: set[str]) -> tuple[Fraction, Fraction]:
    """(precision, recall) of one record with objects."""
    hits = len(guess & truth)
    return (Fraction(hits, len(guess)) if guess else Fraction(0)), Fraction(hits, len(truth))


class Case:
    """n random records over m public images, as sets and as the arrays of the package."""

    def __init__(
        self, seed: int, n: int = 40, m: int = 30, k: int = 6, labels: int = 12, most: int = 5, prefix: str = "a"
    ):
        rng = np.random.default_rng(seed)
        self.labels = [f"l{i:03d}" for i in range(labels)]
        self.truth = [self._some(rng, most) for _ in range(n)]
        self.public = [self._some(rng, most) for _ in range(m)]
        self.target, self.reference = self._neighbors(rng, n, m, k), self._neighbors(rng, n, m, k)
        self.truth_objects = objects(self.truth, self.labels, prefix)
        self.public_objects = objects(self.public, self.labels, "p")

    def _some(self, rng: np.random.Generator, most: int) -> set[str]:
        return set(rng.choice(self.labels, size=rng.integers(0, most + 1), replace=False).tolist())

    @staticmethod
    def _neighbors(rng: np.random.Generator, n: int, m: int, k: int) -> Neighbors:
        rows = np.array([rng.permutation(m)[:k] for _ in range(n)], np.int32).reshape(n, k)
        # Few distinct distances, so that ties are common.
        distances = np.sort(rng.integers(1, 5, size=(n, k)) / np.float32(8), axis=1).astype(np.float32)
        return Neighbors(rows, distances)

    def guess(self, which: str, i: int, k: int, top_m: int | None = None) -> set[str]:
        """Ô of record i for ``target`` or ``reference``."""
        neighbors: Neighbors = getattr(self, which)
        return predicted(neighbors.rows[i].tolist(), neighbors.distances[i].tolist(), self.public, k, top_m)

    def figures(self, which: str, k: int, top_m: int | None = None) -> list[tuple[Fraction, Fraction]]:
        """(precision, recall) of each record that has objects."""
        return [figures(self.guess(which, i, k, top_m), g) for i, g in enumerate(self.truth) if g]

    def records(self) -> Records:
        """The case as Records."""
        captions = tuple(f"caption of {key}" for key in self.truth_objects.keys)
        return Records(captions, self.truth_objects, self.public_objects, self.target, self.reference)
