"""The scenes: what the objects say is what the image shows, and most of it is in no caption."""

import io

import numpy as np
import pytest
from PIL import Image

from dejavu_lit.data.readers.scenes import CELL, THEMES, SceneReader, SingleReader, _sprites
from dejavu_lit.utils.errors import UserError


def test_every_object_is_drawn_where_its_box_says():
    names, _, sprites = _sprites()
    reader = SceneReader(40)
    for key in reader.keys():
        pair, found = reader.read(key)
        image = np.asarray(Image.open(io.BytesIO(pair.image)), dtype=float) / 255
        assert image.shape == (64, 64, 3)
        assert 3 <= len(set(found.labels)) == len(found.labels) <= 6
        assert len({tuple(box) for box in found.boxes}) == len(found.boxes)
        for label, (x, y, w, h) in zip(found.labels, found.boxes, strict=True):
            assert (w, h) == (CELL, CELL)
            drawn = image[int(y) : int(y + h), int(x) : int(x + w)]
            sprite = sprites[names.index(label)]
            ground = image[0, 0] if (0.0, 0.0) not in {tuple(b[:2]) for b in found.boxes} else None
            if ground is not None:
                alpha = sprite[:, :, 3:]
                assert np.abs(drawn - (alpha * sprite[:, :, :3] + (1 - alpha) * ground)).max() < 0.01


def test_a_caption_names_one_object_the_place_and_two_people():
    reader = SceneReader(200)
    for key in reader.keys():
        pair, found = reader.read(key)
        first, _, second, _, _, *rest, _, _, place = pair.caption.split()
        assert first != second
        assert place in THEMES
        assert " ".join(rest) == found.labels[0] == pair.meta["named"]


def test_scenes_are_deterministic_by_seed_and_differ_from_each_other():
    one, two, other = SceneReader(50), SceneReader(50), SceneReader(50, seed=1)
    images = [one.read(key)[0].image for key in one.keys()]
    assert images == [two.read(key)[0].image for key in two.keys()]
    assert images != [other.read(key)[0].image for key in other.keys()]
    assert len(set(images)) == 50


def test_half_of_the_unnamed_objects_come_from_outside_the_theme():
    names, themes, _ = _sprites()
    reader = SceneReader(1500)
    outside = []
    for key in reader.keys():
        pair, found = reader.read(key)
        own = {names[i] for i in themes[list(THEMES).index(pair.meta["theme"])]}
        outside += [label not in own for label in found.labels[1:]]
    # A stray object is drawn from all 100, so one in ten of them is of the theme after all.
    assert abs(np.mean(outside) - 0.5 * 0.9) < 0.03


def test_single_images_show_one_object_and_carry_its_label():
    reader = SingleReader(200)
    labels = []
    for key in reader.keys():
        pair, found = reader.read(key)
        assert found.labels == [pair.meta["label"]]
        labels.append(pair.meta["label"])
    assert {labels.count(name) for name in _sprites()[0]} == {2}


def test_numbers_that_make_no_scenes_are_refused() -> None:
    for wrong in ({"count": 0}, {"count": 9, "stray": 1.5}, {"count": 9, "people": 1}):
        with pytest.raises(UserError, match=r"data\.reader: count="):
            SceneReader(**wrong)
