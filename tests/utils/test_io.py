"""Atomic files."""

import subprocess
import sys
from pathlib import Path

from dejavu_lit.utils.io import HOST, atomic, write_text

WRITER = """
import sys
from dejavu_lit.utils.io import atomic
with atomic(sys.argv[1]) as part:
    part.write_text("half")
    print(flush=True)
    input()
"""


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


def test_what_a_killed_writer_left_is_removed_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "x[1].parquet"
    first, second = ([sys.executable, "-c", code, str(path)] for code in (WRITER, WRITER.replace("input()", "")))
    writer = subprocess.Popen(first, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    for expected in (2, 1):  # while it is at work, and after it was killed
        subprocess.run(second, check=True, timeout=300)
        assert len(list(tmp_path.iterdir())) == expected
        writer.kill()
        writer.communicate()
    assert path.read_text() == "half"


def test_a_folder_is_looked_through_once_by_a_process(tmp_path: Path) -> None:
    """Not at each write: that takes the square of the number of files."""
    left = [tmp_path / f".{name}.{HOST}-1-abcd.part" for name in ("x", "y")]
    left[0].write_text("half")
    write_text(tmp_path / "a", "whole")
    left[1].write_text("half")
    write_text(tmp_path / "b", "whole")
    assert sorted(tmp_path.iterdir()) == [left[1], tmp_path / "a", tmp_path / "b"]
