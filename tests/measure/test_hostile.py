"""Readers of measurements and reports against hostile input: a valid value or one sentence, never a crash."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu_lit.data.key_lists import read_keys
from dejavu_lit.evaluation.embeddings import Embeddings, write_embeddings
from dejavu_lit.measure.recompute import read_metrics
from dejavu_lit.measure.records import read_records, write_records
from dejavu_lit.report.cards import choose_keys, read_ranks, read_rows
from dejavu_lit.report.evaluation import Evaluation
from dejavu_lit.report.report import write_report
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json, write_json
from dejavu_lit.utils.run_directory import RunDirectory
from tests.hostile import ODD_JSON, damaged, fuzz_settings, try_read, wrong_json, wrong_table
from tests.measure.oracle import Case
from tests.report.artifacts import FEW_FIGURES, make_evaluation

CASE = Case(1, n=6, m=8, k=3)


@fuzz_settings(80)
@given(content=st.one_of(st.sampled_from(ODD_JSON), wrong_json({"a": [1, {"b": "c"}]})))
def test_json(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    value = try_read(lambda: read_json(tmp_path / "x.json"))
    write_json(tmp_path / "y.json", value)
    assert read_json(tmp_path / "y.json") == value


@pytest.mark.parametrize("content", ODD_JSON)
def test_a_refusal_names_the_file(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    try:
        read_json(tmp_path / "x.json")
    except UserError as error:
        assert str(error).startswith(f"{tmp_path / 'x.json'} is not valid JSON")  # noqa: PT017 some of them are JSON


CONFIG = b"side: target\ndata:\n  name: x\n  dir: /data\nmodel: &m {a: 1}\nother: *m\nday: 2024-01-02\n"


@fuzz_settings(60)
@given(
    content=st.one_of(
        damaged(CONFIG),
        st.sampled_from(
            [
                b"[" * 5000,
                b"a: !!python/object/apply:os.system [true]",
                b"a: 2024-99-99",
                b"a: &a [*a]",
                b"? {}\n: 1",
                b"a: 0x" + b"f" * 6000,
            ]
        ),
    )
)
def test_the_settings_of_a_run(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    value = try_read(lambda: RunDirectory(tmp_path).config())
    assert value is None or len(json.dumps(value, default=str)) < 10_000


def read_all(path: Path) -> None:
    """Read a records file as the evaluation and the report do."""
    try_read(lambda: read_records(path, CASE.truth_objects, CASE.public_objects).scores([2]))
    ranks = try_read(lambda: read_ranks(path))
    if ranks is not None:
        try_read(lambda: read_rows(path, ranks, choose_keys([ranks], 5), 2))


@fuzz_settings(60)
@given(data=st.data())
def test_damaged_records(tmp_path, data):
    path = tmp_path / "records.parquet"
    records = CASE.records()
    write_records(path, records, 2)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    read_all(path)


@fuzz_settings(60)
@given(data=st.data())
def test_records_with_wrong_columns(tmp_path, data):
    path, beside = tmp_path / "records.parquet", tmp_path / "records.columns.parquet"
    write_records(path, CASE.records(), 2)
    try:
        pq.write_table(data.draw(wrong_table(pq.read_table(path))), path)
        keys = CASE.truth_objects.keys
        texts = ["1", "null", "{", "NaN", "[" * 5000, '"\\ud800"']
        pq.write_table(data.draw(wrong_table(pa.table({"key": keys, "exposure": texts, "x": texts}))), beside)
    except (pa.ArrowException, UnicodeError):
        return  # Arrow cannot write it either
    read_all(path)


@fuzz_settings(60)
@given(data=st.data())
def test_embeddings(tmp_path, data):
    folder = tmp_path / "image"
    shutil.rmtree(folder, ignore_errors=True)
    write_embeddings(folder, ["a", "b", "c", "d"], np.eye(4, 3, dtype=np.float32) + 1, rows_per_part=2)
    for name in data.draw(st.sampled_from([["00000.npy"], ["00000.txt"], ["00001.npy", "00001.txt"]])):
        (folder / name).write_bytes(data.draw(damaged((folder / name).read_bytes())))
    value = try_read(lambda: Embeddings.open(folder))
    if value is not None:
        vectors = try_read(lambda: value.load())
        assert vectors is None or np.isfinite(vectors.astype(np.float64)).all()


@pytest.mark.parametrize("kind", ["zip", "objects", "none", "header", "wide"])
def test_files_that_are_not_embeddings(tmp_path, kind):
    write_embeddings(tmp_path / "image", ["a", "b"], np.ones((2, 3)))
    path = tmp_path / "image" / "00000.npy"
    if kind == "zip":
        with open(path, "wb") as file:
            np.savez(file, a=np.ones(2))
    elif kind == "objects":
        with open(path, "wb") as file:
            np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "none":
        path.write_bytes(b"")
    else:
        shape = {"header": "(" * 3000, "wide": "(2, 99999999999999999999)"}[kind]
        header = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}}}\n".encode()
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match=r"00000\.npy (is not a complete|is not one array|is \w+ \[)"):
        Embeddings.open(tmp_path / "image")


def test_a_pipe_in_place_of_records_or_embeddings_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "records.parquet")
    with pytest.raises(UserError, match=r"records\.parquet is a folder, a pipe or a device"):
        read_ranks(tmp_path / "records.parquet")
    write_embeddings(tmp_path / "image", ["a", "b"], np.ones((2, 3)))
    for name in ("00000.npy", "00000.txt"):
        (tmp_path / "image" / name).unlink()
        os.mkfifo(tmp_path / "image" / name)
        with pytest.raises(UserError, match=r"image/00000\.\w+ is a folder, a pipe or a device"):
            Embeddings.open(tmp_path / "image")


@fuzz_settings(40)
@given(content=st.binary(max_size=60))
def test_key_files(tmp_path, content):
    (tmp_path / "keys.txt").write_bytes(content)
    try_read(lambda: read_keys(tmp_path / "keys.txt", "keys"))


@fuzz_settings(40)
@given(content=damaged(b"step,epoch,metric,value\n5,0,gap/ppg,0.1\n5,0,val_loss,2.5\n9,1,gap/ppg,0.2\n"))
def test_the_gaps_over_the_epochs(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    try_read(lambda: Evaluation(tmp_path / "evaluation", {"settings": {"target": str(tmp_path)}}, None).epochs())


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_evaluation(tmp_path_factory.mktemp("made") / "evaluation", n=12, m=12, settings=FEW_FIGURES)


@fuzz_settings(12)
@given(data=st.data())
def test_reports_of_damaged_metrics(tmp_path, evaluation, data):
    folder = tmp_path / "evaluation"
    if not folder.exists():
        shutil.copytree(evaluation, folder)
    (folder / "metrics.json").write_bytes(data.draw(wrong_json(json.loads((evaluation / "metrics.json").read_text()))))
    if try_read(lambda: read_metrics(folder)) is not None:
        try_read(lambda: write_report(folder, out=tmp_path / "report", limit=5))
