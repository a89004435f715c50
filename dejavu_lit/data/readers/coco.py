"""Pairs from COCO: images with one of their captions each, and their instances as objects.

``root=`` expects COCO's usual layout, ``root/{split}2017/`` and ``root/annotations/{captions,instances}_{split}2017.json``;
for other layouts, give ``images=`` and ``captions=`` (and ``instances=``), one path or a list each.
Format: https://cocodataset.org/#format-data
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dejavu_lit.data.decode import BadPair, Pair, clean_caption, json_safe
from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import as_list, file_state, read_image
from dejavu_lit.data.readers.coco_json import CocoInstances, are_alike, number_of_file, read_images
from dejavu_lit.utils.errors import UserError, check_at_least

# Of the image's entry, copied to the pair's JSON.
META_FIELDS = ("width", "height", "file_name", "license", "flickr_url")
logger = logging.getLogger(__name__)


class CocoImage(NamedTuple):
    """One image of a captions JSON."""

    file: Path
    captions: list[str]
    meta: dict[str, Any]  # of the pair, without captions


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
            raise UserError(
                f"data.reader.root={self.root} already gives all paths; remove it or data.reader.{given[0]}="
            )
        check_at_least(self, "data.reader.", caption=0)

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
            if self.caption is None:
                captions = captions or instances
            if len(folders) == 1 and captions:
                folders *= len(captions)
        if not captions or len(folders) != len(captions):
            raise UserError(
                f"data.reader.images= names {len(folders)} folders and data.reader.captions= {len(captions)} files; give one "
                "folder per file, or data.reader.root= for COCO's usual layout"
            )
        if self.root is not None and not any(path.exists() for path in instances):
            logger.warning("no instances in %s: no objects until the images are annotated", instances[0].parent)
            instances = []
        missing = [f"the folder {path}" for path in folders if not path.is_dir()]
        missing += [f"the file {path}" for path in (*captions, *instances) if not path.is_file()]
        if missing:
            raise UserError(
                f"{missing[0]} does not exist; check root, splits, year, images, captions or instances of data.reader"
            )
        return list(zip(folders, captions, strict=True)), instances

    @cached_property
    def _images(self) -> dict[str, CocoImage]:
        images: dict[str, CocoImage] = {}
        origin: dict[str, Path] = {}
        for folder, path in self.sources[0]:
            entries, captions = read_images(path, with_captions=self.caption is not None)
            for image_id, entry in entries.items():
                key = f"{image_id:012d}"
                if key in images:
                    raise UserError(
                        f"the image id {image_id} is in {origin[key]} and in {path}; give files without common ids"
                    )
                file = folder / entry["file_name"]
                meta = {name: json_safe(entry[name]) for name in META_FIELDS if name in entry}
                meta |= {"image_id": image_id, "source": json_safe(file.parent.name)}
                images[key] = CocoImage(file, captions.get(image_id, []), meta)
                origin[key] = path
        return images

    @cached_property
    def _instances(self) -> CocoInstances | None:
        if not self.sources[1]:
            return None
        instances = CocoInstances(self.sources[1])
        missing = [key for key in self._images if int(key) not in instances.image_ids]
        if len(missing) == len(self._images):
            raise UserError(
                f"{self.sources[1][0]} lists none of the images with captions; check data.reader.instances="
            )
        if missing:
            logger.warning("images without objects, not in the instances JSON: %d, e.g. %s", len(missing), missing[0])
        named = [(key, image.meta["file_name"], instances.files.get(int(key))) for key, image in self._images.items()]
        if others := [entry for entry in named if entry[2] is not None and not are_alike(*entry[1:])]:
            logger.warning(
                "images with another file name in the instances JSON: %d, e.g. %s: %s and %s; if these are different images, "
                "their objects are wrong: give instances with the ids of the captions",
                *(len(others), *others[0]),
            )
        return instances

    @property
    def annotator(self) -> Annotator | None:
        return self._instances.annotator if self._instances else None

    def keys(self) -> list[str]:
        return sorted(self._images)

    @cached_property
    def _key_of_file(self) -> dict[str, str]:
        return {image.meta["file_name"]: key for key, image in self._images.items()}

    def listed_name(self, line: str) -> str:
        """The key of the image that a list names by its file, also without folders, or by its id in COCO's ways.

        These are 42, 000000000042.jpg and COCO_val2014_000000000042.jpg, the names that Karpathy's splits have.
        """
        file = line.rpartition("/")[2]
        return self._key_of_file.get(line) or self._key_of_file.get(file) or number_of_file(file) or line

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair and its instances; raises BadPair for a missing image, or if another caption than the first is missing."""
        image = self._images[key]
        if 0 < (self.caption or 0) >= len(image.captions):
            raise BadPair(f"it has no caption number {self.caption}")
        caption = clean_caption(image.captions[self.caption or 0]) if image.captions else ""
        data, extension = read_image(image.file)
        captions = {} if self.caption is None else {"captions": json_safe(image.captions)}
        annotation = self._instances.annotation(int(key), key) if self._instances else None
        return Pair(key, data, extension, caption, image.meta | captions), annotation

    def fingerprint(self) -> dict[str, Any]:
        pairs, instances = self.sources
        return {
            "reader": self.name,
            "caption": self.caption,
            "images": [str(folder.resolve()) for folder, _ in pairs],
            "captions": [file_state(path) for _, path in pairs],
            "instances": [file_state(path) for path in instances],
        }
