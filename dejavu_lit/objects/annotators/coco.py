"""Objects from COCO's instances JSON: every box with its category's name and score 1, crowds included.

Format: https://cocodataset.org/#format-data (``annotations``: image_id, category_id, bbox x, y, width, height in pixels).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.readers.base import as_list
from dejavu_lit.data.readers.coco_json import CocoInstances, image_number
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.base import Lookup


@dataclass(frozen=True)
class CocoLookup(Lookup):
    """The instances of prepared images, found by ``image_id`` in the pair's JSON, or by the number in the key."""

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
        image_id = image_number({**pair.meta, "key": pair.key}, "image_id" if "image_id" in pair.meta else "key")
        if image_id not in self._instances.image_ids:
            raise BadPair("the instances JSON does not list it")
        return self._instances.annotation(image_id, pair.key)
