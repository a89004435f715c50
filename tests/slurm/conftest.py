"""A cluster of two nodes for these tests; they are skipped without SLURM, unless DEJAVU_REQUIRE names ``slurm``."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, SMALL, run
from tests.slurm.cluster import Cluster, missing

STUDY = [
    "+settings.none=['mitigation.text_mask=0']",
    "+settings.mask=['mitigation.text_mask=0.5']",
    *SMALL,
    "evaluate.k=5",
    "evaluate.ks=[1,5]",
    "evaluate.report.write=false",
]
APART = ("seconds", "metrics", "provenance")  # what depends on the clock, the machine and the place


def without(value: Any) -> Any:
    """JSON without what may differ between two places."""
    if isinstance(value, dict):
        return {name: without(part) for name, part in value.items() if name not in APART}
    return [without(part) for part in value] if isinstance(value, list) else value


def tables(folder: Path) -> tuple[list[dict[str, Any]], Any]:
    """The rows of study.parquet and the contents of study.json, but for times and paths."""
    rows = [without(row) for row in pq.read_table(folder / "study.parquet").to_pylist()]
    study = json.loads((folder / "study.json").read_text())
    return rows, without({name: study[name] for name in ("settings", "pooled", "frontier")})


@pytest.fixture(scope="session")
def here(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two settings and two sides, trained and evaluated without SLURM."""
    out = tmp_path_factory.mktemp("here") / "study"
    run("mitigate", *STUDY, f"data.dir={scenes}", f"out={out}")
    return out


def free_ports() -> int:
    """The first of a few hundred ports of which the daemons' are free; below those that systems hand out."""
    first = int.from_bytes(os.urandom(2)) % 30  # not of a seed, which another worker of the tests may share
    for base in range(20_000 + 300 * first, 32_000, 300):
        with ExitStack() as sockets:
            try:
                for port in range(base, base + 3):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return base
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, up."""
    reason = missing()
    try:
        import hydra_plugins.hydra_submitit_launcher  # noqa: F401
    except ImportError:
        reason = "hydra-submitit-launcher is not installed (pip install 'dejavu-lit[slurm]')"
    if reason is not None:
        if "slurm" in os.environ.get("DEJAVU_REQUIRE", "").split(","):
            pytest.fail(f"DEJAVU_REQUIRE asks for SLURM, but {reason}")
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # sockets want a short path
    folder.chmod(0o755)
    made = Cluster(folder, free_ports())
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def submit(cluster: Cluster) -> Any:
    """Runs one of the project's commands on the cluster's login node, as a user would."""

    def call(command: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**cluster.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, str(ROOT / f"{command}.py"), *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=environment,
            timeout=540,
        )
        if check:
            assert done.returncode == 0, done.stderr + done.stdout
        return done

    return call


def sbatch(cluster: Cluster, folder: Path, script: str, *more: str) -> str:
    """Submit a shell script for two tasks on one node; the number of the job, whose words go to FOLDER/NUMBER.log."""
    file = folder / "job.sh"
    file.write_text(f"#!/bin/bash\ncd {ROOT}\n{script}\n")
    options = ["--parsable", "--nodes=1", "--ntasks-per-node=2", "--open-mode=append", f"--output={folder}/%j.log"]
    return cluster("sbatch", *options, *more, str(file)).strip()


def displace(cluster: Cluster) -> None:
    """Submit a short job that goes before all others and wants both nodes."""
    cluster("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
