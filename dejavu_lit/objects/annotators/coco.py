"""Objects from COCO's instances JSON: every box with its category's name and its score, if it has one, crowds included.

Format: https://cocodataset.org/#format-data (``annotations``: image_id, category_id, bbox x, y, width, height in pixels).
"""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import as_list
from dejavu_lit.data.readers.coco_json import CocoInstances, are_alike, image_number
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.base import Lookup

FILE = re.compile(r"[_-](\d{12})$", re.ASCII)  # of keys made from COCO's paths: val2017-000000000042


@dataclass(frozen=True)
class CocoLookup(Lookup):
    """The instances of prepared images, found by the file's name, by ``image_id`` in the pair's JSON, or by a number as key."""

    instances: Any
    """The instances JSON file(s), e.g. instances_train2017.json."""

    @cached_property
    def _instances(self) -> CocoInstances:
        return CocoInstances(as_list(self.instances, "annotator.instances"))

    @cached_property
    def _ids(self) -> dict[str, int | None]:
        """{name: image id} for the images' files, each with and without its folders; None for a name of several images."""
        ids: dict[str, int | None] = {}
        for image_id, file in self._instances.files.items():
            ids |= {name: None if name in ids else image_id for name in _names(file)}
        return ids

    @property
    def annotator(self) -> Annotator:
        """The same as in the artifact that ``prepare`` writes from the same files."""
        return self._instances.annotator

    def annotation(self, pair: Pair) -> Annotation:
        """The instances of one image; raises BadPair if the files do not list it."""
        image_id = self._image_id(pair)
        if image_id not in self._instances.image_ids:
            raise BadPair("the instances JSON does not list it")
        return self._instances.annotation(image_id, pair.key)

    def _image_id(self, pair: Pair) -> int:
        """Names come first: tools number images anew, so a key may be the number of another one."""
        name = str(pair.meta.get("file_name") or pair.meta.get("path") or pair.key)
        for part in _names(name):
            if (image_id := self._ids.get(part)) is not None:
                return image_id
        if "image_id" in pair.meta:
            return image_number(pair.meta, "image_id")
        file = FILE.search(pair.key)
        number = file[1] if file else pair.key
        image_id = image_number({"key": number}, "key")
        if not are_alike(self._instances.files.get(image_id, number), number):
            raise BadPair("the instances JSON lists another file under its number")
        return image_id


def _names(file: str) -> set[str]:
    return {os.path.splitext(file)[0], Path(file).stem}
