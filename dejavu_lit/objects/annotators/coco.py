"""Objects from COCO's instances JSON: every box with its category's name and its score, if it has one, crowds included.

Format: https://cocodataset.org/#format-data (``annotations``: image_id, category_id, bbox x, y, width, height in pixels).
"""

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
    """The instances of prepared images, found by ``image_id`` or ``path`` in the pair's JSON, or by the key: a number, or COCO's
    file."""

    instances: Any
    """The instances JSON file(s), e.g. instances_train2017.json."""

    @cached_property
    def _instances(self) -> CocoInstances:
        return CocoInstances(as_list(self.instances, "annotator.instances"))

    @property
    def annotator(self) -> Annotator:
        """The same as in the artifact that ``prepare`` writes from the same files."""
        return self._instances.annotator

    @cached_property
    def _id_of_file(self) -> dict[str, int]:
        """{name of a file, as listed or without folders: image id}, of the names that only one image has."""
        ids: dict[str, set[int]] = {}
        for image_id, file in self._instances.files.items():
            for name in (file, Path(file).name):
                ids.setdefault(name, set()).add(image_id)
        return {name: found.pop() for name, found in ids.items() if len(found) == 1}

    def annotation(self, pair: Pair) -> Annotation:
        """The instances of one image; raises BadPair if it has no number, or the files do not list it."""
        path = str(pair.meta.get("path") or "")
        names = () if "image_id" in pair.meta else (path, Path(path).name)
        image_id = next((self._id_of_file[name] for name in names if name in self._id_of_file), None)
        if image_id is None:
            file = FILE.search(pair.key)
            numbers = {**pair.meta, "key": file[1] if file else pair.key}
            image_id = image_number(numbers, "image_id" if "image_id" in pair.meta else "key")
            listed = self._instances.files.get(image_id)
            if path and names and listed is not None and not are_alike(path, listed):
                raise BadPair("the instances JSON has another file under its number")
        if image_id not in self._instances.image_ids:
            raise BadPair("the instances JSON does not list it")
        return self._instances.annotation(image_id, pair.key)
