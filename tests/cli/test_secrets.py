"""Keys and tokens in the environment never reach what a run leaves behind."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import SMALL, run

SECRETS = {
    "WANDB_API_KEY": "5ec2e7" + "a" * 34,
    "HF_TOKEN": "hf_5ec2e7tokentoken",
    "AWS_SECRET_ACCESS_KEY": "5ec2e7aws",
}


def leaks(folder: Path, done: subprocess.CompletedProcess[str]) -> list[str]:
    """Where a secret is to be found: in files below the folder, or in what a command said."""
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    return [
        name for name, content in {**files, **said}.items() for secret in SECRETS.values() if secret.encode() in content
    ]


@pytest.fixture(autouse=True)
def _secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets in the environment of every command, and folders of wandb below the test's own."""
    folders = {"WANDB_DIR": str(tmp_path / "wandb"), "WANDB_CACHE_DIR": str(tmp_path / "cache")}
    for name, value in {**SECRETS, **folders}.items():
        monkeypatch.setenv(name, value)


def test_no_file_of_a_run_holds_a_secret(scenes, tmp_path):
    options = ["side=target", f"data.dir={scenes}", "out=run", *SMALL, "recipe.epochs=1", "logger=wandb"]
    done = run("train", *options, cwd=tmp_path)
    assert list(tmp_path.rglob("*.wandb"))
    assert leaks(tmp_path, done) == []


def test_no_file_of_an_evaluation_holds_a_secret(runs, tmp_path):
    options = [f"{side}={path}" for side, path in runs.items()]
    options += ["logger=wandb", "statistics.bootstrap=100", "report.write=true"]
    done = run("evaluate", *options, "out=gap", cwd=tmp_path)
    assert list(tmp_path.rglob("*.wandb"))
    assert leaks(tmp_path, done) == []


def test_no_file_of_a_job_of_slurm_holds_a_secret(runs, tmp_path, monkeypatch):
    """What is handed to sbatch: its script and submitit's own file. sbatch itself is a stand-in, which takes any job."""
    pytest.importorskip("submitit")
    from dejavu_lit.study.slurm import JOB, SlurmSettings, _submit

    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho Submitted batch job 7\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "study" / "runs" / "target"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_bytes((runs["target"] / "config.yaml").read_bytes())
    assert _submit([folder], SlurmSettings()) == {folder: "7"}
    assert (folder / JOB).is_file()
    assert list((folder.parent / "slurm").rglob("*.sh"))
    assert leaks(tmp_path, subprocess.CompletedProcess([], 0, "", "")) == []


def test_the_hunt_finds_what_is_there(tmp_path):
    (tmp_path / "log").write_text(f"token {SECRETS['HF_TOKEN']}")
    assert leaks(tmp_path, subprocess.CompletedProcess([], 0, SECRETS["WANDB_API_KEY"], "")) == [
        str(tmp_path / "log"),
        "stdout",
    ]
