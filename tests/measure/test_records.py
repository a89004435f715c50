from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dejavu_lit.errors import UserError
from dejavu_lit.measure import records as module
from dejavu_lit.measure.records import Neighbors, Records, read_records, write_records
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
    # Objects in another order, with more pictures: joined by key.
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


def test_other_objects_by_key() -> None:
    case, fewer = Case(7), Case(7)
    fewer.truth[0], fewer.public[0] = {"l001"}, set()
    joined = case.records().with_objects(
        objects(fewer.truth, case.labels, "a").take(sorted(case.truth_objects.keys, reverse=True)),
        objects(fewer.public, case.labels, "p").take(sorted(case.public_objects.keys, reverse=True)),
    )
    target, _ = joined.scores([3])
    assert target.hits[:, 0].tolist() == [len(fewer.guess("target", i, 3) & g) for i, g in enumerate(fewer.truth)]


def test_no_records_and_records_without_columns(tmp_path: Path) -> None:
    empty = Case(0, n=0).records()
    write_records(tmp_path / "r.parquet", empty, 3)
    assert pq.read_table(tmp_path / "r.parquet").num_rows == 0
    assert len(read_records(tmp_path / "r.parquet", empty.truth, empty.public)) == 0
    case = Case(1)
    write_records(tmp_path / "c.parquet", case.records(), 3)
    assert not (tmp_path / "c.columns.parquet").exists()


def test_mistakes_are_named(tmp_path: Path) -> None:
    case = Case(2)
    records = case.records()
    with pytest.raises(UserError, match=r"40 pairs and 2 captions"):
        Records(("a", "b"), records.truth, records.public, records.target, records.reference)
    with pytest.raises(UserError, match="does not exist"):
        read_records(tmp_path / "none.parquet", records.truth, records.public)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="no records file"):
        read_records(tmp_path / "bad.parquet", records.truth, records.public)
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="has no column 'caption'"):
        read_records(tmp_path / "other.parquet", records.truth, records.public)
    write_records(tmp_path / "r.parquet", records, 3)
    pq.write_table(pq.read_table(tmp_path / "r.parquet").drop_columns("caption"), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="has no column 'caption'"):
        read_records(tmp_path / "other.parquet", records.truth, records.public)
    table = pq.read_table(tmp_path / "r.parquet")
    place = table.column_names.index("target_neighbors")
    uneven = pa.array([["p00000"], *table["target_neighbors"].to_pylist()[1:]], pa.list_(pa.string()))
    pq.write_table(table.set_column(place, "target_neighbors", uneven), tmp_path / "uneven.parquet")
    with pytest.raises(UserError, match="is no records file"):
        read_records(tmp_path / "uneven.parquet", records.truth, records.public)
    with pytest.raises(UserError, match="names the public picture"):
        read_records(tmp_path / "r.parquet", records.truth, records.public.take(["p00000"]))
    with pytest.raises(UserError, match="no row for 39 of 40"):
        read_records(tmp_path / "r.parquet", records.truth.take(["a00000"]), records.public)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="k=99"):
        write_records(tmp_path / "r.parquet", Case(2).records(), 99)
    assert list(tmp_path.iterdir()) == []
