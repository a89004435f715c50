"""Pairs from a folder, searched recursively: each image has its captions in a ``.txt`` file of the same name.

Every line of the ``.txt`` is one caption. Without a ``.txt``, they are ``caption`` or ``captions`` of the ``.json``.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dejavu_lit.data.decode import (
    MAX_JSON_BYTES,
    BadPair,
    Pair,
    caption_lines,
    clean_caption,
    is_list_as_text,
    json_safe,
    meta_captions,
    read_caption,
    read_meta,
    with_captions,
)
from dejavu_lit.data.objects import Annotation
from dejavu_lit.data.readers.base import KeyIndex, as_list, clean_keys, read_file, read_image
from dejavu_lit.data.shard_index import IMAGE_EXTENSIONS
from dejavu_lit.utils.errors import UserError, check_choice
from dejavu_lit.utils.io import fingerprint, warn_unread
from dejavu_lit.utils.progress import progress


@dataclass(frozen=True)
class FolderReader:
    """Images (JPEG, PNG, WebP) below ``path``; a key is the image's path below it, cleaned, without the extension."""

    name = "folder"  # in fingerprints and messages
    annotator = None  # a folder provides no objects
    path: str | Path
    """The folder; its subfolders are read too."""
    caption: str = "txt"
    """txt: the file beside the image, one caption per line; folder: its folder's name, as in ImageNet; none, for a public set."""

    def __post_init__(self) -> None:
        check_choice("data.reader.caption", self.caption, ("txt", "folder", "none"))

    @property
    def _files(self) -> list[str]:
        return self._found[0]

    @property
    def unread(self) -> dict[str, int]:
        """{extension, or "hidden": number of files} of those that belong to no pair; a hidden folder counts as one."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[list[str], dict[str, int]]:
        """The images' paths below ``path``, sorted, and what ``unread`` says."""
        root = as_list(self.path, "data.reader.path")[0]
        if not root.is_dir():
            problem = "is not a folder; unpack an archive first" if root.exists() else "does not exist"
            raise UserError(f"{root} {problem}; check data.reader.path=")
        unread: Counter[str] = Counter()
        files = sorted(progress(_image_paths(str(root), "", unread), "finding images", unit="image"))
        warn_unread(self.name, "file", unread)
        if not files:
            raise UserError(f"{root} has no images ({', '.join(IMAGE_EXTENSIONS)}); check data.reader.path=")
        return files, unread

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(clean_keys([os.path.splitext(file)[0] for file in self._files]))

    def keys(self) -> list[str]:
        return self._index.keys

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair; raises BadPair for a missing caption or image. A ``.json`` beside the image joins the pair's JSON."""
        file = self._files[self._index.row(key)]
        path = Path(self.path, file)
        content = _content(path.with_suffix(".json"))
        meta = {} if content is None else read_meta(content)
        meta.setdefault("path", json_safe(file))
        captions = _captions(path, meta) if self.caption == "txt" else []
        if self.caption == "folder":
            meta["label"] = clean_caption(path.parent.name)
            captions = [meta["label"]]
        data, extension = read_image(path)
        return Pair(key, data, extension, next(iter(captions), ""), with_captions(meta, captions)), None

    def fingerprint(self) -> dict[str, Any]:
        """The folder, the number of images, and a hash of the images' and captions' names, sizes and times."""
        states = []
        for file in progress(self._files, "looking at files", unit="image"):
            stem = os.path.splitext(file)[0]
            for name in (file, f"{stem}.txt", f"{stem}.json"):
                state = os.stat(path) if os.path.exists(path := os.path.join(self.path, name)) else None
                if state or not name.endswith(".json"):
                    states.append((file, state.st_size, state.st_mtime_ns) if state else (file, -1, -1))
        return {
            "reader": self.name,
            "path": str(Path(self.path).resolve()),
            "caption": self.caption,
            "pictures": len(self._files),
            "files": fingerprint(states),
        }


def _image_paths(root: str, folder: str, unread: Counter[str], parents: frozenset[str] = frozenset()) -> Iterator[str]:
    """The paths, relative to ``root``, of all images below ``root/folder``; follows links to folders, except cycles."""
    absolute = os.path.join(root, folder)
    real = os.path.realpath(absolute)
    if real in parents:
        return
    with os.scandir(absolute) as scanned:
        entries = [(*os.path.splitext(entry.name), entry) for entry in scanned]
    images = {stem for stem, extension, _ in entries if _is_image(extension)}
    for stem, extension, entry in entries:
        path = f"{folder}/{entry.name}" if folder else entry.name
        is_folder = entry.is_dir()
        if entry.name.startswith("."):
            if is_folder or _is_image(extension):
                unread["hidden"] += 1
        elif is_folder:
            yield from _image_paths(root, path, unread, parents | {real})
        elif _is_image(extension):
            yield path
        elif extension not in (".txt", ".json") or stem not in images:
            unread[json_safe(extension.lower()) or "without extension"] += 1


def _is_image(extension: str) -> bool:
    return extension[1:].lower() in IMAGE_EXTENSIONS


def _captions(image: Path, meta: dict[str, Any]) -> list[str]:
    """The lines of the ``.txt`` beside an image; if there is none, the captions in ``meta``."""
    content = _content(image.with_suffix(".txt"))
    if content is not None and not is_list_as_text(text := read_caption(content), meta):
        return caption_lines(text)
    if captions := meta_captions(meta):
        return captions
    raise BadPair("it has no caption (.txt) beside the image")


def _content(path: Path) -> bytes | None:
    """The content of the file beside an image; None if there is none; raises BadPair if it is not readable."""
    try:
        return read_file(path, MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise BadPair(f"the {path.suffix} beside the image is not readable (permissions)") from None
