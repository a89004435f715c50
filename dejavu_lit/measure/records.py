"""Records: every audited pair with both models' neighbors, in memory and as ``records.parquet``.

Columns: key, caption, objects list<string>; and for ``target_`` and ``reference_``: neighbors list<string> and distances
list<float> (1 − cosine) up to the largest k; predicted list<string>, hits, precision, recall at the main k. Rows without
objects stay, with null precision and recall. String lists are dictionary-encoded. Further columns (``Records.columns``) are in
``NAME.columns.parquet`` beside it: exposure, ``meta.NAME`` for the entry NAME of the pairs' JSON, and for ``target_`` and
``reference_`` the membership scores cosine, alignment, loss (null for pairs that were not drawn).
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

from dejavu_lit.data.objects import Objects, reading
from dejavu_lit.measure.scores import Neighbors, Scores, predict, score
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, check_regular

SIDES = ("target", "reference")
EXPOSURE = "exposure"  # the column with the number of times that training saw each pair
META = "meta."  # how the columns begin whose names come from the pairs' JSON, so that they cannot be taken for ours
ROW_GROUP = 4096  # records: bounds the memory of writing and reading
# Above the key strings of one row group, so that Parquet does not fall back to plain strings.
DICTIONARY_BYTES = 64 << 20
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
    """n pairs of one set (A, H or B), joined to the objects at one threshold; raises UserError for different lengths.

    captions: [n]; truth: the objects of the n images, whose ``keys`` are the records' keys; public: the objects of the
    public images, sorted by key; target, reference: the neighbors under both models (for the set B, ``target`` is the
    model trained on B); columns: further values by name, each [n]: ``exposure`` (times seen in training) and, for subgroups,
    ``meta.NAME`` for the entry NAME of the pairs' JSON, None for a pair without a value.
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
            raise UserError(
                f"records need one value per pair: there are {len(self.truth)} pairs and {', '.join(wrong)}"
            )

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def keys(self) -> tuple[str, ...]:
        """The records' keys, [n]."""
        return self.truth.keys

    def scores(self, ks: Sequence[int], top_m: int | None = None) -> tuple[Scores, Scores]:
        """The scores of (target, reference) for every k of ``ks``."""
        both = (self.target, self.reference)
        target, reference = (score(neighbors, self.public, self.truth, ks, top_m) for neighbors in both)
        return target, reference

    def with_objects(self, truth: Objects, public: Objects) -> "Records":
        """The same records, joined by key to other objects, e.g. at another threshold.

        Raises UserError if these have no row for a record or a public image.
        """
        return replace(self, truth=truth.take(self.keys), public=public.take(self.public.keys))


def write_records(path: Path | str, records: Records, k: int, top_m: int | None = None) -> None:
    """Write ``records`` atomically, block by block, with the predicted objects and figures at ``k`` and ``top_m``.

    Distances are stored at their full precision, so recomputing from the file gives bitwise equal figures.
    """
    path = Path(path)
    scores = dict(zip(SIDES, records.scores([k], top_m), strict=True))
    if records.columns:
        _write_columns(_columns_path(path), records.keys, records.columns)
    else:
        _columns_path(path).unlink(missing_ok=True)
    with (
        atomic(path) as part,
        pq.ParquetWriter(part, SCHEMA, dictionary_pagesize_limit=DICTIONARY_BYTES, compression="zstd") as writer,
    ):
        for start in range(0, max(len(records), 1), ROW_GROUP):
            block = slice(start, min(start + ROW_GROUP, len(records)))
            writer.write_table(_block(records, scores, block, k, top_m))


def replace_columns(path: Path | str, names: Sequence[str], columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the further columns ``names`` of a records file by ``columns``, {name: {key: value}}, atomically.

    Pairs without a value have None. Raises UserError if the file does not exist or is not a records file.
    """
    path = Path(path)
    with records_file_errors(path):
        keys = pq.read_table(path, columns=["key"])["key"].to_pylist()
    known = _read_columns(_columns_path(path), keys)
    kept = {name: values for name, values in known.items() if name not in names}
    added = {name: [values.get(key) for key in keys] for name, values in columns.items()}
    _write_columns(_columns_path(path), keys, kept | added)


def read_columns(path: Path | str, names: Sequence[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The keys of a records file, and values of both models without joining objects, float64 [n] by ``SIDE_NAME``.

    ``names``: hits (NaN for pairs without objects), or membership scores (NaN for pairs that were not drawn). Raises UserError
    if the file does not exist or is not a records file.
    """
    path = Path(path)
    stored = [f"{side}_hits" for side in SIDES]
    with records_file_errors(path):
        table = pq.read_table(path, columns=["key", "target_recall", *stored])
        keys = table["key"].to_pylist()
        added = _read_columns(_columns_path(path), keys)
        without_objects = table["target_recall"].is_null().to_numpy()
        values = {name: np.where(without_objects, np.nan, table[name].to_numpy()) for name in stored}
        for name in (f"{side}_{name}" for side in SIDES for name in names):
            if name not in stored:
                values[name] = np.array(added.get(name, [None] * len(keys)), np.float64)  # None is NaN
    return keys, values


def _block(records: Records, scores: dict[str, Scores], block: slice, k: int, top_m: int | None) -> pa.Table:
    """Some of the records as a table of ``SCHEMA``."""
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
        used, index = np.unique(neighbors.rows, return_inverse=True)
        names = pa.array([records.public.keys[row] for row in used.tolist()], pa.string())
        predicted_starts, codes = predict(neighbors, records.public, k, top_m)
        without_objects = ~scores[side].has_objects[block]
        columns += [
            _lists(ends, names.take(pa.array(index.ravel()))),
            _lists(ends, pa.array(neighbors.distances.ravel(), pa.float32())),
            _lists(predicted_starts, labels.take(pa.array(codes))),
            pa.array(scores[side].hits[block, 0]),
            pa.array(scores[side].precision(k)[block], mask=without_objects),
            pa.array(scores[side].recall(k)[block], mask=without_objects),
        ]
    return pa.table(columns, schema=SCHEMA)


def _lists(starts: np.ndarray, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values)


def read_records(path: Path | str, truth: Objects, public: Objects) -> Records:
    """Read ``records.parquet`` and join it by key to objects, which may come from another threshold or annotator.

    ``truth`` has objects for every record, ``public`` for every neighbor; they are sorted by key. Raises UserError if the file
    does not exist or is not a records file, or a key has no objects.
    """
    path = Path(path)
    names = ["key", "caption", *(f"{side}_{name}" for side in SIDES for name in ("neighbors", "distances"))]
    if any(a >= b for a, b in pairwise(public.keys)):
        public = public.take(sorted(public.keys))
    order = pa.array(public.keys, pa.string())
    keys: list[str] = []
    captions: list[str] = []
    parts: dict[str, list[Neighbors]] = {side: [] for side in SIDES}
    dictionaries = [f"{side}_neighbors.list.element" for side in SIDES]
    with records_file_errors(path):
        check_schema(path, names)
        with pq.ParquetFile(path, read_dictionary=dictionaries) as file:
            # One group at a time: each has its own dictionary, so the strings of the other groups stay out of memory.
            for number in range(file.num_row_groups):
                group = file.read_row_group(number, columns=names)
                group.validate(full=True)
                if incomplete := [name for name in names if group[name].null_count]:
                    raise ValueError(f"a row has no {incomplete[0]}")
                keys += group["key"].to_pylist()
                captions += group["caption"].to_pylist()
                for side in SIDES if group.num_rows else ():
                    parts[side].append(_neighbors(group, side, order, path))
        none = Neighbors(np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32))
        target, reference = (Neighbors.joined(parts.pop(side) or [none]) for side in SIDES)
    columns = _read_columns(_columns_path(path), keys)
    return Records(tuple(captions), truth.take(keys), public, target, reference, columns)


@contextmanager
def records_file_errors(path: Path) -> Iterator[None]:
    """Context for reading a records file: raises UserError with its path if it is missing, damaged or another file."""
    check_regular(path)
    with reading(path, "is not a records file", "remove it and run dejavu evaluate again"):
        try:
            yield
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; run dejavu evaluate to create it") from None


def check_schema(path: Path, names: Sequence[str]) -> None:
    """Raise ValueError if one of the columns ``names`` of a records file is missing, there twice, or of another type."""
    schema = pq.read_schema(path)
    for name in names:
        if [field.type for field in schema if field.name == name] != [SCHEMA.field(name).type]:
            raise ValueError(f"it has no column {name!r} of type {SCHEMA.field(name).type}")


def _neighbors(group: pa.Table, side: str, public: pa.Array, path: Path) -> Neighbors:
    """The neighbors of one row group, which has rows, under one model."""
    lists, distances = group[f"{side}_neighbors"].combine_chunks(), group[f"{side}_distances"].combine_chunks()
    flat = lists.flatten()
    # Only the names in the dictionary are looked up, each once per group.
    row = pc.index_in(flat.dictionary, value_set=public)
    if row.null_count and (absent := pc.is_null(row.take(flat.indices))).true_count:
        name = flat.filter(absent)[0].as_py()
        raise UserError(
            f"{path} names the public image {name!r}, which has no objects; use the objects of its public set"
        )
    rows = row.take(flat.indices).to_numpy().astype(np.int32)
    # Lists of different lengths do not fill the rectangle, which raises a ValueError.
    shape = (len(lists), len(lists[0]))
    values = distances.flatten().to_numpy(zero_copy_only=False).reshape(shape)
    if not np.isfinite(values).all():
        raise ValueError("its distances are not all numbers")
    return Neighbors(rows.reshape(shape), values)


def _columns_path(path: Path) -> Path:
    return path.with_suffix(".columns.parquet")


def _write_columns(path: Path, keys: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
    # Values are stored as JSON text: a pair's JSON may have any type, even different ones for different pairs.
    texts = {
        name: pa.array([json.dumps(value, default=np.generic.item) for value in column], pa.string())
        for name, column in columns.items()
    }
    with atomic(path) as part:
        pq.write_table(pa.table({"key": pa.array(keys, pa.string()), **texts}), part, compression="zstd")


def _read_columns(path: Path, keys: list[str]) -> dict[str, list[Any]]:
    if not path.exists():
        return {}
    with records_file_errors(path):
        table = pq.read_table(path)
        if table["key"].to_pylist() != keys:
            raise UserError(f"{path} belongs to other records; remove it and run dejavu evaluate again")
        # A call per column, not per value: there are millions of values.
        columns = {n: json.loads(f"[{','.join(table[n].to_pylist())}]") for n in table.column_names if n != "key"}
        if damaged := [name for name, values in columns.items() if len(values) != len(keys)]:
            raise ValueError(f"its column {damaged[0]!r} is not one value per record")
        return columns
