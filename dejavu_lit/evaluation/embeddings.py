"""Embeddings on disk: one folder per (model, set, modality) with fp16 parts and their keys, one part per shard.

``NNNNN.npy`` (float16 [m, d]), ``NNNNN.txt`` (its m keys, one per line), ``fingerprint.json`` (of model and data; missing
if the vectors come from elsewhere). A part is complete if both files exist and agree.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import atomic, check_regular, fingerprint, visible_files, write_text

FINGERPRINT = "fingerprint.json"
Modality = Literal["image", "text"]


@dataclass(frozen=True)
class Embeddings:
    """The vectors of one set: ``keys`` in stored order, ``dim`` values each; ``names`` are the stems of the parts."""

    folder: Path
    keys: tuple[str, ...]
    dim: int
    names: tuple[str, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: Path | str) -> "Embeddings":
        """The embeddings in ``folder``. Shapes are checked now, values when they are read.

        Raises UserError without a complete part or any key, or for a part whose files disagree, different widths, or a
        duplicate key.
        """
        folder = Path(folder)
        names = [path.stem for path in visible_files(folder, "*.npy")]
        if not names:
            raise UserError(
                f"{folder} has no embeddings (NNNNN.npy and NNNNN.txt); check the path or embed the set first"
            )
        keys: list[str] = []
        dim = 0
        for name in names:
            part_keys = read_keys(folder, name)
            rows, width = open_part(folder, name).shape
            if rows != len(part_keys):
                raise UserError(
                    f"{folder / name}.npy has {rows} rows, {name}.txt {len(part_keys)} keys; compute this part again"
                )
            if not part_keys:  # a shard without a usable pair has no known width
                continue
            if dim and width != dim:
                raise UserError(
                    f"{folder / name}.npy is {width} wide, the parts before it {dim}; compute this part again"
                )
            dim = width
            keys += part_keys
        if not keys:
            raise UserError(
                f"{folder} has no vectors: no pair of the set can be used; a log of its embedding has the reasons"
            )
        if len(set(keys)) != len(keys):
            duplicate = Counter(keys).most_common(1)[0][0]
            raise UserError(f"{folder} has the key {duplicate!r} twice; keys must be unique within a set")
        return cls(folder, tuple(keys), dim, tuple(names))

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def rows(self) -> dict[str, int]:
        """{key: row in stored order}."""
        return {key: row for row, key in enumerate(self.keys)}

    def parts(self) -> list[np.ndarray]:
        """The parts as memory maps, float16 [m, d] each, in stored order."""
        return [open_part(self.folder, name) for name in self.names]

    def state(self) -> str:
        """A fingerprint that changes when a part is rewritten."""
        stats = [(self.folder / f"{name}.npy").stat() for name in self.names]
        return fingerprint([str(self.folder), *((stat.st_size, stat.st_mtime_ns) for stat in stats)])

    def selection(self, keys: Sequence[str]) -> "Selection":
        """The stored vectors of ``keys`` (sorted), each with its position in ``keys``; keys without a vector are skipped."""
        position = {key: number for number, key in enumerate(keys)}
        positions = np.array([position.get(key, -1) for key in self.keys], np.int32)
        parts, start = [], 0
        for part in self.parts():
            is_selected = positions[start : start + len(part)] >= 0
            stretches = np.flatnonzero(np.diff(is_selected, prepend=False, append=False)).reshape(-1, 2)
            parts += [part[first:stop] for first, stop in stretches.tolist()]
            start += len(part)
        return Selection(parts, positions[positions >= 0], fingerprint([self.state(), list(keys)]))

    def load(self, keys: Sequence[str] | None = None) -> np.ndarray:
        """The vectors of ``keys`` in that order (by default all, in stored order), float16 [n, d].

        Raises UserError for a key without a vector, or a vector with NaN, infinity or zero norm; it names part and key.
        """
        if keys is not None and (absent := [key for key in keys if key not in self.rows]):
            raise UserError(
                f"{self.folder} has no vector for {len(absent)} of {len(keys)} keys, the first is {absent[0]!r}; "
                "embed these pairs, or choose other sets"
            )
        rows = np.arange(len(self)) if keys is None else np.array([self.rows[key] for key in keys], np.int64)
        vectors = np.empty((len(rows), self.dim), np.float16)
        start = 0
        for name, part in zip(self.names, self.parts(), strict=True):
            in_part = np.flatnonzero((rows >= start) & (rows < start + len(part)))
            if len(in_part):
                vectors[in_part] = part[rows[in_part] - start]
                part_keys = [self.keys[row] for row in rows[in_part]]
                check_vectors(vectors[in_part], f"{self.folder / name}.npy", part_keys)
            start += len(part)
        return vectors


@dataclass(frozen=True)
class Selection:
    """Some stored vectors: ``parts`` are memory maps, float16 [m, d] each; ``ids`` int32 [total m], their positions."""

    parts: list[np.ndarray]
    ids: np.ndarray
    identity: str  # a fingerprint of what is selected


def open_part(folder: Path, name: str) -> np.ndarray:
    """One part as a memory map; raises UserError if it is not a float16 [m, d] array."""
    path = folder / f"{name}.npy"
    check_regular(path)
    with explained(f"{path} is not a complete .npy file", "remove it and compute this part again"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
    if array.ndim != 2 or array.dtype != np.float16:
        raise UserError(
            f"{path} is {array.dtype} {list(array.shape)}, embeddings are float16 [rows, width]; "
            "dejavu_lit.evaluation.embeddings.write_embeddings writes them from any array"
        )
    return array


def read_keys(folder: Path, name: str) -> list[str]:
    """The keys of one part; raises UserError if the file is missing or not text."""
    path = folder / f"{name}.txt"
    check_regular(path)
    with explained(f"{path} is not the list of the keys of {name}.npy", "compute this part again"):
        return path.read_bytes().decode("utf-8").split("\n")[:-1]


def write_part(folder: Path, name: str, keys: Sequence[str], vectors: np.ndarray) -> None:
    """Write one part (float16 [m, d] and its m keys), the keys first: if the .npy exists, the part is complete.

    Raises UserError for a key with a line break, which separates the keys in the text file.
    """
    _check_lines(keys, folder / name)
    write_text(folder / f"{name}.txt", "".join(f"{key}\n" for key in keys))
    with atomic(folder / f"{name}.npy") as path, open(path, "wb") as file:
        np.save(file, np.ascontiguousarray(vectors, dtype=np.float16))


def write_embeddings(
    folder: Path | str, keys: Sequence[str], vectors: np.ndarray, rows_per_part: int = 100_000
) -> Embeddings:
    """Write vectors of any model as an embeddings folder, so that it can be audited as ``embeddings:DIR``.

    Args:
        folder: DIR/SET/MODALITY, e.g. audit/A/text; must be new or empty.
        keys: n unique keys, none with a line break.
        vectors: [n, d], any float type, any norm; written L2-normalized as float16, ``rows_per_part`` in a file.

    Raises UserError for any other keys or folder, and for a vector with NaN, infinity or zero norm.
    """
    folder = Path(folder)
    if vectors.ndim != 2 or len(vectors) != len(keys) or not len(keys):
        raise UserError(
            f"{folder}: {len(keys)} keys need vectors of shape [{len(keys)}, width], not {list(vectors.shape)}"
        )
    _check_lines(keys, folder)  # of all parts, before the first is written
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; remove it or write to another folder")
    for part, start in enumerate(range(0, len(keys), rows_per_part)):
        rows = slice(start, start + rows_per_part)
        block = np.asarray(vectors[rows], np.float64)
        check_vectors(block, str(folder), keys[rows])
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        write_part(folder, f"{part:05d}", keys[rows], block.astype(np.float16))
    return Embeddings.open(folder)


def _check_lines(keys: Sequence[str], path: Path) -> None:
    if broken := [key for key in keys if "\n" in key]:
        raise UserError(f"{path}: the key {broken[0]!r} has a line break; rename the pair")


def check_vectors(vectors: np.ndarray, path: str, keys: Sequence[str]) -> None:
    """Raise UserError for the first of the vectors [n, d] with NaN, infinity or zero norm; it names ``path`` and the key."""
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    check_norms(squares, path, keys)


def check_norms(norms: np.ndarray, path: str, keys: Sequence[str] | None = None) -> None:
    """The same for norms [n], or their squares; without keys it says how many are unusable."""
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        problem = "has zero norm" if norms[bad[0]] == 0 else "has NaN or infinity"
        which = "a vector" if keys is None else f"the vector of key {keys[bad[0]]!r}"
        raise UserError(
            f"{path}: {which} {problem} (as {len(bad)} of {len(norms)} do); fix the model or exclude these pairs"
        )
