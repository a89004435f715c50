"""A table as pairs: CSV, TSV or parquet with a column of image paths and one of captions."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from dejavu_lit.data.decode import meta_caption, plain
from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import KeyIndex, clean_keys, file_state, read_image
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.utils.errors import UserError, first_line, suggest

BLOCK = 16 << 20  # bytes of a CSV file read at once; a row must not be longer
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}


@dataclass(frozen=True)
class TableReader:
    """Rows of a table; columns other than the three named here go into the pair's JSON."""

    path: str | Path
    """The table: .csv, .tsv or .parquet. CSV and TSV have a header line."""
    image: str = "path"
    """The column of image paths; relative ones are relative to the table."""
    caption: str = "caption"
    """The column of captions."""
    key: str | None = None
    """The column of keys; without it the key is made from the image's path."""
    name: str = "table"

    @property
    def annotator(self) -> Annotator | None:
        """None: a table brings no objects."""
        return None

    @cached_property
    def _table(self) -> pa.Table:
        path = Path(self.path)
        if not path.is_file():
            raise UserError(f"the table {path} does not exist; check path=")
        try:
            table = self._read(path)
            table.validate(full=True)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a table ({first_line(error)}); check the file") from None
        for option in ("image", "caption", "key"):
            column = getattr(self, option)
            if column is not None and table.column_names.count(column) != 1:
                raise UserError(
                    f"{path} has no single column {column!r}{suggest(column, table.column_names)}; "
                    f"its columns are {', '.join(table.column_names)}; choose one by {option}="
                )
        if not table.num_rows:
            raise UserError(f"{path} has no rows; check path=")
        return table.select([c for c in dict.fromkeys(table.column_names) if table.column_names.count(c) == 1])

    def _read(self, path: Path) -> pa.Table:
        if path.suffix.lower() in (".parquet", ".pq"):
            binary = [
                f.name for f in pq.read_schema(path) if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)
            ]
            return pq.read_table(path, columns=[c for c in pq.read_schema(path).names if c not in binary])
        if path.suffix.lower() not in DELIMITERS:
            raise UserError(f"{path} is not a table this reader knows; give a .csv, .tsv or .parquet file")
        # Paths, captions and keys stay as written: 000123 is no number here.
        text = {column: pa.string() for column in (self.image, self.caption, self.key) if column is not None}
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK),
            parse_options=pyarrow.csv.ParseOptions(delimiter=DELIMITERS[path.suffix.lower()], newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=text, strings_can_be_null=False),
        )

    @cached_property
    def _index(self) -> KeyIndex:
        column = self._table[self.key or self.image]
        try:
            values = [str("" if value is None else value) for value in column.to_pylist()]
        except (ValueError, OverflowError) as error:  # dates beyond those of Python
            name = self.key or self.image
            raise UserError(
                f"the column {name!r} of {self.path} holds what is no text ({error}); choose another"
            ) from None
        if self.key is None:
            return KeyIndex(clean_keys([os.path.splitext(value)[0] for value in values]))
        if "" in values:
            raise UserError(
                f"row {values.index('') + 1} of {self.path} has no key; mend it or choose another column by key="
            )
        if len(set(values)) < len(values):
            twice = pc.value_counts(pa.array(values)).to_pylist()
            value = max(twice, key=lambda item: item["counts"])["values"]
            raise UserError(
                f"the key {value!r} stands in several rows of {self.path}; choose a column of unique keys by key="
            )
        return KeyIndex(clean_keys(values))

    def keys(self) -> list[str]:
        """The keys of all rows, sorted."""
        return self._index.keys

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair; raises BadPair for a missing image or caption."""
        row = self._index.row(key)
        try:
            values = {name: plain(self._table[name][row].as_py()) for name in self._table.column_names}
        except (ValueError, OverflowError, RecursionError):  # dates beyond those of Python, nested too deeply
            raise BadPair("its row holds what JSON cannot") from None
        file, caption = values.pop(self.image), values.pop(self.caption, None)
        if file is None or file == "":
            raise BadPair("it has no image's path")
        data, extension = read_image(Path(self.path).parent / str(file))
        return Pair(key, data, extension, meta_caption({"caption": caption}), {**values, "path": str(file)}), None

    def fingerprint(self) -> dict[str, Any]:
        """The columns and the table file's state."""
        if not Path(self.path).is_file():
            raise UserError(f"the table {self.path} does not exist; check path=")
        columns = {"image": self.image, "caption": self.caption, "key": self.key}
        return {"reader": self.name, "table": file_state(Path(self.path)), **columns}
