"""A disk that is full, and one that cannot be written: real small file systems of their own.

They need the right to mount: as root, or by ``unshare -Urm python -m pytest tests/faults/test_disk.py``. Without it they
are skipped, unless DEJAVU_REQUIRE names ``mount``.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from tests.conftest import SMALL, call
from tests.faults.common import FEW, annotation, contents, report, sentence, weights

KB = 1024
DATA = [option for option in SMALL if option.startswith("data.")]


def _cannot(reason: str) -> NoReturn:
    if "mount" in os.environ.get("DEJAVU_REQUIRE", "").split(","):
        pytest.fail(f"DEJAVU_REQUIRE asks for mounting, but {reason}")
    pytest.skip(reason)


class Room:
    """A file system of a size that can be changed, mounted for one test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        if shutil.which("mount") is None:
            _cannot("there is no mount here")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(path)], capture_output=True, text=True
        )
        if done.returncode:
            _cannot(f"mounting is not permitted here ({done.stderr.strip()})")

    def change(self, how: str) -> None:
        """Mount it again with another option."""
        done = subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], capture_output=True, text=True)
        if done.returncode:
            _cannot(f"changing a mount is not permitted here ({done.stderr.strip()})")

    @property
    def used(self) -> int:
        """KiB that it holds."""
        total, _, free = shutil.disk_usage(self.path)
        return (total - free) // KB

    def leave(self, free: int) -> None:
        """Let it have so many KiB that are free."""
        self.change(f"size={self.used + max(free, 4)}k")


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path / "room")
    yield made
    subprocess.run(["umount", "-l", str(made.path)], check=True, capture_output=True)


def size_of(folder: Path) -> int:
    """KiB of the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // KB


def until_it_fits(room: Room, command: Callable[[], subprocess.CompletedProcess[str]], step: int) -> int:
    """Run ``command`` in a room that has ``step`` KiB more free whenever it was full; how often that was."""
    for failures in range(20):
        room.leave(4 + step * failures)
        done = command()
        if done.returncode == 0:
            assert not [path for path in room.path.rglob("*") if path.name.endswith(".part")]
            return failures
        said = sentence(done)
        assert "no space left on device; free some space there" in said
        assert str(room.path) in said
        assert ".part" not in said.replace(".report.part", "")  # a name that the user knows
    raise AssertionError("it never fitted")


def test_prepare_goes_on_when_there_is_room(room, scenes):
    command = ["prepare", f"data.dir={room.path / 'scenes'}", *DATA, "workers=1"]
    assert until_it_fits(room, lambda: call(*command), size_of(scenes) // 3) >= 2
    kinds = ("*.tar", "*.parquet", "*.json")
    assert contents(room.path / "scenes", *kinds) == contents(scenes, *kinds)


def test_training_goes_on_when_there_is_room(room, scenes, runs):
    command = ["train", "side=target", f"data.dir={scenes}", f"out={room.path / 'run'}", *SMALL]
    assert until_it_fits(room, lambda: call(*command), size_of(runs["target"]) // 3) >= 2
    assert weights(room.path / "run") == weights(runs["target"])
    logged = [
        sorted(line.split(",")[:3] for line in (run / "metrics.csv").read_text().splitlines())
        for run in (room.path / "run", runs["target"])
    ]
    assert logged[0] == logged[1]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(room, scenes, runs, tmp_path):
    run = shutil.copytree(runs["target"], room.path / "run")
    for path in (run / "run.json", run / "checkpoints" / "epoch=0002.ckpt"):
        path.unlink()
    options = [f"data.dir={scenes}", f"out={run}", *SMALL, "recipe.epochs=3"]
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("  epochs: 2\n", "  epochs: 3\n"))
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state["settings"]["recipe"]["epochs"] = 3
    torch.save(state, run / "checkpoints" / "last.ckpt")
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    room.leave(len(before) // KB - 64)
    said = sentence(call("train", "side=target", *options))
    assert "no space left" in said
    assert ".ckpt:" in said
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not list(run.rglob("*.part"))


def test_annotate_goes_on_when_there_is_room(room, scenes, tmp_path):
    data = shutil.copytree(scenes, room.path / "scenes")
    options = [*annotation(scenes, tmp_path / "table.parquet"), "name=words"]
    command = ["annotate", *options, f"data.dir={data}"]
    assert until_it_fits(room, lambda: call(*command), 8) >= 2
    other = shutil.copytree(scenes, tmp_path / "other")
    assert call("annotate", *options, f"data.dir={other}").returncode == 0
    assert contents(data / "objects/words", "*.parquet") == contents(other / "objects/words", "*.parquet")


def figures(out: Path) -> dict:
    found = json.loads((out / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name not in ("provenance", "settings")}


def test_evaluate_goes_on_when_there_is_room(room, runs, evaluated):
    sides = {side: room.path / side for side in runs}
    for side, run in runs.items():
        shutil.copytree(run, sides[side], ignore=shutil.ignore_patterns("checkpoints", "embeddings"))
    out = room.path / "e"
    command = ["evaluate", *(f"{side}={path}" for side, path in sides.items()), f"out={out}", *FEW]
    assert until_it_fits(room, lambda: call(*command), 48) >= 2
    assert figures(out) == figures(evaluated)
    assert contents(out, "*.parquet") == contents(evaluated, "*.parquet")


def test_a_report_that_does_not_fit_leaves_the_one_before(room, evaluated):
    out = room.path / "report"
    assert report(f"path={evaluated}", f"out={out}", "limit=2").returncode == 0
    before = contents(out, "*")
    room.leave(64)
    said = sentence(report(f"path={evaluated}", f"out={out}", "limit=3"))
    assert "no space left" in said
    assert str(room.path) in said
    assert contents(out, "*") == before
    assert [path.name for path in room.path.iterdir() if path.is_dir()] == ["report"]
    room.change("size=64m")
    assert report(f"path={evaluated}", f"out={out}", "limit=3").returncode == 0


def test_what_cannot_be_written_is_named_and_what_is_only_read_may_be_so(room, scenes, runs, evaluated, tmp_path):
    data = shutil.copytree(scenes, room.path / "scenes")
    started = shutil.copytree(runs["target"], room.path / "run")
    (started / "run.json").unlink()
    before = contents(room.path, "*")
    room.change("ro")
    sides = [f"{side}={runs[side]}" for side in runs]
    for done in (
        call("prepare", f"data.dir={room.path / 'more'}", *DATA),
        call("train", "side=target", f"data.dir={scenes}", f"out={started}", *SMALL),
        call("train", "side=target", f"data.dir={scenes}", f"out={room.path / 'new'}", *SMALL),
        call("annotate", *annotation(scenes, tmp_path / "table.parquet"), "name=again", f"data.dir={data}"),
        call("evaluate", *sides, f"out={room.path / 'e'}", *FEW),
        call("mitigate", "+settings.x=[]", f"data.dir={scenes}", f"out={room.path / 's'}", *SMALL),
        report(f"path={evaluated}", f"out={room.path / 'report'}"),
    ):
        said = sentence(done)
        assert "read-only file system; choose a writable folder" in said
        assert str(room.path) in said
    assert contents(room.path, "*") == before
    done = call("train", "side=target", f"data.dir={data}", f"out={tmp_path / 'run'}", *SMALL)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "run") == weights(runs["target"])
