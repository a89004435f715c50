"""The benchmarks of training and of a GPU run as their docstrings say and print JSON lines; figures are no test's business."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from benchmarks.training import PEER, WEBDATASET
from dejavu_lit.utils.errors import UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def lines(*options: str, script: str = "training") -> list[dict[str, Any]]:
    """What it prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def peer() -> None:
    """open_clip's script needs a webdataset of its own, as the benchmark installs it."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEER), WEBDATASET]
    if not PEER.is_dir() and subprocess.run(pip, capture_output=True).returncode:
        pytest.skip(f"{WEBDATASET} cannot be installed")


def test_a_claim_of_few_steps(peer):
    (line,) = lines("train_tiny", "--steps", "2", "--rounds", "1", "--threads", "1")
    assert line["name"] == "train_tiny"
    assert line["unit"] == "pairs/s"
    assert line["pairs"] == 2 * line["batch"]
    assert line["ratio"] == pytest.approx(line["ours"] / line["peer"])
    assert min(line["ours"], line["peer"], line["ours_augmented"]) > 0


def test_a_profile():
    trimmed, padded = lines("--profile", "train_tiny", "--threads", "1")
    assert (trimmed["name"], trimmed["trim"], padded["trim"]) == ("profile_tiny", True, False)
    assert {"data", "image forward", "text forward", "backward", "optimizer"} <= trimmed["milliseconds"].keys()
    assert 0 < trimmed["gflop"] < padded["gflop"]


def test_the_script_for_a_gpu_on_a_cpu():
    found = {line["name"]: line for line in lines("--tiny", script="gpu")}
    assert list(found) == ["product_bf16", "train_tiny", "embedding_tiny", "search", "parity"]
    assert found["train_tiny"]["ours"] > 0
    assert found["train_tiny"]["share_of_peak"]["peer"] > 0  # above 1 on a CPU that computes bfloat16 slowly
    assert found["search"]["same_neighbors"] > 0.9
    assert found["parity"]["largest_difference"] == 0  # the same device twice


def test_a_claim_that_fails_leaves_the_others_to_report(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # its modules import each other by their bare names
    from benchmarks.gpu import CPU, report

    def failing(sizes, folder):
        yield {"name": "first"}
        raise UserError("index=gpu needs faiss-gpu")

    def late(sizes, folder):
        yield {"name": "second"}

    now = time.perf_counter()
    assert list(report(failing, CPU, tmp_path, now + 60)) == [
        {"name": "first"},
        {"name": "failing", "skipped": "UserError: index=gpu needs faiss-gpu"},
    ]
    assert list(report(late, CPU, tmp_path, now)) == [{"name": "late", "skipped": "the 360 s are nearly over"}]
