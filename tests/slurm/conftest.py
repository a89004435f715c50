"""A cluster of two nodes for these tests; they are skipped without SLURM, unless DEJAVU_REQUIRE names ``slurm``."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, missing


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
    made = Cluster(folder, 20_000 + 300 * (os.getpid() % 40))
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def submit(cluster: Cluster):
    """Runs one of the project's commands on the cluster's login node, as a user would."""

    def run(command: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**cluster.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, str(ROOT / f"{command}.py"), *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=environment,
            timeout=280,
        )
        if check:
            assert done.returncode == 0, done.stderr + done.stdout
        return done

    return run
