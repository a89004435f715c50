"""Evaluating shards whose JSON has entries called like our columns, or entries of each pair's own."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from dejavu_lit.evaluation.embeddings import write_embeddings
from tests.conftest import call

PAIRS = 240
EVALUATION = ["k=5", "ks=[5]", "statistics.bootstrap=100", "statistics.smallest_group=5"]


def entries(number: int) -> dict[str, object]:
    """img2dataset's ``key``, a photograph's ``exposure``, names of our columns and of our subgroups, a name of its own."""
    own = {f"tag{number}": "x"}
    words = {"key": f"{number:09d}", "exposure": "1/60", "caption": "x", "objects": "none", "a_b": "x", "a-b": "y"}
    return own | words | {"object": "lamp", "caption_words": "many", "object_count": number % 3}


def write_shard(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(PAIRS):
            png = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(png, "PNG")
            members = {"png": png.getvalue(), "txt": b"a dog", "json": json.dumps(entries(number)).encode()}
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{number:09d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with open(folder / "objects.csv", "w", newline="") as table:
        rows = [[f"{number:09d}", "dog;" + "abcdefg"[number % 7]] for number in range(PAIRS)]
        csv.writer(table).writerows([["key", "labels"], *rows])


def write_vectors(data: Path, folder: Path) -> None:
    """Random embeddings of two models for all sets."""
    rng = np.random.default_rng(0)
    for name in "ABHP":
        with tarfile.open(data / name / "00000.tar") as tar:
            keys = list(dict.fromkeys(member.rpartition(".")[0] for member in tar.getnames()))
        for side in ("target", "reference"):
            for modality in ("text", "image"):
                write_embeddings(folder / side / name / modality, keys, rng.normal(size=(len(keys), 8)))


def test_entries_of_the_json_keep_their_own_names(tmp_path: Path) -> None:
    shards, data, out = tmp_path / "shards", tmp_path / "data", tmp_path / "gap"
    write_shard(shards)
    sizes = "data.sizes={A: 120, B: 60, H: 20, V: 0, P: 40}"
    prepared = ["data=prepared", f"data.dir={data}"]
    reader = ["data=shards", f"data.reader.path={shards}", "data.near_duplicates=null"]
    assert call("prepare", *reader, f"data.dir={data}", sizes).returncode == 0
    assert call("annotate", "annotator=table", f"annotator.path={shards / 'objects.csv'}", *prepared).returncode == 0
    write_vectors(data, tmp_path)
    models = [f"{side}=embeddings:{tmp_path / side}" for side in ("target", "reference")]
    asked = "statistics.subgroups=[object,meta.object,exposure,meta.a_b,a-b,object_count]"
    with tarfile.open(data / "A/00000.tar") as tar:
        rare = f"tag{int(tar.getnames()[0].partition('.')[0])}"  # an owner's of whom there is one pair
    options = [*EVALUATION, asked, f"group={rare}", "report.write=true"]
    done = call("evaluate", *models, *prepared, "objects=table", f"out={out}", *options)
    assert done.returncode == 0, done.stderr
    assert "119 of 129 entries of the pairs' JSON are in fewer than 1 % of the pairs" in done.stderr + done.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["planted"] is None
    assert metrics["groups"]["too_small"] == {"groups": 1, "records": 1, "smallest": 5}
    names = ["object", "meta.object", "meta.exposure", "meta.a_b", "meta.a-b", "object_count"]
    assert list(metrics["subgroups"]) == names
    assert [g["group"] for g in metrics["subgroups"]["meta.object"]["groups"]] == ["lamp"]
    assert [g["group"] for g in metrics["subgroups"]["object_count"]["groups"]] == ["2"]
    for file in ("records.parquet", "records_swapped.parquet"):
        columns = pq.read_table((out / file).with_suffix(".columns.parquet"))
        # Beside them only the scores of membership, in the records that have them.
        own = [name for name in columns.column_names if not name.startswith(("target_", "reference_"))]
        assert own == ["key", *sorted(f"meta.{name}" for name in [rare, *list(entries(0))[1:]])]
        assert columns["meta.key"].to_pylist() == [json.dumps(key) for key in columns["key"].to_pylist()]
    figures = {path.stem for path in (out / "report" / "figures").glob("subgroups-*.csv")}
    assert figures >= {"subgroups-object", "subgroups-meta-object", "subgroups-meta-a-b", "subgroups-meta-a-b-2"}
