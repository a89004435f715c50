"""Boxes: those of the artifact above the threshold, only for images whose orientation is unambiguous."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.shards import write_shards
from dejavu_lit.data.objects import Annotation, Annotator, Failed, write_objects
from dejavu_lit.data.shards import Pair
from dejavu_lit.report.images import MAX_BOXES, Boxes, read_boxes, write_thumbnails
from tests.data.images import encoded


def sample_image(kind: str = "PNG", **options: object) -> bytes:
    return encoded(Image.new("RGB", (40, 30)), kind, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rotated = Image.Exif()
    rotated[274] = 6
    images = {
        "a": sample_image(),
        "b": b"broken",
        "c": sample_image("JPEG", exif=rotated),
        "d": sample_image(),
        "e": sample_image(),
    }
    images["f"] = sample_image()
    pairs = [Pair(key, data, "jpg" if key == "c" else "png", "text") for key, data in images.items()]
    write_shards(tmp_path / "A", pairs, pairs_per_shard=2)
    box = [[1.0, 2.0, 3.0, 4.0]]
    rows = [
        Annotation("a", ["dog", "cat", "fox"], [0.5, 0.49, 0.9], [[1, 2, 3, 4], [0, 0, 9, 9], [5, 5, 10.5, 10]]),
        Annotation("b", ["dog"], [0.9], box),
        Annotation("c", ["dog"], [0.9], box),
        Annotation("d", ["dog"] * 60, [i / 60 for i in range(60)], box * 60),
        Failed("e", "the annotator ran out of memory"),
        Annotation("f", ["dog", "cat"], [0.9, 0.9], [[], [0, 0, 0, 5]]),  # objects without a valid box
    ]
    for number, start in enumerate((0, 2, 4)):
        write_objects(tmp_path / "objects" / f"{number:05d}.parquet", rows[start : start + 2], Annotator("made"))
    return tmp_path


def test_boxes(folder: Path) -> None:
    from dejavu_lit.data.shards import ShardSet

    thumbnails = write_thumbnails(ShardSet.open(folder / "A"), "abcdef", 16, folder / "thumbs")
    boxes = read_boxes(thumbnails, [folder / "objects"], 0.5)
    assert boxes["a"] == Boxes(40, 30, [("fox", 5.0, 5.0, 10.5, 10.0), ("dog", 1.0, 2.0, 3.0, 4.0)])
    assert set(boxes) == {"a", "d"}  # not the broken, rotated, failed, or box-less images
    assert len(boxes["d"].boxes) == 30 < MAX_BOXES
    assert len(read_boxes({"d": thumbnails["d"]}, [folder / "objects"], 0.0)["d"].boxes) == MAX_BOXES
    # The stored 0.9 is a float32, which is less than 0.9.
    assert [box[0] for box in read_boxes(thumbnails, [folder / "objects"], 0.9)["a"].boxes] == ["fox"]
    assert read_boxes({}, [folder / "objects"], 0.0) == {}
