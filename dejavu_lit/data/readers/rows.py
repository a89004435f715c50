"""The rows of tables by their number: CSV in memory, parquet by row groups, and Arrow files of ``datasets`` mapped.

Parquet files, as the Hub has them, may hold many more images than fit in memory. Of them the texts of single columns are
read, and whole rows by their row group, of which the last ones stay in memory. So row groups should be small: ``datasets``
writes 100 rows of images.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dejavu_lit.data.delimited import is_delimited, read_delimited
from dejavu_lit.data.readers.base import Paths, as_list
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import visible_files

PARQUET = (".parquet", ".pq")
CACHED_BYTES = 256 << 20  # of row groups in memory, per process; one is always kept


class Rows(Protocol):
    """The rows of one table, which may consist of several files."""

    @property
    def schema(self) -> pa.Schema:
        """The columns."""

    def __len__(self) -> int: ...

    def texts(self, column: str) -> Iterator[str]:
        """The values of a column as text, "" for null; of images their paths."""

    def row(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """The values of some columns in one row."""

    def folder(self, number: int) -> Path:
        """The folder of the row's file, to which paths of images are relative."""


def is_embedded(kind: pa.DataType) -> bool:
    """Whether values of this type hold bytes: binary, or a struct or list of them."""
    if pa.types.is_dictionary(kind):
        return is_embedded(kind.value_type)
    if pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return any(is_embedded(kind.field(number).type) for number in range(kind.num_fields))
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def has_path(kind: pa.DataType) -> bool:
    """Whether values of this type are structs with a path, as ``datasets`` stores images."""
    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def table_files(paths: Paths) -> list[Path]:
    """The files that paths, folders of parquet or Arrow files, and patterns mean; a path that means none is kept."""
    files: list[Path] = []
    for path in as_list(paths):
        if path.is_dir():
            found = visible_files(path, "**/*.parquet") or visible_files(path, "**/*.arrow")
        else:
            found = [] if path.exists() else [Path(name) for name in sorted(glob(str(path), recursive=True))]
        files += found or [path]
    return list(dict.fromkeys(files))


def open_rows(files: Sequence[Path], text_columns: Sequence[str], delimiter: str | None) -> Rows:
    """The rows of one CSV or TSV file, or of parquet or Arrow files; the other arguments are those of ``read_delimited``.

    Raises:
        UserError: another kind of file.
        pyarrow.ArrowException, OSError, KeyError, ValueError: a file cannot be read as a table.
    """
    kinds = {file.suffix.lower() for file in files}
    if kinds <= set(PARQUET):
        return ParquetRows(files)
    if kinds == {".arrow"}:
        return TableRows.map(files)
    if len(files) > 1 or not is_delimited(files[0]):
        raise UserError(
            f"{files[0]} is not a known kind of table; give a .csv, .tsv or .parquet file, or several of parquet"
        )
    table = read_delimited(files[0], text_columns, delimiter)
    table.validate(full=True)
    return TableRows(table, files[0].parent)


class TableRows:
    """The rows of one table in memory, or mapped into it."""

    def __init__(self, table: pa.Table, folder: Path) -> None:
        self.table, self._folder, self.schema = table, folder, table.schema

    @classmethod
    def map(cls, files: Sequence[Path]) -> "TableRows":
        """The rows of Arrow files in the streaming format, as ``datasets``' ``save_to_disk`` writes them."""
        return cls(
            pa.concat_tables(pa.ipc.open_stream(pa.memory_map(str(f))).read_all() for f in files), files[0].parent
        )

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def texts(self, column: str) -> Iterator[str]:
        """See Rows."""
        return _texts(self.table[column])

    def row(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """See Rows."""
        return {name: self.table[name][number].as_py() for name in columns}

    def folder(self, number: int) -> Path:
        """See Rows."""
        return self._folder


class ParquetRows:
    """The rows of parquet files with the same columns, one file after the other."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._metadata = [pq.read_metadata(file) for file in files]
        self.schema = self._metadata[0].schema.to_arrow_schema()
        for file, metadata in zip(files, self._metadata, strict=True):
            if (names := metadata.schema.to_arrow_schema().names) != self.schema.names:
                raise UserError(
                    f"{file} has the columns {', '.join(names)}, and {files[0]} has {', '.join(self.schema.names)}; give files "
                    "of one table"
                )
        self._groups = [(f, g) for f, metadata in enumerate(self._metadata) for g in range(metadata.num_row_groups)]
        sizes = (self._metadata[f].row_group(g).num_rows for f, g in self._groups)
        self._starts = np.array([0, *accumulate(sizes)], np.int64)
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def texts(self, column: str) -> Iterator[str]:
        """See Rows."""
        part = f"{column}.path" if has_path(self.schema.field(column).type) else column
        for file, metadata in zip(self.files, self._metadata, strict=True):
            for batch in pq.ParquetFile(file, metadata=metadata).iter_batches(columns=[part], use_threads=False):
                batch.validate(full=True)
                yield from _texts(batch.column(0))

    def row(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """See Rows."""
        group = self._group_of(number)
        table, offset = self._read(group), number - int(self._starts[group])
        return {name: table[name][offset].as_py() for name in columns}

    def folder(self, number: int) -> Path:
        """See Rows."""
        return self.files[self._groups[self._group_of(number)][0]].parent

    def _group_of(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _read(self, group: int) -> pa.Table:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        file, number = self._groups[group]
        source = pq.ParquetFile(self.files[file], metadata=self._metadata[file])
        table = source.read_row_group(number, columns=self._single_columns, use_threads=False)
        table.validate(full=True)
        self._cache[group] = table
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHED_BYTES:
            self._cache.popitem(last=False)
        return table

    @cached_property
    def _single_columns(self) -> list[str]:
        """The columns whose names occur once: pyarrow cannot tell others apart."""
        return [name for name in self.schema.names if self.schema.names.count(name) == 1]


def _texts(values: pa.Array | pa.ChunkedArray) -> Iterator[str]:
    if has_path(values.type):
        values = pc.struct_field(values, "path")
    for value in values.to_pylist():
        yield "" if value is None else str(value)


def absolute(folder: Path, path: str) -> str:
    """A path relative to ``folder`` as an absolute one, without links resolved."""
    return os.path.normpath(os.path.join(os.path.abspath(folder), path))
