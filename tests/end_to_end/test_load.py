"""The road that benchmarks/load.py takes a million pairs down, taken by few; it checks at every stage that none is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import load
from tests.conftest import ROOT


def test_every_stage_passes_with_few_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [])
    pairs = 2400
    found = {stage: run(tmp_path, pairs) for stage, run in load.STAGES.items() if stage != "base"}
    assert found["prepare"]["sets"] == {"A": 1200, "H": 48, "P": 1152}
    assert found["plan"] == {"steps": 1200 // 128, "left_out": 1200 % 128}
    assert found["embed"]["rows"] == 1200 + 2 * 48 + 1152
    assert found["records"] == {"records": 120 + 48, "public": 1152}


def test_a_stage_alone_tells_time_and_memory(tmp_path: Path) -> None:
    for stage in ("source", "source"):  # the second time everything is there
        line = load.alone(stage, tmp_path, 1500)
    assert line["pairs"] == 1500
    assert line["peak_mb"] > 10
    assert line["cpu_s"] >= 0  # rounded to tenths
    assert [path.name for path in sorted((tmp_path / "source").iterdir())] == ["00000.tar", "00001.tar"]


@pytest.mark.slow
def test_memory_grows_by_little_with_the_number_of_pairs(tmp_path: Path) -> None:
    peaks = {}
    for pairs in (20_000, 60_000):
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / "benchmarks" / "load.py"),
                "--pairs",
                str(pairs),
                "--folder",
                str(tmp_path / str(pairs)),
            ],
            capture_output=True,
            text=True,
            timeout=3000,
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        peaks[pairs] = {line["stage"]: line["peak_mb"] for line in lines}
        assert list(peaks[pairs]) == list(load.STAGES)
    for stage, peak in peaks[60_000].items():
        # 40,000 pairs of 5 kB each are 200 MB: none of it may stay. docs/reliability.md says what a million take; the
        # evaluation has buffers that these few pairs do not fill yet.
        assert peak - peaks[20_000][stage] < (600 if stage == "records" else 120), (stage, peaks)
