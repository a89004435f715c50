"""CSV, TSV and JSON as tables: the delimiter found or given, and quotation marks that do not swallow rows.

A quoted value may contain delimiters and line breaks (RFC 4180). A quotation mark that opens a value and is never closed
would silently join rows, so such files are read without quoting if that gives every row its columns, and refused otherwise.
"""

import csv
import json
import logging
from collections.abc import Collection, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dejavu_lit.data.decode import json_safe
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import check_regular

BLOCK_BYTES = 16 << 20  # of a file read at once; no row may be longer
# By the file's extension, where the header decides nothing.
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".token": "\t", ".txt": ","}
CANDIDATES = (",", "\t", ";", "|")
LOOKED_AT = 20  # lines of a file without a header line, for its delimiter
PARQUET = (".parquet", ".pq")
JSON = (".json", ".jsonl", ".ndjson")
logger = logging.getLogger(__name__)


def read_json_table(path: Path, needed: Collection[str]) -> pa.Table:
    """A row per JSON object: one per line, or a list of them, which a ``.json`` may also have as an entry of an object.

    A needed column ``sentences.raw`` is made of the entries ``raw`` of the objects in ``sentences``, unless none of them has
    it; ``objects.names.0`` takes the first name of each object. Such a list of objects is then no column of its own. Columns
    with values of several types, which a table cannot have, become text. Python's own parser reads the file: Arrow's does not
    read dates as text, and crashes on a line that is null. Raises whatever the parsers raise, ValueError for other JSON, and
    ArrowException if one of the ``needed`` columns has lists or objects beside other values.
    """
    rows = _row_list(_read_json(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its lines, or the entries of its list, are not all JSON objects")
    names = dict.fromkeys(chain(*rows))
    columns, lists = {name: [row.get(name) for row in rows] for name in names}, set[str]()
    for name in needed:
        column, *entries = name.split(".")
        if entries and column in names and name not in names:
            cells = [entry_of(row, [column, *entries]) for row in rows]
            if not any(columns[column]) or not _is_empty(cells):
                columns[name] = cells
                lists.update([column] if any(isinstance(cell, list) for cell in columns[column]) else [])
    for name in lists.difference(needed):
        del columns[name]
    return pa.table({json_safe(name): _column(json_safe(cells), name in needed) for name, cells in columns.items()})


def _read_json(path: Path) -> Any:
    """The JSON in a file; the list of all if it has one per line, as some files named ``.json`` have, too."""
    with open(path, "rb") as file:
        if path.suffix.lower() == JSON[0]:
            try:
                return json.loads(file.read().decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                if not error.msg.startswith("Extra data"):
                    raise
                file.seek(0)
        rows = []
        for number, line in enumerate(file, start=1):
            if text := line.decode("utf-8-sig").strip():
                try:
                    rows.append(json.loads(text))
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number}: {error.msg}") from None
        return rows


def _row_list(content: Any) -> Any:
    """The only list of objects in an object, such as ``annotations`` beside ``info``; an object without one is a row itself.

    An empty list counts if no other is filled. Content that is no object stays as it is.
    """
    if not isinstance(content, dict):
        return content
    if content and all(isinstance(value, dict) for value in content.values()):
        raise ValueError("its entries are objects; write a list of rows, as pandas does with orient='records'")
    lists = {
        name: value
        for name, value in content.items()
        if isinstance(value, list) and all(isinstance(item, dict) for item in value[:1])
    }
    lists = {name: value for name, value in lists.items() if value} or lists
    if len(lists) > 1:
        raise ValueError(f"it has several lists of objects: {', '.join(lists)}; write one of them into a separate file")
    return next(iter(lists.values()), [content])


def entry_of(value: Any, names: Sequence[str]) -> Any:
    """The entry of nested objects that ``names`` lead to, None if there is none; of a list a number's item, or those of all."""
    if not names:
        return value
    if isinstance(value, list) and names[0].isdecimal():
        return entry_of(value[int(names[0])] if int(names[0]) < len(value) else None, names[1:])
    if isinstance(value, list):
        return [entry_of(item, names) for item in value]
    return entry_of(value.get(names[0]), names[1:]) if isinstance(value, dict) else None


def _is_empty(value: Any) -> bool:
    return all(map(_is_empty, value)) if isinstance(value, list) else value is None


def _column(cells: list[Any], is_needed: bool) -> pa.Array:
    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError):
        if is_needed and any(isinstance(cell, list | dict) for cell in cells):
            raise
        return pa.array([None if cell is None else str(cell) for cell in cells])


def read_delimited(
    path: Path, text_columns: Sequence[str], delimiter: str | None = None, header: Sequence[str] | None = None
) -> pa.Table:
    """The table in a CSV or TSV file, in UTF-8.

    Args:
        text_columns: the columns that the caller needs, which stay text: 000123 is not a number.
        delimiter: between the columns; None: the one with which the header has the most of ``text_columns``, or the first
            lines as many values as ``header``.
        header: the names of the columns of a file without a header line.

    Raises UserError if the file is a pipe or not in UTF-8, the delimiter is not one character or a quotation mark is not
    closed, and what pyarrow raises for a file that is not a table.
    """
    check_regular(path)
    limit = csv.field_size_limit(BLOCK_BYTES)  # also of the user's own program
    try:
        delimiter = (delimiter or find_delimiter(path, text_columns, header)).replace("\\t", "\t")
        if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n':
            raise UserError(
                f"delimiter={delimiter!r} must be one ASCII character between the columns, such as ',' or '\\t'"
            )
        problem = quoting_problem(path, delimiter)
    finally:
        csv.field_size_limit(limit)
    options = pyarrow.csv.ParseOptions(
        delimiter=delimiter, newlines_in_values=problem is None, quote_char=False if problem else '"'
    )
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, column_names=header),
            parse_options=options,
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(text_columns, pa.string()), strings_can_be_null=False
            ),
        )
        if "\0" in "".join(table.column_names):  # UTF-16; names in other encodings do not decode
            raise pa.ArrowInvalid("it has NUL bytes")
    except (pa.ArrowException, UnicodeDecodeError) as error:
        if not _is_utf8(path):
            raise UserError(
                f"{path} is not in UTF-8; convert it: iconv -f ENCODING -t UTF-8 (GB18030, UTF-16, LATIN1, …)"
            ) from None
        if problem is None:
            raise
        raise UserError(
            f"{path} has a quotation mark that does not close a value ({problem}), and without quoting its rows have "
            f"different numbers of columns ({first_line(error)}); "
            'write "" for a quotation mark within quotes, or give a delimiter or parquet'
        ) from None
    if problem is not None:
        logger.warning("%s is read without quoting: %s", path, problem)
    _warn_of_line_breaks(path, table)
    return table


def _is_utf8(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return all("\0" not in line for line in file)
    except UnicodeDecodeError:
        return False


def find_delimiter(path: Path, columns: Collection[str], header: Sequence[str] | None = None) -> str:
    """The delimiter with which the header has the most of ``columns``; of equal ones that of the file's extension.

    With ``header``, of a file without one, the first that gives each of the first rows as many values.
    """
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = list(islice(filter(str.strip, iter(partial(file.readline, 1 << 20), "")), LOOKED_AT if header else 1))
    usual = DELIMITERS.get(path.suffix.lower(), ",")
    candidates = [usual, *(delimiter for delimiter in CANDIDATES if delimiter != usual)]
    rows = {delimiter: list(csv.reader(lines, delimiter=delimiter)) for delimiter in candidates}
    if header:  # a caption may contain any of them, but hardly a tab
        end = -1 if len(lines) == LOOKED_AT else None  # the last row may have been cut
        sizes = {delimiter: set(map(len, found[:end])) for delimiter, found in rows.items()}
        return next((delimiter for delimiter in ("\t", *candidates) if sizes[delimiter] == {len(header)}), usual)
    return max(candidates, key=lambda delimiter: len(set(chain(*rows[delimiter])) & set(columns)))


def quoting_problem(path: Path, delimiter: str) -> str | None:
    """Where the file's quotation marks break RFC 4180: one never closed, or closed within a value. None: nowhere."""
    with open(path, "rb") as file:
        if not any(b'"' in block for block in iter(partial(file.read, BLOCK_BYTES), b"")):
            return None
    start = 1
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            for _ in rows:
                start = rows.line_num + 1
    except csv.Error as error:
        return f"the row that begins in line {start}: {first_line(error)}"
    return None


def _warn_of_line_breaks(path: Path, table: pa.Table) -> None:
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_string(column.type):
            continue
        broken = pc.match_substring(column, "\n")
        if count := pc.sum(broken).as_py():
            logger.warning(
                "%s: the column %s has values with line breaks: %d, the first in row %d; if these are several rows, a quotation "
                "mark before them is not closed",
                *(path, name, count, pc.index(broken, True).as_py() + 1),
            )
