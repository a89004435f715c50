"""Objects from COCO's instances JSON: every box with its category's name and score 1, crowds included.

Format: https://cocodataset.org/#format-data (``annotations``: image_id, category_id, bbox x, y, width, height in pixels).
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import as_list
from dejavu_lit.data.readers.coco_json import CocoInstances, image_number
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.base import Lookup

FILE = re.compile(r"[_-](\d{12})$", re.ASCII)  # of keys made from COCO's paths: val2017-000000000042


@dataclass(frozen=True)
class CocoLookup(Lookup):
    """The instances of prepared images, found by ``image_id`` in the pair's JSON, or by the key: a number, or COCO's file."""

    instances: Any
    """The instances JSON file(s), e.g. instances_train2017.json."""

    @cached_property
    def _instances(self) -> CocoInstances:
        return CocoInstances(as_list(self.instances, "annotator.instances"))

    @property
    def annotator(self) -> Annotator:
        """The same as in the artifact that ``prepare`` writes from the same files."""
        return self._instances.annotator

    def annotation(self, pair: Pair) -> Annotation:
        """The instances of one image; raises BadPair if it has no number, or the files do not list it."""
        file = FILE.search(pair.key)
        name = {**pair.meta, "key": file[1] if file else pair.key}
        image_id = image_number(name, "image_id" if "image_id" in pair.meta else "key")
        if image_id not in self._instances.image_ids:
            raise BadPair("the instances JSON does not list it")
        return self._instances.annotation(image_id, pair.key)
