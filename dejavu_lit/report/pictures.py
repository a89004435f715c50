"""Where the objects are in the pictures: boxes of the object artifact, with the size of the picture that they were found in.

boxes(ShardSet.open("OUT/A"), "OUT/objects/NAME/A", keys, 0.5)["key"]  ->  Boxes(640, 480, [("dog", 12, 30, 200, 150), …])
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dejavu_lit.data.objects import read_part
from dejavu_lit.data.pictures import opened
from dejavu_lit.data.shards import BadPair, ShardSet

MOST = 40  # boxes of one picture, those of the largest scores: more cannot be told apart
ORIENTATION, UPRIGHT = 274, 1  # EXIF
Box = tuple[str, float, float, float, float]  # label, and x, y, width, height in pixels
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Boxes:
    """The boxes of one picture and its size in pixels."""

    width: int
    height: int
    found: list[Box]


def boxes(shards: ShardSet, folder: Path, keys: Iterable[str], threshold: float) -> dict[str, Boxes]:
    """The boxes with a score of at least ``threshold`` in the pictures ``keys``.

    Pictures without any are left out, and those that are stored turned: their boxes may be of either orientation.
    """
    wanted = pa.array(sorted(set(keys)), pa.string())
    known: dict[str, list[Box]] = {}
    for path in sorted(folder.glob("*.parquet")):
        _, table = read_part(path, ("key", "labels", "scores", "boxes"))
        for row in table.filter(pc.is_in(table["key"], value_set=wanted)).to_pylist():
            if some := _kept(row["labels"] or [], row["scores"] or [], row["boxes"] or [], threshold):
                known[row["key"]] = some
    found: dict[str, Boxes] = {}
    for number in range(len(shards.names) if known else 0):
        index = shards.index(number)
        for position, key in enumerate(index.keys):
            if key not in known:
                continue
            try:
                with opened(index.read(position).image) as picture:
                    if picture.getexif().get(ORIENTATION, UPRIGHT) == UPRIGHT:
                        found[key] = Boxes(picture.width, picture.height, known[key])
            except BadPair as error:
                log.debug("%s: no boxes are drawn: %s", key, error)
    return found


def _kept(labels: list[str], scores: list[float], places: list[list[float]], threshold: float) -> list[Box]:
    """The boxes that count, those of the largest scores; an object without a place has none."""
    rows = [
        (score, label, place)
        for label, score, place in zip(labels, scores, places, strict=False)
        if score >= threshold and len(place) == 4 and place[2] > 0 and place[3] > 0
    ]
    rows.sort(key=lambda row: -row[0])
    return [(label, place[0], place[1], place[2], place[3]) for _, label, place in rows[:MOST]]
