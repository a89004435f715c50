from collections.abc import Callable
from dataclasses import replace
from errno import EIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dejavu_lit.data.objects import Objects, read_part
from dejavu_lit.measure import records as module
from dejavu_lit.measure.records import Records, read_records, replace_columns, write_records
from dejavu_lit.measure.scores import Neighbors
from dejavu_lit.utils.errors import UserError
from tests.measure.oracle import Case, figures, objects


@pytest.mark.parametrize("top_m", [None, 2])
def test_the_file_agrees_with_plain_sets(tmp_path: Path, top_m: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROW_GROUP", 16)
    case = Case(5)
    write_records(tmp_path / "records.parquet", case.records(), 4, top_m)
    assert pq.ParquetFile(tmp_path / "records.parquet").num_row_groups == 3
    rows = pq.read_table(tmp_path / "records.parquet").to_pylist()
    assert len(rows) == len(case.truth)
    for i, row in enumerate(rows):
        assert row["key"] == f"a{i:05d}"
        assert row["caption"] == f"caption of a{i:05d}"
        assert row["objects"] == sorted(case.truth[i])
        for side in ("target", "reference"):
            neighbors = getattr(case, side)
            guess = case.guess(side, i, 4, top_m)
            assert row[f"{side}_neighbors"] == [f"p{j:05d}" for j in neighbors.rows[i]]
            assert row[f"{side}_distances"] == neighbors.distances[i].tolist()
            assert row[f"{side}_predicted"] == sorted(guess)
            assert row[f"{side}_hits"] == len(guess & case.truth[i])
            if case.truth[i]:
                assert (row[f"{side}_precision"], row[f"{side}_recall"]) == tuple(
                    map(float, figures(guess, case.truth[i]))
                )
            else:
                assert row[f"{side}_precision"] is None
                assert row[f"{side}_recall"] is None


def test_string_lists_are_dictionary_encoded(tmp_path: Path) -> None:
    write_records(tmp_path / "r.parquet", Case(5).records(), 4)
    file = pq.ParquetFile(tmp_path / "r.parquet")
    assert file.schema_arrow.field("target_neighbors").type == pa.list_(pa.string())
    group = file.metadata.row_group(0)
    for column in (group.column(i) for i in range(group.num_columns)):
        if column.path_in_schema.split(".")[0] in ("objects", "target_neighbors", "reference_predicted"):
            assert "RLE_DICTIONARY" in column.encodings


def test_read_back_is_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROW_GROUP", 16)
    case = Case(6)
    rng = np.random.default_rng(0)
    odd = Neighbors(case.target.rows, np.sort(rng.random(case.target.rows.shape, np.float32), axis=1))
    written = Records(
        case.records().captions, case.truth_objects, case.public_objects, odd, case.reference,
        {"exposure": np.arange(40), "place": [None, "a", 3.5, True] * 10},
    )  # fmt: skip
    write_records(tmp_path / "r.parquet", written, 4)
    # Objects in another order, with more images: joined by key.
    truth = case.truth_objects.take(sorted(case.truth_objects.keys, reverse=True))
    public = case.public_objects.take(sorted(case.public_objects.keys, reverse=True))
    back = read_records(tmp_path / "r.parquet", truth, public)
    assert back.keys == written.keys
    assert back.captions == written.captions
    assert back.public.keys == case.public_objects.keys
    for side in ("target", "reference"):
        np.testing.assert_array_equal(getattr(back, side).rows, getattr(written, side).rows)
        np.testing.assert_array_equal(getattr(back, side).distances, getattr(written, side).distances)
    assert back.columns == {"exposure": list(range(40)), "place": [None, "a", 3.5, True] * 10}
    write_records(tmp_path / "again.parquet", back, 4)
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "r.parquet").read_bytes()


def test_entries_called_like_our_columns_come_back(tmp_path: Path) -> None:
    case = Case(1)
    columns = {
        "exposure": [2] * 40,
        "meta.exposure": ["1/60"] * 40,
        "meta.key": [*range(40)],
        "meta.objects": [None] * 40,
    }
    write_records(tmp_path / "r.parquet", replace(case.records(), columns=columns), 3)
    back = read_records(tmp_path / "r.parquet", case.truth_objects, case.public_objects)
    assert back.columns == columns
    assert back.keys == case.records().keys


def test_other_objects_by_key() -> None:
    case, fewer = Case(7), Case(7)
    fewer.truth[0], fewer.public[0] = {"l001"}, set()
    joined = case.records().with_objects(
        objects(fewer.truth, case.labels, "a").take(sorted(case.truth_objects.keys, reverse=True)),
        objects(fewer.public, case.labels, "p").take(sorted(case.public_objects.keys, reverse=True)),
    )
    assert [set(joined.truth.names(row)) for row in range(len(joined))] == fewer.truth
    assert [set(joined.public.names(row)) for row in range(len(fewer.public))] == fewer.public
    target, _ = joined.scores([3])
    assert target.hits[:, 0].tolist() == [len(fewer.guess("target", i, 3) & g) for i, g in enumerate(fewer.truth)]


def test_no_records_and_records_without_columns(tmp_path: Path) -> None:
    empty = Case(0, n=0).records()
    write_records(tmp_path / "r.parquet", empty, 3)
    assert pq.read_schema(tmp_path / "r.parquet") == module.SCHEMA
    pq.ParquetWriter(tmp_path / "groupless.parquet", module.SCHEMA).close()
    for name in ("r", "groupless"):
        back = read_records(tmp_path / f"{name}.parquet", empty.truth, empty.public)
        for side in (back.target, back.reference):
            assert (side.rows.shape, side.distances.shape) == ((0, 0), (0, 0))
            assert (side.rows.dtype, side.distances.dtype) == (np.int32, np.float32)
    case = Case(1)
    write_records(tmp_path / "c.parquet", case.records(), 3)
    assert not (tmp_path / "c.columns.parquet").exists()


def test_further_columns_are_written_beside_the_records(tmp_path: Path) -> None:
    case = Case(1, n=1)
    with_columns = replace(case.records(), columns={"place": ["x"]})
    write_records(tmp_path / "r.parquet", with_columns, 3)
    beside = tmp_path / "r.columns.parquet"
    assert pq.read_table(beside).to_pylist() == [{"key": "a00000", "place": '"x"'}]
    write_records(tmp_path / "r.parquet", case.records(), 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.parquet"]
    none = replace(Case(1, n=0).records(), columns={"place": []})
    write_records(tmp_path / "r.parquet", none, 3)
    assert pq.read_schema(beside).field("key").type == pa.string()
    for name in ("r.parquet", "r.columns.parquet"):
        write_records(tmp_path / "r.parquet", with_columns, 3)
        group = pq.ParquetFile(tmp_path / name).metadata.row_group(0)
        assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}


def test_images_without_any_label(tmp_path: Path) -> None:
    case = Case(3, labels=0, most=0)
    write_records(tmp_path / "r.parquet", case.records(), 3)
    assert pq.read_table(tmp_path / "r.parquet")["target_predicted"].to_pylist() == [[]] * 40
    assert len(read_records(tmp_path / "r.parquet", case.truth_objects, case.public_objects)) == 40


def test_long_names_are_stored_once(tmp_path: Path) -> None:
    """Two megabytes of names, each of which occurs twice: a dictionary of the default size would overflow."""
    names = tuple(f"{i:0100d}" for i in range(20_480))
    public = Objects(names, np.zeros(20_481, np.int64), np.zeros(0, np.int32), ())
    rows = np.arange(40_960, dtype=np.int32).reshape(4096, 10) % 20_480
    near = Neighbors(rows, np.tile(np.linspace(0, 1, 10, dtype=np.float32), (4096, 1)))
    truth = Objects(tuple(f"a{i}" for i in range(4096)), np.zeros(4097, np.int64), np.zeros(0, np.int32), ())
    write_records(tmp_path / "r.parquet", Records(("",) * 4096, truth, public, near, near), 1)
    group = pq.ParquetFile(tmp_path / "r.parquet").metadata.row_group(0)
    sizes = {group.column(i).path_in_schema: group.column(i).total_uncompressed_size for i in range(group.num_columns)}
    assert sizes["target_neighbors.list.element"] < 1.2 * 104 * 20_480


def message_of(path: Path, truth: Objects, public: Objects) -> str:
    """The error of reading a file, with its paths replaced."""
    with pytest.raises(UserError) as error:
        read_records(path, truth, public)
    return str(error.value).replace(str(path), "FILE").replace(str(module._columns_path(path)), "COLUMNS")


def test_parts_of_different_lengths_are_named() -> None:
    records = Case(2).records()
    with pytest.raises(UserError) as error:
        Records(("a",), records.truth, records.public, records.target[:2], records.reference[:3], {"place": []})
    assert str(error.value) == (
        "records need one value per pair: there are 40 pairs and 1 captions, 2 target neighbors, 3 reference neighbors, "
        "0 place"
    )


def test_mistakes_are_named(tmp_path: Path) -> None:
    case = Case(2)
    records = case.records()
    both = (records.truth, records.public)
    again = "remove it and run dejavu evaluate again"
    assert message_of(tmp_path / "none.parquet", *both) == "FILE does not exist; run dejavu evaluate to create it"
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    message = message_of(tmp_path / "bad.parquet", *both)
    assert message.startswith("FILE is not a records file (")
    assert message.endswith(f"); {again}")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    assert message_of(tmp_path / "other.parquet", *both) == (
        f"FILE is not a records file (it has no column 'caption' of type string); {again}"
    )
    path = tmp_path / "r.parquet"
    write_records(path, replace(records, columns={"place": [1] * 40}), 3)
    first = case.public_objects.keys[case.target.rows[0][0]]
    without_first = case.public_objects.take([key for key in case.public_objects.keys if key != first])
    need = "which has no objects; use the objects of its public set"
    assert message_of(path, records.truth, without_first) == f"FILE names the public image {first!r}, {need}"
    assert message_of(path, records.truth, without_first.take([])) == f"FILE names the public image {first!r}, {need}"
    with pytest.raises(UserError, match="no row for 39 of 40"):
        read_records(path, records.truth.take(["a00000"]), records.public)
    write_records(tmp_path / "other.parquet", Case(2, n=3).records(), 3)
    (tmp_path / "other.columns.parquet").write_bytes((tmp_path / "r.columns.parquet").read_bytes())
    assert message_of(tmp_path / "other.parquet", *both) == f"COLUMNS belongs to other records; {again}"
    (tmp_path / "other.columns.parquet").write_bytes(b"PAR1 no")
    assert message_of(tmp_path / "other.parquet", *both).startswith("COLUMNS is not a records file (")
    columns = pa.table({"key": records.keys, "place": ["1", "2, 3"] * 20})
    pq.write_table(columns, tmp_path / "r.columns.parquet")
    assert message_of(path, *both) == (
        f"COLUMNS is not a records file (its column 'place' is not one value per record); {again}"
    )


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("target_neighbors", lambda v: [["p00000"], *v[1:]], "is not a records file (cannot reshape array"),
        ("reference_neighbors", lambda v: [[None, *v[0][1:]], *v[1:]], "is not a records file ("),
        ("target_neighbors", lambda v: [None, *v[1:]], "is not a records file (a row has no target_neighbors)"),
        ("caption", lambda v: [None, *v[1:]], "is not a records file (a row has no caption)"),
        ("key", lambda v: [*v[1:], None], "is not a records file (a row has no key)"),
        ("reference_distances", lambda v: [[None, *v[0][1:]], *v[1:]], "(its distances are not all numbers)"),
        ("target_distances", lambda v: [[float("nan"), *v[0][1:]], *v[1:]], "(its distances are not all numbers)"),
        ("target_distances", lambda v: [*v[1:], v[0][1:]], "is not a records file (cannot reshape array"),
    ],
)
def test_damaged_columns_are_named(
    tmp_path: Path, column: str, change: Callable[[list[Any]], list[Any]], message: str
) -> None:
    records, path = Case(2).records(), tmp_path / "r.parquet"
    write_records(path, records, 3)
    table = pq.read_table(path)
    at = table.column_names.index(column)
    values = pa.array(change(table[column].to_pylist()), table[column].type)
    pq.write_table(table.set_column(at, column, values), path)
    assert message in message_of(path, records.truth, records.public)
    for damaged in (
        table.set_column(at, column, pa.array(range(40), pa.int8())),
        table.append_column(column, table[column]),
    ):
        pq.write_table(damaged, path)
        message = f"FILE is not a records file (it has no column {column!r} of type "
        assert message_of(path, records.truth, records.public).startswith(message)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="k=99"):
        write_records(tmp_path / "r.parquet", Case(2).records(), 99)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_is_no_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To remove the records, or to annotate again, would lose hours of work."""

    def fail(path: Path, **options: Any) -> pa.Table:
        raise OSError(EIO, "Error reading bytes from file")

    monkeypatch.setattr(pq, "read_table", fail)
    for path, read in (
        (tmp_path / "r.parquet", lambda path: replace_columns(path, (), {})),
        (tmp_path / "o.parquet", read_part),
    ):
        with pytest.raises(OSError, match="Error reading") as caught:
            read(path)
        assert (caught.value.errno, caught.value.filename) == (EIO, str(path))
