"""Embeddings on disk: one folder a (model, set, modality), fp16 parts with their keys, one part a shard.

``NNNNN.npy`` (float16 [m, d]), ``NNNNN.txt`` (its m keys, one a line), ``fingerprint.json`` (of model and data; may be
absent where the vectors come from elsewhere). A part is whole when both files are there and agree.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import atomic, fingerprint, write_text

FINGERPRINT = "fingerprint.json"


@dataclass(frozen=True)
class Embeddings:
    """The vectors of one set: ``keys`` in the order stored, ``dim`` values each.

    ``names`` are the parts' stems and ``sizes`` their rows, as far as ``keys`` reaches.
    """

    folder: Path
    keys: tuple[str, ...]
    dim: int
    names: tuple[str, ...] = field(repr=False)
    sizes: tuple[int, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: Path | str) -> "Embeddings":
        """The embeddings in ``folder``; shapes are checked, values when they are read.

        Raises:
            UserError: no such folder, no whole part in it, a part whose files disagree, parts of different widths, or a
                key that occurs twice.
        """
        folder = Path(folder)
        names = sorted(path.stem for path in folder.glob("*.npy")) if folder.is_dir() else []
        if not names:
            raise UserError(
                f"{folder} holds no embeddings (NNNNN.npy and NNNNN.txt); check the path or embed the set first"
            )
        keys: list[str] = []
        sizes, dim = [], 0
        for name in names:
            found = read_keys(folder, name)
            shape = open_part(folder, name).shape
            if shape[0] != len(found):
                raise UserError(
                    f"{folder / name}.npy holds {shape[0]} rows, {name}.txt {len(found)} keys; make this part again"
                )
            sizes.append(len(found))
            if not found:  # a shard without a usable pair, of unknown width
                continue
            if dim and shape[1] != dim:
                raise UserError(
                    f"{folder / name}.npy is {shape[1]} wide, the parts before it {dim}; make this part again"
                )
            dim = shape[1]
            keys += found
        if len(set(keys)) != len(keys):
            twice = Counter(keys).most_common(1)[0][0]
            raise UserError(f"{folder} holds the key {twice!r} twice; keys must be unique within a set")
        return cls(folder, tuple(keys), dim, tuple(names), tuple(sizes))

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def rows(self) -> dict[str, int]:
        """{key: row in the order stored}."""
        return {key: row for row, key in enumerate(self.keys)}

    def parts(self) -> list[np.ndarray]:
        """The parts as memory maps, float16 [m, d] each, in the order stored."""
        return [open_part(self.folder, name)[:size] for name, size in zip(self.names, self.sizes, strict=True)]

    def state(self) -> str:
        """What changes when a part is written again."""
        found = [(self.folder / f"{name}.npy").stat() for name in self.names]
        return fingerprint([str(self.folder), *((part.st_size, part.st_mtime_ns) for part in found)])

    def selection(self, keys: Sequence[str]) -> "Selection":
        """The vectors of ``keys`` (sorted) where they lie, each with its place among them; the others are left out."""
        import pyarrow as pa
        import pyarrow.compute as pc

        text = pa.large_string()
        places = pc.index_in(pa.array(self.keys, text), pa.array(keys, text)).fill_null(-1).to_numpy()
        parts, start = [], 0
        for part in self.parts():
            wanted = np.flatnonzero(np.diff(places[start : start + len(part)] >= 0, prepend=False, append=False))
            parts += [part[first:stop] for first, stop in wanted.reshape(-1, 2).tolist()]
            start += len(part)
        return Selection(parts, places[places >= 0], fingerprint([self.state(), keys_digest(keys)]))

    def load(self, keys: Sequence[str] | None = None) -> np.ndarray:
        """The vectors of ``keys`` in that order (all, as stored, by default), float16 [n, d].

        Raises:
            UserError: a key without a vector, or a vector with NaN, infinity or zero norm, with its part and key.
        """
        if keys is None:
            wanted = np.arange(len(self))
        else:
            try:
                wanted = np.array([self.rows[key] for key in keys], np.int64)
            except KeyError as missing:
                absent = sum(key not in self.rows for key in keys)
                raise UserError(
                    f"{self.folder} holds no vector for {absent} of {len(keys)} keys, the first is {missing.args[0]!r}; "
                    "embed these pairs, or take other sets"
                ) from None
        vectors = np.empty((len(wanted), self.dim), np.float16)
        start = 0
        for name, part in zip(self.names, self.parts(), strict=True):
            here = np.flatnonzero((wanted >= start) & (wanted < start + len(part)))
            if len(here):
                vectors[here] = part[wanted[here] - start]
                found = [self.keys[row] for row in wanted[here]]
                check_vectors(vectors[here], f"{self.folder / name}.npy", found)
            start += len(part)
        return vectors

    def first(self, count: int) -> "Embeddings":
        """The same embeddings, of the first ``count`` rows alone."""
        ends = np.cumsum(self.sizes)
        used = int(np.searchsorted(ends, count)) + 1 if count < len(self) else len(self.names)
        sizes = (*self.sizes[: used - 1], min(count, len(self)) - sum(self.sizes[: used - 1]))
        return Embeddings(self.folder, self.keys[:count], self.dim, self.names[:used], sizes)


@dataclass(frozen=True)
class Selection:
    """Some stored vectors: ``parts`` are memory maps, float16 [m, d] each; ``ids`` int32 [total m], the place of each."""

    parts: list[np.ndarray]
    ids: np.ndarray
    identity: str  # of what is selected


def keys_digest(keys: Sequence[str]) -> str:
    """The same for the same keys in the same order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def open_part(folder: Path, name: str) -> np.ndarray:
    """One part as a memory map; raises UserError where it is no float16 [m, d] array."""
    path = folder / f"{name}.npy"
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a damaged header numpy raises nearly anything
        raise UserError(
            f"{path} is no whole .npy file ({first_line(error)}); remove it and make this part again"
        ) from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of arrays, embeddings are one .npy a part; make this part again")
    if array.ndim != 2 or array.dtype != np.float16:
        raise UserError(
            f"{path} holds {array.dtype} {list(array.shape)}, embeddings are float16 [rows, width]; "
            "dejavu_lit.evaluation.embeddings.write_embeddings makes them from any array"
        )
    return array


def read_keys(folder: Path, name: str) -> list[str]:
    """The keys of one part; raises UserError where the file is missing."""
    try:
        return (folder / f"{name}.txt").read_bytes().decode("utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise UserError(f"{folder / name}.npy has no {name}.txt with its keys; make this part again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / name}.txt is no list of keys ({first_line(error)}); make this part again") from None


def write_part(folder: Path, name: str, keys: Sequence[str], vectors: np.ndarray) -> None:
    """Write one part (float16 [m, d] and its m keys), the keys first: where the .npy is, the part is whole.

    Raises:
        UserError: a key with a line break, which a text file could not give back.
    """
    if broken := [key for key in keys if "\n" in key]:
        raise UserError(f"{folder / name}: the key {broken[0]!r} holds a line break; rename the pair")
    write_text(folder / f"{name}.txt", "".join(f"{key}\n" for key in keys))
    with atomic(folder / f"{name}.npy") as path, open(path, "wb") as file:
        np.save(file, np.ascontiguousarray(vectors, dtype=np.float16))


def write_embeddings(
    folder: Path | str, keys: Sequence[str], vectors: np.ndarray, rows_per_part: int = 100_000
) -> Embeddings:
    """Write vectors of any model as an embeddings folder, so that it can be audited by ``embeddings:DIR``.

    Args:
        folder: DIR/SET/MODALITY, e.g. audit/A/text; must be new or empty.
        keys: n unique keys, none with a line break.
        vectors: [n, d], any float type, any norm; written L2-normalised as float16.
        rows_per_part: rows of one part.

    Raises:
        UserError: numbers that differ, a key twice, a vector with NaN, infinity or zero norm, a folder in use.
    """
    folder = Path(folder)
    if vectors.ndim != 2 or len(vectors) != len(keys) or not len(keys):
        raise UserError(
            f"{folder}: {len(keys)} keys need vectors of shape [{len(keys)}, width], not {list(vectors.shape)}"
        )
    if any("\n" in key or "\r" in key or not key for key in keys):
        raise UserError(f"{folder}: a key is empty or holds a line break; keys are one a line")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; remove it or write to another folder")
    for part, start in enumerate(range(0, len(keys), rows_per_part)):
        rows = slice(start, start + rows_per_part)
        block = np.asarray(vectors[rows], np.float64)
        check_vectors(block, str(folder), keys[rows])
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        write_part(folder, f"{part:05d}", keys[rows], block.astype(np.float16))
    return Embeddings.open(folder)


def check_vectors(vectors: np.ndarray, where: str, keys: Sequence[str]) -> None:
    """Raise UserError for the first vector that holds NaN or infinity or has zero norm, naming ``where`` and its key."""
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(squares) & (squares > 0)))
    if len(bad):
        what = "has zero norm" if squares[bad[0]] == 0 else "holds NaN or infinity"
        raise UserError(
            f"{where}: the vector of key {keys[bad[0]]!r} {what} ({len(bad)} of {len(vectors)} here do); "
            "mend the model or leave these pairs out"
        )
