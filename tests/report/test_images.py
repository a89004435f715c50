"""Boxes: the artifact's, above the threshold, and only where the image's pixels are the artifact's."""

import io
from pathlib import Path

import pytest
from PIL import Image

from dejavu_lit.data.objects import Annotation, Annotator, Failed, write_objects
from dejavu_lit.data.shards import Pair, write_shards
from dejavu_lit.report.images import MOST, Boxes, boxes


def sample_image(kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30)).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    turned = Image.Exif()
    turned[274] = 6
    images = {
        "a": sample_image(),
        "b": b"broken",
        "c": sample_image("JPEG", exif=turned),
        "d": sample_image(),
        "e": sample_image(),
    }
    images["f"] = sample_image()
    pairs = [Pair(key, data, "jpg" if key == "c" else "png", "text") for key, data in images.items()]
    write_shards(tmp_path / "A", pairs, pairs_per_shard=2)
    one = [[1.0, 2.0, 3.0, 4.0]]
    rows = [
        Annotation("a", ["dog", "cat", "fox"], [0.5, 0.49, 0.9], [[1, 2, 3, 4], [0, 0, 9, 9], [5, 5, 10.5, 10]]),
        Annotation("b", ["dog"], [0.9], one),
        Annotation("c", ["dog"], [0.9], one),
        Annotation("d", ["dog"] * 60, [i / 60 for i in range(60)], one * 60),
        Failed("e", "the annotator ran out of memory"),
        Annotation("f", ["dog", "cat"], [0.9, 0.9], [[], [0, 0, 0, 5]]),  # objects without a place
    ]
    for number, start in enumerate((0, 2, 4)):
        write_objects(tmp_path / "objects" / f"{number:05d}.parquet", rows[start : start + 2], Annotator("made"))
    return tmp_path


def test_boxes(folder: Path) -> None:
    from dejavu_lit.data.shards import ShardSet

    shards = ShardSet.open(folder / "A")
    found = boxes(shards, folder / "objects", "abcdef", 0.5)
    assert found["a"] == Boxes(40, 30, [("fox", 5.0, 5.0, 10.5, 10.0), ("dog", 1.0, 2.0, 3.0, 4.0)])
    assert set(found) == {"a", "d"}  # not the broken, the turned, the failed, and those without a place
    assert len(found["d"].found) == 30 < MOST
    assert len(boxes(shards, folder / "objects", "d", 0.0)["d"].found) == MOST
    assert boxes(shards, folder / "objects", ["z"], 0.0) == {}
