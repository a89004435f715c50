"""TERM, Ctrl-C and readers that leave: a sentence, the right code, and the same command goes on and ends as undisturbed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, call
from tests.faults.common import FEW, annotation, contents, end, start, wait_for, weights
from tests.starter import Process, starter

DATA = [option for option in SMALL if option.startswith("data.")]


def hit(process: Process, number: int, when: Path) -> str:
    """Send the signal as soon as ``when`` is there; what the process said, if it was not done before."""
    wait_for(lambda: when.exists() or not process.running(0))
    if process.running(0):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
    wait_for(lambda: not process.running(0.05))
    said = process.out.read_text()
    assert "Traceback" not in said
    assert process.code in (0, 128 + number, -number), said  # the last: it had done its work and was leaving
    if process.code > 0:
        assert "the same command" in said
    return said


SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]


@pytest.mark.parametrize("number", SIGNALS)
def test_prepare(number, scenes, tmp_path):
    command = [f"data.dir={tmp_path / 'scenes'}", *DATA, "workers=2"]
    hit(starter().start("prepare", command, tmp_path / "log"), number, tmp_path / "scenes" / ".prepare")
    done = call("prepare", *command)
    assert done.returncode == 0, done.stderr
    kinds = ("*.tar", "*.parquet", "*.json")
    assert contents(tmp_path / "scenes", *kinds) == contents(scenes, *kinds)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_train(number, scenes, runs, tmp_path):
    run = tmp_path / "run"
    command = ["side=target", f"data.dir={scenes}", f"out={run}", *SMALL]
    said = hit(starter().start("train", command, tmp_path / "log"), number, run / "checkpoints" / "last.ckpt")
    if "saved" in said:
        assert f"{number.name}: saved {run / 'checkpoints' / 'last.ckpt'} at step" in said
    done = call("train", *command)
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(runs["target"])


@pytest.mark.parametrize("number", SIGNALS)
def test_evaluate(number, runs, tmp_path):
    copies = {
        side: shutil.copytree(path, tmp_path / side, ignore=shutil.ignore_patterns("checkpoints", "embeddings"))
        for side, path in runs.items()
    }
    command = [*(f"{side}={path}" for side, path in copies.items()), f"out={tmp_path / 'e'}", *FEW]
    hit(starter().start("evaluate", command, tmp_path / "log"), number, copies["target"] / "embeddings")
    assert not list(tmp_path.rglob("*.part"))
    done = call("evaluate", *command)
    assert done.returncode == 0, done.stderr
    other = call("evaluate", *(f"{side}={path}" for side, path in runs.items()), f"out={tmp_path / 'o'}", *FEW)
    assert other.returncode == 0, other.stderr
    assert contents(tmp_path / "e", "*.parquet") == contents(tmp_path / "o", "*.parquet")


@pytest.mark.parametrize("number", SIGNALS)
def test_annotate(number, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    command = [*annotation(scenes, tmp_path / "table.parquet"), "name=words", f"data.dir={data}"]
    hit(starter().start("annotate", command, tmp_path / "log"), number, data / "objects" / "words" / "annotator.json")
    assert not list(data.rglob("*.part"))
    done = call("annotate", *command)
    assert done.returncode == 0, done.stderr
    found = {path.parent.name for path in (data / "objects/words").rglob("*.parquet")}
    assert found == {"A", "B", "H", "P", "V", "single"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_study_ends_its_training_too(number, scenes, tmp_path):
    out = tmp_path / "s"
    few = ["evaluate.k=5", "evaluate.ks=[5]", "evaluate.report.write=false", "evaluate.statistics.bootstrap=200"]
    command = ["+settings.none=['mitigation.text_mask=0']", f"data.dir={scenes}", f"out={out}", *SMALL, *few]
    begun = out / "runs" / "none-s0-target" / "training.log"
    said = hit(starter().start("mitigate", command, tmp_path / "log"), number, begun)
    assert "interrupted" in said or "terminated" in said
    done = call("mitigate", *command)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((out / "study.json").read_text())["settings"]) == 1


def test_a_second_ctrl_c_does_not_wait(scenes, tmp_path):
    run = tmp_path / "run"
    command = ["side=target", f"data.dir={scenes}", f"out={run}", *SMALL, "recipe.epochs=400"]
    process = starter().start("train", command, tmp_path / "log")
    wait_for(lambda: (run / "checkpoints" / "last.ckpt").exists() or not process.running(0))
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: not process.running(0.05))
    assert process.code == 130, process.out.read_text()
    assert "Traceback" not in process.out.read_text()


def test_a_reader_that_has_left_ends_a_command_without_a_word():
    """As ``… | head -1``: the pipe's reading end is closed before anything is written."""
    for command in (["-m", "dejavu_lit", "power", "--help"], ["mitigate.py", "experiment=mitigations", "--cfg", "job"]):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb") as out:
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, timeout=300,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        assert done.returncode == 141
        assert not [line for line in done.stderr.splitlines() if "rror" in line or "roken" in line], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_as_the_shell_starts_it(number, runs, tmp_path):
    """Not forked from a process that has imported everything: the report, which has no other way."""
    done = call("evaluate", *(f"{side}={path}" for side, path in runs.items()), f"out={tmp_path / 'e'}", *FEW)
    assert done.returncode == 0, done.stderr
    process = start("report", f"path={tmp_path / 'e'}", f"out={tmp_path / 'r'}")
    wait_for((tmp_path / ".r.part").exists, process)
    process.send_signal(number)
    done = end(process)
    assert done.returncode in (0, 128 + number), done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "r" / "index.html").exists() == (done.returncode == 0)
    assert not (tmp_path / ".r.part").exists()
