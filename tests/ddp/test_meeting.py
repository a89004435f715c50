"""Where ranks meet: none goes before the last, none waits for one that has failed, and who cannot come says where."""

import os
import socket
import subprocess

import pytest

from dejavu_lit.utils import distributed as ranks
from dejavu_lit.utils.distributed import Ranks, process_group
from dejavu_lit.utils.errors import UserError
from tests.conftest import ROOT
from tests.ddp.test_ranks import TORCHRUN

SCRIPT = """
import sys, time
from pathlib import Path
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.distributed import current_ranks, process_group

mode, written, ranks = sys.argv[1], Path(sys.argv[2]), current_ranks()
try:
    with process_group(ranks):
        if ranks.rank == 0:
            time.sleep(2)
            if mode == "fails":
                raise UserError("no room")
            written.touch()
        elif mode == "other":
            raise UserError("rank 0 would know it")
except UserError as error:
    sys.stdout.write(f"{ranks.rank} says {error}\\n")  # print writes the line's end apart, and both ranks write here
sys.stdout.write(f"{ranks.rank} ends, {written.exists()}\\n")
"""


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("well", {"0 ends, True", "1 ends, True"}),
        ("fails", {"0 says no room", "0 ends, False", "1 ends, False"}),
        pytest.param("other", {"0 ends, True"}, marks=pytest.mark.slow),  # rank 1 may end before or after
    ],
)
def test_none_goes_before_the_last_and_none_waits_for_one_that_failed(mode, said, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / "script.py"), mode, str(tmp_path / "written")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    lines = set(done.stdout.splitlines())
    assert said <= lines
    assert len(lines) == max(2, len(said))


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_cannot_meet_say_where_and_what_to_do(rank, monkeypatch):
    """Rank 0's port is taken; rank 1 finds nobody at it."""
    monkeypatch.setattr(ranks, "MINUTES", 0.02)
    with socket.socket() as taken:
        taken.bind(("", 0))
        if rank == 0:
            taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        words = f"rank {rank} of 2 could not connect to the others at 127.0.0.1:{port} (.+); MASTER_ADDR must be"
        with pytest.raises(UserError, match=words) as raised, process_group(Ranks(rank, 2, rank)):
            pass
    assert "\n" not in str(raised.value)
