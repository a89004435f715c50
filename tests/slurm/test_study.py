"""``mitigate.py launcher=slurm``: submits the trainings, waits, evaluates, and finds its jobs again."""

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.slurm.conftest import STUDY, tables

SLURM = ["launcher=slurm", "slurm.poll_s=0.5", "slurm.array_parallelism=2"]


@pytest.mark.slow
def test_an_interrupted_study_finds_its_jobs_again_and_gives_the_table_of_a_local_one(cluster, scenes, here, tmp_path):
    """Its jobs wait for a gate, so that they are surely under way when the study is started again."""
    before, gate = set(cluster.states()), tmp_path / "gate"
    options = [*STUDY, f"data.dir={scenes}", f"out={tmp_path / 'slurm'}", *SLURM]
    options.append(f"slurm.setup=['while [ ! -e {gate} ]; do sleep 0.2; done']")

    def begin(until):
        """The study, begun; it has gone on to where ``until`` holds of what it said."""
        with open(tmp_path / "said", "w") as log:
            study = subprocess.Popen(
                [sys.executable, str(ROOT / "mitigate.py"), *options],
                cwd=ROOT,
                env={**cluster.environment, "PYTHONPATH": str(ROOT)},
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell leaves it ignored
            )
        end = time.monotonic() + 300
        while not until(said()):
            assert study.poll() is None, said()
            assert time.monotonic() < end, said()
            time.sleep(0.1)
        return study

    def said():
        return (tmp_path / "said").read_text()

    study = begin(lambda words: "jobs: " in words)
    assert "submitted 4 jobs" in said()
    study.send_signal(signal.SIGINT)
    assert study.wait(timeout=240) == 130
    assert "jobs that continue: 4;" in said()
    assert "Traceback" not in said()
    # As if it had been killed before it noted one of them, which finds then that another job trains its run.
    (tmp_path / "slurm" / "runs" / "mask-s0-reference" / "slurm.json").unlink()
    study = begin(lambda words: "submitted" in words)
    gate.touch()
    assert study.wait(timeout=500) == 0, said()
    assert said().count(" already has job ") == 3
    assert "submitted 1 job (" in said()
    assert cluster.ended(before) == ["COMPLETED"] * 5
    (one, all_of_one), (two, all_of_two) = tables(tmp_path / "slurm"), tables(here)
    assert len(one) == 2
    assert one == two
    assert all_of_one == all_of_two


def test_a_setting_that_fails_is_told_in_its_own_words(cluster, submit, scenes, tmp_path):
    bad = ["+settings.bad=['recipe.lr=1e30']", *(o for o in STUDY if "settings" not in o)]
    done = submit("mitigate", *bad, f"data.dir={scenes}", f"out={tmp_path}", *SLURM, check=False)
    assert done.returncode == 1
    assert "bad-s0-target failed" in done.stderr
    assert "the loss is NaN or infinite" in done.stderr
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
    code = "import hydra_plugins; hydra_plugins.__path__ = []; from dejavu_lit.cli.train import main; main()"
    options = ["-m", "side=target", "hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: hydra/launcher=slurm needs Hydra's plugin for submitit; pip install 'dejavu-lit[slurm]'\n"
    )
