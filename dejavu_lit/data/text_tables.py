"""CSV, TSV and JSON as tables: the delimiter found or given, and quotation marks that do not swallow rows.

A quoted value may contain delimiters and line breaks (RFC 4180). A quotation mark that opens a value and is never closed
would silently join rows, so such files are read without quoting if that gives every row its columns, and refused otherwise.
"""

import csv
import json
import logging
from collections.abc import Collection, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dejavu_lit.data.decode import json_safe
from dejavu_lit.utils.errors import UserError, first_line

BLOCK_BYTES = 16 << 20  # of a file read at once; no row may be longer
# By the file's extension, where the header decides nothing.
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": ","}
CANDIDATES = (",", "\t", ";", "|")
PARQUET = (".parquet", ".pq")
JSON_LINES, JSON = (".jsonl", ".ndjson"), ".json"
logger = logging.getLogger(__name__)


def is_text_table(path: Path) -> bool:
    """Whether the file's name says that it is a CSV, a TSV or JSON."""
    return path.suffix.lower() in (*DELIMITERS, *JSON_LINES, JSON)


def read_text_table(path: Path, text_columns: Sequence[str], delimiter: str | None = None) -> pa.Table:
    """The table in a CSV or TSV file, as ``read_delimited`` reads it, or in JSON; raises as that and ``read_json_table`` do."""
    if path.suffix.lower() in (*JSON_LINES, JSON):
        return read_json_table(path, text_columns)
    return read_delimited(path, text_columns, delimiter)


def read_json_table(path: Path, needed: Collection[str]) -> pa.Table:
    """A row per JSON object: one per line, or a list of them in a ``.json``.

    Columns with values of several types, which a table cannot have, become text. Python's own parser reads the file: Arrow's
    does not read dates as text, and crashes on a line that is null. Raises whatever the parsers raise, ValueError for other
    JSON, and ArrowException if one of the ``needed`` columns has lists or objects beside other values.
    """
    with open(path, "rb") as file:
        if path.suffix.lower() == JSON:
            rows = json.loads(file.read().decode("utf-8-sig"))
        else:
            rows = [json.loads(line.decode("utf-8-sig")) for line in file if line.strip()]
    rows = json_safe(rows)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its lines, or the entries of its list, are not all JSON objects")
    names = dict.fromkeys(chain(*rows))
    return pa.table({name: _column([row.get(name) for row in rows], name in needed) for name in names})


def _column(cells: list[Any], is_needed: bool) -> pa.Array:
    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError):
        if is_needed and any(isinstance(cell, list | dict) for cell in cells):
            raise
        return pa.array([None if cell is None else str(cell) for cell in cells])


def read_delimited(path: Path, text_columns: Sequence[str], delimiter: str | None = None) -> pa.Table:
    """The table in a CSV or TSV file with a header line, in UTF-8.

    Args:
        text_columns: the columns that the caller needs, which stay text: 000123 is not a number.
        delimiter: between the columns; None: the one with which the header has the most of ``text_columns``.

    Raises UserError if the delimiter is not one character or a quotation mark is not closed, and what pyarrow raises
    for a file that is not a table.
    """
    delimiter = (delimiter or find_delimiter(path, text_columns)).replace("\\t", "\t")
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n':
        raise UserError(
            f"delimiter={delimiter!r} must be one ASCII character between the columns, such as ',' or '\\t'"
        )
    problem = quoting_problem(path, delimiter)
    options = pyarrow.csv.ParseOptions(
        delimiter=delimiter, newlines_in_values=problem is None, quote_char=False if problem else '"'
    )
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
            parse_options=options,
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(text_columns, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException as error:
        if problem is None:
            raise
        raise UserError(
            f"{path} has a quotation mark that does not close a value ({problem}), and without quoting its rows differ in "
            f'their columns ({first_line(error)}); write "" for a quotation mark within quotes, or give parquet'
        ) from None
    if problem is not None:
        logger.warning("%s is read without quoting: %s", path, problem)
    _warn_of_line_breaks(path, table)
    return table


def find_delimiter(path: Path, columns: Collection[str]) -> str:
    """The delimiter with which the header has the most of ``columns``; of equal ones that of the file's extension."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        header = file.readline(1 << 20)
    usual = DELIMITERS[path.suffix.lower()]
    candidates = [usual, *(delimiter for delimiter in CANDIDATES if delimiter != usual)]
    return max(candidates, key=lambda d: len(set(next(csv.reader([header], delimiter=d), [])) & set(columns)))


def quoting_problem(path: Path, delimiter: str) -> str | None:
    """Where the file's quotation marks break RFC 4180: one never closed, or closed within a value. None: nowhere."""
    with open(path, "rb") as file:
        if not any(b'"' in block for block in iter(partial(file.read, BLOCK_BYTES), b"")):
            return None
    previous, start = csv.field_size_limit(BLOCK_BYTES), 1
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            for _ in rows:
                start = rows.line_num + 1
    except csv.Error as error:
        return f"the row that begins in line {start}: {first_line(error)}"
    finally:
        csv.field_size_limit(previous)
    return None


def _warn_of_line_breaks(path: Path, table: pa.Table) -> None:
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_string(column.type):
            continue
        broken = pc.match_substring(column, "\n")
        if count := pc.sum(broken).as_py():
            logger.warning(
                "%s: %d values of the column %s contain line breaks, the first in row %d; if these are rows of their own, "
                "a quotation mark before them is not closed",
                *(path, count, name, pc.index(broken, True).as_py() + 1),
            )
