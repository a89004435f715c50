"""Pairs from COCO: images with one of their captions each, and their instances as objects.

``root=`` expects COCO's usual layout, ``root/{split}2017/`` and ``root/annotations/{captions,instances}_{split}2017.json``;
for other layouts, give ``images=`` and ``captions=`` (and ``instances=``), one path or a list each.
Format: https://cocodataset.org/#format-data
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dejavu_lit.data.decode import clean_caption, json_safe
from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import as_list, file_state, read_image
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import file_sha256, fingerprint

# Of the image's entry, copied to the pair's JSON.
META_FIELDS = ("width", "height", "file_name", "license", "flickr_url")
MAX_ID_DIGITS = 18  # of ids, which are kept as int64
Entry = TypeVar("Entry")
logger = logging.getLogger(__name__)


def read_coco(path: Path, *lists: str) -> dict[str, Any]:
    """One of COCO's JSON files without its masks (most of its bytes); ``lists``: the lists that it must have.

    Raises:
        UserError: no such file, not JSON, or one of ``lists`` is missing.
    """

    def without_mask(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("segmentation", None)
        return entry

    try:
        content: dict[str, Any] = json.loads(path.read_bytes(), object_hook=without_mask)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the reader's paths") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({first_line(error)}); download it again") from None
    missing = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise UserError(f"{path} has no list {missing[0]!r}, so it is not in COCO's format; check the reader's paths")
    return content


def usable_entries(
    path: Path, content: Mapping[str, Any], name: str, kind: str, parse: Callable[[Any], Entry]
) -> list[Entry]:
    """``parse`` of each entry of the list ``name``; entries for which it raises BadPair are counted by reason in the log.

    Raises:
        UserError: there are entries, but none is usable: the file is not a ``kind`` JSON.
    """
    entries: list[Entry] = []
    skipped: dict[str, list[Any]] = {}
    for number, entry in enumerate(content[name]):
        try:
            entries.append(parse(entry))
        except BadPair as error:
            label = entry.get("id", number) if isinstance(entry, dict) else number
            skipped.setdefault(str(error), []).append(label)
    if skipped and not entries:
        reason, labels = max(skipped.items(), key=lambda item: len(item[1]))
        article = "an" if kind == "instances" else "a"
        raise UserError(
            f"{path} is not {article} {kind} JSON of COCO (of {len(content[name])} {name} none can be used, e.g. {labels[0]!r}: "
            f"{reason}); give {kind}_*.json as {kind}="
        )
    for reason, labels in sorted(skipped.items()):
        logger.warning("%s: %d of %s skipped, e.g. %r: %s", path, len(labels), name, labels[0], reason)
    return entries


def _value(entry: Any, field: str) -> Any:
    value = entry.get(field) if isinstance(entry, dict) else None
    if value is None:
        raise BadPair(f"it has no {field!r}")
    return value


def coco_id(entry: Any, field: str) -> int | str:
    """An id of an entry: 17, 17.0 and "17" are the number 17, other text is itself; raises BadPair for anything else."""
    value = _value(entry, field)
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


def _instance(entry: Any, code_of: Mapping[int | str, int]) -> tuple[int, list[float], int]:
    """The code of the category, the box and the image's id of one annotation."""
    category, box = coco_id(entry, "category_id"), _value(entry, "bbox")
    if category not in code_of:
        raise BadPair(f"its category {category!r} is not in categories")
    try:
        sides = [float(side) for side in box]
    except (TypeError, ValueError, OverflowError):
        sides = []
    if len(sides) != 4 or not all(map(math.isfinite, sides)):
        raise BadPair("its bbox is not four numbers (x, y, width, height)")
    return code_of[category], sides, image_number(entry, "image_id")


def _category(entry: Any) -> tuple[int | str, str]:
    return coco_id(entry, "id"), json_safe(str(_value(entry, "name")))


def _caption(entry: Any) -> tuple[int, str]:
    """The image's id and the caption of one annotation."""
    caption = _value(entry, "caption")
    if not isinstance(caption, str):
        raise BadPair("its 'caption' is not text")
    return image_number(entry, "image_id"), " ".join(caption.split())


class CocoInstances:
    """The instances of one or more JSON files, by image id: about 20 bytes per instance.

    image_ids: all images that the files list, also those without instances; annotator: COCO and a hash of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the files; unusable entries are counted. Raises UserError for a file that is not an instances JSON."""
        rows: list[tuple[int, list[float], int]] = []
        labels: dict[str, int] = {}
        listed: set[int] = set()
        for path in paths:
            content = read_coco(path, "images", "annotations", "categories")
            listed.update(usable_entries(path, content, "images", "instances", lambda image: image_number(image, "id")))
            categories = usable_entries(path, content, "categories", "instances", _category)
            code_of = {category: labels.setdefault(name, len(labels)) for category, name in categories}
            rows += usable_entries(path, content, "annotations", "instances", partial(_instance, code_of=code_of))
        images = np.array([image_id for _, _, image_id in rows], dtype=np.int64)
        order = np.argsort(images, kind="stable")
        self.image_ids = frozenset(listed)
        self._images = images[order]
        self._codes = np.array([code for code, _, _ in rows], dtype=np.int32)[order]
        self._boxes = np.array([box for _, box, _ in rows], dtype=np.float32).reshape(-1, 4)[order]
        self._labels = list(labels)
        self.annotator = Annotator("coco", weights=fingerprint([file_sha256(path) for path in paths]))

    def annotation(self, image_id: int, key: str) -> Annotation:
        """The objects of one image, in the file's order; none for an image without instances."""
        start, end = (np.searchsorted(self._images, image_id, side) for side in ("left", "right"))
        labels = [self._labels[code] for code in self._codes[start:end]]
        return Annotation(key, labels, [1.0] * len(labels), self._boxes[start:end].tolist())


class CocoImage(NamedTuple):
    """One image of a captions JSON."""

    image_id: int
    file: Path
    captions: tuple[str, ...]
    meta: dict[str, Any]  # META_FIELDS


@dataclass(frozen=True)
class CocoReader:
    """COCO captions; a key is the image id with leading zeros (12 digits), as in COCO's own file names."""

    name = "coco"  # in fingerprints and messages
    root: str | Path | None = None
    """Folder in COCO's usual layout, instead of images, captions and instances."""
    splits: Any = ("train", "val")
    """Which splits below ``root`` to read, together."""
    year: int = 2017
    """The year in COCO's file names."""
    images: Any = None
    """Folder(s) of the images: one for all, or one for each captions file."""
    captions: Any = None
    """Captions JSON file(s); with ``caption=null`` any JSON with the list ``images``, or none: ``instances`` lists them."""
    instances: Any = None
    """Instances JSON file(s); without them, the data has no objects until it is annotated."""
    caption: int | None = 0
    """Which of an image's captions is the pair's, counted from 0; its JSON has all of them as ``captions``. null: images
    without captions, for a public set; below ``root`` also those of ``image_info_{split}`` or ``instances_{split}``."""

    def __post_init__(self) -> None:
        given = [option for option in ("images", "captions", "instances") if getattr(self, option) is not None]
        if self.root is not None and given:
            raise UserError(f"root={self.root} already gives all paths; remove root= or {given[0]}=")
        listed = "captions" in given or (self.caption is None and "instances" in given)
        if self.root is None and not (listed and "images" in given):
            raise UserError(
                "COCO needs root= (its usual layout), or images= (folders) and captions= (JSON files; instances= will do "
                "with caption=null)"
            )
        if self.caption is not None and self.caption < 0:
            raise UserError(
                f"caption={self.caption} counts an image's captions from 0; give 0 or more, or null for none"
            )

    @cached_property
    def sources(self) -> tuple[list[tuple[Path, Path]], list[Path]]:
        """[(folder of images, JSON that lists them)] and [instances JSON]; raises UserError for paths that do not exist."""
        if self.root is not None:
            root = Path(self.root)
            splits = [self.splits] if isinstance(self.splits, str) else list(self.splits)
            parts = [f"{split}{self.year}" for split in splits]
            nested = (root / "images").is_dir()
            folders = [root / "images" / part if nested else root / part for part in parts]
            kinds = ("captions", "image_info", "instances") if self.caption is None else ("captions",)
            choices = [[root / "annotations" / f"{kind}_{part}.json" for kind in kinds] for part in parts]
            captions = [next(filter(Path.is_file, paths), paths[0]) for paths in choices]
            instances = [root / "annotations" / f"instances_{part}.json" for part in parts]
        else:
            folders, captions, instances = as_list(self.images), as_list(self.captions), as_list(self.instances)
            captions = captions or instances
            if len(folders) == 1:
                folders *= len(captions)
        if not captions or len(folders) != len(captions):
            raise UserError(
                f"images= names {len(folders)} folders and captions= {len(captions)} files; give one folder per file"
            )
        if missing := [path for path in folders if not path.is_dir()]:
            raise UserError(f"the folder of images {missing[0]} does not exist; check root=, splits= or images=")
        if self.root is not None and not any(path.exists() for path in instances):
            logger.warning("no instances in %s: no objects until the images are annotated", instances[0].parent)
            instances = []
        if missing := [path for path in (*captions, *instances) if not path.is_file()]:
            raise UserError(f"{missing[0]} does not exist; check root=, splits=, captions= or instances=")
        return list(zip(folders, captions, strict=True)), instances

    @cached_property
    def _images(self) -> dict[str, CocoImage]:
        """The images of all captions files by key."""
        images: dict[str, CocoImage] = {}
        origin: dict[str, Path] = {}
        for folder, path in self.sources[0]:
            content = read_coco(path, "images", *(() if self.caption is None else ("annotations",)))
            content |= {"annotations": []} if self.caption is None else {}
            captions: dict[int, list[str]] = {}
            for image_id, caption in usable_entries(path, content, "annotations", "captions", _caption):
                captions.setdefault(image_id, []).append(caption)
            for image_id, file, image in usable_entries(
                path, content, "images", "captions", lambda e: (image_number(e, "id"), str(_value(e, "file_name")), e)
            ):
                key = f"{image_id:012d}"
                if key in images:
                    raise UserError(
                        f"the image id {image_id} is in {origin[key]} and in {path}; give files without common ids"
                    )
                meta = {name: json_safe(image[name]) for name in META_FIELDS if name in image}
                images[key] = CocoImage(image_id, folder / file, tuple(captions.get(image_id, ())), meta)
                origin[key] = path
        if not images:
            raise UserError(f"{self.sources[0][0][1]} lists no images; check captions=")
        return images

    @cached_property
    def _instances(self) -> CocoInstances | None:
        if not self.sources[1]:
            return None
        instances = CocoInstances(self.sources[1])
        missing = [key for key, image in self._images.items() if image.image_id not in instances.image_ids]
        if len(missing) == len(self._images):
            raise UserError(f"{self.sources[1][0]} lists none of the images with captions; check instances=")
        if missing:
            logger.warning(
                "%d images are not listed in the instances JSON and get no objects, e.g. %s", len(missing), missing[0]
            )
        return instances

    @property
    def annotator(self) -> Annotator | None:
        """COCO, with a hash of the instances files; None without instances."""
        return self._instances.annotator if self._instances else None

    def keys(self) -> list[str]:
        """The keys of all images of all captions files, sorted."""
        return sorted(self._images)

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair and its instances; raises BadPair for a missing image or caption."""
        image = self._images[key]
        if self.caption is not None and self.caption >= len(image.captions):
            raise BadPair(f"it has no caption number {self.caption}")
        caption = "" if self.caption is None else clean_caption(image.captions[self.caption])
        data, extension = read_image(image.file)
        meta = {
            **image.meta,
            "image_id": image.image_id,
            **({} if self.caption is None else {"captions": [json_safe(text) for text in image.captions]}),
            "source": json_safe(image.file.parent.name),
        }
        annotation = self._instances.annotation(image.image_id, key) if self._instances else None
        return Pair(key, data, extension, caption, meta), annotation

    def fingerprint(self) -> dict[str, Any]:
        """The number of the caption, the folders, and the state of the JSON files."""
        pairs, instances = self.sources
        return {
            "reader": self.name,
            "caption": self.caption,
            "images": [str(folder.resolve()) for folder, _ in pairs],
            "captions": [file_state(path) for _, path in pairs],
            "instances": [file_state(path) for path in instances],
        }
