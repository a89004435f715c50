"""The object artifact: which objects each image contains, in parquet, one file per shard and one row per image.

Columns: key, labels list<string>, scores list<float>, boxes list<list<float>> (x, y, width, height in pixels of the
image as stored). An image that could not be annotated has nulls, not empty lists; the file's metadata gives the reason.
The metadata also names the annotator, its weights, version, configuration, vocabulary and threshold. All detections are
stored; the threshold of a measurement is applied on reading, to the true and the predicted objects alike.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import atomic, name_file_in_errors, visible_files

METADATA = b"dejavu_lit"
READ_ERRORS = (ValueError, OSError, RecursionError, OverflowError, MemoryError, pa.ArrowException)  # of a damaged file
IMAGES = b"dejavu_lit_images"  # the fingerprint of the shard's images
FAILED = b"dejavu_lit_failed"  # {key: reason} of the images that could not be annotated
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("boxes", pa.list_(pa.list_(pa.float32()))),
    ]
)


@dataclass(frozen=True)
class Annotator:
    """What detected the objects. Objects of annotators that differ in any field are never mixed."""

    name: str
    version: str = "1"  # of the package that runs the model
    weights: str | None = None  # SHA-256 of the file of weights, or of what the objects were taken from
    threshold: float = 0.0  # the lowest score stored
    config: Mapping[str, Any] = field(default_factory=dict)  # all else that decides the result; no paths, no devices
    vocabulary: str | None = None  # fingerprint of the list of labels

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", json.loads(json.dumps(dict(self.config))))  # equal to what will be read back

    @classmethod
    def from_json(cls, value: Any) -> "Annotator":
        """The annotator from its fields as JSON; raises TypeError or ValueError for anything else."""
        annotator = cls(**value)
        texts = (annotator.name, annotator.version, annotator.weights or "", annotator.vocabulary or "")
        if not all(isinstance(text, str) for text in texts) or type(annotator.threshold) not in (int, float):
            raise TypeError("its annotator has a field of the wrong type")
        if not math.isfinite(annotator.threshold):
            raise ValueError("its threshold is not a number")
        return annotator


@dataclass(frozen=True)
class Annotation:
    """The objects of one image: labels [m], scores [m] in 0..1, boxes [m][4] as x, y, width, height in pixels."""

    key: str
    labels: Sequence[str]
    scores: Sequence[float]
    boxes: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Failed:
    """An image that could not be annotated, and why."""

    key: str
    reason: str


def write_objects(
    path: Path | str, rows: Sequence[Annotation | Failed], annotator: Annotator, images: str | None = None
) -> None:
    """Write one part (the objects of one shard) atomically; the same rows give the same bytes.

    It notes ``images``, ``ShardIndex.images`` of the shard (None: unknown), so that it is not taken for that of other
    images.
    """
    columns = [[getattr(row, name, None) for row in rows] for name in SCHEMA.names]
    metadata = {METADATA: json.dumps(asdict(annotator), sort_keys=True).encode()}
    if images is not None:
        metadata[IMAGES] = images.encode()
    if failed := {row.key: row.reason for row in rows if isinstance(row, Failed)}:
        metadata[FAILED] = json.dumps(failed, sort_keys=True).encode()
    table = pa.table(columns, schema=SCHEMA.with_metadata(metadata))
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


@dataclass(frozen=True)
class Objects:
    """The distinct objects of n images in compressed rows: image i has ``codes[starts[i]:starts[i+1]]``, sorted."""

    keys: tuple[str, ...]
    starts: np.ndarray  # int64 [n+1]
    codes: np.ndarray  # int32, indices into ``labels``
    labels: tuple[str, ...]  # sorted

    @cached_property
    def rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def __len__(self) -> int:
        return len(self.keys)

    def counts(self) -> np.ndarray:
        """The number of distinct objects of each image, int64 [n]."""
        return np.diff(self.starts)

    def names(self, row: int) -> list[str]:
        """The labels of one image, sorted."""
        return [self.labels[code] for code in self.codes[self.starts[row] : self.starts[row + 1]]]

    def take(self, keys: Sequence[str]) -> "Objects":
        """The rows of ``keys``, in that order; raises UserError naming the first key without a row."""
        if absent := [key for key in keys if key not in self.rows]:
            raise UserError(
                f"the objects have no row for {len(absent)} of {len(keys)} images; the first is {absent[0]!r}; "
                "annotate these images or choose other objects="
            )
        rows = np.array([self.rows[key] for key in keys], dtype=np.int64)
        counts = self.counts()[rows]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        gather = np.repeat(self.starts[rows] - starts[:-1], counts) + np.arange(starts[-1])
        return Objects(tuple(keys), starts, self.codes[gather], self.labels)


def read_objects(
    folders: Sequence[Path | str | Sequence[Path]], threshold: float = 0.0
) -> tuple[list[Objects], Annotator]:
    """Read the artifacts of several sets into one vocabulary, keeping detections with score ≥ ``threshold``.

    Args:
        threshold: lowest score that counts, 0..1.

    Returns:
        Objects for each set, a folder of parts (objects/scenes/A) or several, with the same ``labels``; and the annotator.

    Raises:
        UserError: a folder without parts, parts of different annotators, a key that occurs twice in one set, or a
            threshold below the annotator's own.
    """
    annotator: Annotator | None = None
    tables: list[pa.Table] = []
    for folder in folders:
        folder_tables = []
        for path in [folder] if isinstance(folder, Path | str) else folder:
            if not (parts := visible_files(path, "*.parquet")):
                raise UserError(
                    f"{path} has no object parts (*.parquet); check objects=, or find them: dejavu annotate "
                    "sets=[SET_OR_FOLDER] …"
                )
            for part in parts:
                part_annotator, table = read_part(part)
                if annotator not in (None, part_annotator):
                    raise UserError(
                        f"{part} was annotated by {part_annotator}, other parts by {annotator}; use one annotator for all "
                        "sets"
                    )
                annotator = part_annotator
                folder_tables.append(table)
        tables.append(pa.concat_tables(folder_tables))
    assert annotator is not None
    if threshold < annotator.threshold:
        raise UserError(
            f"threshold={threshold} is below {annotator.threshold}, the lowest score that {annotator.name} stored; "
            "raise threshold=, or annotate again with a lower threshold"
        )
    distinct = (pc.list_flatten(table["labels"]).unique().to_pylist() for table in tables)
    labels = pa.array(sorted(set().union(*distinct)), pa.string())
    return [
        _compress(table, labels, threshold, str(folder)) for table, folder in zip(tables, folders, strict=True)
    ], annotator


def read_part(path: Path, columns: Sequence[str] = ("key", "labels", "scores")) -> tuple[Annotator, pa.Table]:
    """The annotator and some columns of one part; raises UserError if it is damaged or not an object artifact."""
    with reading(path):
        table = pq.read_table(path, columns=list(columns))
        annotator = Annotator.from_json(json.loads((table.schema.metadata or {})[METADATA]))
        return annotator, _checked(table.cast(pa.schema([SCHEMA.field(name) for name in columns])))


@contextmanager
def reading(
    path: Path, problem: str = "is damaged or not an object artifact", remedy: str = "annotate the images again"
) -> Iterator[None]:
    """Turn what a damaged file raises into a UserError; an error of the system (EIO, no permission) stays, with the path."""
    with name_file_in_errors(path), explained(f"{path} {problem}", remedy, errors=(*READ_ERRORS, KeyError, TypeError)):
        yield


def _checked(table: pa.Table) -> pa.Table:
    """The table of a part; raises ValueError if its rows are not annotations."""
    table.validate(full=True)
    if table["key"].null_count:
        raise ValueError("a row has no key")
    for name in table.column_names[1:]:
        values = pc.list_flatten(table[name])
        numbers = pc.list_flatten(values) if name == "boxes" else values
        if values.null_count or numbers.null_count:
            raise ValueError(f"its {name} contain nulls")
        if numbers.type == pa.float32() and pc.all(pc.is_finite(numbers)).as_py() is False:
            raise ValueError(f"its {name} are not all numbers")
    lengths = [pc.fill_null(pc.list_value_length(column), -1) for column in table.columns[1:]]
    if any(not length.equals(lengths[0]) for length in lengths):
        raise ValueError("a row has different numbers of labels, scores or boxes")
    return table


def as_stored(threshold: float) -> float:
    """A threshold in the precision of stored scores, float32: 0.7 includes a stored 0.7."""
    return float(np.float32(threshold))


def failures(path: Path) -> dict[str, str]:
    """{key: reason} of the images of one part that could not be annotated; raises UserError if it cannot be read."""
    with reading(path):
        reasons = json.loads(_metadata(path).get(FAILED, b"{}"))
        if not isinstance(reasons, dict) or not all(isinstance(reason, str) for reason in reasons.values()):
            raise ValueError("its failed images are not {key: reason}")
        return reasons


def check_images(artifact: Path, images: Mapping[str, Mapping[str, str]]) -> None:
    """Raise UserError if a part of an artifact has the objects of other images than {set: {shard: fingerprint}}."""
    for name, shards in images.items():
        for shard, fingerprint in shards.items():
            path = artifact / name / f"{shard}.parquet"
            if path.is_file() and not is_part_of(path, fingerprint):
                raise UserError(
                    f"{path} has the objects of other images, whose keys are the same; annotate these images, or choose other "
                    "objects="
                )


def is_part_of(path: Path, images: str) -> bool:
    """Whether a part has the objects of the images with this fingerprint, or does not say; raises UserError if damaged."""
    with reading(path):
        return _metadata(path).get(IMAGES, images.encode()) == images.encode()


def _metadata(path: Path) -> Mapping[bytes, bytes]:
    return pq.read_schema(path).metadata or {}


def _compress(table: pa.Table, labels: pa.Array, threshold: float, folder: str) -> Objects:
    """The rows of a set's table, with the detections of at least ``threshold`` as codes of ``labels``."""
    keys = table["key"].to_pylist()
    if len(set(keys)) != len(keys):
        repeated = Counter(keys).most_common(1)[0][0]
        raise UserError(f"{folder} has two rows for the key {repeated!r}; keys must be unique within a set")
    column, width = table["labels"].combine_chunks(), max(len(labels), 1)
    row = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
    code = pc.index_in(pc.list_flatten(column), value_set=labels).to_numpy(zero_copy_only=False).astype(np.int64)
    scores = pc.list_flatten(table["scores"].combine_chunks()).to_numpy(zero_copy_only=False)
    is_confident = scores >= as_stored(threshold)
    pairs = np.unique(row[is_confident] * width + code[is_confident])
    starts = np.concatenate([[0], np.cumsum(np.bincount(pairs // width, minlength=len(keys)))])
    codes = (pairs % width).astype(np.int32)
    return Objects(tuple(keys), starts.astype(np.int64), codes, tuple(labels.to_pylist()))
