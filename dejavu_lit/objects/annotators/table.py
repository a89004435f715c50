"""Objects from a table: parquet, CSV or JSON with an image's key and labels, and optional scores and boxes."""

import logging
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import KeyIndex, as_list, as_text
from dejavu_lit.data.readers.rows import read_table, table_files
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.data.text_tables import read_delimited
from dejavu_lit.objects.base import Lookup
from dejavu_lit.utils.errors import UserError, explained, shown, suggest
from dejavu_lit.utils.io import file_sha256, fingerprint

SEPARATOR = ";"
NAMES = ("code", "name")  # the columns of ``names``
# ["dog", "cat"], [1, 18], [], ('dog', 'cat') or {'dog'}: one label to a reader of text
LIST_AS_TEXT = re.compile(r"""\s*(\[\s*['"\]\d-]|[({]\s*['"])""")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableLookup(Lookup):
    """Rows of a table: one per image with lists, or one per object; the rows of one key are joined."""

    path: Any
    """The table: .parquet, .arrow, .csv, .tsv, .jsonl or .json, with one row per image with lists, or one row per object; also
    several, a pattern, or a folder of the first two."""
    key: str = "key"
    """The column of keys."""
    labels_column: str = "labels"
    """The column of labels: lists, in CSV text with ``separator`` between the labels; nested in JSON and parquet
    objects.category, or objects.names.0 of lists."""
    scores_column: str | None = None
    """The column of scores in 0..1; null: all 1."""
    boxes_column: str | None = None
    """The column of boxes: x, y, width, height in pixels (in CSV four numbers separated by spaces); null: no boxes."""
    separator: str = SEPARATOR
    """Separates the labels, scores or boxes within a CSV cell."""
    field: str | None = None
    """The entry of a pair's JSON that the column of keys has, such as path or image_id; null: the pair's key."""
    names: str | Path | None = None
    """A CSV or TSV without header with a code and its name per line, as Open Images has it; null: labels are names."""

    @cached_property
    def annotator(self) -> Annotator:
        files = table_files(self.path, "annotator.path")
        for option, paths in (("path", files), ("names", as_list(self.names))):
            if missing := [path for path in paths if not path.is_file()]:
                raise UserError(f"{missing[0]} does not exist; check annotator.{option}=")
        options = (("separator", self.separator, SEPARATOR), ("field", self.field, None))
        config = {"columns": self._columns, **{name: value for name, value, usual in options if value != usual}}
        vocabulary = None if self.names is None else fingerprint(self._name_of)
        digests = list(map(file_sha256, files))
        weights = digests[0] if len(digests) == 1 else fingerprint(digests)
        return Annotator("table", "3", weights=weights, config=config, vocabulary=vocabulary)

    @property
    def _columns(self) -> list[str | None]:
        return [self.key, self.labels_column, self.scores_column, self.boxes_column]

    @cached_property
    def _name_of(self) -> dict[str, str]:
        """{code: name} in the file ``names``."""
        problem = f"annotator.names={self.names} is not a table of codes and names"
        remedy = "write a code and its name per line, without a header"
        with explained(problem, remedy, errors=(ValueError, pa.ArrowException)):
            table = read_delimited(Path(str(self.names)), NAMES, header=NAMES)
            return dict(zip(*(table[column].to_pylist() for column in NAMES), strict=True))

    def annotation(self, pair: Pair) -> Annotation:
        """The objects of all rows with the pair's key, or with its ``field``; raises BadPair if there are none."""
        index, _ = self._table
        key = pair.key if self.field is None else pair.meta.get(self.field)
        if key is None:
            raise BadPair(f"its JSON has no {self.field!r}")
        if not (rows := index.find(as_text(key))):
            example = f" (keys look like {index.keys[0]!r})" if index.keys else ""
            raise BadPair(f"the table has no row for this key{example}")
        found = [item for row in rows for item in self._objects(row)]
        return Annotation(
            pair.key, [item[0] for item in found], [item[1] for item in found], [item[2] for item in found]
        )

    def _objects(self, row: int) -> list[tuple[str, float, list[float]]]:
        """(label, score, box) of each object in one row of the table; objects without a label are skipped."""
        table = self._table[1]
        cells = [None if column is None else table[column][row].as_py() for column in self._columns[1:]]
        if cells[0] is None or not str(cells[0]).strip():
            return []
        if isinstance(cells[0], str) and LIST_AS_TEXT.match(cells[0]):
            raise ValueError(
                f"its {self.labels_column} are lists written as text, as pandas does in a CSV; join the labels by "
                f"{self.separator!r}, or write parquet or JSON"
            )
        if any(isinstance(label, dict | list) for label in self._items(cells[0])):
            raise ValueError(f"its {self.labels_column} hold more than names; write a list of names")
        labels = [as_text(label).strip() for label in self._items(cells[0])]
        scores = [1.0] * len(labels) if self.scores_column is None else self._items(cells[1])
        boxes = [[0.0] * 4] * len(labels) if self.boxes_column is None else self._boxes(cells[2])
        if not len(labels) == len(scores) == len(boxes):
            raise ValueError(f"its row has {len(labels)} labels, {len(scores)} scores and {len(boxes)} boxes")
        if self.names is not None:
            if unknown := [label for label in labels if label and label not in self._name_of]:
                raise UserError(f"annotator.names={self.names} has no name of {unknown[0]!r}; add a line for it")
            labels = [self._name_of.get(label, "") for label in labels]
        return [(n, float(s), _parse_box(b)) for n, s, b in zip(labels, scores, boxes, strict=True) if n]

    def _items(self, cell: Any) -> list[Any]:
        if isinstance(cell, str):
            items = [item.strip() for item in cell.split(self.separator)]
            while items and not items[-1]:  # an empty cell, or a trailing separator
                items.pop()
            return items
        return list(cell) if isinstance(cell, list) else [] if cell is None else [cell]

    def _boxes(self, cell: Any) -> list[Any]:
        is_single_box = isinstance(cell, list) and bool(cell) and not isinstance(cell[0], list | str)
        return [cell] if is_single_box else self._items(cell)

    @cached_property
    def _table(self) -> tuple[KeyIndex, pa.Table]:
        tables = map(self._read, table_files(self.path, "annotator.path"))
        # In few chunks: pyarrow goes through all of them for each cell.
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        self._warn_of_separator(table[self.labels_column])
        return KeyIndex(table[self.key].to_pylist()), table

    def _read(self, file: Path) -> pa.Table:
        """The columns that are needed of one file, its keys as text."""
        columns = list(dict.fromkeys(column for column in self._columns if column is not None))
        table = read_table(file, columns)
        for column in columns:
            if (count := table.column_names.count(column)) != 1:
                problem = f"{count} columns" if count else "no column"
                raise UserError(
                    f"{file} has {problem} {column!r}{suggest(column, table.column_names)}; it has "
                    f"{shown(table.column_names)}; choose by annotator.key, labels_column, scores_column, boxes_column"
                )
        if table[self.key].null_count:
            raise UserError(f"{file} has rows without a key; fix them, or choose another column by annotator.key=")
        with explained(f"{file} has keys that are not text", "choose another column by annotator.key="):
            keys = table[self.key]
            is_float = pa.types.is_floating(keys.type)
            keys = pa.array(map(as_text, keys.to_pylist()), pa.string()) if is_float else keys.cast(pa.string())
        table = table.select(columns)
        return table.set_column(columns.index(self.key), self.key, keys)

    def _warn_of_separator(self, labels: pa.ChunkedArray) -> None:
        """Warn if at least half of the labels seem to be several, joined otherwise."""
        if pa.types.is_string(labels.type):
            shares = {s: pc.mean(pc.match_substring(labels, s)).as_py() or 0 for s in (self.separator, ",", "|")}
            other = max(shares, key=shares.__getitem__)
            if not shares[self.separator] and shares[other] >= 0.5:
                logger.warning(
                    "%s: most %s contain %r and none %r, so each is one label; if they are lists, give annotator.separator=%r",
                    *(self.path, self.labels_column, other, self.separator, other),
                )


def _parse_box(value: Any) -> list[float]:
    return [float(side) for side in (value.split() if isinstance(value, str) else value)]
