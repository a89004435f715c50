from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.shards import write_shards
from dejavu_lit.data.objects import Annotation
from dejavu_lit.data.shards import Pair
from dejavu_lit.objects.annotate import annotate
from dejavu_lit.objects.annotators.classes import ClassLabels
from dejavu_lit.objects.contact_sheet import FOOT, GAP, TEXT, _font, contact_sheet, draw, label_color, sheet
from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded, sample_image


def test_boxes_are_drawn_around_the_objects() -> None:
    image = Image.new("RGB", (100, 50), "black")
    objects = Annotation("key", ["sure", "unsure"], [0.9, 0.4], [[50, 20, 30, 20], [10, 10, 20, 20]])
    tile = np.asarray(draw(image, objects, 0.5, size=200))
    assert tile.shape == (200 + FOOT * (TEXT + 3), 200, 3)
    drawn = (tile == label_color("sure")).all(2)
    rows, columns = np.nonzero(drawn)
    assert (columns.min(), columns.max()) == (100, 160)
    assert (rows.min(), rows.max()) == (40, 80)
    assert drawn[40:81, 100].all()
    assert drawn[80, 100:161].all()
    assert not (tile == label_color("unsure")).all(2).any()


def test_boxes_outside_the_image_and_labels_without_boxes() -> None:
    image = Image.new("RGB", (64, 64), "black")
    objects = Annotation("key", ["wide", "a", "b"], [1, 1, 1], [[-5, -5, 500, 500], [0] * 4, [0] * 4])
    tile = np.asarray(draw(image, objects, 0.5, size=64))
    assert (tile[20:60, 63] == label_color("wide")).all()
    foot = tile[64 + TEXT + 3 :]
    assert (foot < 100).any()  # the labels are written there
    stored = Annotation(objects.key, objects.labels, [float(np.float32(0.7))] * len(objects.labels), objects.boxes)
    assert (np.asarray(draw(image, stored, 0.7, size=64)) == np.asarray(draw(image, stored, 0.5, size=64))).all()
    empty = np.asarray(draw(image, Annotation("key", [], [], []), 0.5, size=64))
    assert (empty[64 + TEXT + 3 :] == 255).all()


def test_chinese_labels_are_drawn_with_an_installed_font(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("fontTools")
    from tests.fonts import write_font

    for name in ("XDG_DATA_HOME", "XDG_DATA_DIRS"):  # where Pillow looks for fonts
        monkeypatch.setenv(name, str(tmp_path))
    _font.cache_clear()
    image, objects = Image.new("RGB", (64, 64)), Annotation("key", ["冠", "狗"], [1, 1], [[0] * 4, [8, 30, 40, 20]])
    draw(image, objects, 0.5, size=64)
    draw(image, objects, 0.5, size=64)
    assert caplog.text.count("are drawn as boxes") == 1
    write_font(tmp_path / "fonts/NotoSansCJK-Regular.ttc", "冠")
    _font.cache_clear()
    foot = np.asarray(draw(image, objects, 0.5, size=64))[64 + TEXT + 3 :]
    assert (foot == 0).all(2).sum() >= (TEXT - 1) ** 2  # a black square
    _font.cache_clear()


def test_images_of_an_unfinished_artifact_are_drawn(tmp_path: Path) -> None:
    """Of several processes, that with the first shard may not have ended."""
    pairs = [Pair(f"k{n}", encoded(sample_image(n, 30, 20)), "png", "a caption", {"label": "dog"}) for n in range(3)]
    shards = write_shards(tmp_path / "A", pairs, 1)
    annotate(ClassLabels(), {"A": shards}, tmp_path / "objects", (1, 3))
    assert contact_sheet({"A": shards}, tmp_path / "objects", 0.5).width == 320 + 2 * GAP


def test_zero_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pictures=0 must be at least 1"):
        contact_sheet({}, tmp_path, 0.5, images=0)


def test_a_sheet_has_every_tile() -> None:
    tiles = [Image.new("RGB", (30, 20), (n * 20 + 10, 0, 0)) for n in range(5)]
    page = np.asarray(sheet(tiles))
    assert page.shape == (40 + 3 * GAP, 120 + 5 * GAP, 3)
    for tile in tiles:
        assert (page == tile.getpixel((0, 0))).all(2).sum() == 30 * 20
