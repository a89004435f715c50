"""When a job of a study counts as ended, without a cluster."""

import os
from pathlib import Path

import pytest

from dejavu_lit.study import slurm
from dejavu_lit.study.slurm import LATE_S
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
    ((_, error),) = slurm._wait({run: "7"}, 10)
    return len(sleeps), error


def test_a_job_whose_last_files_a_network_file_system_shows_late_has_not_failed(tmp_path, monkeypatch):
    assert polls(tmp_path, "epoch 2\n", monkeypatch, finished_at=6) == (6, None)


def test_a_job_without_result_has_failed_at_once_if_its_log_has_an_error_and_later_if_not(tmp_path, monkeypatch):
    assert polls(tmp_path, "error: no such file\n", monkeypatch) == (2, "job 7: no such file")
    count, error = polls(tmp_path, "epoch 2\n", monkeypatch)
    assert count == LATE_S / 10
    assert "epoch 2" in str(error)


def test_a_job_that_slurm_ended_is_told_with_slurms_reason(tmp_path, monkeypatch):
    log = "slurmstepd-n1: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-30T01:16:59 DUE TO TIME LIMIT ***\nsrun: error: Killed\n"
    assert polls(tmp_path, log, monkeypatch)[1] == (
        "job 7: JOB 9 ON n1 CANCELLED AT 2026-11-30T01:16:59 DUE TO TIME LIMIT; run the same command again to resume"
    )
    assert polls(tmp_path, f"{log}error: the loss is NaN\n", monkeypatch)[1] == "job 7: the loss is NaN"
    assert "left the queue and wrote nothing" in str(polls(tmp_path, "", monkeypatch)[1])


def test_the_queue_is_of_this_user_whatever_the_environment_calls_him(tmp_path, monkeypatch):
    """SLURM is asked by number: LOGNAME may be another's, and the number of a container may have no name."""
    answer = (
        f'[ "$4" = {os.getuid()} ] && echo "7_0|PENDING|Nodes required for job are DOWN, DRAINED or reserved"; true'
    )
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("LOGNAME", "nobody")
    assert slurm._queue() == {"7_0": ("PENDING", "Nodes required for job are DOWN, DRAINED or reserved")}


def test_why_no_job_runs_is_logged(tmp_path, monkeypatch, caplog):
    answers = [{"7": ("PENDING", "AssocGrpCPUMinutesLimit")}, {"7": ("RUNNING", "None")}, {}]
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(
        slurm, "_queue", lambda: answers.pop(0) if len(answers) > 1 else write_json(tmp_path / "run.json", {}) or {}
    )
    with caplog.at_level("INFO", logger="dejavu_lit"):
        assert list(slurm._wait({tmp_path: "7"}, 10)) == [(tmp_path, None)]
    assert caplog.messages == ["jobs: 0 running, 1 waiting (AssocGrpCPUMinutesLimit)", "jobs: 1 running, 0 waiting"]


def test_a_job_that_was_cancelled_was_not_refused():
    utils = pytest.importorskip("submitit").core.utils
    lines = "Job 3_0 (task: 0) with path run/3_0_result.pkl\nhas not produced any output (state: CANCELLED)\nlog"
    assert slurm.submission_error(utils.UncompletedJobError(lines)) == (
        "Job 3_0 (task: 0) with path run/3_0_result.pkl has not produced any output (state: CANCELLED); "
        "run the same command again to continue"
    )
    refused = utils.FailedSubmissionError("sbatch: error: invalid partition specified: x\nlog")
    assert slurm.submission_error(refused) == "SLURM refused the job: sbatch: error: invalid partition specified: x"
