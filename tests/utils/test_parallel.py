import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from dejavu_lit.data.readers.scenes import SceneReader
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.parallel import map_unordered
from tests.data.preparing import prepare


def scaled(factor: int, value: int) -> tuple[int, int]:
    return factor * value, os.getpid()


def refuse(limit: int, value: int) -> int:
    if value == limit:
        raise UserError(f"{value} is one too many")
    return value


def die(_: None, value: int) -> int:
    if value == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_job_is_done_once(workers: int) -> None:
    results = list(map_unordered(scaled, 7, range(100), workers))
    assert sorted(value for value, _ in results) == [7 * value for value in range(100)]
    here = {process for _, process in results} == {os.getpid()}
    assert here == (workers <= 1)


def test_spawned_workers_write_the_same_data_as_forked_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are spawned on macOS: what the jobs share and what they return is pickled."""
    shards = {}
    for platform in ("linux", "darwin"):
        monkeypatch.setattr("dejavu_lit.utils.parallel.sys.platform", platform)
        sizes = {"A": 0.5, "B": 0.2, "H": 0.1, "V": 0.1, "P": 0.1}
        prepare(SceneReader(count=60), tmp_path / platform, sizes, pairs_per_shard=10)
        shards[platform] = {path.name: path.read_bytes() for path in (tmp_path / platform).glob("A/*.tar")}
    assert len(shards["linux"]) == 3
    assert shards["linux"] == shards["darwin"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_job_is_the_caller_s(workers: int) -> None:
    with pytest.raises(UserError, match="5 is one too many"):
        list(map_unordered(refuse, 5, range(1000), workers))


def mark(folder: Path, name: str) -> None:
    (folder / name).touch()


def mark_slowly(folder: Path, name: str) -> None:
    time.sleep(0.05)
    mark(folder, name)


def test_an_interrupt_ends_the_workers_and_drops_what_they_have_not_begun(tmp_path: Path) -> None:
    results = map_unordered(mark_slowly, tmp_path, [str(n) for n in range(100)], 2)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    done = len(list(tmp_path.iterdir()))
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == done < 20


def mebibyte(_: None, value: int) -> bytes:
    return bytes([value]) * 2**20


def test_a_result_is_dropped_after_its_turn() -> None:
    tracemalloc.start()
    assert sum(map(len, map_unordered(mebibyte, None, range(200), 2))) == 200 * 2**20
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()


def test_a_killed_worker_is_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match="a worker process was killed"):
        list(map_unordered(die, None, range(5000), 2))


def running(group: int) -> list[int]:
    """The processes of a process group that are not zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_end_when_their_parent_is_killed() -> None:
    script = (
        "import operator, time\nfrom dejavu_lit.utils.parallel import map_unordered\n"
        "list(map_unordered(operator.call, time.sleep, [0.05] * 100_000, 3))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        until = time.monotonic() + 240
        while len(running(parent.pid)) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(running(parent.pid)) == 4
        parent.kill()
        parent.wait()
        while running(parent.pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert running(parent.pid) == []
    finally:
        for process in running(parent.pid):
            os.kill(process, signal.SIGKILL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_second_ctrl_c_ends_the_workers_too() -> None:
    """The first waits for the jobs at work; after another, Python waited forever for workers that waited for jobs."""
    script = (
        "import operator, signal, time\nfrom dejavu_lit.utils.parallel import map_unordered\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "list(map_unordered(operator.call, time.sleep, [2] * 100, 2))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 240
        while len(running(parent.pid)) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        for _ in range(2):
            os.killpg(parent.pid, signal.SIGINT)
            time.sleep(0.3)
        assert parent.wait(20) == -signal.SIGINT
        assert running(parent.pid) == []
    finally:
        for process in running(parent.pid):
            os.kill(process, signal.SIGKILL)
