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
from dejavu_lit.data.readers.coco_json import CocoInstances, are_alike, image_number, number_of_file
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
    def _ids(self) -> tuple[dict[str, int | None], dict[str, int | None]]:
        """{path of a file without extension: image id}, and the same for every end of these paths; None: of several images."""
        whole, ends = dict[str, int | None](), dict[str, int | None]()
        for image_id, file in self._instances.files.items():
            first, *others = _ends(file)
            whole[first] = None if first in whole else image_id
            for end in (first, *others):
                ends[end] = None if end in ends else image_id
        return whole, ends

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
        """Names come first: annotation tools number images anew, so numbers may be those of other images."""
        name = str(pair.meta.get("file_name") or pair.meta.get("path") or "")
        has_id = "image_id" in pair.meta
        if (found := self._id_of(name or ("" if has_id else pair.key))) is not None:
            return found
        if has_id:
            image_id = image_number(pair.meta, "image_id")
            files = (name, self._instances.files.get(image_id, ""))
            is_other = len({number_of_file(Path(file).name) for file in files} - {None}) > 1
        else:
            number = file[1] if (file := FILE.search(pair.key)) else pair.key
            image_id = image_number({"key": number}, "key")
            is_other = not are_alike(self._instances.files.get(image_id, number), number)
        if is_other:
            raise BadPair("the instances JSON lists another file under its number")
        return image_id

    def _id_of(self, name: str) -> int | None:
        """The only listed image whose path ends as ``name`` does, or the other way round; the longest one comes first."""
        whole, ends = self._ids
        names = _ends(name)
        return next((whole[end] for end in names if whole.get(end) is not None), ends.get(names[0]))


def _ends(file: str) -> list[str]:
    """A path without its extension, and without its first folders, the longest first."""
    parts = Path(os.path.splitext(file)[0]).parts or ("",)
    return ["/".join(parts[start:]) for start in range(len(parts))]
