"""What several tests of faults start from."""

from pathlib import Path

import pytest

from tests.conftest import call
from tests.faults.common import FEW


@pytest.fixture(scope="module")
def evaluated(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed evaluation."""
    out = tmp_path_factory.mktemp("evaluated") / "e"
    done = call("evaluate", *(f"{side}={runs[side]}" for side in runs), f"out={out}", *FEW)
    assert done.returncode == 0, done.stderr
    return out
