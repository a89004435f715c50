"""The columns of a table: which hold images, captions and keys, by the names that options give or by the usual ones."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from dejavu_lit.data.readers.rows import Rows
from dejavu_lit.utils.errors import UserError, suggest

AUTO = "auto"
# The names by which columns are guessed, the most telling first.
IMAGE = ("image", "img", "jpg", "png", "webp", "image_bytes", "bytes", "path", "image_path", "file_name", "filename")
CAPTION = ("caption", "captions", "text", "txt", "sentences", "description", "prompt", "title")
USUAL = {"image": IMAGE, "caption": CAPTION, "key": ("key", "__key__", "image_id", "id", "uid")}
logger = logging.getLogger(__name__)
Names = str | Iterable[str] | None


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a table."""

    image: str
    captions: list[str]
    key: str | None

    @classmethod
    def find(cls, rows: Rows, path: object, image: str, caption: Names, key: str | None) -> "Columns":
        """The columns that the options name, with ``auto`` for a guess, which is logged.

        Raises:
            UserError: there is no such column; it lists the columns of the table at ``path``.
        """
        options = _options(image, caption, key)
        columns = {option: [_column(rows, path, option, name) for name in names] for option, names in options.items()}
        guesses = [f"{option}={columns[option][0] or 'null'}" for option, names in options.items() if names == [AUTO]]
        if guesses:
            logger.info("%s: the columns are guessed by their names: %s", path, ", ".join(guesses))
        names = {option: [name for name in usable if name is not None] for option, usable in columns.items()}
        return cls(names["image"][0], names["caption"], next(iter(names["key"]), None))


def _column(rows: Rows, path: object, option: str, name: str) -> str | None:
    """The column ``name``, or the usual one; None if no usual one has distinct keys."""
    names = rows.schema.names
    if names.count(name) == 1:
        return name
    missing = f"no single column {name!r}{suggest(name, names)}"
    if name == AUTO:
        usual = [column for column in USUAL[option] if names.count(column) == 1]
        if option == "key":
            return next((column for column in usual if _is_distinct(rows, column)), None)
        if usual:
            return usual[0]
        missing = f"no column with a usual name ({', '.join(USUAL[option])})"
    raise UserError(f"{path} has {missing}; its columns are {', '.join(names)}; choose one with data.reader.{option}=")


def _is_distinct(rows: Rows, column: str) -> bool:
    values = set(rows.texts(column))
    return len(values) == len(rows) and "" not in values


def possible_columns(image: str, caption: Names, key: str | None) -> list[str]:
    """The names of all columns that ``Columns.find`` may choose by these options."""
    options = _options(image, caption, key)
    return [
        known for option, names in options.items() for n in names for known in (USUAL[option] if n == AUTO else [n])
    ]


def _options(image: str, caption: Names, key: str | None) -> dict[str, list[str]]:
    return {"image": [image], "caption": _as_list(caption), "key": _as_list(key)}


def _as_list(names: Names) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)
