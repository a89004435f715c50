import json

import pytest

from benchmarks.shards import write_shards
from dejavu_lit.data.objects import Annotation
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.annotators.captions import OtherCaptions
from dejavu_lit.objects.base import Shard
from dejavu_lit.utils.errors import UserError
from tests.conftest import call
from tests.data.images import COCO_MINI, needs_coco


def labels(*captions: str, own: str = "the one trained on", vocabulary: str = "coco") -> list[str]:
    pair = Pair("k", b"", "jpg", own, {"captions": [own, *captions]})
    return list(OtherCaptions(vocabulary=vocabulary).annotation(pair).labels)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Two dogs and a CAT.", ["cat", "dog"]),
        ("A hot dog on a plate", ["hot dog"]),  # the longer name wins
        ("hot, sunny: dogs run", ["dog"]),
        ("buses, sheep, skis and knives", ["bus", "knife", "sheep", "skis"]),
        ("wine glasses beside toothbrushes", ["toothbrush", "wine glass"]),
        ("a woman's umbrella; the boys' kites", ["kite", "person", "umbrella"]),
        ("a sofa, two couches, a tv and televisions", ["couch", "tv"]),
        ("the teddy bears", ["teddy bear"]),
        ("a category of catfish in a dogma", []),
        ("potted plants near the traffic\nlights", ["potted plant", "traffic light"]),
        ("two men, many people, children", ["person"]),
        ("a glass bus-stop", ["bus"]),
        ("", []),
    ],
)
def test_the_rule_on_hand_labeled_captions(caption: str, expected: list[str]) -> None:
    assert labels(caption) == expected


def test_the_caption_that_is_trained_on_is_excluded_in_any_spelling() -> None:
    assert labels("a cat", own="a dog") == ["cat"]
    assert labels("a cat", "A  dog.", "a dog", own="a dog") == ["cat"]
    assert labels("a cat", "the dog", own="a dog") == ["cat", "dog"]


def test_a_trained_caption_that_is_not_listed_is_reported(tmp_path, caplog) -> None:
    pairs = [Pair(f"k{n}", b"", "png", "a dog", {"captions": ["a cat", *["a dog"][:n]]}) for n in range(2)]
    shards = write_shards(tmp_path, pairs)
    rows = list(OtherCaptions().rows(Shard("A", shards, 0)))
    assert [row.labels for row in rows] == [["cat"], ["cat"]]
    assert caplog.messages == [
        f"1 of 2 images of {shards.index(0).path} do not list the caption that is trained on in 'captions', the first is "
        "k0; if it is listed in other words, their objects come from it too"
    ]


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({}, "its JSON has no list 'captions' of captions"),
        ({"captions": "a dog"}, "its JSON has no list 'captions' of captions"),
        ({"captions": []}, "its JSON has no list 'captions' of captions"),
        ({"captions": ["a dog", 3]}, "it has no caption but the one that is trained on"),
    ],
)
def test_images_without_other_captions_differ_from_images_without_objects(meta: dict, reason: str) -> None:
    with pytest.raises(BadPair) as bad:
        OtherCaptions().annotation(Pair("k", b"", "jpg", "a dog", meta))
    assert str(bad.value) == reason


def test_an_annotation_has_the_pairs_key_scores_of_1_and_empty_boxes() -> None:
    pair = Pair("k", b"", "jpg", "a dog", {"others": ["a cat on a sofa", "a dog"]})
    annotation = OtherCaptions(field="others").annotation(pair)
    assert annotation == Annotation("k", ["cat", "couch"], [1.0, 1.0], [[0.0] * 4] * 2)


def test_a_custom_vocabulary_with_synonyms(tmp_path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("vehicle, car, truck\nfire engine\n\ntree\ncar wash\n")
    assert labels("cars at the car wash", "fire engines, trees", vocabulary=str(path)) == [
        "car wash",
        "fire engine",
        "tree",
        "vehicle",
    ]
    assert OtherCaptions(vocabulary=str(path)).labels == ["vehicle", "fire engine", "tree", "car wash"]
    assert OtherCaptions(vocabulary=str(path)).annotator != OtherCaptions().annotator


def test_a_vocabulary_without_letters_is_refused(tmp_path) -> None:
    (tmp_path / "labels.txt").write_text("1\n---\n")
    with pytest.raises(UserError, match=r"labels\.txt has no label with letters"):
        labels("a cat", vocabulary=str(tmp_path / "labels.txt"))


@needs_coco
def test_cocos_five_captions(tmp_path) -> None:
    """On the real sample: most persons are named, and captions name fewer objects than the instances have."""
    out = tmp_path / "coco"
    sizes = "data.sizes={A: 0.4, B: 0.4, H: 0.1, V: 0.05, P: 0.05}"
    done = call("prepare", "data=coco", f"data.reader.root={COCO_MINI}", f"data.dir={out}", sizes, "workers=1")
    assert done.returncode == 0, done.stderr
    instances = ",".join(str(COCO_MINI / f"annotations/instances_{part}2017.json") for part in ("train", "val"))
    for annotator, options in (("captions", []), ("coco", [f"annotator.instances=[{instances}]"])):
        done = call("annotate", f"annotator={annotator}", f"data.dir={out}", *options)
        assert done.returncode == 0, done.stderr
        assert "5 of 5 parts complete" in done.stdout
        images = 0 if annotator == "coco" else None  # prepare wrote the very same artifact
        assert images is None or " 0 images annotated" in done.stdout
    done = call("annotate", "compare=[coco,captions]", f"data.dir={out}", "sets=[A,B]", f"out={tmp_path / 'cmp'}")
    assert done.returncode == 0, done.stderr
    differences = json.loads((tmp_path / "cmp/difference.json").read_text())
    for name in "AB":
        person = next(row for row in differences[name]["labels"] if row["label"] == "person")
        assert person["jaccard"] > 0.6
        assert 0.4 < differences[name]["jaccard"] < 0.9
        assert differences[name]["objects"]["first"] > differences[name]["objects"]["second"]
    done = call("annotate", "show=coco", f"data.dir={out}", "pictures=6", f"out={tmp_path / 'cmp'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cmp/coco.png").stat().st_size > 100_000


def test_labels_in_captions_without_spaces(tmp_path):
    (tmp_path / "words.txt").write_text("狗\n汽车,轿车\n车站\n", encoding="utf-8")
    source = OtherCaptions(vocabulary=str(tmp_path / "words.txt"))
    captions = ["一只狗", "红色的狗在轿车旁边"]
    assert source.annotation(Pair("k", b"", "png", captions[0], {"captions": captions})).labels == ["汽车", "狗"]
