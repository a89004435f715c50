"""Objects from a table: parquet, CSV or JSON lines with an image's key and labels, perhaps with scores and boxes."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from dejavu_lit.data.decode import plain
from dejavu_lit.data.objects import DAMAGE, Annotation, Annotator
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.base import Lookup
from dejavu_lit.utils.errors import UserError, first_line, suggest
from dejavu_lit.utils.io import file_sha256

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}


@dataclass(frozen=True)
class TableLookup(Lookup):
    """Rows of a table: one an image with lists, or one an object; the rows of one key are joined."""

    path: str | Path
    """The table: .parquet, .csv, .tsv or .jsonl."""
    key: str = "key"
    """The column of keys."""
    labels_column: str = "labels"
    """The column of labels: lists, or in CSV text with ``separator`` between them."""
    scores_column: str | None = None
    """The column of scores in 0..1; null: all 1."""
    boxes_column: str | None = None
    """The column of boxes, x, y, width, height in pixels (in CSV four numbers with spaces between them); null: none."""
    separator: str = ";"

    @property
    def annotator(self) -> Annotator:
        """The table's hash and columns."""
        if not Path(self.path).is_file():
            raise UserError(f"the table {self.path} does not exist; check annotator.path=")
        columns = [self.key, self.labels_column, self.scores_column, self.boxes_column]
        return Annotator("table", "2", weights=file_sha256(self.path), config={"columns": columns})

    @cached_property
    def _rows(self) -> tuple[list[str], pa.Table]:
        """The keys, sorted, and the table in their order."""
        path = Path(self.path)
        wanted = [c for c in (self.key, self.labels_column, self.scores_column, self.boxes_column) if c is not None]
        try:
            table = self._read(path, wanted)
            table.validate(full=True)
        except (*DAMAGE, KeyError) as error:
            raise UserError(f"{path} cannot be read as a table ({first_line(error)}); check the file") from None
        for column in wanted:
            if (times := table.column_names.count(column)) != 1:
                many = f"{times} columns" if times else "no column"
                raise UserError(
                    f"{path} has {many} {column!r}{suggest(column, table.column_names)}; it has "
                    f"{', '.join(table.column_names)}; choose by annotator.key, labels_column, scores_column, boxes_column"
                )
        if table[self.key].null_count:
            raise UserError(f"{path} has rows without a key; mend them, or choose another column by annotator.key=")
        wanted = list(dict.fromkeys(wanted))
        try:
            keys = table[self.key].cast(pa.string())
        except pa.ArrowException as error:
            raise UserError(
                f"{path} has keys that are no text ({first_line(error)}); choose another column by annotator.key="
            ) from None
        table = table.select(wanted).set_column(wanted.index(self.key), self.key, keys)
        table = table.sort_by(self.key) if table.num_rows else table
        return table[self.key].to_pylist(), table

    def _read(self, path: Path, wanted: Sequence[str]) -> pa.Table:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pq.read_table(path)
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return self._json(path, wanted)
        if path.suffix.lower() not in DELIMITERS:
            raise UserError(f"{path} is no table this annotator knows; give a .parquet, .csv, .tsv or .jsonl file")
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter=DELIMITERS[path.suffix.lower()], newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )

    def _json(self, path: Path, wanted: Sequence[str]) -> pa.Table:
        """JSON lines by Python's own parser: Arrow's takes dates for no text, and crashes on a line that is null."""
        columns: dict[str, list[Any]] = {column: [] for column in wanted}
        there: set[str] = set()
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = plain(json.loads(line.decode("utf-8-sig")))
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is no JSON object")
                there.update(row)
                for column, values in columns.items():
                    value = row.get(column)
                    values.append(str(value) if column == self.key and value is not None else value)
        count = len(next(iter(columns.values())))
        others = {
            column: pa.nulls(count) for column in sorted(there - set(wanted))
        }  # for messages that list the columns
        return pa.table({column: pa.array(values) for column, values in columns.items() if column in there} | others)

    def annotation(self, pair: Pair) -> Annotation:
        """The objects of all rows with the pair's key; raises BadPair where there is none."""
        keys, table = self._rows
        first, end = bisect_left(keys, pair.key), bisect_right(keys, pair.key)
        if first == end:
            raise BadPair(
                f"the table has no row with its key, but such as {keys[0]!r}" if keys else "the table has no rows"
            )
        columns = (self.labels_column, self.scores_column, self.boxes_column)
        labels: list[str] = []
        scores: list[float] = []
        boxes: list[list[float]] = []
        for row in range(first, end):
            try:
                values = [None if column is None else table[column][row].as_py() for column in columns]
            except (ValueError, OverflowError) as error:  # dates beyond those of Python
                raise UserError(f"the row of {pair.key} in {self.path} cannot be read ({error}); mend it") from None
            if values[0] is None or not str(values[0]).strip():
                continue
            names = ["" if label is None else str(label).strip() for label in self._items(values[0])]
            given = [1.0] * len(names) if values[1] is None else self._items(values[1])
            places = [[0.0] * 4] * len(names) if values[2] is None else self._boxes(values[2])
            if not len(names) == len(given) == len(places):
                raise UserError(
                    f"the row of {pair.key} in {self.path} has {len(names)} labels, {len(given)} scores and {len(places)} "
                    "boxes; give one of each an object, a box as x, y, width and height"
                )
            try:
                found = [(n, float(s), _box(b)) for n, s, b in zip(names, given, places, strict=True) if n]
            except (ValueError, TypeError, OverflowError) as error:
                raise UserError(
                    f"the row of {pair.key} in {self.path} holds no number where one should be ({error})"
                ) from None
            if any(len(box) != 4 for _, _, box in found):
                raise UserError(
                    f"the row of {pair.key} in {self.path} has a box of other than four numbers; give a box as x, y, width "
                    "and height"
                )
            labels += [name for name, _, _ in found]
            scores += [score for _, score, _ in found]
            boxes += [box for _, _, box in found]
        return Annotation(pair.key, labels, scores, boxes)

    def _items(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            items = [item.strip() for item in value.split(self.separator)]
            while items and not items[-1]:  # an empty cell, and a separator at the end
                items.pop()
            return items
        return list(value) if isinstance(value, list) else [] if value is None else [value]

    def _boxes(self, value: Any) -> list[Any]:
        one = isinstance(value, list) and bool(value) and not isinstance(value[0], list | str)
        return [value] if one else self._items(value)


def _box(value: Any) -> list[float]:
    return [float(side) for side in (value.split() if isinstance(value, str) else value)]
