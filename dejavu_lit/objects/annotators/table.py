"""Objects from a table: parquet, CSV or JSON with an image's key and labels, and optional scores and boxes."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dejavu_lit.data.objects import READ_ERRORS, Annotation, Annotator
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.data.text_tables import PARQUET, is_text_table, read_text_table
from dejavu_lit.objects.base import Lookup
from dejavu_lit.utils.errors import UserError, explained, first_line, suggest
from dejavu_lit.utils.io import file_sha256

SEPARATOR = ";"
LIST_AS_TEXT = re.compile(r"""\s*\[\s*['"\]]""")  # ["dog", "cat"], ['dog'] or []: one label to a reader of text


@dataclass(frozen=True)
class TableLookup(Lookup):
    """Rows of a table: one per image with lists, or one per object; the rows of one key are joined."""

    path: str | Path
    """The table: .parquet, .csv, .tsv, .jsonl or .json, with one row per image with lists, or one row per object."""
    key: str = "key"
    """The column of keys."""
    labels_column: str = "labels"
    """The column of labels: lists, or in CSV text with ``separator`` between the labels."""
    scores_column: str | None = None
    """The column of scores in 0..1; null: all 1."""
    boxes_column: str | None = None
    """The column of boxes: x, y, width, height in pixels (in CSV four numbers separated by spaces); null: no boxes."""
    separator: str = SEPARATOR
    """Separates the labels, scores or boxes within a CSV cell."""

    @property
    def annotator(self) -> Annotator:
        if not Path(self.path).is_file():
            raise UserError(f"the table {self.path} does not exist; check annotator.path=")
        columns = [self.key, self.labels_column, self.scores_column, self.boxes_column]
        config = {"columns": columns, **({"separator": self.separator} if self.separator != SEPARATOR else {})}
        return Annotator("table", "2", weights=file_sha256(self.path), config=config)

    def annotation(self, pair: Pair) -> Annotation:
        """The objects of all rows with the pair's key; raises BadPair if there are none."""
        keys, _ = self._sorted_table
        first, end = bisect_left(keys, pair.key), bisect_right(keys, pair.key)
        if first == end:
            raise BadPair(
                f"the table has no row for this key (keys look like {keys[0]!r})" if keys else "the table has no rows"
            )
        objects = [item for row in range(first, end) for item in self._objects(row)]
        return Annotation(
            pair.key, [label for label, _, _ in objects], [s for _, s, _ in objects], [b for *_, b in objects]
        )

    def _objects(self, row: int) -> list[tuple[str, float, list[float]]]:
        """(label, score, box) of each object in one row of the table; objects without a label are skipped."""
        columns = (self.labels_column, self.scores_column, self.boxes_column)
        cells = [None if column is None else self._sorted_table[1][column][row].as_py() for column in columns]
        if cells[0] is None or not str(cells[0]).strip():
            return []
        if isinstance(cells[0], str) and LIST_AS_TEXT.match(cells[0]):
            raise ValueError(
                f"its {self.labels_column} are lists written as text, as pandas does in a CSV; join the labels by "
                f"{self.separator!r}, or write parquet or JSON"
            )
        if any(isinstance(label, dict | list) for label in self._items(cells[0])):
            raise ValueError(f"its {self.labels_column} hold more than names; write a list of names")
        labels = ["" if label is None else str(label).strip() for label in self._items(cells[0])]
        scores = [1.0] * len(labels) if self.scores_column is None else self._items(cells[1])
        boxes = [[0.0] * 4] * len(labels) if self.boxes_column is None else self._boxes(cells[2])
        if not len(labels) == len(scores) == len(boxes):
            raise ValueError(f"its row has {len(labels)} labels, {len(scores)} scores and {len(boxes)} boxes")
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
    def _sorted_table(self) -> tuple[list[str], pa.Table]:
        """The sorted keys, and the table in their order."""
        path = Path(self.path)
        columns = [c for c in (self.key, self.labels_column, self.scores_column, self.boxes_column) if c is not None]
        try:
            table = _read_table(path, columns)
            table.validate(full=True)
        except (*READ_ERRORS, KeyError) as error:
            raise UserError(f"{path} cannot be read as a table ({first_line(error)}); check the file") from None
        for column in columns:
            if (count := table.column_names.count(column)) != 1:
                problem = f"{count} columns" if count else "no column"
                raise UserError(
                    f"{path} has {problem} {column!r}{suggest(column, table.column_names)}; it has "
                    f"{', '.join(table.column_names)}; choose by annotator.key, labels_column, scores_column, boxes_column"
                )
        if table[self.key].null_count:
            raise UserError(f"{path} has rows without a key; fix them, or choose another column by annotator.key=")
        with explained(f"{path} has keys that are not text", "choose another column by annotator.key="):
            keys = table[self.key].cast(pa.string())
        columns = list(dict.fromkeys(columns))  # one column may have several roles
        table = table.select(columns).set_column(columns.index(self.key), self.key, keys)
        table = table.sort_by(self.key) if table.num_rows else table
        return table[self.key].to_pylist(), table


def _parse_box(value: Any) -> list[float]:
    return [float(side) for side in (value.split() if isinstance(value, str) else value)]


def _read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    if path.suffix.lower() in PARQUET:
        return pq.read_table(path)
    if not is_text_table(path):
        raise UserError(f"{path} is not a known kind of table; give a .parquet, .csv, .tsv, .jsonl or .json file")
    return read_text_table(path, columns)
