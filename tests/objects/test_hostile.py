"""Hostile input to the readers of objects gives a valid value, a failed image or one sentence; never a crash."""

import io
import json
import tarfile
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.shards import write_shards
from dejavu_lit.data.objects import (
    METADATA,
    SCHEMA,
    Annotation,
    Annotator,
    failures,
    read_objects,
    read_part,
    write_objects,
)
from dejavu_lit.data.shards import Pair, ShardSet, index_shard
from dejavu_lit.objects.annotate import annotate
from dejavu_lit.objects.annotators.captions import OtherCaptions
from dejavu_lit.objects.annotators.classes import ClassLabels
from dejavu_lit.objects.annotators.table import TableLookup
from dejavu_lit.objects.base import Shard
from dejavu_lit.objects.contact_sheet import contact_sheet
from dejavu_lit.objects.vocabulary import vocabulary
from dejavu_lit.report.images import read_image_objects
from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded, sample_image
from tests.hostile import JSON, damaged, fuzz_settings, try_read, wrong_json, wrong_table

KEYS = ("k0", "k1", "k2")
ROWS = [
    Annotation("k0", ["dog", "cat"], [0.9, 0.4], [[1, 2, 20, 10], [0, 0, 0, 0]]),
    Annotation("k1", [], [], []),
    Annotation("k2", ["dog"], [1.0], [[30, 5, 100, 100]]),
]
ANNOTATOR = Annotator("test", weights="0f", threshold=0.1, config={"a": [1]})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    pairs = [
        Pair(key, encoded(sample_image(n)), "png", "a dog", {"label": n, "captions": ["a", "b"]})
        for n, key in enumerate(KEYS)
    ]
    return write_shards(tmp_path_factory.mktemp("pairs") / "A", pairs)


def read_artifact(folder: Path, shards: ShardSet) -> None:
    """Read an artifact with every reader."""
    result = try_read(lambda: read_objects([folder / "A"], 0.5))
    if result is not None:
        (objects,), _ = result
        assert len(objects.codes) == objects.starts[-1]
        try_read(lambda: objects.take(list(KEYS)))
        [objects.names(row) for row in range(len(objects))]
    try_read(lambda: contact_sheet({"A": shards}, folder, 0.5, 3))
    for image in (try_read(lambda: read_image_objects([folder / "A"], KEYS, 0.5)) or {}).values():
        [list(map(round, box)) for _, box in image.boxes]
    try_read(lambda: failures(folder / "A" / "00000.parquet"))


@fuzz_settings(60)
@given(data=st.data())
def test_damaged_artifacts(tmp_path, shards, data):
    write_objects(tmp_path / "intact.parquet", ROWS, ANNOTATOR)
    (tmp_path / "A").mkdir(exist_ok=True)
    (tmp_path / "A" / "00000.parquet").write_bytes(data.draw(damaged((tmp_path / "intact.parquet").read_bytes())))
    read_artifact(tmp_path, shards)


@fuzz_settings(60)
@given(data=st.data())
def test_artifacts_with_wrong_columns_or_metadata(tmp_path, shards, data):
    (tmp_path / "A").mkdir(exist_ok=True)
    write_objects(tmp_path / "intact.parquet", ROWS, ANNOTATOR)
    table = pq.read_table(tmp_path / "intact.parquet")
    annotator = (
        data.draw(wrong_json(asdict(ANNOTATOR))) if data.draw(st.booleans()) else table.schema.metadata[METADATA]
    )
    failed = data.draw(wrong_json({"k1": "why"}))
    if data.draw(st.booleans()):
        table = data.draw(wrong_table(table))
    table = table.replace_schema_metadata({METADATA: annotator, b"dejavu_lit_failed": failed})
    try:
        pq.write_table(table, tmp_path / "A" / "00000.parquet")
    except (pa.ArrowException, UnicodeError):
        return  # not even Arrow writes it
    read_artifact(tmp_path, shards)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("labels", [["dog", None], [], ["dog"]]),
        ("scores", [[0.9, float("nan")], [], [1.0]]),
        ("scores", [[0.9], [], [1.0]]),
        ("boxes", [[[1, 2, 3, float("inf")], [0, 0, 0, 0]], [], [[1, 2, 3, 4]]]),
        ("key", ["k0", None, "k2"]),
    ],
)
def test_rows_that_are_not_annotations_are_refused(tmp_path, name, column):
    write_objects(tmp_path / "0.parquet", ROWS, ANNOTATOR)
    table = pq.read_table(tmp_path / "0.parquet")
    position = SCHEMA.names.index(name)
    pq.write_table(table.set_column(position, name, pa.array(column, SCHEMA.field(name).type)), tmp_path / "0.parquet")
    with pytest.raises(UserError, match=r"0\.parquet is damaged or not an object artifact"):
        read_part(tmp_path / "0.parquet", SCHEMA.names)


def test_labels_of_any_length_and_cornersanywhere_are_drawn(tmp_path, shards):
    (tmp_path / "A").mkdir()
    labels = ["a\nb", "x" * 2_000_000, "", "\0", "$\\frac{"]
    corners = [[-1e30, -1e30, 2e30, 2e30], [1e30, 1e30, 5, 5], [0, 0, 0, 0], [3, 3, -5, 5], [1, 2, 3, 4]]
    rows = [Annotation("k0", labels, [1.0] * 5, corners), *ROWS[1:]]
    write_objects(tmp_path / "A" / "00000.parquet", rows, ANNOTATOR)
    assert contact_sheet({"A": shards}, tmp_path, 0.0).width > 300


TABLE = pa.table(
    {
        "key": ["k0", "k1", "k2"],
        "labels": [["dog"], [], ["cat", "dog"]],
        "scores": [[0.5], [], [1.0, 0.2]],
        "boxes": [[[1.0, 2.0, 3.0, 4.0]], [], [[0.0] * 4] * 2],
    }
)


def read_lookup(lookup, shards: ShardSet) -> None:
    """Annotate the shard as ``annotate`` does."""
    rows = try_read(lambda: list(lookup.rows(Shard("A", shards, 0))))
    assert rows is None or [row.key for row in rows] == list(KEYS)


@fuzz_settings(60)
@given(table=wrong_table(TABLE), columns=st.sampled_from([{}, {"scores_column": "scores", "boxes_column": "boxes"}]))
def test_parquet_lookups(tmp_path, shards, table, columns):
    try:
        pq.write_table(table, tmp_path / "t.parquet")
    except (pa.ArrowException, UnicodeError):
        return
    read_lookup(TableLookup(tmp_path / "t.parquet", **columns), shards)


@fuzz_settings(60)
@given(data=st.data())
def test_text_lookups(tmp_path, shards, data):
    (tmp_path / "t.csv").write_bytes(
        data.draw(damaged(b"key,labels,scores,boxes\nk0,dog;cat,1;0.5,1 2 3 4;1 2 3 4\nk1,,,\n"))
    )
    line = {"key": "k0", "labels": ["dog"], "scores": [0.5], "boxes": [[1, 2, 3, 4]]}
    lines = b"\n".join(data.draw(st.lists(wrong_json(line), min_size=1, max_size=3)))
    (tmp_path / "t.jsonl").write_bytes(lines if data.draw(st.booleans()) else data.draw(damaged(lines)))
    for name in ("t.csv", "t.jsonl"):
        read_lookup(TableLookup(tmp_path / name, scores_column="scores", boxes_column="boxes"), shards)


@fuzz_settings(60)
@given(
    label=JSON,
    captions=JSON,
    text=st.binary(max_size=60),
    json_=wrong_json({"categories": [{"name": "a", "synonyms": ["b"]}]}),
)
def test_classes_captions_and_vocabularies(tmp_path, label, captions, text, json_):
    index_shard.cache_clear()
    meta = {"label": label, "captions": captions}
    pair = {"k0.png": b"x", "k0.txt": b"a dog", "k0.json": json.dumps(meta).encode()}
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in pair.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "names.txt").write_bytes(text)
    (tmp_path / "names.json").write_bytes(json_)
    shard = Shard("A", ShardSet(tmp_path, ("0.tar",), (1,)), 0)
    for name in ("names.txt", "names.json"):
        try_read(lambda name=name: vocabulary(tmp_path / name))
    for source in (
        ClassLabels(),
        ClassLabels(names=str(tmp_path / "names.txt")),
        OtherCaptions(str(tmp_path / "names.json")),
        OtherCaptions("coco"),
    ):
        rows = try_read(lambda source=source: list(source.rows(shard)))
        for row in rows or []:
            if isinstance(row, Annotation):
                "".join(row.labels).encode()


@fuzz_settings(30)
@given(annotator=wrong_json({"annotator": asdict(ClassLabels().annotator), "labels": None}))
def test_a_damaged_file_of_an_earlier_run(tmp_path, shards, annotator):
    (tmp_path / "annotator.json").write_bytes(annotator)
    try_read(lambda: annotate(ClassLabels(), {"A": shards}, tmp_path))
