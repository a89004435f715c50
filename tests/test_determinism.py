"""The same command twice gives the same files; what prepare writes depends on no number of workers."""

from pathlib import Path

from tests.conftest import SMALL, call

DATA = [option for option in SMALL if option.startswith("data.")]


def files(folder: Path) -> dict[str, bytes]:
    """{path below the folder: contents} of all files that are no log."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_prepare_twice_gives_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    assert call("prepare", f"data.dir={tmp_path / 'again'}", *DATA, "workers=1").returncode == 0
    one, two = files(scenes), files(tmp_path / "again")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
