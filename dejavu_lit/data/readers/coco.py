"""COCO as pairs: images with one of their captions, and their instances as objects.

``root=`` finds COCO's usual layout, ``root/{split}2017/`` and ``root/annotations/{captions,instances}_{split}2017.json``;
other layouts are given by ``images=`` and ``captions=`` (and ``instances=``), one path or a list each.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit.data.decode import limited, plain
from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import Paths, as_list, file_state, read_image
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import file_sha256, fingerprint

KEPT = ("width", "height", "file_name", "license", "flickr_url")  # of the image's entry, in the pair's JSON
logger = logging.getLogger(__name__)


def read_coco(path: Path, *parts: str) -> dict[str, Any]:
    """One of COCO's JSON files without its masks (most of its bytes); ``parts``: what it must hold.

    Raises:
        UserError: no such file, not JSON, or one of ``parts`` is missing.
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
    absent = [part for part in parts if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if absent:
        raise UserError(f"{path} has no list {absent[0]!r}, so it is not in COCO's format; check the reader's paths")
    return content


class CocoInstances:
    """The instances of one or more JSON files, by image id: about 20 bytes an instance."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the files; raises UserError for a file that is no instances JSON."""
        image_ids: list[int] = []
        codes: list[int] = []
        boxes: list[list[float]] = []
        images = np.zeros(0, np.int64)
        labels: dict[str, int] = {}
        listed: set[int] = set()
        for path in paths:
            content = read_coco(path, "images", "annotations", "categories")
            try:
                listed.update(image["id"] for image in content["images"])
                known = {c["id"]: labels.setdefault(plain(str(c["name"])), len(labels)) for c in content["categories"]}
                for instance in content["annotations"]:
                    codes.append(known[instance["category_id"]])
                    boxes.append([float(side) for side in instance["bbox"]])
                    image_ids.append(int(instance["image_id"]))
                images = np.array(image_ids, dtype=np.int64)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"{path} is no instances JSON of COCO ({type(error).__name__}: {error}); give instances_*.json as instances="
                ) from None
            if any(len(box) != 4 or not all(map(math.isfinite, box)) for box in boxes):
                raise UserError(f"{path} holds a bbox without four numbers (x, y, width, height); mend or drop it")
        order = np.argsort(images, kind="stable")
        self.listed = frozenset(listed)
        self._images = images[order]
        self._codes = np.array(codes, dtype=np.int32)[order]
        self._boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)[order]
        self._labels = list(labels)
        self.annotator = Annotator("coco", weights=fingerprint([file_sha256(path) for path in paths]))

    def annotation(self, image_id: int, key: str) -> Annotation:
        """The objects of one image, in the file's order; an empty row for an image without instances."""
        start, end = (np.searchsorted(self._images, image_id, side) for side in ("left", "right"))
        labels = [self._labels[code] for code in self._codes[start:end]]
        return Annotation(key, labels, [1.0] * len(labels), self._boxes[start:end].tolist())


@dataclass(frozen=True)
class CocoReader:
    """COCO captions; the key is the image id with leading zeros (12 digits), as in COCO's own file names."""

    root: str | Path | None = None
    """Folder in COCO's usual layout, instead of images, captions and instances."""
    splits: str | Sequence[str] = ("train", "val")
    """Which parts of ``root`` to read, together."""
    year: int = 2017
    images: Paths | None = None
    """Folder(s) of the images; one for all, or one for each captions file."""
    captions: Paths | None = None
    """Captions JSON file(s)."""
    instances: Paths | None = None
    """Instances JSON file(s); without them the data has no objects until it is annotated."""
    caption: int = 0
    """Which of an image's captions is the pair's, counted from 0; all are kept in its JSON as ``captions``."""
    name: str = "coco"

    def __post_init__(self) -> None:
        given = [option for option in ("images", "captions", "instances") if getattr(self, option) is not None]
        if self.root is not None and given:
            raise UserError(f"root={self.root} already says where everything lies; leave out root= or {given[0]}=")
        if self.root is None and not {"images", "captions"} <= set(given):
            raise UserError("COCO needs root= (its usual layout), or images= (folders) and captions= (JSON files)")
        if self.caption < 0:
            raise UserError(f"caption={self.caption} counts an image's captions from 0; give 0 or more")

    @cached_property
    def sources(self) -> tuple[list[tuple[Path, Path]], list[Path]]:
        """[(folder of images, captions JSON)] and [instances JSON]; raises UserError for paths that don't exist."""
        if self.root is not None:
            root = Path(self.root)
            splits = [self.splits] if isinstance(self.splits, str) else list(self.splits)
            parts = [f"{split}{self.year}" for split in splits]
            nested = (root / "images").is_dir()
            folders = [root / "images" / part if nested else root / part for part in parts]
            captions = [root / "annotations" / f"captions_{part}.json" for part in parts]
            instances = [root / "annotations" / f"instances_{part}.json" for part in parts]
        else:
            folders, captions, instances = as_list(self.images), as_list(self.captions), as_list(self.instances)
            if len(folders) == 1:
                folders *= len(captions)
        if not captions or len(folders) != len(captions):
            raise UserError(
                f"images= names {len(folders)} folders and captions= {len(captions)} files; give a folder for each file"
            )
        if missing := [path for path in folders if not path.is_dir()]:
            raise UserError(f"the folder of images {missing[0]} does not exist; check root=, splits= or images=")
        if self.root is not None and not any(path.exists() for path in instances):
            logger.warning("no instances in %s: there will be no objects until they are annotated", instances[0].parent)
            instances = []
        if missing := [path for path in (*captions, *instances) if not path.is_file()]:
            raise UserError(f"{missing[0]} does not exist; check root=, splits=, captions= or instances=")
        return list(zip(folders, captions, strict=True)), instances

    @cached_property
    def _entries(self) -> dict[str, tuple[int, Path, tuple[str, ...], dict[str, Any]]]:
        """{key: (image id, image file, captions, the entry's kept fields)}"""
        entries: dict[str, tuple[int, Path, tuple[str, ...], dict[str, Any]]] = {}
        origin: dict[str, Path] = {}
        for folder, path in self.sources[0]:
            content = read_coco(path, "images", "annotations")
            try:
                captions: dict[int, list[str]] = {}
                for annotation in content["annotations"]:
                    captions.setdefault(annotation["image_id"], []).append(" ".join(annotation["caption"].split()))
                for image in content["images"]:
                    number, file = int(image["id"]), str(image["file_name"])
                    key = f"{number:012d}"
                    if key in entries:
                        raise UserError(
                            f"the image id {number} stands in {origin[key]} and in {path}; ids must be unique"
                        )
                    kept = {name: plain(image[name]) for name in KEPT if name in image}
                    entries[key] = (number, folder / file, tuple(captions.get(image["id"], ())), kept)
                    origin[key] = path
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise UserError(
                    f"{path} is no captions JSON of COCO ({type(error).__name__}: {error}); give captions_*.json as captions="
                ) from None
        if not entries:
            raise UserError(f"{self.sources[0][0][1]} lists no images; check captions=")
        return entries

    @cached_property
    def _instances(self) -> CocoInstances | None:
        if not self.sources[1]:
            return None
        instances = CocoInstances(self.sources[1])
        absent = [key for key, entry in self._entries.items() if entry[0] not in instances.listed]
        if len(absent) == len(self._entries):
            raise UserError(f"{self.sources[1][0]} lists none of the images with captions; check instances=")
        if absent:
            logger.warning(
                "%d images are not listed in the instances JSON and get no objects, e.g. %s", len(absent), absent[0]
            )
        return instances

    @property
    def annotator(self) -> Annotator | None:
        """The instances as annotator; None without instances."""
        return self._instances.annotator if self._instances else None

    def keys(self) -> list[str]:
        """The keys of all images of all captions files, sorted."""
        return sorted(self._entries)

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair and its instances; raises BadPair for a missing image or caption."""
        number, file, captions, kept = self._entries[key]
        if self.caption >= len(captions):
            raise BadPair(f"it has no caption number {self.caption}")
        caption = limited(captions[self.caption])
        data, extension = read_image(file)
        others = [plain(other) for other in captions]
        meta = {**kept, "image_id": number, "captions": others, "source": plain(file.parent.name)}
        annotation = self._instances.annotation(number, key) if self._instances else None
        return Pair(key, data, extension, caption, meta), annotation

    def fingerprint(self) -> dict[str, Any]:
        """The caption's number, the folders, and the state of the JSON files."""
        pairs, instances = self.sources
        return {
            "reader": self.name,
            "caption": self.caption,
            "images": [str(folder.resolve()) for folder, _ in pairs],
            "captions": [file_state(path) for _, path in pairs],
            "instances": [file_state(path) for path in instances],
        }
