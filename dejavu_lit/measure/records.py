"""Records: every audited pair with both models' neighbors, in memory and as ``records.parquet``.

    Records(captions, truth, public, target, reference, columns)     in memory, joined to the objects
    write_records(path, records, k, top_m=None)                      -> one row a pair, columns below, atomically
    read_records(path, truth, public) -> Records                     joined by key to any objects, e.g. another threshold

Columns: key, caption, objects list<string>; and for ``target_`` and ``reference_``: neighbors list<string> and distances
list<float> (1 − cosine) up to the largest k; predicted list<string>, hits, precision, recall at the main k. Rows without
objects stay, with null precision and recall. String lists are dictionary-encoded. What a pair's JSON or its exposure adds
(``Records.columns``) lies beside it in ``NAME.columns.parquet``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dejavu_lit.data.objects import DAMAGE, Objects
from dejavu_lit.measure.scores import Neighbors, Scores, predict, score
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import atomic

__all__ = ["EXPOSURE", "Neighbors", "Records", "Scores", "read_records", "score", "write_records"]

SIDES = ("target", "reference")
EXPOSURE = "exposure"  # the column that says how often training saw each pair
ROW_GROUP = 4096
_STRINGS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [("key", pa.string()), ("caption", pa.string()), ("objects", _STRINGS)]
    + [
        (f"{side}_{name}", type_)
        for side in SIDES
        for name, type_ in (
            ("neighbors", _STRINGS),
            ("distances", pa.list_(pa.float32())),
            ("predicted", _STRINGS),
            ("hits", pa.int32()),
            ("precision", pa.float64()),
            ("recall", pa.float64()),
        )
    ]
)


@dataclass(frozen=True)
class Records:
    """n pairs of one set (A, H or B), joined to objects of one threshold.

    captions: [n]; truth: the objects of the n images, whose ``keys`` are the records' keys; public: the objects of the
    public images, sorted by key; target, reference: the neighbors under both models (for the set B, ``target`` is the
    model trained on B); columns: further values by name, each [n]: ``exposure`` (times seen in training) and columns of
    the pairs' JSON for subgroups, None where a pair has no value.

    Raises:
        UserError: parts of different lengths.
    """

    captions: Sequence[str]
    truth: Objects
    public: Objects
    target: Neighbors
    reference: Neighbors
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {"captions": len(self.captions), "target neighbors": len(self.target)}
        lengths |= {"reference neighbors": len(self.reference)} | {n: len(c) for n, c in self.columns.items()}
        if wrong := [f"{length} {name}" for name, length in lengths.items() if length != len(self.truth)]:
            raise UserError(f"records need one value a pair: there are {len(self.truth)} pairs and {', '.join(wrong)}")

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def keys(self) -> tuple[str, ...]:
        """The records' keys, [n]."""
        return self.truth.keys

    @property
    def k(self) -> int:
        """The largest number of neighbors that both models have."""
        return min(self.target.k, self.reference.k)

    def scores(self, ks: Sequence[int], top_m: int | None = None) -> tuple[Scores, Scores]:
        """(target, reference) scored for every k of ``ks``."""
        return (
            score(self.target, self.public, self.truth, ks, top_m),
            score(self.reference, self.public, self.truth, ks, top_m),
        )

    def with_objects(self, truth: Objects, public: Objects) -> "Records":
        """The same records joined by key to other objects, e.g. of another threshold.

        Raises:
            UserError: a record or a public image without a row in them.
        """
        return replace(self, truth=truth.take(self.keys), public=public.take(self.public.keys))


def write_records(path: Path | str, records: Records, k: int, top_m: int | None = None) -> None:
    """Write ``records`` atomically, block by block, with predicted objects and figures at ``k`` and ``top_m``.

    Distances are stored as they are measured with, so recomputing from the file gives the same bits.
    """
    path = Path(path)
    found = dict(zip(SIDES, records.scores([k], top_m), strict=True))
    if records.columns:
        _write_columns(_columns_path(path), records)
    else:
        _columns_path(path).unlink(missing_ok=True)
    with (
        atomic(path) as part,
        pq.ParquetWriter(part, SCHEMA, dictionary_pagesize_limit=64 << 20, compression="zstd") as writer,
    ):
        for start in range(0, max(len(records), 1), ROW_GROUP):
            block = slice(start, min(start + ROW_GROUP, len(records)))
            writer.write_table(_block(records, found, block, k, top_m))


def _block(records: Records, found: dict[str, Scores], block: slice, k: int, top_m: int | None) -> pa.Table:
    truth, labels = records.truth, pa.array(records.truth.labels, pa.string())
    starts = truth.starts[block.start : block.stop + 1]
    columns = [
        pa.array(records.keys[block], pa.string()),
        pa.array(records.captions[block], pa.string()),
        _lists(starts - starts[0], labels.take(pa.array(truth.codes[starts[0] : starts[-1]]))),
    ]
    for side in SIDES:
        neighbors: Neighbors = getattr(records, side)[block]
        ends = np.arange(len(neighbors) + 1) * neighbors.k
        used, place = np.unique(neighbors.rows, return_inverse=True)
        names = pa.array([records.public.keys[row] for row in used.tolist()], pa.string())
        begin, codes = predict(neighbors, records.public, k, top_m)
        scores, empty = found[side], ~found[side].kept[block]
        columns += [
            _lists(ends, names.take(pa.array(place.ravel()))),
            _lists(ends, pa.array(neighbors.distances.ravel(), pa.float32())),
            _lists(begin, labels.take(pa.array(codes))),
            pa.array(scores.hits[block, 0]),
            pa.array(scores.precision(k)[block], mask=empty),
            pa.array(scores.recall(k)[block], mask=empty),
        ]
    return pa.table(columns, schema=SCHEMA)


def _lists(starts: np.ndarray, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values)


def read_records(path: Path | str, truth: Objects, public: Objects) -> Records:
    """Read ``records.parquet`` and join it by key to objects, which may be of another threshold or annotator.

    Args:
        path: a file of ``write_records``.
        truth: objects that hold a row for every record.
        public: objects that hold a row for every neighbor; used sorted by key.

    Raises:
        UserError: no such file, not a records file, or a key without objects.
    """
    path = Path(path)
    names = ["key", "caption", *(f"{side}_{name}" for side in SIDES for name in ("neighbors", "distances"))]
    if any(a >= b for a, b in pairwise(public.keys)):
        public = public.take(sorted(public.keys))
    order = pa.array(public.keys, pa.string())
    keys: list[str] = []
    captions: list[str] = []
    found: dict[str, list[Neighbors]] = {side: [] for side in SIDES}
    dictionaries = [f"{side}_neighbors.list.element" for side in SIDES]
    with damage_told(path):
        check_columns(path, names)
        with pq.ParquetFile(path, read_dictionary=dictionaries) as file:
            # One group at a time: each keeps its own dictionary, and the strings of the others need not be held.
            for number in range(file.num_row_groups):
                group = file.read_row_group(number, columns=names)
                group.validate(full=True)
                if gaps := [name for name in names if group[name].null_count]:
                    raise ValueError(f"a row has no {gaps[0]}")
                keys += group["key"].to_pylist()
                captions += group["caption"].to_pylist()
                for side in SIDES:
                    found[side].append(_neighbors(group, side, order, path))
        target, reference = (_concatenate(found.pop(side)) for side in SIDES)
    columns = _read_columns(_columns_path(path), keys)
    return Records(tuple(captions), truth.take(keys), public, target, reference, columns)


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Around the reading of a records file: UserError that names it where it is missing, damaged or something else."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run dejavu evaluate to make it") from None
    except (*DAMAGE, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no records file ({first_line(error)}); remove it and run dejavu evaluate again"
        ) from None


def check_columns(path: Path, names: Sequence[str]) -> None:
    """Raise UserError where one of the columns ``names`` of a records file is missing or of another type."""
    there = pq.read_schema(path)
    for name in names:
        if there.names.count(name) != 1:
            raise UserError(f"{path} has no column {name!r}; remove it and run dejavu evaluate again")
        if there.field(name).type != SCHEMA.field(name).type:
            raise UserError(
                f"the column {name!r} of {path} holds {there.field(name).type}; remove it and run dejavu evaluate again"
            )


def _neighbors(group: pa.Table, side: str, public: pa.Array, path: Path) -> Neighbors:
    """One row group's neighbors under one model."""
    lists, distances = group[f"{side}_neighbors"].combine_chunks(), group[f"{side}_distances"].combine_chunks()
    if not len(lists):
        return Neighbors(np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32))
    flat = lists.flatten()
    # Only the dictionary's names are looked up, each once a group.
    row = pc.index_in(flat.dictionary, value_set=public)
    if row.null_count and (absent := pc.is_null(row.take(flat.indices))).true_count:
        name = flat.filter(absent)[0].as_py()
        raise UserError(
            f"{path} names the public image {name!r}, which has no objects; use the objects of its public set"
        )
    rows = row.take(flat.indices).to_numpy().astype(np.int32)
    # Lists of different lengths do not fill the rectangle: a ValueError.
    shape = (len(lists), len(lists[0]))
    values = distances.flatten().to_numpy(zero_copy_only=False).reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError("its distances are not all numbers")
    return Neighbors(rows.reshape(shape), values)


def _concatenate(parts: list[Neighbors]) -> Neighbors:
    if not parts:
        return Neighbors(np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32))
    return Neighbors(np.concatenate([p.rows for p in parts]), np.concatenate([p.distances for p in parts]))


def _columns_path(path: Path) -> Path:
    return path.with_suffix(".columns.parquet")


def _write_columns(path: Path, records: Records) -> None:
    # A value is kept as JSON text: a pair's JSON may hold any type, even different ones for different pairs.
    columns = {name: pa.array([json.dumps(value) for value in _values(c)]) for name, c in records.columns.items()}
    with atomic(path) as part:
        pq.write_table(pa.table({"key": pa.array(records.keys, pa.string()), **columns}), part, compression="zstd")


def _read_columns(path: Path, keys: list[str]) -> dict[str, list[Any]]:
    if not path.exists():
        return {}
    with damage_told(path):
        table = pq.read_table(path)
        if table["key"].to_pylist() != keys:
            raise UserError(f"{path} belongs to other records; remove it and run dejavu evaluate again")
        return {
            name: [json.loads(text) for text in table[name].to_pylist()] for name in table.column_names if name != "key"
        }


def _values(column: Sequence[Any]) -> Iterator[Any]:
    yield from (column.tolist() if isinstance(column, np.ndarray) else column)
