from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from dejavu_lit.data.readers.table import TableReader
from dejavu_lit.data.shards import BadPair
from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded, sample_image

COLUMNS: dict[str, list[Any]] = {
    "path": ["pics/0001.png", "pics/0002.png", "pics/0001.png"],
    "caption": ["a cat, sitting", 'a "dog"\nrunning', "the same cat"],
    "id": ["007", "08", "9"],
    "score": [1.5, None, 3.0],
    "when": [date(2020, 1, 2), None, date(2021, 3, 4)],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    for number in (1, 2):
        (tmp_path / f"pics/{number:04d}.png").write_bytes(encoded(sample_image(number)))
    table = pa.table(COLUMNS)
    pyarrow.csv.write_csv(table, tmp_path / "pairs.csv")
    pyarrow.csv.write_csv(table, tmp_path / "pairs.tsv", pyarrow.csv.WriteOptions(delimiter="\t"))
    pq.write_table(table.append_column("bytes", pa.array([b"\xff"] * 3)), tmp_path / "pairs.parquet")
    return tmp_path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_the_three_formats_give_the_same_pairs(folder: Path, kind: str) -> None:
    reader = TableReader(folder / f"pairs.{kind}", key="id")
    keys = reader.keys()
    assert keys == ["007", "08", "9"]
    pairs = [reader.read(key)[0] for key in keys]
    assert [pair.caption for pair in pairs] == COLUMNS["caption"]
    assert pairs[1].image == (folder / "pics/0002.png").read_bytes()
    assert pairs[0].meta == {"path": "pics/0001.png", "id": "007", "score": 1.5, "when": "2020-01-02"}
    assert pairs[1].meta["score"] is None
    assert reader.annotator is None


def test_keys_from_paths_are_unique_though_an_image_comes_twice(folder: Path) -> None:
    reader = TableReader(folder / "pairs.csv")
    keys = reader.keys()
    assert len(set(keys)) == 3
    assert "pics-0002" in keys
    assert sorted(reader.read(key)[0].caption for key in keys if key != "pics-0002") == [
        "a cat, sitting",
        "the same cat",
    ]


def test_other_columns_and_absolute_paths(folder: Path) -> None:
    table = pa.table({"filepath": [str(folder / "pics/0001.png")], "title": ["t"], "caption": ["kept"]})
    pq.write_table(table, folder / "other.parquet")
    (key,) = (reader := TableReader(folder / "other.parquet", image="filepath", caption="title")).keys()
    pair = reader.read(key)[0]
    assert (pair.caption, pair.meta["caption"]) == ("t", "kept")


def test_bad_rows_say_why(folder: Path) -> None:
    (folder / "bad.csv").write_text("path,caption\n,no path\npics/none.png,x\npics/0001.png,\n")
    reader = TableReader(folder / "bad.csv")
    reasons = {}
    keys = reader.keys()
    for key in keys:
        try:
            reasons[key] = reader.read(key)[0].caption
        except BadPair as reason:
            reasons[key] = str(reason)
    assert sorted(reasons.values()) == ["", "it has no image's path", "the image does not exist"]


def test_mistakes_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no single column 'captoin' \(did you mean 'caption'\?\).*by caption="):
        TableReader(folder / "pairs.csv", caption="captoin").keys()
    with pytest.raises(UserError, match=r"key 'pics/0001\.png' stands in several rows"):
        TableReader(folder / "pairs.csv", key="path").keys()
    with pytest.raises(UserError, match=r"none.csv does not exist"):
        TableReader(folder / "none.csv").fingerprint()
    (folder / "pairs.xlsx").write_text("")
    with pytest.raises(UserError, match=r"\.csv, \.tsv or \.parquet"):
        TableReader(folder / "pairs.xlsx").keys()
    (folder / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"broken.parquet cannot be read as a table"):
        TableReader(folder / "broken.parquet").keys()
    (folder / "empty.csv").write_text("path,caption\n")
    with pytest.raises(UserError, match="has no rows"):
        TableReader(folder / "empty.csv").keys()
    (folder / "keyless.csv").write_text("path,caption,id\na.png,b,\n")
    with pytest.raises(UserError, match=r"row 1 of .* has no key"):
        TableReader(folder / "keyless.csv", key="id").keys()
