"""Two commands in one directory: the second refuses in a sentence, and what a killed one left blocks nobody."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import locked
from tests.conftest import SMALL, call
from tests.faults.common import FEW, annotation, contents, report, sentence, start, wait_for, weights

DATA = [option for option in SMALL if option.startswith("data.")]
HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write("process 7 on node3")
    file.flush()
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Another process that holds the lock, as one of this project does."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def test_the_second_one_refuses_and_goes_on_when_the_first_was_killed(scenes, runs, tmp_path):
    sides = [f"{side}={runs[side]}" for side in runs]
    quick = ["evaluate.k=5", "evaluate.ks=[5]", "evaluate.report.write=false", "evaluate.statistics.bootstrap=200"]
    study = ["+settings.x=[]", f"data.dir={scenes}", *SMALL, *quick]
    evaluated = tmp_path / "evaluation"
    for name, lock, go in (
        ("prepare", "data/.lock", lambda: call("prepare", f"data.dir={tmp_path / 'data'}", *DATA)),
        ("train", "run/.lock", lambda: call("train", "side=target", f"data.dir={scenes}", f"out={tmp_path / 'run'}", *SMALL)),
        ("evaluate", "evaluation/.lock", lambda: call("evaluate", *sides, f"out={evaluated}", *FEW)),
        ("report", ".report.lock", lambda: report(f"path={evaluated}", f"out={tmp_path / 'report'}", "limit=2")),
        ("study", "study/.lock", lambda: call("mitigate", *study, f"out={tmp_path / 'study'}")),
    ):  # fmt: skip
        with held(tmp_path / lock):
            before = contents(tmp_path, "*")
            said = sentence(go())
            assert f"another process is using {(tmp_path / lock).parent} (process 7 on node3)" in said, name
            assert "wait for it, or choose another folder" in said
            assert contents(tmp_path, "*") == before
        if name != "study":  # which would train; its lock is the same
            done = go()
            assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "run") == weights(runs["target"])


def test_two_annotations_of_the_same_data_share_the_work(scenes, tmp_path):
    """That is what they are for: parts are whole or absent, and the same whoever writes them."""
    data = shutil.copytree(scenes, tmp_path / "scenes")
    options = [*annotation(scenes, tmp_path / "table.parquet"), f"data.dir={data}"]
    processes = [start("annotate", *options, "name=both") for _ in "ab"]
    assert [process.wait(300) for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    done = call("annotate", *options, "name=alone")
    assert done.returncode == 0, done.stderr
    both, alone = (contents(data / "objects" / name, "*.parquet") for name in ("both", "alone"))
    assert both == alone
    assert len(both) == 6


def test_the_lock_says_who_holds_it_and_a_full_or_odd_file_harms_nothing(tmp_path):
    lock = tmp_path / ".lock"
    lock.write_bytes(b"\xff\xfe left by something else " * 100)
    with locked(lock):
        assert lock.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        with (
            pytest.raises(UserError, match=f"another process is using .*process {os.getpid()} on"),
            locked(lock, wait=False),
        ):
            pass
    with locked(lock, wait=False):
        pass


def test_a_process_that_was_forked_does_not_keep_the_lock_of_its_parent(tmp_path):
    """A loader's process outlives a killed training by seconds; the same command must be able to start at once."""
    lock, pids = tmp_path / ".lock", tmp_path / "pids"
    if (parent := os.fork()) == 0:
        try:
            with locked(lock):
                if (child := os.fork()) != 0:
                    pids.write_text(f"{child} ")
                time.sleep(600)
        finally:
            os._exit(0)
    try:
        wait_for(lambda: pids.exists() and pids.read_text().endswith(" "))
        with open(lock) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.kill(int(pids.read_text()), 0)  # it is alive
        with locked(lock, wait=False):
            pass
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)
