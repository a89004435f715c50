"""Scenes: the annotated objects are those that the image shows, and most of them are in no caption."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from dejavu_lit.data.readers.scenes import CELL, THEMES, SceneReader, SingleReader, _sprites
from dejavu_lit.utils.errors import UserError


def test_every_object_is_drawn_in_its_box():
    names, _, sprites = _sprites()
    reader = SceneReader(40)
    for key in reader.keys():
        pair, annotation = reader.read(key)
        image = np.asarray(Image.open(io.BytesIO(pair.image)), dtype=float) / 255
        assert image.shape == (64, 64, 3)
        assert 3 <= len(set(annotation.labels)) == len(annotation.labels) <= 6
        assert len({tuple(box) for box in annotation.boxes}) == len(annotation.boxes)
        for label, (x, y, w, h) in zip(annotation.labels, annotation.boxes, strict=True):
            assert (w, h) == (CELL, CELL)
            drawn = image[int(y) : int(y + h), int(x) : int(x + w)]
            sprite = sprites[names.index(label)]
            ground = image[0, 0] if (0.0, 0.0) not in {tuple(b[:2]) for b in annotation.boxes} else None
            if ground is not None:
                alpha = sprite[:, :, 3:]
                assert np.abs(drawn - (alpha * sprite[:, :, :3] + (1 - alpha) * ground)).max() < 0.01


def test_a_caption_names_one_object_the_place_and_two_people():
    reader = SceneReader(200)
    for key in reader.keys():
        pair, annotation = reader.read(key)
        first, _, second, _, _, *rest, _, _, place = pair.caption.split()
        assert first != second
        assert place in THEMES
        assert " ".join(rest) == annotation.labels[0] == pair.meta["named"]


@pytest.mark.parametrize(
    ("language", "object_name", "caption"),
    [("de", "krone", r"\w+, \w+: krone"), ("zh", "皇冠", r"\w+、\w+：皇冠"), ("ar", "تاج", r"\w+, \w+: تاج")],
)
def test_objects_and_captions_in_another_language(language, object_name, caption):
    english, other = SceneReader(300), SceneReader(300, language=language)
    number = _sprites()[0].index("crown")
    assert _sprites(language)[0][number] == object_name
    for key in english.keys():
        (pair, annotation), (translated, objects) = english.read(key), other.read(key)
        assert translated.image == pair.image
        assert [_sprites(language)[0][_sprites()[0].index(label)] for label in annotation.labels] == objects.labels
        if annotation.labels[0] == "crown":
            assert re.fullmatch(caption, translated.caption)
    assert english.fingerprint() == SceneReader(300, language="en").fingerprint() != other.fingerprint()
    alone = SingleReader(100, language=language).read(f"single{number:07d}")[0]
    assert (alone.caption, alone.meta["label"]) == (object_name, object_name)
    assert SingleReader(100).read(f"single{number:07d}")[0].caption == "a picture of a crown"


def test_an_unknown_language_is_refused():
    with pytest.raises(UserError, match=r"data.reader.language=xx must be one of en, "):
        SceneReader(3, language="xx").read("scene0000000")


def test_scenes_depend_only_on_the_seed_and_differ_from_each_other():
    first, second, other_seed = SceneReader(50), SceneReader(50), SceneReader(50, seed=1)
    images = [first.read(key)[0].image for key in first.keys()]
    assert images == [second.read(key)[0].image for key in second.keys()]
    assert images != [other_seed.read(key)[0].image for key in other_seed.keys()]
    assert len(set(images)) == 50


def test_half_of_the_unnamed_objects_come_from_outside_the_theme():
    names, themes, _ = _sprites()
    reader = SceneReader(1500)
    outside = []
    for key in reader.keys():
        pair, annotation = reader.read(key)
        own = {names[i] for i in themes[list(THEMES).index(pair.meta["theme"])]}
        outside += [label not in own for label in annotation.labels[1:]]
    # A stray object is drawn from all 100 objects, so one in ten is from the theme by chance.
    assert abs(np.mean(outside) - 0.5 * 0.9) < 0.03


def test_single_images_show_one_object_and_carry_its_label():
    reader = SingleReader(200)
    labels = []
    for key in reader.keys():
        pair, annotation = reader.read(key)
        assert annotation.labels == [pair.meta["label"]]
        labels.append(pair.meta["label"])
    assert {labels.count(name) for name in _sprites()[0]} == {2}


def test_numbers_out_of_range_are_rejected() -> None:
    for name, value in {"count": 0, "stray": 1.5, "people": 1, "mislabelled": 1.5}.items():
        with pytest.raises(UserError, match=rf"data\.reader\.{name}={value} must be at least"):
            SceneReader(**{"count": 9, name: value})


def test_mislabelled_images_have_the_caption_of_another_scene() -> None:
    plain, mixed = SceneReader(400), SceneReader(400, mislabelled=0.2)
    wrong = 0
    for key in plain.keys():
        (pair, objects), (other, other_objects) = plain.read(key), mixed.read(key)
        assert other.image == pair.image
        assert other_objects == objects
        assert (other.caption != pair.caption) == other.meta.get("mislabelled", False)
        wrong += other.caption != pair.caption
    assert 50 < wrong < 110
    assert (plain.fingerprint()["mislabelled"], mixed.fingerprint()["mislabelled"]) == (0, 0.2)
