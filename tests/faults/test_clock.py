"""A clock that runs backwards and files from the future: durations stay above 0, and nothing is chosen by its time."""

import csv
import itertools
import json
import os
import shutil
import time

from tests.conftest import SMALL, call
from tests.faults.common import FEW, annotation, weights

FUTURE, PAST = 4102444800, 1  # the year 2100, and 1970


def test_a_run_is_resumed_and_measured_while_the_clock_goes_backwards(scenes, runs, tmp_path, monkeypatch):
    run = shutil.copytree(runs["target"], tmp_path / "run")
    (run / "run.json").unlink()
    for path in (run / "checkpoints").iterdir():
        os.utime(path, (FUTURE, FUTURE) if path.name != "last.ckpt" else (PAST, PAST))
    ticks = itertools.count()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(ticks))
    done = call("train", "side=target", f"data.dir={scenes}", f"out={run}", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    fresh = tmp_path / "fresh"
    assert call("train", "side=target", f"data.dir={scenes}", f"out={fresh}", *SMALL).returncode == 0
    for each in (run, fresh):
        assert weights(each) == weights(runs["target"])
        record = json.loads((each / "run.json").read_text())
        assert record["seconds"] >= 0
        assert record["pairs_per_second"] > 0
        rows = list(csv.DictReader((each / "metrics.csv").open()))
        assert all(float(row["value"]) > 0 for row in rows if row["metric"].startswith("pairs/s"))
    sides = [f"target={run}", f"reference={runs['reference']}"]
    done = call("evaluate", *sides, f"out={tmp_path / 'e'}", *FEW)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in call("evaluate", *sides, f"out={tmp_path / 'e'}", *FEW).stderr
    assert next(ticks) > 3


def test_prepare_and_annotate_take_up_parts_from_the_future(scenes, tmp_path, monkeypatch):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    options = [f"data.dir={data}", *(option for option in SMALL if option.startswith("data."))]
    for path in data.rglob("*"):
        os.utime(path, (FUTURE, FUTURE))
    ticks = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600 * next(ticks))
    assert "already finished" in call("prepare", *options).stderr
    command = ["annotate", *annotation(scenes, tmp_path / "table.parquet"), "name=words", f"data.dir={data}"]
    assert call(*command).returncode == 0
    parts = sorted((data / "objects/words").rglob("*.parquet"))
    before = {path: path.read_bytes() for path in parts}
    stale = parts[0].parent / f".{parts[0].name}.abcd.part"
    stale.write_text("of a killed process, from the future")
    os.utime(stale, (FUTURE, FUTURE))
    parts[0].unlink()
    done = call(*command)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in parts} == before
