"""Atomic files."""

import subprocess
import sys
from pathlib import Path

from dejavu_lit.files import atomic

WRITER = """
import sys
from dejavu_lit.files import atomic
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


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "x[1].parquet"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    for expected in (2, 1):  # while it is at work, and after it was killed
        with atomic(path) as part:
            part.write_text("whole")
        assert len(list(tmp_path.iterdir())) == expected
        writer.kill()
        writer.communicate()
    assert path.read_text() == "whole"
