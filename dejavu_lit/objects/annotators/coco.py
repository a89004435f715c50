"""COCO's instances JSON as annotator: every box with its category's name, score 1.0, crowds included.

Format: https://cocodataset.org/#format-data (``annotations``: image_id, category_id, bbox x, y, width, height in pixels).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit.data.decode import plain
from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.base import Lookup
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import file_sha256, fingerprint


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
        """The objects of one picture, in the file's order; an empty row for a picture without instances."""
        start, end = (np.searchsorted(self._images, image_id, side) for side in ("left", "right"))
        labels = [self._labels[code] for code in self._codes[start:end]]
        return Annotation(key, labels, [1.0] * len(labels), self._boxes[start:end].tolist())


@dataclass(frozen=True)
class CocoLookup(Lookup):
    """The instances JSON for prepared pictures: by ``image_id`` in the pair's JSON, else by the number that the key is."""

    instances: str | Path | Sequence[str | Path]
    """The instances JSON file(s), e.g. instances_train2017.json."""

    @cached_property
    def _found(self) -> CocoInstances:
        several = [self.instances] if isinstance(self.instances, str | Path) else self.instances
        return CocoInstances([Path(path) for path in several])

    @property
    def annotator(self) -> Annotator:
        """The same as of the artifact that ``prepare`` makes from the same files."""
        return self._found.annotator

    def annotation(self, pair: Pair) -> Annotation:
        """The instances of one picture; raises BadPair where the files do not list it."""
        number = pair.meta.get("image_id", pair.key)
        try:
            image_id = int(number)
        except (TypeError, ValueError):
            raise BadPair("neither its key nor image_id in its JSON is a number of COCO") from None
        if image_id not in self._found.listed:
            raise BadPair("the instances JSON does not list it")
        return self._found.annotation(image_id, pair.key)
