"""Which columns of a table hold the images, the captions and the keys: as asked for, or guessed by their usual names."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from dejavu_lit.data.readers.rows import Rows
from dejavu_lit.utils.errors import UserError, suggest

logger = logging.getLogger(__name__)

AUTO = "auto"
USUAL = {  # the names by which columns are guessed, the most telling first
    "image": (
        "image",
        "img",
        "jpg",
        "png",
        "webp",
        "image_bytes",
        "bytes",
        "path",
        "image_path",
        "file_name",
        "filename",
    ),
    "caption": ("caption", "captions", "text", "txt", "sentences", "description", "prompt", "title"),
    "key": ("key", "__key__", "image_id", "id", "uid"),
}


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a table."""

    image: str
    captions: list[str]
    key: str | None

    @classmethod
    def find(
        cls, rows: Rows, path: object, image: str, caption: str | Iterable[str] | None, key: str | None
    ) -> "Columns":
        """The columns that the options name, with ``auto`` for a guess, which is logged.

        Raises:
            UserError: there is no such column; it lists the columns of the table at ``path``.
        """
        asked = {"image": [image], "caption": as_names(caption), "key": as_names(key)}
        found = {option: [_column(rows, path, option, name) for name in names] for option, names in asked.items()}
        guesses = [f"{option}={found[option][0] or 'null'}" for option, names in asked.items() if names == [AUTO]]
        if guesses:
            logger.info("%s: the columns are guessed by their names: %s", path, ", ".join(guesses))
        names = {option: [name for name in columns if name is not None] for option, columns in found.items()}
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
    raise UserError(f"{path} has {missing}; its columns are {', '.join(names)}; choose one with {option}=")


def _is_distinct(rows: Rows, column: str) -> bool:
    values = set(rows.texts(column))
    return len(values) == len(rows) and "" not in values


def as_names(names: str | Iterable[str] | None) -> list[str]:
    """One name or several, as a list; None gives []."""
    return [] if names is None else [names] if isinstance(names, str) else list(names)
