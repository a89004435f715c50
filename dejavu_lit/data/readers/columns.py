"""The columns of a table: which hold images, captions and keys, by the names that options give or by the usual ones."""

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from dejavu_lit.data.readers.rows import PLACE, Rows, pattern_columns
from dejavu_lit.data.text_tables import DELIMITERS
from dejavu_lit.utils.errors import UserError, shown, suggest

AUTO = "auto"
# The names by which columns are guessed, the most telling first.
IMAGE = (
    *("image", "img", "jpg", "png", "webp", "image_bytes", "bytes"),
    *("path", "image_path", "file_name", "filename", "filepath"),
)
CAPTION = ("caption", "captions", "text", "txt", "sentences.raw", "sentences", "description", "prompt", "title")
USUAL = {"image": IMAGE, "caption": CAPTION, "key": ("key", "__key__", "image_id", "id", "uid")}
logger = logging.getLogger(__name__)
Options = Mapping[str, Sequence[str]]  # {"image", "caption" or "key": names of columns, or AUTO}


class Columns(NamedTuple):
    """The names of the columns of a table."""

    image: str  # or a pattern of columns
    captions: list[str]
    key: str | None


def find_columns(rows: Rows, path: object, options: Options) -> Columns:
    """The columns that the options name, with ``auto`` for a guess, which is logged; raises UserError for a missing one."""
    columns = {option: [_column(rows, path, option, name) for name in names] for option, names in options.items()}
    guesses = [f"{option}={columns[option][0] or 'null'}" for option, names in options.items() if names == [AUTO]]
    if guesses:
        logger.info("%s: the columns are guessed by their names: %s", path, ", ".join(guesses))
    return Columns(columns["image"][0], columns["caption"], next(iter(columns["key"]), "") or None)


def _column(rows: Rows, path: object, option: str, name: str) -> str:
    """The column ``name``, or the usual one; "" if no usual one has distinct keys."""
    names = rows.schema.names
    if names.count(name) == 1 or (option == "caption" and rows.column_of(name)):
        return name
    if option == "image" and set("{}") & set(PLACE.sub("", name)):
        raise UserError(
            f"data.reader.image={name} has braces that do not name a column; write {{id}}, {{id[:2]}} for its first characters, "
            "or {id:012} to pad it with zeros"
        )
    if option == "image" and (parts := pattern_columns(name)):
        for part in parts:
            _column(rows, path, option, part)
        return name
    missing = f"several columns {name!r}" if name in names else f"no single column {name!r}{suggest(name, names)}"
    if name == AUTO:
        usual = [column for column in USUAL[option] if rows.column_of(column)]
        if option == "key":
            return next((column for column in usual if _is_distinct(rows, column)), "")
        if usual:
            return usual[0]
        missing = f"no column with a usual name ({', '.join(USUAL[option])})"
    remedy = f"choose one with data.reader.{option}="
    if option == "caption":
        remedy += ", or null for images alone"
    if Path(str(path)).suffix.lower() in DELIMITERS and not suggest(name, names):
        remedy += ", or name the columns of a file without a header line with data.reader.header="
    raise UserError(f"{path} has {missing}; its columns are {shown(names)}; {remedy}")


def _is_distinct(rows: Rows, column: str) -> bool:
    values = set(rows.texts(column))
    return len(values) == len(rows) and "" not in values


def possible_columns(options: Options) -> list[str]:
    """The names of all columns that ``find_columns`` may choose by these options."""
    names = ((option, name) for option, listed in options.items() for name in listed)
    known = (USUAL[option] if name == AUTO else (name, *pattern_columns(name)) for option, name in names)
    return list(chain.from_iterable(known))
