from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dejavu_lit.data.objects import Annotation
from dejavu_lit.objects.contact_sheet import FOOT, GAP, TEXT, colour, contact_sheet, draw, sheet
from dejavu_lit.utils.errors import UserError


def test_boxes_lie_where_the_objects_are() -> None:
    image = Image.new("RGB", (100, 50), "black")
    objects = Annotation("key", ["sure", "unsure"], [0.9, 0.4], [[50, 20, 30, 20], [10, 10, 20, 20]])
    tile = np.asarray(draw(image, objects, 0.5, size=200))
    assert tile.shape == (100 + FOOT * (TEXT + 3), 200, 3)
    drawn = (tile == colour("sure")).all(2)
    rows, columns = np.nonzero(drawn)
    assert (columns.min(), columns.max()) == (100, 160)
    assert (rows.min(), rows.max()) == (40, 80)
    assert drawn[40:81, 100].all()
    assert drawn[80, 100:161].all()
    assert not (tile == colour("unsure")).all(2).any()


def test_boxes_beyond_the_image_and_labels_without_one() -> None:
    image = Image.new("RGB", (64, 64), "black")
    objects = Annotation("key", ["wide", "a", "b"], [1, 1, 1], [[-5, -5, 500, 500], [0] * 4, [0] * 4])
    tile = np.asarray(draw(image, objects, 0.5, size=64))
    assert (tile[20:60, 63] == colour("wide")).all()
    foot = tile[64 + TEXT + 3 :]
    assert (foot < 100).any()  # the labels stand there as text
    bare = np.asarray(draw(image, Annotation("key", [], [], []), 0.5, size=64))
    assert (bare[64 + TEXT + 3 :] == 255).all()


def test_no_images_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images=0 must be at least 1"):
        contact_sheet({}, tmp_path, 0.5, images=0)


def test_a_sheet_holds_every_tile() -> None:
    tiles = [Image.new("RGB", (30, 20 + 5 * n), (n * 20 + 10, 0, 0)) for n in range(5)]
    page = np.asarray(sheet(tiles, columns=2))
    assert page.shape == (25 + 35 + 40 + 4 * GAP, 60 + 3 * GAP, 3)
    for n, tile in enumerate(tiles):
        assert (page == tile.getpixel((0, 0))).all(2).sum() == 30 * (20 + 5 * n)
