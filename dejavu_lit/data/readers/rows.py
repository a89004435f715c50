"""The rows of tables by their number: texts (CSV, JSON) in memory, parquet by row groups, Arrow files mapped.

Parquet files may hold many more images than fit in memory: of the row groups that were read the last ones are kept.
"""

import os
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dejavu_lit.data.objects import READ_ERRORS
from dejavu_lit.data.readers.base import Paths, as_list, as_text
from dejavu_lit.data.text_tables import DELIMITERS, JSON, PARQUET, entry_of, read_delimited, read_json_table
from dejavu_lit.utils.errors import UserError, explained, shown
from dejavu_lit.utils.io import read_json_object, visible_files
from dejavu_lit.utils.progress import announce

STATE = "state.json"  # beside the Arrow files of ``save_to_disk`` of ``datasets``
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
# In a pattern: {file_name}; {subject_id[:2]}, the first two characters; {image_id:012}, with zeros in front.
PLACE = re.compile(r"\{([^][{}:]+)(?:\[(\d*):(\d*)\])?(?::0(\d+)d?)?\}")
CACHED_BYTES = 256 << 20  # of row groups in memory, per process; one is always kept


def is_embedded(kind: pa.DataType) -> bool:
    """Whether values of this type hold bytes: binary, or a struct, list or map of them."""
    if pa.types.is_dictionary(kind):
        return is_embedded(kind.value_type)
    inner = (kind.field(number).type for number in range(kind.num_fields))
    return any(map(is_embedded, inner)) or any(is_kind(kind) for is_kind in BINARY)


def has_path(kind: pa.DataType) -> bool:
    """Whether values of this type are structs with a path, as ``datasets`` stores images."""
    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def has_entry(kind: pa.DataType, names: Sequence[str]) -> bool:
    """Whether ``entry_of`` finds an entry in values of this type."""
    if not names:
        return True
    if any(is_kind(kind) for is_kind in LISTS):
        return has_entry(kind.value_type, names[1:] if names[0].isdecimal() else names)
    number = kind.get_field_index(names[0]) if pa.types.is_struct(kind) else -1
    return number >= 0 and has_entry(kind.field(number).type, names[1:])


def table_files(paths: Paths, option: str = "data.reader.path") -> list[Path]:
    """The files that paths, folders of parquet or Arrow files, and patterns mean; a path that means none is kept."""
    files: list[Path] = []
    for path in as_list(paths, option):
        if os.path.isdir(path):  # Path.is_dir raises for a pattern longer than the name of a file
            matches = visible_files(path, "**/*.parquet") or _without_caches(visible_files(path, "**/*.arrow"))
        else:
            matches = [] if os.path.exists(path) else [Path(name) for name in sorted(glob(str(path), recursive=True))]
        files += matches or [path]
    return list(dict.fromkeys(files))


def _without_caches(files: Sequence[Path]) -> list[Path]:
    """Arrow files without those that ``map`` and ``filter`` of ``datasets`` leave beside the data, which state.json may list."""
    kept = [file for file in files if not file.name.startswith("cache-") or (file.parent / STATE).is_file()]
    for state in {file.parent / STATE for file in files if (file.parent / STATE).is_file()}:
        if not (names := {entry["filename"] for entry in read_json_object(state).get("_data_files", [])}):
            continue
        if missing := sorted(names - {file.name for file in files if file.parent == state.parent}):
            raise UserError(
                f"{state} lists {missing[0]!r}, which is not beside it; restore the file, or save the data again"
            )
        kept = [file for file in kept if file.parent != state.parent or file.name in names]
    return kept


class RowBlock(NamedTuple):
    """Consecutive rows that are read together."""

    size: int  # number of rows
    file: Path  # paths of images are relative to its folder
    read: Callable[[list[str], bool], pa.Table]  # names of columns, and whether images may come without their bytes


class Rows:
    """The rows of one table, which may consist of several files."""

    def __init__(self, schema: pa.Schema, blocks: Sequence[RowBlock]) -> None:
        self.schema, self._blocks = schema, blocks
        self._starts = np.array([0, *accumulate(block.size for block in blocks)], np.int64)
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._cached_bytes = 0

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def columns(self) -> dict[str, None]:
        """The columns whose names occur once, in order: pyarrow cannot tell others apart."""
        return {name: None for name, count in Counter(self.schema.names).items() if count == 1}

    def kind(self, column: str) -> pa.DataType:
        return self.schema.field(column).type if column in self.schema.names else pa.string()  # a pattern

    def texts(self, column: str) -> Iterator[str]:
        """The values of a column as text, "" for null; of images their paths. For a pattern, it filled with those of columns."""
        if column not in self.schema.names:
            yield from map(partial(_fill, column), zip(*map(self.texts, pattern_columns(column)), strict=True))
            return
        for block in self._blocks:
            with reading(block.file):
                values = block.read([column], True).column(0)
                cells = (pc.struct_field(values, "path") if has_path(values.type) else values).to_pylist()
            yield from map(as_text, cells)

    def row(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """The values of a row in some columns, of which sentences.raw is the entry ``raw`` of those in ``sentences``."""
        block = self._block_of(number)
        table, offset = self._read(block), number - int(self._starts[block])
        values = {name: table[self.column_of(name)][offset].as_py() for name in columns}
        return {n: v if n in self.columns else entry_of(v, n.split(".")[1:]) for n, v in values.items()}

    def column_of(self, name: str) -> str:
        """The column that has ``name``: its own, or that of objects with such an entry; "" if there is none."""
        column, *entries = name.split(".")
        if name in self.columns:
            return name
        return column if entries and column in self.columns and has_entry(self.kind(column), entries) else ""

    def folder(self, number: int) -> Path:
        return self._blocks[self._block_of(number)].file.parent

    def _block_of(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    def _read(self, block: int) -> pa.Table:
        if block in self._cache:
            self._cache.move_to_end(block)
            return self._cache[block]
        with reading(self._blocks[block].file):
            table = self._blocks[block].read([*self.columns], False)
        self._cache[block] = table
        self._cached_bytes += table.nbytes
        while len(self._cache) > 1 and self._cached_bytes > CACHED_BYTES:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return table


def open_rows(
    files: Sequence[Path], text_columns: Sequence[str], delimiter: str | None, header: Sequence[str] | None
) -> Rows:
    """The rows of tables with the same columns; other arguments: as of ``read_table``.

    Raises UserError for another kind of file, a damaged one, and different columns.
    """
    first: pa.Schema = None
    blocks: list[RowBlock] = []
    for file in files:
        if header and file.suffix.lower() not in DELIMITERS:
            raise UserError(f"{file} has its own column names; remove data.reader.header=, which is for CSV and TSV")
        if file.suffix.lower() in PARQUET:
            with reading(file):
                metadata = pq.read_metadata(file)
                schema = metadata.schema.to_arrow_schema()
            for group in range(metadata.num_row_groups):
                read = partial(_read_group, file, metadata, group)
                blocks.append(RowBlock(metadata.row_group(group).num_rows, file, read))
        else:
            table = read_table(file, text_columns, delimiter, header)
            schema = table.schema
            if not schema.names:  # JSON without rows
                continue
            blocks.append(RowBlock(table.num_rows, file, partial(_select, table)))
        first = schema if first is None else first
        if sorted(schema.names) != sorted(first.names):
            raise UserError(
                f"{file} has the columns {shown(schema.names)}, and the files before it have {shown(first.names)}; give files of "
                "one table"
            )
    return Rows(first or pa.schema([]), blocks)


def reading(file: Path, remedy: str = "check the file") -> AbstractContextManager[None]:
    """Turn what libraries raise for a damaged file into a UserError."""
    return explained(f"{file} cannot be read as a table", remedy, errors=(*READ_ERRORS, KeyError))


def read_table(
    file: Path, text_columns: Sequence[str], delimiter: str | None = None, header: Sequence[str] | None = None
) -> pa.Table:
    """A whole table in memory, of parquet without images; arguments after ``file``: as of ``read_delimited``, for a CSV or TSV.

    Raises UserError for another kind of file, and for a damaged one.
    """
    kind = file.suffix.lower()
    announce(file)
    with reading(file, "check the file" if header is None else "check the file, or give data.reader.delimiter="):
        if kind in PARQUET:
            needed = {*text_columns, *(name.partition(".")[0] for name in text_columns)}
            fields = [field for field in pq.read_schema(file) if field.name in needed or not is_embedded(field.type)]
            return _with_entries(pq.read_table(file, columns=[field.name for field in fields]), text_columns)
        if kind == ".arrow":  # a file, as polars writes it, or a stream, as ``save_to_disk`` of ``datasets`` does
            source = pa.memory_map(str(file))
            is_file = source.read_at(6, 0) == b"ARROW1"
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            return _with_entries(reader.read_all(), text_columns)
        if kind in JSON:
            return read_json_table(file, text_columns)
        if kind in DELIMITERS:
            return read_delimited(file, text_columns, delimiter, header)
    raise UserError(f"{file} is not a known kind of table; give .parquet, .arrow, .csv, .tsv, .jsonl or .json files")


def _with_entries(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The table of a file, with those of ``names`` as columns that are entries of a column of objects, as objects.category.

    Raises ArrowInvalid if it is damaged: of an Arrow file, pyarrow would follow cells to any place in memory.
    """
    table.validate(full=True)
    for name in names:
        column, *entries = name.split(".")
        is_entry = name not in table.column_names and table.column_names.count(column) == 1
        if is_entry and has_entry(table.schema.field(column).type, entries):
            cells = pa.array([entry_of(cell, entries) for cell in table[column].to_pylist()])
            table = table.append_column(name, cells)
    return table


def _select(table: pa.Table, columns: list[str], texts: bool) -> pa.Table:
    return table.select(columns)


def _read_group(file: Path, metadata: pq.FileMetaData, group: int, columns: list[str], texts: bool) -> pa.Table:
    source = pq.ParquetFile(file, metadata=metadata)
    if texts:
        columns = [f"{n}.path" if has_path(source.schema_arrow.field(n).type) else n for n in columns]
    table = source.read_row_group(group, columns=columns, use_threads=False)
    table.validate(full=True)
    return table


def pattern_columns(name: str) -> list[str]:
    """The columns in a pattern of paths, such as ``{folder}/{image_id:012}.jpg``; none in the name of a column."""
    return [column for column, *_ in PLACE.findall(name)]


def _fill(pattern: str, texts: Sequence[str]) -> str:
    """The pattern with one text for each of its places; "" if one of the texts is."""
    values = iter(texts)

    def text(place: re.Match[str]) -> str:
        start, end, width = (int(number) if number else None for number in place.group(2, 3, 4))
        return next(values)[start:end].zfill(width or 0)

    return PLACE.sub(text, pattern) if all(texts) else ""


def absolute(folder: Path, path: str) -> str:
    """A path relative to ``folder`` as an absolute one, without links resolved."""
    return os.path.abspath(os.path.join(folder, path))
