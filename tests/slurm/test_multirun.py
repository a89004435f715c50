"""train.py as jobs of a real SLURM: a sweep, several tasks a job, a failing job, preempted ones, plain sbatch and srun."""

import csv
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import ROOT, SMALL, record, run, weights
from tests.slurm.conftest import displace, sbatch, tables
from tests.wandb_files import Offline

SWEEP = ["side=target,reference", "mitigation.text_mask=0,0.5"]
# Two ranks and 120 steps, which is seconds; saved only at the ends of epochs and when told to go.
TWO = ["side=target", *SMALL, "trainer.devices=2", "recipe.epochs=20", "trainer.checkpoint_epochs=100"]
ONE_CPU = "hydra.launcher.cpus_per_task=1"  # the nodes have two


@pytest.mark.slow
def test_a_sweep_gives_the_tables_of_the_same_sweep_run_here(cluster, submit, scenes, tmp_path):
    options = ["-m", *SWEEP, f"data.dir={scenes}", *SMALL]
    there, here = tmp_path / "there", tmp_path / "here"
    before = set(cluster.states())
    submit("train", *options, "hydra/launcher=slurm", "hydra.launcher.array_parallelism=2", f"hydra.sweep.dir={there}")
    assert cluster.ended(before) == ["COMPLETED"] * 4
    assert len({job.partition("_")[0] for job in cluster.states() if job not in before}) == 1  # an array
    scripts = {path.read_text() for path in (there / "slurm").rglob("*.sh")}
    assert scripts
    assert all("#SBATCH --array=0-3%2" in script.splitlines() for script in scripts)  # two at once
    run("train", *options, f"hydra.sweep.dir={here}")
    for number in range(4):
        one, two = weights(there / str(number)), weights(here / str(number))
        assert all(torch.equal(one[name], two[name]) for name in one)
    for folder in (there, here):
        run("evaluate", f"sweep={folder}", "k=5", "ks=[1,5]", "report.write=false")
    (one, all_of_one), (two, all_of_two) = tables(there), tables(here)
    assert len(one) == 2
    assert one == two
    assert all_of_one == all_of_two


def test_a_failing_job_is_named_and_the_others_are_unharmed(cluster, submit, scenes, tmp_path):
    before = set(cluster.states())
    options = [
        "side=target",
        "recipe.batch=16,200",
        f"data.dir={scenes}",
        *(o for o in SMALL if "recipe.batch" not in o),
    ]
    done = submit("train", "-m", *options, "hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path}", check=False)
    assert done.returncode == 1
    assert f"{tmp_path / '1'}: 96 training pairs" in done.stderr
    assert "Traceback" not in done.stderr
    assert record(tmp_path / "0")["steps"] == 12
    assert not (tmp_path / "1" / "run.json").exists()
    assert cluster.ended(before) == ["COMPLETED", "FAILED"]


@pytest.fixture(scope="module")
def undisturbed(cluster, submit, scenes, tmp_path_factory):
    """The run of a job with two tasks on one node."""
    folder = tmp_path_factory.mktemp("ddp")
    submit("train", "-m", *TWO, f"data.dir={scenes}", "hydra/launcher=slurm", ONE_CPU, f"hydra.sweep.dir={folder}")
    return folder / "0"


def test_two_tasks_of_a_job_are_the_ranks_of_one_run(undisturbed):
    found = record(undisturbed)
    assert found["plan"] == {"world": 2, "workers": 0, "batch": 8, "seed": 0}
    assert (found["steps"], found["exposure"]) == (120, {"mean": 20.0, "min": 20, "max": 20})


@pytest.mark.slow
def test_two_nodes_give_the_weights_of_one(cluster, submit, undisturbed, scenes, tmp_path):
    options = [o for o in TWO if "devices" not in o] + ["trainer.devices=1", "trainer.num_nodes=2"]
    before = set(cluster.states())
    submit("train", "-m", *options, f"data.dir={scenes}", "hydra/launcher=slurm_nodes", f"hydra.sweep.dir={tmp_path}")
    (job,) = (job for job in cluster.states() if job not in before)
    assert cluster.wait(job) == "COMPLETED"
    assert cluster("squeue", "-h", "--states=all", "-j", job, "-o", "%D").strip() == "2"
    assert record(tmp_path / "0")["plan"] == record(undisturbed)["plan"]
    close(weights(tmp_path / "0"), weights(undisturbed))


def close(one, two):
    """Equal to rounding, as sums over ranks are."""
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5, msg=name)


def wait_for(holds, cluster, folder, seconds=480):
    """Until ``holds()``; fails with the state of the jobs and the end of every log below ``folder``."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            logs = sorted(path for path in folder.rglob("*") if path.suffix in (".log", ".err", ".out"))
            said = [f"{path.relative_to(folder)}:\n{path.read_text(errors='replace')[-1500:]}" for path in logs]
            pytest.fail("\n\n".join([f"nothing happened; jobs: {cluster.states()}", *said]))
        time.sleep(0.05)


def test_a_preempted_job_is_requeued_once_and_ends_with_the_same_weights(cluster, undisturbed, scenes, tmp_path):
    """By submitit, at whose signal wandb's process ends, too; yet it is one run, before and after."""
    pytest.importorskip("wandb")
    before = set(cluster.states())
    options = [
        *TWO,
        "logger=wandb",
        f"data.dir={scenes}",
        "hydra/launcher=slurm",
        ONE_CPU,
        f"hydra.sweep.dir={tmp_path}",
    ]
    with open(tmp_path / "said.log", "wb") as said:
        study = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "-m", *options], cwd=ROOT, env=cluster.environment, stderr=said
        )
    wait_for((tmp_path / "0" / "metrics.csv").exists, cluster, tmp_path)
    (job,) = (job for job in cluster.states() if job not in before)
    cluster("scancel", "--signal=USR2", job)
    assert study.wait(540) == 0, (tmp_path / "said.log").read_text()
    assert cluster.wait(job) == "COMPLETED"
    assert "Restarts=1 " in cluster("scontrol", "show", "job", job)
    logs = "".join(path.read_text() for path in (tmp_path / "slurm").rglob("*_0_log.err"))
    assert "SIGUSR2: saved" in logs
    assert "resuming" in logs
    assert [job] == [job for job in cluster.states() if job not in before]
    close(weights(tmp_path / "0"), weights(undisturbed))
    found, whole = record(tmp_path / "0"), record(undisturbed)
    assert (found["steps"], found["exposure"]) == (whole["steps"], whole["exposure"])
    first, second = (Offline(path) for path in sorted((tmp_path / "0" / "wandb").rglob("*.wandb")))
    assert first.run.run_id == second.run.run_id
    assert first.ended
    assert second.ended
    assert "wandb failed (" not in logs
    with open(tmp_path / "0" / "metrics.csv", newline="") as file:
        table = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "loss"]
    assert first.values("loss") + second.values("loss") == pytest.approx(table)


def command(scenes, out, *options):
    words = " ".join(f"'{option}'" for option in [*TWO, *options, f"data.dir={scenes}", f"out={out}"])
    return f"srun {sys.executable} {ROOT / 'train.py'} {words}"


@pytest.mark.slow
def test_under_plain_sbatch_a_displaced_run_requeues_itself_once(cluster, undisturbed, scenes, tmp_path):
    """SLURM sends the job's own signal when it is preempted, and would requeue it at the end of the grace as well."""
    job = sbatch(cluster, tmp_path, command(scenes, tmp_path / "run"), "--signal=USR1@60")
    wait_for((tmp_path / "run" / "metrics.csv").exists, cluster, tmp_path)
    displace(cluster)
    assert cluster.wait(job) == "COMPLETED", (tmp_path / f"{job}.log").read_text()
    said = (tmp_path / f"{job}.log").read_text()
    assert "SIGUSR1: saved" in said
    assert "resuming" in said
    assert "Restarts=1 " in cluster("scontrol", "show", "job", job)
    close(weights(tmp_path / "run"), weights(undisturbed))
    assert record(tmp_path / "run")["plan"] == record(undisturbed)["plan"]


@pytest.mark.slow
def test_a_run_that_is_told_to_end_has_saved_and_slurm_alone_requeues_it(cluster, scenes, tmp_path):
    """TERM twice: preempted without a signal of its own, SLURM requeues the job; then it is cancelled.

    The first TERM ends wandb's process, and the training goes on until SLURM ends it.
    """
    pytest.importorskip("wandb")
    run = tmp_path / "run"

    def said():
        log = tmp_path / f"{job}.log"
        return log.read_text() if log.exists() else ""

    def steps():
        return torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["global_step"]

    job = sbatch(cluster, tmp_path, command(scenes, run, "recipe.epochs=100000", "logger=wandb"))
    wait_for((run / "metrics.csv").exists, cluster, tmp_path)
    displace(cluster)
    wait_for(lambda: "resuming" in said(), cluster, tmp_path)
    seen, before = said().count("SIGTERM: saved"), steps()
    assert seen >= 1
    assert said().count("wandb failed (") <= 1
    assert "Restarts=1 " in cluster("scontrol", "show", "job", job)
    size = (run / "metrics.csv").stat().st_size
    wait_for(lambda: (run / "metrics.csv").stat().st_size > size, cluster, tmp_path)
    cluster("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    assert said().count("SIGTERM: saved") > seen
    assert "Restarts=1 " in cluster("scontrol", "show", "job", job)
    assert "Traceback" not in said()
    assert steps() >= before
