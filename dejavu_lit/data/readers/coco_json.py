"""COCO's JSON files: captions and instances by image id. Entries that cannot be used are counted by reason in the log."""

import json
import logging
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dejavu_lit.data.decode import BadPair, json_safe
from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import file_sha256, fingerprint
from dejavu_lit.utils.progress import announce, progress

MAX_ID_DIGITS = 18  # of ids, which are kept as int64
# An image's id, or one of COCO's names of its file.
IMAGE_NAME = re.compile(r"(\d+)|(?:COCO_\w+_)?(\d{12})\.jpg", re.ASCII)
Entry = TypeVar("Entry")
logger = logging.getLogger(__name__)


def read_coco(path: Path, *lists: str) -> dict[str, Any]:
    """A JSON file without COCO's masks (most of its bytes).

    Raises UserError if it is not JSON, or lacks one of ``lists``.
    """

    def without_mask(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("segmentation", None)
        return entry

    announce(path)
    with explained(f"{path} is not valid JSON", "download it again", errors=(ValueError, RecursionError)):
        content: dict[str, Any] = json.loads(path.read_bytes(), object_hook=without_mask)
    missing = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise UserError(f"{path} has no list {missing[0]!r}, so it is not in COCO's format; check the reader's paths")
    return content


def usable_entries(
    path: Path, content: Mapping[str, Any], name: str, kind: str, parse: Callable[[Any], Entry]
) -> list[Entry]:
    """``parse`` of each entry of the list ``name``; those that raise BadPair are counted in the log, UserError if all do."""
    entries: list[Entry] = []
    skipped: dict[str, list[Any]] = {}
    for number, entry in enumerate(progress(content[name], f"reading {name}", unit="entry")):
        try:
            entries.append(parse(entry))
        except BadPair as error:
            label = entry.get("id", number) if isinstance(entry, dict) else number
            skipped.setdefault(str(error), []).append(label)
    if skipped and not entries:
        reason, labels = max(skipped.items(), key=lambda item: len(item[1]))
        raise UserError(
            f"none of the {len(content[name])} {name} in {path} can be used (e.g. {labels[0]!r}: {reason}); give COCO's "
            f"{kind}_*.json as data.reader.{kind}="
        )
    for reason, labels in sorted(skipped.items()):
        logger.warning("%s: %d of %s skipped, e.g. %r: %s", path, len(labels), name, labels[0], reason)
    return entries


def value_of(entry: Any, field: str) -> Any:
    value = entry.get(field) if isinstance(entry, dict) else None
    if value is None or value == "":
        raise BadPair(f"it has no {field!r}")
    return value


def text_of(entry: Any, field: str) -> str:
    value = value_of(entry, field)
    if not isinstance(value, str):
        raise BadPair(f"its {field!r} is not text")
    return value


def coco_id(entry: Any, field: str) -> int | str:
    """An id of an entry: 17, 17.0 and "17" are the number 17, other text is itself; raises BadPair for anything else."""
    value = value_of(entry, field)
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < MAX_ID_DIGITS else value
    if isinstance(value, bool | list | dict) or value != value // 1 or abs(value) >= 10**MAX_ID_DIGITS:
        raise BadPair(f"its {field!r} is not an id")
    return int(value)


def image_number(entry: Any, field: str) -> int:
    """The id of an image, which is a number in COCO; raises BadPair if it is not."""
    number = coco_id(entry, field)
    if isinstance(number, str):
        raise BadPair(f"its {field!r} is not a number")
    return number


def number_of_file(file: str) -> str | None:
    """The key that a file's name without folders has in COCO, None if it is another name."""
    return f"{number[1] or number[2]:0>12}" if (number := IMAGE_NAME.fullmatch(file)) else None


def are_alike(*files: Any) -> bool:
    """Whether names may be those of one image: with the number in COCO's, else without folders and extension, they are equal."""
    stems = {Path(str(file)).stem for file in set(files)}
    return len({number_of_file(stem) or number_of_file(f"{stem}.jpg") or stem for stem in stems}) == 1


def _listed_file(entry: Any) -> tuple[int, Any]:
    return image_number(entry, "id"), entry.get("file_name")  # LVIS has none


def _instance(entry: Any, code_of: Mapping[int | str, int]) -> tuple[int, list[float], int, float]:
    category, box = coco_id(entry, "category_id"), value_of(entry, "bbox")
    if category not in code_of:
        raise BadPair(f"its category {category!r} is not in categories")
    try:
        sides = [float(side) for side in box]
    except (TypeError, ValueError, OverflowError):
        sides = []
    if len(sides) != 4 or not all(map(math.isfinite, sides)):
        raise BadPair("its bbox is not four numbers (x, y, width, height)")
    score = 1.0 if entry.get("score") is None else entry["score"]  # of a detector, as in COCO's results
    if not isinstance(score, int | float) or not 0 <= score <= 1:
        raise BadPair("its score does not lie between 0 and 1")
    return code_of[category], sides, image_number(entry, "image_id"), score


def _category(entry: Any) -> tuple[int | str, str]:
    return coco_id(entry, "id"), json_safe(str(value_of(entry, "name")))


def _caption(entry: Any, images: Collection[int]) -> tuple[int, str]:
    if not (words := text_of(entry, "caption").split()):
        raise BadPair("it has no 'caption'")
    image_id = image_number(entry, "image_id")
    if image_id not in images:
        raise BadPair("its image is not in images, or its entry there cannot be used")
    return image_id, " ".join(words)


def read_images(path: Path, with_captions: bool) -> tuple[dict[int, dict[str, Any]], dict[int, list[str]]]:
    """{id: entry} of the images in a JSON, and {id: their captions}; without these, any JSON with a list of images will do.

    Raises UserError if it is not a captions JSON, or has two different images of one id.
    """
    content = read_coco(path, "images", *(("annotations",) if with_captions else ()))
    images: dict[int, dict[str, Any]] = {}

    def add_image(entry: Any) -> None:
        image_id = image_number(entry, "id")
        text_of(entry, "file_name")
        if image_id not in images:
            images[image_id] = entry
        elif images[image_id] == entry:
            raise BadPair("it is a copy of another entry")
        else:
            raise UserError(f"two different images in {path} have the id {image_id}; give every image its own id")

    usable_entries(path, content, "images", "captions", add_image)
    captions: dict[int, list[str]] = {}
    if not with_captions:
        return images, captions
    for image_id, text in usable_entries(path, content, "annotations", "captions", partial(_caption, images=images)):
        captions.setdefault(image_id, []).append(text)
    return images, captions


class CocoInstances:
    """The instances of one or more JSON files, by image id (``image_ids``: all of them): about 32 bytes per instance.

    ``files`` has {image id: file name} of the images that are listed with one.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the files; raises UserError for one that is not an instances JSON."""
        rows: list[tuple[int, list[float], int, float]] = []
        labels: dict[str, int] = {}
        listed: dict[int, Any] = {}
        for path in paths:
            content = read_coco(path, "images", "annotations", "categories")
            listed.update(usable_entries(path, content, "images", "instances", _listed_file))
            categories = usable_entries(path, content, "categories", "instances", _category)
            code_of = {category: labels.setdefault(name, len(labels)) for category, name in categories}
            rows += usable_entries(path, content, "annotations", "instances", partial(_instance, code_of=code_of))
        images = np.array([image_id for _, _, image_id, _ in rows], dtype=np.int64)
        order = np.argsort(images, kind="stable")
        self.image_ids = frozenset(listed.keys() | {image_id for _, _, image_id, _ in rows})
        self.files = {image_id: str(file) for image_id, file in listed.items() if file}
        self._images = images[order]
        self._codes = np.array([code for code, *_ in rows], dtype=np.int32)[order]
        self._boxes = np.array([box for _, box, *_ in rows], dtype=np.float32).reshape(-1, 4)[order]
        self._scores = np.array([score for *_, score in rows], dtype=np.float32)[order]
        self._labels = list(labels)
        version = "1" if (self._scores == 1).all() else "2"  # scores once counted as 1
        self.annotator = Annotator("coco", version, weights=fingerprint([file_sha256(path) for path in paths]))

    def annotation(self, image_id: int, key: str) -> Annotation:
        """The objects of one image, in the file's order; none for an image without instances."""
        start, end = (np.searchsorted(self._images, image_id, side) for side in ("left", "right"))
        labels = [self._labels[code] for code in self._codes[start:end]]
        return Annotation(key, labels, self._scores[start:end].tolist(), self._boxes[start:end].tolist())
