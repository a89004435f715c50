"""Pairs from a table: CSV, TSV or parquet with a column of image paths and one of captions.

Rows of one image are one pair with several captions, as in Flickr8k's ``captions.txt``.
"""

import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dejavu_lit.data.decode import json_safe, meta_captions, with_captions
from dejavu_lit.data.delimited import is_delimited, read_delimited
from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import KeyIndex, below, clean_keys, common_folder, file_state, read_image
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.utils.errors import UserError, first_line, suggest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableReader:
    """The images of a table; further columns of an image's first row go into its pair's JSON."""

    name = "table"  # in fingerprints and messages
    path: str | Path
    """The table: .csv, .tsv, .txt or .parquet; all but parquet need a header line."""
    image: str = "path"
    """The column of image paths; relative ones are relative to the table."""
    caption: str | None = "caption"
    """The column of captions; in parquet also lists of captions. Without it, images alone, for a public set."""
    key: str | None = None
    """The column of keys; without it, a key is made from the image's path (if absolute, below the folder of all)."""
    delimiter: str | None = None
    """The character between columns of a CSV or TSV; without it, the one that fits the header."""

    @property
    def annotator(self) -> Annotator | None:
        """None: a table provides no objects."""
        return None

    @cached_property
    def _table(self) -> pa.Table:
        path = Path(self.path)
        if not path.is_file():
            raise UserError(f"the table {path} does not exist; check path=")
        try:
            table = self._read_table(path)
            table.validate(full=True)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a table ({first_line(error)}); check the file") from None
        for option in ("image", "caption", "key"):
            column = getattr(self, option)
            if column is not None and table.column_names.count(column) != 1:
                raise UserError(
                    f"{path} has no single column {column!r}{suggest(column, table.column_names)}; "
                    f"its columns are {', '.join(table.column_names)}; choose one with {option}="
                )
        if not table.num_rows:
            raise UserError(f"{path} has no rows; check path=")
        return table.select([c for c in dict.fromkeys(table.column_names) if table.column_names.count(c) == 1])

    def _read_table(self, path: Path) -> pa.Table:
        if path.suffix.lower() in (".parquet", ".pq"):
            binary = [
                f.name for f in pq.read_schema(path) if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)
            ]
            return pq.read_table(path, columns=[c for c in pq.read_schema(path).names if c not in binary])
        if not is_delimited(path):
            raise UserError(f"{path} is not a known kind of table; give a .csv, .tsv or .parquet file")
        columns = [column for column in (self.image, self.caption, self.key) if column is not None]
        return read_delimited(path, columns, self.delimiter)

    def _texts(self, name: str) -> list[str]:
        """The values of a column as text, "" for null."""
        try:
            return [str("" if value is None else value) for value in self._table[name].to_pylist()]
        except (ValueError, OverflowError) as error:  # dates outside Python's range
            raise UserError(
                f"the column {name!r} of {self.path} has values that are not text ({error}); choose another column"
            ) from None

    @cached_property
    def root(self) -> str:
        """The folder that all absolute paths of images have in common; "" if there are none. Keys are made below it."""
        return common_folder(self._texts(self.image))

    @cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows of each of n images: int64 [rows], by image in the order of first rows, and int64 [n + 1], their starts.

        A row without an image path is an image of its own.
        """
        folder, numbers = os.path.abspath(Path(self.path).parent), dict[str | int, int]()
        codes = np.array(
            [
                numbers.setdefault(os.path.normpath(os.path.join(folder, file)) if file else row, len(numbers))
                for row, file in enumerate(self._texts(self.image))
            ],
            dtype=np.int64,
        )
        if len(numbers) < len(codes):
            logger.info(
                "%s has %d rows of %d images; the rows of one image are one pair with several captions, and its other "
                "columns are those of the first row",
                *(self.path, len(codes), len(numbers)),
            )
        order = np.argsort(codes, kind="stable")
        return order, np.searchsorted(codes[order], np.arange(len(numbers) + 1))

    @cached_property
    def _index(self) -> KeyIndex:
        rows, starts = self._images
        first_rows = rows[starts[:-1]].tolist()
        values = self._texts(self.key or self.image)
        if self.key is None:
            files = [below(self.root, values[row]) for row in first_rows]
            return KeyIndex(clean_keys([os.path.splitext(file)[0] for file in files]))
        if "" in values:
            raise UserError(
                f"row {values.index('') + 1} of {self.path} has no key; add one or choose another column with key="
            )
        values = [values[row] for row in first_rows]
        if len(set(values)) < len(values):
            counts = pc.value_counts(pa.array(values)).to_pylist()
            value = max(counts, key=lambda item: item["counts"])["values"]
            raise UserError(
                f"the key {value!r} is in rows of several images in {self.path}; choose a column of unique keys with key="
            )
        return KeyIndex(clean_keys(values))

    def keys(self) -> list[str]:
        """The keys of all images, sorted."""
        return self._index.keys

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair; raises BadPair for a missing image or caption."""
        order, starts = self._images
        number = self._index.row(key)
        rows = order[starts[number] : starts[number + 1]].tolist()
        try:
            values = {name: json_safe(self._table[name][rows[0]].as_py()) for name in self._table.column_names}
            cells = [json_safe(self._table[self.caption][row].as_py()) for row in rows] if self.caption else []
        except (ValueError, OverflowError, RecursionError):  # dates outside Python's range, nested too deeply
            raise BadPair("its row has values that JSON cannot hold") from None
        file = values.pop(self.image)
        values.pop(self.caption or "", None)
        if file is None or file == "":
            raise BadPair("it has no image path")
        data, extension = read_image(Path(self.path).parent / str(file))
        captions = list(dict.fromkeys(text for cell in cells for text in meta_captions({"caption": cell})))
        meta = with_captions({**values, "path": str(file)}, captions)
        return Pair(key, data, extension, next(iter(captions), ""), meta), None

    def fingerprint(self) -> dict[str, Any]:
        """The columns and the state of the table's file."""
        if not Path(self.path).is_file():
            raise UserError(f"the table {self.path} does not exist; check path=")
        columns = {"image": self.image, "caption": self.caption, "key": self.key}
        if self.delimiter is not None:
            columns["delimiter"] = self.delimiter
        return {"reader": self.name, "table": file_state(Path(self.path)), **columns}
