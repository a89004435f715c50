"""Atomic files."""

from pathlib import Path

from dejavu_lit.files import atomic


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """As processes with the same number on two machines that share the folder."""
    path = tmp_path / "x.parquet"
    with atomic(path) as one:
        one.write_text("one")
        with atomic(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
        assert list(tmp_path.glob(".x.parquet.*.part")) == [one]
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
