"""``mitigate.py launcher=slurm``: submits the trainings, waits, evaluates, and finds its jobs again."""

import re
import signal
import subprocess
import sys
import time

from tests.conftest import ROOT
from tests.slurm.conftest import STUDY, tables

SLURM = ["launcher=slurm", "slurm.poll_s=0.5", "slurm.array_parallelism=2"]


def test_an_interrupted_study_finds_its_jobs_again_and_gives_the_table_of_a_local_one(
    cluster, submit, scenes, here, tmp_path
):
    before = set(cluster.states())
    options = [*STUDY, f"data.dir={scenes}", f"out={tmp_path / 'slurm'}", *SLURM]
    study = subprocess.Popen(
        [sys.executable, str(ROOT / "mitigate.py"), *options],
        cwd=ROOT,
        env=cluster.environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell leaves it ignored
    )
    until = time.monotonic() + 180
    while len(list(tmp_path.glob("slurm/runs/*/slurm.json"))) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    study.send_signal(signal.SIGINT)
    said = study.communicate(timeout=120)[1]
    assert study.returncode == 130
    assert "jobs go on" in said
    assert "Traceback" not in said
    # As if it had been killed before it noted the last job, which then notes itself or finds that another one trains.
    next(tmp_path.glob("slurm/runs/mask*-reference/slurm.json")).unlink()
    done = submit("mitigate", *options)
    assert "already" in done.stderr
    submitted = re.findall(r"submitted (\d+) jobs", done.stderr)
    assert submitted in ([], ["1"])
    assert cluster.ended(before) == ["COMPLETED"] * (4 + len(submitted))
    (one, all_of_one), (two, all_of_two) = tables(tmp_path / "slurm"), tables(here)
    assert len(one) == 2
    assert one == two
    assert all_of_one == all_of_two


def test_a_setting_that_fails_is_told_in_its_own_words(cluster, submit, scenes, tmp_path):
    bad = ["+settings.bad=['model.init=local-dir:/nowhere']", *(o for o in STUDY if "settings" not in o)]
    done = submit("mitigate", *bad, f"data.dir={scenes}", f"out={tmp_path}", *SLURM, check=False)
    assert done.returncode == 1
    assert "bad-s0-target failed" in done.stderr
    assert "/nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_slurm_refuses_is_a_sentence(submit, scenes, tmp_path):
    options = ["slurm.partition=nowhere", f"data.dir={scenes}", f"out={tmp_path}"]
    done = submit("mitigate", *STUDY, *options, *SLURM, check=False)
    assert done.returncode == 1
    assert "SLURM refused the job" in done.stderr
    assert "nowhere" in done.stderr or "partition" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_plugin_it_says_what_to_install(tmp_path):
    """Elsewhere too: Hydra is told to find no plugins."""
    code = "import hydra_plugins; hydra_plugins.__path__ = []; from dejavu_lit import entry; entry.train()"
    options = ["-m", "side=target", "hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: hydra/launcher=slurm needs Hydra's plugin for submitit; pip install 'dejavu-lit[slurm]'\n"
    )
