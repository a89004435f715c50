"""Objects from tables, class labels and COCO's JSON."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from open_clip import IMAGENET_CLASSNAMES

from benchmarks.shards import write_shards
from dejavu_lit.data.readers.rows import read_table
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.annotators import table as module
from dejavu_lit.objects.annotators.classes import ClassLabels
from dejavu_lit.objects.annotators.coco import CocoLookup
from dejavu_lit.objects.annotators.table import TableLookup
from dejavu_lit.objects.base import Shard
from dejavu_lit.objects.vocabulary import vocabulary
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, fingerprint

ROWS = [
    {"key": "b", "labels": ["cat", "dog"], "scores": [0.5, 0.25], "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]},
    {"key": "a", "labels": [], "scores": [], "boxes": []},
    {"key": "001", "labels": ["cat"], "scores": [1.0], "boxes": [[0, 0, 9, 9.5]]},
]


def pair(key: str, **meta) -> Pair:
    return Pair(key, b"", "jpg", "text", meta)


def write(folder: Path, kind: str) -> Path:
    path = folder / f"objects.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        path.write_text('key,labels,scores,boxes\nb,cat;dog,0.5;0.25,1 2 3 4;5 6 7 8\na,,,\n001,"cat",1,0 0 9 9.5\n')
    return path


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_every_kind_of_table_gives_the_same_objects(tmp_path: Path, kind: str) -> None:
    table = TableLookup(write(tmp_path, kind), scores_column="scores", boxes_column="boxes")
    for row in ROWS:
        annotation = table.annotation(pair(row["key"]))
        assert (annotation.labels, annotation.scores, annotation.boxes) == (row["labels"], row["scores"], row["boxes"])
    with pytest.raises(BadPair, match="no row for this key"):
        table.annotation(pair("1"))
    plain = TableLookup(write(tmp_path, kind)).annotation(pair("b"))
    assert (plain.scores, plain.boxes) == ([1.0, 1.0], [[0.0] * 4] * 2)


def test_one_row_per_object(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("image,name,score,box\nx,cat,0.5,1 2 3 4\ny,dog,1,0 0 1 1\nx,dog,0.75,5 6 7 8\n")
    table = TableLookup(path, key="image", labels_column="name", scores_column="score", boxes_column="box")
    annotation = table.annotation(pair("x"))
    assert (annotation.labels, annotation.scores, annotation.boxes) == (
        ["cat", "dog"],
        [0.5, 0.75],
        [[1, 2, 3, 4], [5, 6, 7, 8]],
    )
    parquet = tmp_path / "long.parquet"
    rows = [("x", "cat", 0.5, [1, 2, 3, 4]), ("y", "dog", 1.0, [0, 0, 1, 1]), ("x", "dog", 0.75, [5, 6, 7, 8])]
    names = ["image", "name", "score", "box"]
    pq.write_table(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]), parquet)
    table = TableLookup(parquet, key="image", labels_column="name", scores_column="score", boxes_column="box")
    assert table.annotation(pair("x")) == annotation


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("key,label\na,x\n", {}, "no column 'labels' .did you mean 'label'"),
        ("key,labels,scores\na,x;y,1\n", {"scores_column": "scores"}, "2 labels, 1 scores and 2 boxes"),
        ("key,labels,scores\na,x,high\n", {"scores_column": "scores"}, "could not convert string to float: 'high'"),
        ("key,labels,scores\na,x,\n", {"scores_column": "scores"}, "1 labels, 0 scores and 1 boxes"),
        ("key,labels,boxes\na,x,1 2 3\n", {"boxes_column": "boxes"}, "a box does not have four numbers"),
        ("key,labels,boxes\na,x,\n", {"boxes_column": "boxes"}, "1 labels, 1 scores and 0 boxes"),
    ],
)
def test_wrong_tables_give_one_sentence(tmp_path: Path, text: str, options: dict, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    shards = write_shards(tmp_path / "A", [pair("a")])
    with pytest.raises(UserError, match=message):
        list(TableLookup(tmp_path / "t.csv", **options).rows(Shard("A", shards, 0)))


def test_blank_labels_are_skipped_with_their_scores_and_dates_stay_keys(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("key,labels,scores\na, x ;;y,0.5;0.6;0.7\na,,0.9\n")
    annotation = TableLookup(tmp_path / "t.csv", scores_column="scores").annotation(pair("a"))
    assert (annotation.labels, annotation.scores) == (["x", "y"], [0.5, 0.7])
    rows = [{"key": "2024-01-01", "labels": ["x", None, " "]}, {"key": "2024-01-02", "labels": None}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = TableLookup(tmp_path / "t.jsonl")
    assert [table.annotation(pair(row["key"])).labels for row in rows] == [["x"], []]
    (tmp_path / "n.jsonl").write_text('{"key": 7, "labels": ["x"]}\n')
    assert TableLookup(tmp_path / "n.jsonl").annotation(pair("7")).labels == ["x"]
    with pytest.raises(UserError, match="no column 'image'"):
        TableLookup(tmp_path / "n.jsonl", key="image").annotation(pair("7"))


def test_a_score_that_is_null_is_not_1(tmp_path: Path) -> None:
    row = {"key": "a", "labels": ["x"], "scores": None, "boxes": None}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    for column in ("scores", "boxes"):
        with pytest.raises(ValueError, match=f"0 {column}"):
            TableLookup(tmp_path / "t.jsonl", **{f"{column}_column": column}).annotation(pair("a"))


def test_labels_that_are_more_than_names_are_refused(tmp_path: Path) -> None:
    for labels in ([{"name": "cat"}], [["cat", "dog"]], {"name": "cat"}):
        (tmp_path / "t.jsonl").write_text(json.dumps({"key": "a", "labels": labels}))
        with pytest.raises(ValueError, match="its labels hold more than names"):
            TableLookup(tmp_path / "t.jsonl").annotation(pair("a"))


def test_nested_labels_with_scores_and_boxes(tmp_path: Path) -> None:
    """Visual Genome's objects.json has a list of names per object."""
    objects = [
        {"names": ["tree", "oak"], "score": 0.5, "box": [1, 2, 3, 4]},
        {"names": ["man"], "score": 1, "box": [0, 0, 1, 1]},
    ]
    (tmp_path / "t.json").write_text(json.dumps([{"image_id": 7, "objects": objects}, {"image_id": 8, "objects": []}]))
    columns = {"labels_column": "objects.names.0", "scores_column": "objects.score", "boxes_column": "objects.box"}
    table = TableLookup(tmp_path / "t.json", key="image_id", **columns)
    annotation = table.annotation(pair("7"))
    assert (annotation.labels, annotation.scores) == (["tree", "man"], [0.5, 1.0])
    assert annotation.boxes == [[1, 2, 3, 4], [0, 0, 1, 1]]
    assert table.annotation(pair("8")).labels == []


def test_entries_of_several_parquet_files_without_their_images(tmp_path: Path) -> None:
    """As the Hugging Face Hub has data for detection."""
    for number, category in enumerate(([3, 5], [])):
        objects = {"bbox": [[1.0, 2.0, 3.0, 4.0]] * len(category), "category": category}
        row = {"image_id": number, "image": {"bytes": b"png", "path": None}, "objects": objects}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"train-{number}.parquet")
    columns = {"key": "image_id", "labels_column": "objects.category", "boxes_column": "objects.bbox"}
    (tmp_path / "names.csv").write_text("3,cat\n5,dog\n")
    for path in (tmp_path, tmp_path / "train-*.parquet", sorted(tmp_path.glob("*.parquet"))):
        table = TableLookup(path, names=tmp_path / "names.csv", **columns)
        annotation = table.annotation(pair("0"))
        assert (annotation.labels, annotation.boxes) == (["cat", "dog"], [[1, 2, 3, 4]] * 2)
        assert table.annotation(pair("1")).labels == []
        assert "image" not in read_table(tmp_path / "train-0.parquet", list(columns.values())).column_names
        assert table.annotator.weights == fingerprint([file_sha256(tmp_path / f"train-{n}.parquet") for n in (0, 1)])
    assert TableLookup(tmp_path / "train-0.parquet").annotator.weights == file_sha256(tmp_path / "train-0.parquet")


def test_entries_of_lists_of_objects_in_parquet(tmp_path: Path) -> None:
    """As pyarrow writes JSON; a dictionary of lists is another way to write the same."""
    objects = [{"category": "cat", "bbox": [1.0, 2.0, 3.0, 4.0]}, {"category": "dog", "bbox": [0.0, 0.0, 1.0, 1.0]}]
    pq.write_table(pa.Table.from_pylist([{"key": "a", "objects": objects}]), tmp_path / "t.parquet")
    table = TableLookup(tmp_path / "t.parquet", labels_column="objects.category", boxes_column="objects.bbox")
    annotation = table.annotation(pair("a"))
    assert (annotation.labels, annotation.boxes) == (["cat", "dog"], [[1, 2, 3, 4], [0, 0, 1, 1]])


def test_whole_numbers_and_fractions_of_several_files_are_one_label(tmp_path: Path) -> None:
    """pandas writes whole numbers as fractions if one is missing."""
    pq.write_table(pa.table({"key": ["a"], "labels": [3]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"key": ["b"], "labels": [3.0]}), tmp_path / "2.parquet")
    assert TableLookup(tmp_path / "1.parquet").annotation(pair("a")).labels == ["3"]
    assert [TableLookup(tmp_path).annotation(pair(key)).labels for key in "ab"] == [["3"], ["3"]]
    pq.write_table(pa.table({"key": [42.0], "labels": ["cat"]}), tmp_path / "ids.parquet")
    table = TableLookup(tmp_path / "ids.parquet", field="image_id")
    assert [table.annotation(pair("k", image_id=image_id)).labels for image_id in (42, 42.0)] == [["cat"]] * 2
    pq.write_table(pa.table({"key": [123456789012.0], "labels": ["cat"]}), tmp_path / "long.parquet")
    table = TableLookup(tmp_path / "long.parquet", field="image_id")
    assert table.annotation(pair("k", image_id=123456789012)).labels == ["cat"]


def test_many_row_groups_and_files_become_one_chunk(tmp_path: Path) -> None:
    """pyarrow looks a row up in all chunks, for each cell: 10,000 of them made each image 40 times as slow."""
    for number in range(3):
        rows = pa.table(
            {"key": [f"{number}{row}" for row in range(4)], "labels": [["cat"], [], ["dog", "cat"], ["cow"]]}
        )
        pq.write_table(rows, tmp_path / f"{number}.parquet", row_group_size=1)
    table = TableLookup(tmp_path)
    assert [table.annotation(pair(f"{number}2")).labels for number in range(3)] == [["dog", "cat"]] * 3
    assert table._table[1]["labels"].num_chunks == 1


def test_a_damaged_file_of_several_is_named_and_each_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(module, "file_sha256", lambda path: hashed.append(path) or "digest")
    pq.write_table(pa.table({"key": ["a"], "labels": ["cat"]}), tmp_path / "1.parquet")
    (tmp_path / "2.parquet").write_bytes(b"no parquet")
    table = TableLookup(tmp_path)
    assert table.annotator == table.annotator
    assert len(hashed) == 2
    with pytest.raises(UserError, match=r"2\.parquet cannot be read as a table"):
        table.annotation(pair("a"))


def test_rows_found_by_an_entry_of_the_json(tmp_path: Path) -> None:
    """COCO's detection results have numbers for images and categories."""
    rows = [
        {"image_id": 42, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.75},
        {"image_id": 42, "category_id": 18, "bbox": [5, 6, 7, 8], "score": 0.5},
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    (tmp_path / "names.csv").write_text("1,person\n18,dog\n")
    columns = {"key": "image_id", "labels_column": "category_id", "scores_column": "score", "boxes_column": "bbox"}
    table = TableLookup(tmp_path / "results.json", **columns, field="image_id", names=tmp_path / "names.csv")
    annotation = table.annotation(pair("000000000042", image_id=42))
    assert (annotation.labels, annotation.scores) == (["person", "dog"], [0.75, 0.5])
    assert annotation.boxes == [[1, 2, 3, 4], [5, 6, 7, 8]]
    with pytest.raises(BadPair, match=r"no row for this key \(keys look like '42'\)"):
        table.annotation(pair("000000000043", image_id=43))
    with pytest.raises(BadPair, match="its JSON has no 'image_id'"):
        table.annotation(pair("42"))
    assert table.annotator != TableLookup(tmp_path / "results.json", **columns).annotator


def test_codes_get_their_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("key,labels\na,/m/1\na,/m/2\nb,/m/3\n")
    (tmp_path / "classes.csv").write_text('/m/1,Dog\n/m/2,"Boat, small"\n')
    table = TableLookup(tmp_path / "t.csv", names=tmp_path / "classes.csv")
    assert table.annotation(pair("a")).labels == ["Dog", "Boat, small"]
    assert table.annotator.vocabulary != TableLookup(tmp_path / "t.csv").annotator.vocabulary
    with pytest.raises(UserError, match=r"classes\.csv has no name of '/m/3'; add a line for it"):
        table.annotation(pair("b"))
    (tmp_path / "three.csv").write_text("/m/1,Dog,3\n")
    with pytest.raises(UserError, match="is not a table of codes and names"):
        TableLookup(tmp_path / "t.csv", names=tmp_path / "three.csv").annotation(pair("a"))


def test_a_list_written_as_text_is_not_one_label(tmp_path: Path) -> None:
    """As pandas writes it into a CSV."""
    path = tmp_path / "t.csv"
    for cell in ("['cat', 'dog']", '[""cat"", ""dog""]', "[]", "[1, 18]", "[-1]", "('cat', 'dog')", "{'cat'}"):
        path.write_text(f'key,labels\na,"{cell}"\n')
        with pytest.raises(ValueError, match="lists written as text, as pandas does in a CSV; join the labels by ';'"):
            TableLookup(path).annotation(pair("a"))
    path.write_text("key,labels\na,[unknown];cat\n")
    assert TableLookup(path).annotation(pair("a")).labels == ["[unknown]", "cat"]


def test_labels_joined_by_another_separator_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.csv"
    path.write_text('key,labels\na,"cat, dog"\nb,cat\n')
    assert TableLookup(path).annotation(pair("a")).labels == ["cat, dog"]
    assert (
        "most labels contain ',' and none ';', so each is one label; if they are lists, give annotator.separator=','"
        in caplog.text
    )
    caplog.clear()
    assert TableLookup(path, separator=",").annotation(pair("a")).labels == ["cat", "dog"]
    path.write_text('key,labels\na,"cat, dog"\nb,cat;dog\n')
    assert TableLookup(path).annotation(pair("a")).labels == ["cat, dog"]
    assert not caplog.records


def test_another_separator_is_another_annotator(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("key,labels\na,x;y|z\n")
    usual, other = TableLookup(tmp_path / "t.csv"), TableLookup(tmp_path / "t.csv", separator="|")
    assert [table.annotation(pair("a")).labels for table in (usual, other)] == [["x", "y|z"], ["x;y", "z"]]
    assert usual.annotator.config == {"columns": ["key", "labels", None, None]}  # as before the option counted
    assert other.annotator != usual.annotator


@pytest.mark.parametrize("score", ["nan", "inf", "1.5", "-0.1"])
def test_scores_outside_0_to_1_are_refused(tmp_path: Path, score: str) -> None:
    (tmp_path / "t.csv").write_text(f"key,labels,scores\na,x,{score}\n")
    shards = write_shards(tmp_path / "A", [pair("a")])
    with pytest.raises(UserError, match=r"a of .*00000\.tar: .*score.*; fix the input of annotator=table"):
        list(TableLookup(tmp_path / "t.csv", scores_column="scores").rows(Shard("A", shards, 0)))


def test_missing_files_and_files_that_are_not_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.csv does not exist; check annotator\.path="):
        _ = TableLookup(tmp_path / "no.csv").annotator
    (tmp_path / "t.csv").write_text("key,labels\na,x\n")
    with pytest.raises(UserError, match=r"none\.csv does not exist; check annotator\.names="):
        _ = TableLookup(tmp_path / "t.csv", names=tmp_path / "none.csv").annotator
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"give .parquet, .arrow, .csv, .tsv, .jsonl or .json"):
        TableLookup(tmp_path / "t.xlsx").annotation(pair("a"))
    (tmp_path / "t.parquet").write_text("x")
    with pytest.raises(UserError, match="cannot be read as a table"):
        TableLookup(tmp_path / "t.parquet").annotation(pair("a"))


def test_class_labels_by_name_and_by_number(tmp_path: Path) -> None:
    assert ClassLabels().annotation(pair("k", label="tench")).labels == ["tench"]
    assert ClassLabels(field="wnid").annotation(pair("k", wnid=7)).labels == ["7"]
    (tmp_path / "names.txt").write_text("tench\ngoldfish\n")
    named = ClassLabels(names=str(tmp_path / "names.txt"))
    assert [named.annotation(pair("k", label=label)).labels[0] for label in (0, "1", 1.0)] == [
        "tench",
        "goldfish",
        "goldfish",
    ]
    assert ClassLabels().annotation(pair("k", label=3.0)).labels == ["3"]
    for label in (2, -1, "x"):
        with pytest.raises(UserError, match="not a number below 2"):
            named.annotation(pair("k", label=label))
    for meta in ({}, {"label": None}, {"label": ""}):
        with pytest.raises(BadPair, match="its JSON has no 'label'"):
            ClassLabels().annotation(pair("k", **meta))
    imagenet = ClassLabels(names="imagenet")
    for number in (0, 657, 744, 837, 999):  # the names of 657 and 836 occur twice
        assert imagenet.annotation(pair("k", label=number)).labels == [IMAGENET_CLASSNAMES[number]]


def test_coco_by_image_id_or_key(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    content = {
        "images": [{"id": 7}, {"id": 9}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}],
    }
    path.write_text(json.dumps(content))
    lookup = CocoLookup(path)
    file = Pair("COCO_val2014_000000000007", b"", "jpg", "text", {"key": "9"})
    for annotation in map(lookup.annotation, (pair("x", image_id=7), pair("000000000007"), file)):
        assert (list(annotation.labels), annotation.boxes) == (["cat"], [[1, 2, 3, 4]])
    assert lookup.annotation(pair("9")).labels == []
    with pytest.raises(BadPair, match="does not list it"):
        lookup.annotation(pair("8"))
    for key in ("x", "7_1", "1_7", "-7"):
        with pytest.raises(BadPair, match="'key' is not a number"):
            lookup.annotation(pair(key))
    with pytest.raises(BadPair, match="'image_id' is not an id"):
        lookup.annotation(pair("7", image_id=7.5))


def test_coco_by_the_file_and_not_by_a_number_that_another_file_has(tmp_path: Path) -> None:
    """Exports number images 1 to n in any order, while the files may have numbers for names."""
    content = {
        "images": [
            {"id": 1, "file_name": "0007.jpg"},
            {"id": 7, "file_name": "a/0001.jpg"},
            {"id": 2, "file_name": "b/0001.jpg"},
            {"id": 9, "file_name": "000000000009.jpg"},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.25},
            {"image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4], "score": None},
            {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 2},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    lookup = CocoLookup(path)
    seven = lookup.annotation(pair("train-0007", path="train/0007.jpg"))
    assert (list(seven.labels), list(seven.scores)) == (["cat"], [0.25])
    first = lookup.annotation(pair("a-0001", path="a/0001.jpg"))  # a score beyond 1 is skipped
    assert (list(first.labels), list(first.scores)) == (["dog"], [1.0])
    with pytest.raises(BadPair, match="another file under its number"):
        lookup.annotation(pair("0001", path="0001.jpg"))  # there are two of this name, and image 1 is 0007.jpg
    assert lookup.annotation(pair("9", path="9.jpg")).labels == []  # COCO's name of the same number
    assert (lookup.annotator.version, CocoLookup(_without_scores(path)).annotator.version) == ("2", "1")


def _without_scores(path: Path) -> Path:
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        del entry["score"]
    (plain := path.with_name("plain.json")).write_text(json.dumps(content))
    return plain


def test_coco_by_the_name_of_the_file(tmp_path: Path) -> None:
    """Annotation tools number images anew, so the key 2 may be the number of another image."""
    files = {1: "images/2.jpg", 2: "images/10.jpg", 3: "a/same.jpg", 4: "b/same.jpg", 5: "photo.edited.png", 6: "x.jpg"}
    content = {
        "images": [{"id": image_id, "file_name": file} for image_id, file in files.items()],
        "categories": [{"id": image_id, "name": file} for image_id, file in files.items()],
        "annotations": [{"image_id": i, "category_id": i, "bbox": [1, 2, 3, 4]} for i in files],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    lookup = CocoLookup(tmp_path / "instances.json")
    found = {
        "images/2.jpg": pair("2"),
        "images/10.jpg": pair("10", path="10.png", image_id=77),
        "b/same.jpg": pair("b-same", path="b/same.jpg"),
        "a/same.jpg": pair("same", path="same.jpg", image_id=3),
        "photo.edited.png": pair("photo_edited", path="photo.edited.png"),
        "x.jpg": pair("000000000006", file_name="renamed.jpg", image_id=6),
    }
    assert {file: lookup.annotation(sought).labels for file, sought in found.items()} == {
        file: [file] for file in found
    }
    with pytest.raises(BadPair, match="lists another file under its number"):
        lookup.annotation(pair("6"))
    for unlisted in (
        pair("same", path="same.jpg"),
        pair("c-same", path="c/same.jpg"),
        pair("sub-10", path="sub/10.jpg"),
    ):
        with pytest.raises(BadPair, match="'key' is not a number"):
            lookup.annotation(unlisted)


def test_numbers_of_images_of_coco_count_unless_the_files_have_others(tmp_path: Path) -> None:
    content = {
        "images": [{"id": n, "file_name": f"{file:012}.jpg"} for n, file in ((1, 1), (7, 7), (9, 133))],
        "categories": [{"id": n, "name": str(n)} for n in (1, 7, 9)],
        "annotations": [{"image_id": n, "category_id": n, "bbox": [1, 2, 3, 4]} for n in (1, 7, 9)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    lookup = CocoLookup(tmp_path / "instances.json")
    assert lookup.annotation(pair("000000001", image_id=7)).labels == [
        "7"
    ]  # the key counts images, as img2dataset's does
    assert lookup.annotation(pair("000000001")).labels == ["1"]
    with pytest.raises(BadPair, match="lists another file under its number"):
        lookup.annotation(pair("000000000009", file_name="000000000009.jpg", image_id=9))


def test_vocabularies(tmp_path: Path) -> None:
    coco = list(vocabulary("coco"))
    assert (len(coco), coco[0], coco[-1]) == (80, "person", "toothbrush")
    assert len(vocabulary("imagenet")) > 990
    large = vocabulary("imagenet-21k")
    assert len(large) > 18_000
    assert large["planking"] == ()
    assert "fauna" in large["animal"]
    path = tmp_path / "lvis.json"
    categories = [{"name": "chair", "synonyms": ["seat"]}, {"name": "sofa"}]
    path.write_text(json.dumps({"categories": [*categories, {"name": "bed", "synonyms": None}]}))
    assert vocabulary(path) == {"chair": ("seat",), "sofa": (), "bed": ()}
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="has no labels"):
        vocabulary(tmp_path / "empty.txt")


def test_an_open_quotation_mark_joins_no_rows_of_labels(tmp_path: Path) -> None:
    lines = ["key\tlabels", 'a\t"cat', *(f"k{n}\tdog" for n in range(29))]
    (tmp_path / "objects.tsv").write_text("\n".join(lines))
    table = TableLookup(tmp_path / "objects.tsv")
    assert [table.annotation(pair(key)).labels for key in ("a", "k0", "k28")] == [['"cat'], ["dog"], ["dog"]]
