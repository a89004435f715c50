"""When a job of a study counts as ended, without a cluster."""

from pathlib import Path

import pytest

from dejavu_lit.study import slurm
from dejavu_lit.study.slurm import LATE_S, SlurmLauncher, SlurmSettings
from dejavu_lit.utils.io import write_json


def polls(
    run: Path, log: str, monkeypatch: pytest.MonkeyPatch, finished_at: int | None = None
) -> tuple[int, str | None]:
    """(number of polls until a run whose job has left the queue is given up or found finished, why it failed)."""
    write_json(run / "slurm.json", {"job": "7", "log": str(run / "7_0_log.err")})
    (run / "7_0_log.err").write_text(log)
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == finished_at:
            write_json(run / "run.json", {})

    monkeypatch.setattr(slurm.time, "sleep", sleep)
    monkeypatch.setattr(slurm, "_queue", dict)
    ((_, error),) = SlurmLauncher(SlurmSettings(poll_s=10))._wait({run: "7"})
    return len(sleeps), error


def test_a_job_whose_last_files_a_network_file_system_shows_late_has_not_failed(tmp_path, monkeypatch):
    assert polls(tmp_path, "epoch 2\n", monkeypatch, finished_at=6) == (6, None)


def test_a_job_without_result_has_failed_at_once_if_its_log_has_an_error_and_later_if_not(tmp_path, monkeypatch):
    assert polls(tmp_path, "error: no such file\n", monkeypatch) == (2, "job 7: no such file")
    count, error = polls(tmp_path, "epoch 2\n", monkeypatch)
    assert count == LATE_S / 10
    assert "epoch 2" in str(error)


def test_a_job_that_was_cancelled_was_not_refused():
    utils = pytest.importorskip("submitit").core.utils
    lines = "Job 3_0 (task: 0) with path run/3_0_result.pkl\nhas not produced any output (state: CANCELLED)\nlog"
    assert slurm.submission_error(utils.UncompletedJobError(lines)) == (
        "Job 3_0 (task: 0) with path run/3_0_result.pkl has not produced any output (state: CANCELLED); "
        "run the same command again to continue"
    )
    refused = utils.FailedSubmissionError("sbatch: error: invalid partition specified: x\nlog")
    assert slurm.submission_error(refused) == "SLURM refused the job: sbatch: error: invalid partition specified: x"
