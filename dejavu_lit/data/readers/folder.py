"""A folder of images as pairs: each image with its caption in a ``.txt`` of the same name, searched recursively."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dejavu_lit.data.decode import LARGEST_JSON, limited, plain, read_meta, read_text
from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import KeyIndex, clean_keys, read_file, read_image
from dejavu_lit.data.shards import IMAGE_EXTENSIONS, BadPair, Pair
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint


@dataclass(frozen=True)
class FolderReader:
    """Images (jpg, png, webp) below ``path``; the key is made from the path below it, without the extension."""

    path: str | Path
    caption: Literal["txt", "folder"] = "txt"
    """``txt``: the file beside the image; ``folder``: the name of the image's folder (class folders, as ImageNet's)."""
    name: str = "folder"

    def __post_init__(self) -> None:
        if self.caption not in ("txt", "folder"):
            raise UserError(f"caption={self.caption} is not known to the folder reader; give txt or folder")

    @property
    def annotator(self) -> Annotator | None:
        """None: a folder brings no objects."""
        return None

    @cached_property
    def _files(self) -> list[str]:
        """The images' paths below ``path``, sorted."""
        root = Path(self.path)
        if not root.is_dir():
            raise UserError(f"the folder {root} does not exist; check path=")
        files = sorted(_walk(str(root), ""))
        if not files:
            raise UserError(f"{root} holds no images ({', '.join(IMAGE_EXTENSIONS)}); check path=")
        return files

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(clean_keys([os.path.splitext(file)[0] for file in self._files]))

    def keys(self) -> list[str]:
        """The keys of all images, sorted."""
        return self._index.keys

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair; raises BadPair for a missing or empty caption. A ``.json`` beside the image joins the pair's JSON."""
        file = self._files[self._index.row(key)]
        path = Path(self.path, file)
        meta: dict[str, Any] = {"path": plain(file)}
        if self.caption == "folder":
            meta["label"] = caption = limited(path.parent.name)
        else:
            caption = _text(path.with_suffix(".txt"))
        if path.with_suffix(".json").is_file():
            try:
                meta = {**read_meta(read_file(path.with_suffix(".json"), LARGEST_JSON + 1)), **meta}
            except OSError:
                raise BadPair("the .json beside the image may not be read") from None
        data, extension = read_image(path)
        return Pair(key, data, extension, caption, meta), None

    def fingerprint(self) -> dict[str, Any]:
        """The folder, and the number and a hash of the images' and captions' names, sizes and times."""
        states = []
        for file in self._files:
            for path in (Path(self.path, file), Path(self.path, file).with_suffix(".txt")):
                try:
                    state = path.stat()
                    states.append((file, state.st_size, state.st_mtime_ns))
                except OSError:
                    states.append((file, -1, -1))
        return {
            "reader": self.name,
            "path": str(Path(self.path).resolve()),
            "caption": self.caption,
            "pictures": len(self._files),
            "files": fingerprint(states),
        }


def _walk(root: str, below: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """The paths of all images below ``root``, following links to folders, but never in a circle."""
    here = os.path.join(root, below)
    real = os.path.realpath(here)
    if real in above:
        return
    with os.scandir(here) as entries:
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                yield from _walk(root, path, above | {real})
            elif not entry.name.startswith(".") and entry.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                yield path


def _text(path: Path) -> str:
    try:
        return read_text(read_file(path, LARGEST_JSON))
    except OSError:
        raise BadPair("it has no caption (.txt) beside the image") from None
