import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dejavu_lit.data.readers.coco import CocoReader
from dejavu_lit.data.shards import BadPair, Pair, ShardSet
from dejavu_lit.objects.annotators.coco import CocoLookup
from dejavu_lit.utils.errors import UserError
from tests.data.images import COCO_MINI, encoded, needs_coco, sample_image
from tests.data.preparing import prepare


def write_split(root: Path, split: str, ids: list[int]) -> None:
    """COCO's layout: images named by id, two captions each, and instances for all but the last image."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"{split}2017").mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 48, "height": 36, "license": 3} for i in ids]
    for i in ids:
        (root / f"{split}2017" / f"{i:012d}.jpg").write_bytes(encoded(sample_image(i), "JPEG"))
    captions = [{"image_id": i, "id": 10 * i + n, "caption": f" caption {n}\n of {i} "} for n in range(2) for i in ids]
    boxes: list[dict[str, Any]] = []
    for i in ids[:-1]:
        boxes.append({"image_id": i, "category_id": 7, "bbox": [1, 2.5, 3, 4], "iscrowd": 0, "segmentation": [[1.0]]})
        boxes.append({"image_id": i, "category_id": 2, "bbox": [0, 0, 48, 36], "iscrowd": 1, "segmentation": {}})
    categories = [{"id": 2, "name": "cat"}, {"id": 7, "name": "traffic light"}]
    content = {"images": images, "annotations": captions}
    (root / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(content))
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_split(tmp_path / "coco", "train", [12, 7, 123456])
    write_split(tmp_path / "coco", "val", [9, 30])
    return tmp_path / "coco"


def test_train_and_val_are_read_together(root: Path) -> None:
    reader = CocoReader(root=root)
    assert reader.keys() == ["000000000007", "000000000009", "000000000012", "000000000030", "000000123456"]
    pair, annotation = reader.read("000000000009")
    assert pair.caption == "caption 0 of 9"
    assert pair.image == (root / "val2017/000000000009.jpg").read_bytes()
    assert pair.extension == "jpg"
    assert pair.meta["captions"] == ["caption 0 of 9", "caption 1 of 9"]
    assert {name: pair.meta[name] for name in ("width", "height", "license", "image_id", "source")} == {
        "width": 48,
        "height": 36,
        "license": 3,
        "image_id": 9,
        "source": "val2017",
    }
    assert annotation is not None
    assert annotation.key == "000000000009"
    assert annotation.labels == ["traffic light", "cat"]
    assert annotation.scores == [1.0, 1.0]
    assert annotation.boxes == [[1, 2.5, 3, 4], [0, 0, 48, 36]]


def test_lists_may_name_images_by_their_ids_and_files(root: Path) -> None:
    keys = root / "members.txt"
    keys.write_text(f"{root}/val2017/000000000009.jpg\ntrain2014/COCO_train2014_000000000012.jpg\n123456\n")
    manifest = prepare(CocoReader(root=root), root / "out", {"A": None}, keys={"A": keys})
    assert manifest["sets"]["A"]["absent"] == 0
    names = sorted(ShardSet.open(root / "out" / "A").keys())
    assert names == ["000000000009", "000000000012", "000000123456"]


def test_the_file_of_an_image_tells_more_than_its_digits(root: Path) -> None:
    path = root / "annotations" / "captions_val2017.json"
    path.write_text(path.read_text().replace("000000000009.jpg", "sub/7").replace("000000000030.jpg", "30.jpg"))
    reader = CocoReader(root=root)
    lines = ["sub/7", "7", "30.jpg", "a/30.jpg", "9.jpg"]
    names = ["000000000009", "000000000007", "000000000030", "000000000030", "9.jpg"]
    assert [reader.listed_name(line) for line in lines] == names


def test_an_image_without_instances_has_no_objects(root: Path) -> None:
    annotation = CocoReader(root=root).read("000000000030")[1]
    assert annotation is not None
    assert (annotation.labels, annotation.scores, annotation.boxes) == ([], [], [])


def test_one_split_as_a_string_and_another_caption(root: Path) -> None:
    reader = CocoReader(root=root, splits="val", caption=1)
    assert len(reader.keys()) == 2
    assert reader.read("000000000009")[0].caption == "caption 1 of 9"
    with pytest.raises(BadPair, match="no caption number 2"):
        CocoReader(root=root, caption=2).read("000000000009")


def test_explicit_paths_are_equivalent_to_root(root: Path) -> None:
    parts = ["train2017", "val2017"]
    by_path = CocoReader(
        images=[root / part for part in parts],
        captions=[root / f"annotations/captions_{part}.json" for part in parts],
        instances=[root / f"annotations/instances_{part}.json" for part in parts],
    )
    by_root = CocoReader(root=str(root))
    assert by_path.fingerprint() == by_root.fingerprint()
    assert by_path.annotator == by_root.annotator
    keys = by_root.keys()
    assert by_path.keys() == keys
    assert [by_path.read(key) for key in keys] == [by_root.read(key) for key in keys]


def test_image_folders_may_be_in_a_folder_images(root: Path) -> None:
    keys = CocoReader(root=root).keys()
    (root / "images").mkdir()
    for part in ("train2017", "val2017"):
        (root / part).rename(root / "images" / part)
    reader = CocoReader(root=root)
    assert reader.keys() == keys
    assert [reader.read(key)[0].key for key in keys] == keys


def test_without_instances_there_are_no_objects(root: Path) -> None:
    for path in root.glob("annotations/instances_*"):
        path.unlink()
    reader = CocoReader(root=root)
    assert reader.annotator is None
    assert reader.read("000000000009")[1] is None


def test_a_missing_image_is_a_bad_pair(root: Path) -> None:
    reader = CocoReader(root=root)
    (root / "val2017/000000000009.jpg").unlink()
    with pytest.raises(BadPair, match="the image does not exist"):
        reader.read("000000000009")


def test_the_fingerprint_changes_with_files_and_options(root: Path) -> None:
    before = CocoReader(root=root).fingerprint()
    assert json.loads(json.dumps(before)) == before
    assert CocoReader(root=root, caption=1).fingerprint() != before
    path = root / "annotations/captions_val2017.json"
    path.write_text(path.read_text() + " ")
    assert CocoReader(root=root).fingerprint() != before


def test_errors_name_wrong_options_and_paths(root: Path, tmp_path: Path) -> None:
    annotations = root / "annotations"
    with pytest.raises(UserError, match=r"remove it or data\.reader\.captions="):
        CocoReader(root=root, captions="x.json")
    with pytest.raises(UserError, match=r"1 folders and data\.reader\.captions= 0 files; .* or data\.reader\.root="):
        CocoReader(images=root).keys()
    with pytest.raises(UserError, match="caption=-1"):
        CocoReader(root=root, caption=-1)
    with pytest.raises(UserError, match=r"the folder .*nowhere.* does not exist"):
        CocoReader(root=tmp_path / "nowhere").keys()
    with pytest.raises(UserError, match=r"test2017 does not exist; check root, splits"):
        CocoReader(root=root, splits=["test"]).keys()
    captions = annotations / "captions_val2017.json"
    with pytest.raises(UserError, match=r"the folder .*captions_val2017\.json does not exist"):
        CocoReader(images=captions, captions=captions).keys()
    with pytest.raises(UserError, match=r"the file .*annotations does not exist"):
        CocoReader(images=root / "val2017", captions=annotations).keys()
    shutil.copy(captions, root / "again.json")
    with pytest.raises(UserError, match=r"the image id \d+ is in .*captions_val2017\.json and in .*again\.json"):
        CocoReader(images=root / "val2017", captions=[captions, root / "again.json"]).keys()
    with pytest.raises(UserError, match=r"3 folders and data\.reader\.captions= 1"):
        CocoReader(images=[root] * 3, captions=annotations / "captions_val2017.json").keys()
    with pytest.raises(
        UserError, match=r"none of the \d+ annotations in .*instances_val2017.json can be used .*captions="
    ):
        CocoReader(images=root / "val2017", captions=annotations / "instances_val2017.json").keys()
    swapped = CocoReader(images=root / "val2017", captions=captions, instances=captions)
    with pytest.raises(UserError, match=r"captions_val2017\.json has no list 'categories'"):
        swapped.read("000000000009")
    instances = annotations / "instances_train2017.json"
    foreign = CocoReader(images=root / "val2017", captions=captions, instances=instances)
    with pytest.raises(UserError, match="lists none of the images"):
        foreign.read("000000000009")
    (annotations / "instances_val2017.json").unlink()
    with pytest.raises(UserError, match=r"instances_val2017\.json does not exist"):
        CocoReader(root=root).keys()
    (annotations / "captions_val2017.json").write_text("{")
    with pytest.raises(UserError, match=r"captions_val2017\.json is not valid JSON"):
        CocoReader(images=root / "val2017", captions=annotations / "captions_val2017.json").keys()


def test_images_without_captions_come_from_the_instances_or_any_list_of_images(root: Path, tmp_path: Path) -> None:
    annotations = root / "annotations"
    with_captions = CocoReader(root=root, splits="val", caption=None)
    expected = [with_captions.read(key) for key in with_captions.keys()]
    for path in annotations.glob("captions_*"):
        path.unlink()
    by_root = CocoReader(root=root, splits="val", caption=None)
    by_path = CocoReader(images=root / "val2017", instances=annotations / "instances_val2017.json", caption=None)
    pair, annotation = by_root.read("000000000009")
    assert (pair.caption, pair.meta["image_id"], "captions" in pair.meta) == ("", 9, False)
    assert annotation is not None
    assert annotation.labels == ["traffic light", "cat"]
    for reader in (by_path, by_root):
        assert [reader.read(key) for key in reader.keys()] == expected
    manifest = prepare(by_path, tmp_path / "out", {"P": 2})
    assert manifest["sets"]["P"]["pairs"] == 2
    images = {
        "images": [{"id": 9, "file_name": "000000000009.jpg"}],
        "categories": [],
    }  # as in image_info_test2017.json
    (annotations / "instances_val2017.json").unlink()
    (annotations / "image_info_val2017.json").write_text(json.dumps(images))
    assert CocoReader(root=root, splits="val", caption=None).read("000000000009") == (
        Pair(
            "000000000009", pair.image, "jpg", "", {"file_name": "000000000009.jpg", "image_id": 9, "source": "val2017"}
        ),
        None,
    )


def test_duplicate_ids_are_rejected(root: Path) -> None:
    captions = [root / "annotations/captions_val2017.json"] * 2
    with pytest.raises(UserError, match="image id 9 is in"):
        CocoReader(images=root / "val2017", captions=captions).keys()


@pytest.mark.parametrize(("first", "second"), [(str, str), (str, int), (int, float), (float, str)])
def test_ids_may_be_text(root: Path, first: type, second: type) -> None:
    expected = [CocoReader(root=root).read(key) for key in CocoReader(root=root).keys()]
    for path in root.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        for image in content["images"]:
            image["id"] = first(image["id"])
        for category in content.get("categories", []):
            category["id"] = second(category["id"])
        for annotation in content["annotations"]:
            annotation["image_id"] = second(annotation["image_id"])
            if "category_id" in annotation:
                annotation["category_id"] = first(annotation["category_id"])
        path.write_text(json.dumps(content))
    reader = CocoReader(root=root)
    assert [reader.read(key) for key in reader.keys()] == expected


@pytest.mark.parametrize(
    ("kind", "entry", "change", "reason"),
    [
        ("captions", "annotations", {"caption": None}, "it has no 'caption'"),
        ("captions", "annotations", {"caption": 3}, "its 'caption' is not text"),
        ("captions", "annotations", {"caption": " \n"}, "it has no 'caption'"),
        ("captions", "annotations", {"image_id": 99}, "its image is not in images"),
        ("captions", "annotations", {"image_id": "x"}, "its 'image_id' is not a number"),
        ("captions", "images", {"file_name": None}, "it has no 'file_name'"),
        ("captions", "images", {"file_name": ["1.jpg"]}, "its 'file_name' is not text"),
        ("instances", "annotations", {"category_id": 99}, "its category 99 is not in categories"),
        ("instances", "annotations", {"bbox": None}, "it has no 'bbox'"),
        ("instances", "annotations", {"bbox": [1, 2, 3]}, "its bbox is not four numbers (x, y, width, height)"),
        ("instances", "categories", {"name": None}, "it has no 'name'"),
        ("instances", "categories", {"name": ""}, "it has no 'name'"),
    ],
)
def test_one_bad_entry_is_skipped_and_counted(
    root: Path, caplog: pytest.LogCaptureFixture, kind: str, entry: str, change: dict[str, Any], reason: str
) -> None:
    path = root / f"annotations/{kind}_train2017.json"
    content = json.loads(path.read_text())
    content[entry][0].update(change)
    path.write_text(json.dumps(content))
    reader = CocoReader(root=root)
    keys = reader.keys()
    assert len(keys) == 5 - (entry == "images")
    assert sum(reader.read(key)[1] is not None for key in keys) == len(keys)
    assert f"{path}: 1 of {entry} skipped, e.g. " in caplog.text
    assert reason in caplog.text


def test_a_blank_caption_leaves_the_good_ones(root: Path) -> None:
    path = root / "annotations/captions_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["caption"] = " "
    path.write_text(json.dumps(content))
    pair, _ = CocoReader(root=root).read("000000000009")
    assert (pair.caption, pair.meta["captions"]) == ("caption 1 of 9", ["caption 1 of 9"])


def test_a_copy_of_an_image_s_entry_is_counted_and_another_image_of_its_id_refused(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = root / "annotations/captions_val2017.json"
    content = json.loads(path.read_text())
    content["images"].append(dict(content["images"][0]))
    path.write_text(json.dumps(content))
    assert len(CocoReader(root=root).keys()) == 5
    assert f"{path}: 1 of images skipped, e.g. 9: it is a copy of another entry" in caplog.text
    content["images"][-1]["file_name"] = "000000000030.jpg"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"two different images in .* have the id 9"):
        CocoReader(root=root).keys()


@pytest.mark.parametrize(
    ("name", "is_same"), [("COCO_val2014_000000000009.jpg", True), ("9.png", True), ("30.jpg", False)]
)
def test_ids_that_mean_other_files_in_the_instances_are_warned_of(
    root: Path, caplog: pytest.LogCaptureFixture, name: str, is_same: bool
) -> None:
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = f"val/{name}"
    path.write_text(json.dumps(content))
    CocoReader(root=root).read("000000000009")
    text = f"images with another file name in the instances JSON: 1, e.g. 000000000009: 000000000009.jpg and val/{name}; if"
    assert (text in caplog.text) is not is_same


def test_instances_of_an_image_that_is_not_listed_are_its_objects(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][1:]
    path.write_text(json.dumps(content))
    pair, annotation = CocoReader(root=root).read("000000000009")
    assert annotation is not None
    assert annotation.labels == ["traffic light", "cat"]
    assert "get no objects" not in caplog.text
    assert CocoLookup(path).annotation(pair) == annotation


@needs_coco
def test_the_real_sample() -> None:
    reader = CocoReader(root=COCO_MINI)
    keys = reader.keys()
    assert len(keys) == 159
    raw = {
        split: json.loads((COCO_MINI / f"annotations/instances_{split}2017.json").read_text())
        for split in ("train", "val")
    }
    names = {category["id"]: category["name"] for category in raw["val"]["categories"]}
    total = 0
    for key in keys:
        pair, annotation = reader.read(key)
        assert len(pair.meta["captions"]) == 5
        assert annotation is not None
        expected = [a for part in raw.values() for a in part["annotations"] if a["image_id"] == int(key)]
        assert annotation.labels == [names[a["category_id"]] for a in expected]
        assert annotation.boxes == [pytest.approx(a["bbox"], rel=1e-6) for a in expected]
        total += len(expected)
    assert total == 739 + 624
