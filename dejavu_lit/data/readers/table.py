"""Pairs from a table: CSV, TSV, JSON, parquet or Arrow, with a column of images or their paths and columns of captions.

Rows of one image path are one pair with several captions, as in Flickr8k's ``captions.txt``. Rows with the image's bytes,
as in the Hub's parquet files, are one pair if they have one path, or one given key, and the same bytes.
"""

import hashlib
import json
import logging
import os
import re
from ast import literal_eval
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dejavu_lit.data.decode import BadPair, Pair, json_safe, meta_captions, read_caption, with_captions
from dejavu_lit.data.objects import Annotation
from dejavu_lit.data.readers.base import KeyIndex, as_text, below, clean_keys, file_state, image_extension, read_image
from dejavu_lit.data.readers.columns import AUTO, Columns, Options, find_columns, possible_columns
from dejavu_lit.data.readers.rows import Rows, absolute, has_path, is_embedded, open_rows, table_files
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint
from dejavu_lit.utils.progress import progress

CAPTION_NUMBER = re.compile(r"(\.(?:jpe?g|png|webp))#\d+$", re.IGNORECASE)  # of Flickr30k's ``.token``: 1.jpg#0
LITERAL = re.compile(r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\"""")
# Of texts as JSON, Python (pandas) and, without commas, NumPy (pandas and datasets) write it. Possessive: without a way back,
# a megabyte of text takes no 130 of memory.
LIST = re.compile(rf"\[\s*(?:{LITERAL.pattern})(?:(?:\s*,\s*|\s+)(?:{LITERAL.pattern}))*+\s*\]")
LOOKED_AT = 20  # images of which one should exist
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableReader:
    """The images of a table; further columns of an image's first row go into its pair's JSON."""

    name = "table"  # in fingerprints and messages
    annotator = None  # a table provides no objects
    path: Any
    """The table: .csv, .tsv, .txt, .jsonl, .json, .parquet or .arrow; also several, a pattern, or a folder of the last two."""
    image: str = "path"
    """The column of images: paths relative to the table, bytes, or {bytes, path}; or a pattern of paths with columns in
    braces, such as {folder}/{image_id:012}.jpg; auto: guessed by its name."""
    caption: Any = "caption"
    """The column or columns of captions, texts or lists of them, or entries of one (sentences.raw); auto: guessed.
    Without it, images alone, for a public set."""
    key: str | None = None
    """The column of keys; without it, a key is made from the image's path (if absolute, below the folder of all), or the
    row's number; auto: guessed."""
    delimiter: str | None = None
    """The character between columns of a CSV or TSV; without it, the one that fits the header."""
    header: list[str] | None = None
    """The names of the columns of a CSV or TSV without a header line."""
    images: str | Path | None = None
    """The folder to which paths of images are relative; without it, the table's."""

    def __post_init__(self) -> None:
        if self.images is not None and not os.path.isdir(self.images):
            raise UserError(f"the folder of images {self.images} does not exist; check data.reader.images=")

    @cached_property
    def _files(self) -> list[Path]:
        files = table_files(self.path)
        if missing := [file for file in files if not os.path.isfile(file)]:
            kinds = "is neither a table nor a folder of .parquet or .arrow files"
            problem = kinds if os.path.exists(missing[0]) else "does not exist"
            raise UserError(f"{missing[0]} {problem}; check data.reader.path=")
        return files

    @cached_property
    def _rows(self) -> Rows:
        return open_rows(self._files, possible_columns(self._options), self.delimiter, self.header)

    @property
    def _options(self) -> Options:
        captions = [] if self.caption is None else [self.caption] if isinstance(self.caption, str) else self.caption
        return {"image": [self.image], "caption": list(captions), "key": [] if self.key is None else [self.key]}

    @cached_property
    def _columns(self) -> Columns:
        columns = find_columns(self._rows, self.path, self._options)
        kind = self._rows.kind(columns.image)
        if pa.types.is_nested(kind) and not pa.types.is_struct(kind):
            raise UserError(
                f"the column {columns.image!r} of {self.path} has lists of images; write one image per row, or choose another "
                "column with data.reader.image="
            )
        return columns

    @cached_property
    def _embedded(self) -> bool:
        return is_embedded(self._rows.kind(self._columns.image))

    @cached_property
    def _paths(self) -> list[str]:
        """The path of each row's image, "" if it has none."""
        if self._embedded and not has_path(self._rows.kind(self._columns.image)):
            return [""] * len(self._rows)
        return [CAPTION_NUMBER.sub(r"\1", path) for path in self._rows.texts(self._columns.image)]

    @cached_property
    def key_root(self) -> str:
        """The folder that all absolute paths of images have in common; "" if there are none. Keys are made below it."""
        folders = {os.path.dirname(os.path.normpath(path)) for path in self._paths if os.path.isabs(path)}
        return os.path.commonpath(folders) if folders else ""

    def listed_name(self, line: str) -> str:
        """A path in a list of keys as keys are made from it."""
        return below(self.key_root, line)

    def _folder(self, row: int) -> Path:
        return self._rows.folder(row) if self.images is None else Path(self.images)

    def _names(self) -> list[str]:
        """What may join each row with others: the image's path, or of images in the table a key that repeats; "" does not."""
        if not self._embedded:
            paths = progress(self._paths, "grouping rows by image", unit="row")
            return [path and absolute(self._folder(row), path) for row, path in enumerate(paths)]
        keys = list(self._rows.texts(self._columns.key)) if self._columns.key else []
        return keys if len(set(keys)) < len(keys) else self._paths

    def _digest(self, row: int) -> bytes:
        """A digest of the image in a row, or of its path if the bytes are elsewhere; b"" if all paths are names."""
        if not self._embedded:
            return b""
        data, path = _held(self._rows.row(row, [self._columns.image])[self._columns.image])
        if not isinstance(data, bytes):
            data = os.fsencode(absolute(self._folder(row), path))
        return hashlib.blake2b(data, digest_size=16).digest()

    @cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows of each of n images: int64 [rows], by image in the order of first rows, and int64 [n + 1], their starts.

        A row that shares its name with no other is an image of its own.
        """
        names = self._names()
        counts = Counter(names)
        numbers = dict[tuple[str, bytes] | int, int]()
        identities = (
            (name, self._digest(row)) if name and counts[name] > 1 else row
            for row, name in enumerate(progress(names, "comparing rows", unit="row"))
        )
        codes = np.array([numbers.setdefault(found, len(numbers)) for found in identities], dtype=np.int64)
        if len(numbers) < len(codes):
            logger.info(
                "%s has %d rows of %d images; the rows of one image become one pair with several captions, and its other "
                "columns are taken from the first row",
                *(self.path, len(codes), len(numbers)),
            )
        order = np.argsort(codes, kind="stable")
        return order, np.searchsorted(codes[order], np.arange(len(numbers) + 1))

    @cached_property
    def _index(self) -> KeyIndex:
        """The images' keys; warns if none of the first images exists."""
        if not self._embedded:
            paths = [(row, path) for row, path in enumerate(self._paths[:LOOKED_AT]) if path]
            if paths and all("://" in path for _, path in paths):
                raise UserError(
                    f"the images of {self.path} are addresses ({paths[0][1][:200]}); download them first, e.g. by img2dataset"
                )
            files = [absolute(self._folder(row), path) for row, path in paths]
            if files and not any(map(os.path.exists, files)):
                logger.warning(
                    "%s: none of the first images exists: %s; check data.reader.image=, and data.reader.images= for the folder",
                    *(self.path, files[0][:200]),
                )
        rows, starts = self._images
        first_rows = rows[starts[:-1]].tolist()
        key = self._columns.key
        if key is None:
            files = [below(self.key_root, self._paths[row]) for row in first_rows]
            names = zip(first_rows, (os.path.splitext(file)[0] for file in files), strict=True)
            return KeyIndex(clean_keys([f"{row:09d}" if self._embedded and not name else name for row, name in names]))
        values = list(self._rows.texts(key))
        if "" in values:
            raise UserError(
                f"row {values.index('') + 1} of {self.path} has no key; add one or choose another column with "
                "data.reader.key="
            )
        values = [values[row] for row in first_rows]
        if len(set(values)) < len(values):
            value = Counter(values).most_common(1)[0][0]
            raise UserError(
                f"the key {value!r} is in rows of several images in {self.path}; choose a column of unique keys with "
                "data.reader.key="
            )
        return KeyIndex(clean_keys(values))

    def keys(self) -> list[str]:
        _ = self._kept  # which logs; the processes that read need not log again
        return self._index.keys

    @cached_property
    def _kept(self) -> list[str]:
        """The columns that go into the pairs' JSON: all but images, captions and what JSON cannot hold."""
        image, captions = self._columns.image, self._columns.captions
        # An object with a caption keeps its other entries; a list of them, as in JSON, is no column of its own.
        used = {name for name in map(self._rows.column_of, captions) if not pa.types.is_struct(self._rows.kind(name))}
        used |= {name for name in (c.partition(".")[0] for c in captions) if pa.types.is_list(self._rows.kind(name))}
        others = [name for name in self._rows.columns if name != image and name not in used]
        if repeated := sorted(set(self._rows.schema.names) - set(self._rows.columns)):
            logger.warning("%s: the columns %s are not kept: their names occur twice", self.path, ", ".join(repeated))
        if binary := [name for name in others if is_embedded(self._rows.kind(name))]:
            logger.info("%s: the binary columns %s are not kept", self.path, ", ".join(binary))
        return [name for name in others if name not in binary]

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair; raises BadPair for a missing image or caption, or bytes that are not an image."""
        order, starts = self._images
        number = self._index.row(key)
        first, *others = order[starts[number] : starts[number + 1]].tolist()
        image, captions = self._columns.image, self._columns.captions
        try:
            values = self._rows.row(first, [*([image] if self._embedded else []), *captions, *self._kept])
            cells = [values[name] for name in captions]
            cells += [cell for row in others for cell in self._rows.row(row, captions).values()]
            meta = {name: json_safe(values[name]) for name in self._kept}
            cells = [json_safe(_decoded(cell)) for cell in cells]
        except (ValueError, OverflowError, RecursionError):  # dates outside Python's range, nested too deeply
            raise BadPair("its row has values that JSON cannot hold") from None
        data, extension, file = self._image(first, values.get(image))
        texts = list(dict.fromkeys(text for cell in cells for text in meta_captions({"caption": cell})))
        if file:
            meta.setdefault("path", file)  # a column of that name is the user's own
        return Pair(key, data, extension, next(iter(texts), ""), with_captions(meta, texts)), None

    def _image(self, row: int, value: Any) -> tuple[bytes, str, str]:
        """The bytes of a row's image, their extension, and the image's path below ``key_root``, "" if it has none."""
        data, path = _held(value) if self._embedded else (None, self._paths[row])
        shown = str(json_safe(below(self.key_root, path)))
        if isinstance(data, bytes):
            return data, image_extension(data), shown
        if not path:
            raise BadPair("it has no image" if self._embedded else "it has no image path")
        return *read_image(self._folder(row) / path), shown

    def fingerprint(self) -> dict[str, Any]:
        states = [file_state(file) for file in self._files]
        caption = self.caption if isinstance(self.caption, str | None) else list(self.caption)
        images = None if self.images is None else str(Path(self.images).resolve())
        given = {"delimiter": self.delimiter, "header": self.header, "images": images}
        columns = {"image": self.image, "caption": caption, "key": self.key}
        columns |= {option: value for option, value in given.items() if value is not None}
        table: Any = states[0] if len(states) == 1 else {"files": len(states), "states": fingerprint(states)}
        return {"reader": self.name, "table": table, **columns}


def _decoded(caption: Any) -> Any:
    """A caption or a list of them, which a CSV holds as text of JSON or Python; raises BadPair for bytes that are not UTF-8."""
    if isinstance(caption, list):
        return [_decoded(text) for text in caption]
    if isinstance(caption, bytes):
        caption = read_caption(caption)
    if isinstance(caption, str) and LIST.fullmatch(caption):
        with suppress(ValueError):
            return json.loads(caption)
        with suppress(ValueError, SyntaxError):
            return [literal_eval(text) for text in LITERAL.findall(caption)]
    return caption


def _held(value: Any) -> tuple[Any, str]:
    """The bytes and the path of the image in a cell: None and "" where it has none."""
    held = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
    return held.get("bytes"), as_text(held.get("path"))


@dataclass(frozen=True)
class ParquetReader(TableReader):
    """A table as the Hugging Face Hub has it, whose columns are guessed by their usual names."""

    name = "parquet"
    image: str = AUTO
    caption: Any = AUTO
    key: str | None = AUTO
