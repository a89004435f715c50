"""SLURM as a study's launcher: the resources of a job, and ``launcher=slurm``, which submits, waits and finds its jobs again.

Each run is a submitit job that resumes the run's own directory, so a requeued job continues where it was. The job's number is
saved in that directory, by the study or, if the study was killed before that, by the job itself. An interrupted study
therefore waits for the jobs that are still queued or running, and submits only the others.
"""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dejavu_lit.study.runs import failure_reason
from dejavu_lit.training.settings import TrainerSettings
from dejavu_lit.utils.errors import UserError, check_at_least, check_range, counted
from dejavu_lit.utils.io import read_json, write_json
from dejavu_lit.utils.run_directory import RunDirectory

log = logging.getLogger(__name__)

JOB = "slurm.json"
KILL_OTHERS = "export SLURM_KILL_BAD_EXIT=1"  # if a rank dies, the job ends; the other ranks would wait for it forever
MISSES = 2  # a job has failed if it is missing from the queue this often and its log has an error,
LATE_S = 90  # or if it is missing for this long: network file systems show a job's last files up to a minute late
SQUEUE_PAUSES = (1, 5, 30, 120, 0)  # seconds to wait after each failed squeue


def tasks_per_node(devices: int) -> int:
    """One task per device, as Lightning expects; raises UserError if the number of devices is left to the node."""
    if devices < 1:
        raise UserError(f"SLURM needs the number of devices per node; give trainer.devices=N instead of {devices}")
    return devices


def gpus_per_node(accelerator: str, devices: int) -> int | None:
    """One GPU per device, or None if the training uses no GPU."""
    return None if accelerator == "cpu" else devices


def cpus_per_task(workers: int) -> int:
    """One CPU for the training and one for each worker process of the data loader."""
    return 1 + workers


@dataclass(frozen=True)
class SlurmSettings:
    """The resources of a study's jobs, beside the tasks, GPUs and CPUs that follow from ``trainer``."""

    partition: str | None = None
    """Partition of the cluster; null uses the cluster's default."""
    account: str | None = None
    """Account that the time is charged to; null uses the cluster's default."""
    qos: str | None = None
    """Quality of service; null uses the cluster's default."""
    timeout_min: int = 1440
    """Time limit of a job in minutes; a job that reaches it is requeued and resumes."""
    mem_gb: float | None = None
    """Memory per node in GB; null uses the cluster's default."""
    array_parallelism: int = 256
    """Largest number of jobs that run at once, among those with the same trainer."""
    signal_delay_s: int = 120
    """A job is warned this many seconds before its time limit."""
    requeues: int = 100
    """Largest number of times that a job is requeued because of its time limit."""
    poll_s: float = 10.0
    """Seconds between two queries of the queue."""
    setup: tuple[str, ...] = ()
    """Shell commands to run before the training."""
    additional: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, e.g. {constraint: a100}."""

    def __post_init__(self) -> None:
        check_at_least(self, "slurm.", timeout_min=1, array_parallelism=1, signal_delay_s=1, requeues=0)
        check_range(self, "slurm.", "(0, inf)", "poll_s", "mem_gb")

    def parameters(self, trainer: TrainerSettings) -> dict[str, Any]:
        same_names = ("partition", "account", "qos", "signal_delay_s", "array_parallelism")
        parameters = {
            **{name: getattr(self, name) for name in same_names},
            "mem": None if self.mem_gb is None else f"{round(self.mem_gb * 1024)}MB",
            "gpus_per_node": gpus_per_node(trainer.accelerator, trainer.devices),
            "time": self.timeout_min,
            "nodes": trainer.num_nodes,
            "ntasks_per_node": tasks_per_node(trainer.devices),
            "cpus_per_task": cpus_per_task(trainer.loader.workers),
            "setup": [KILL_OTHERS, *self.setup],
            "additional_parameters": dict(self.additional),
        }
        return {name: value for name, value in parameters.items() if value is not None}


def train_by_slurm(settings: SlurmSettings, runs: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """The launcher, as dejavu_lit.study.runs describes it: submit the runs that have no queued or running job, and wait."""
    waiting = _queued(runs)
    waiting |= _submit([path for path in runs if path not in waiting], settings)
    try:
        yield from _wait(waiting, settings.poll_s)
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(
            f"interrupted; jobs that continue: {len(waiting)}; run the same command again to wait for them, or cancel one with "
            "scancel NUMBER"
        ) from None


def _queued(runs: Sequence[Path]) -> dict[Path, str]:
    """{directory: job number} of the runs whose saved job is queued or running."""
    queue = _queue()
    jobs = {path: str(read_json(path / JOB)["job"]) for path in runs if (path / JOB).is_file()}
    queued = {path: job for path, job in jobs.items() if job in queue}
    for path, job in queued.items():
        log.info("%s already has job %s (%s)", path.name, job, queue[job][0].lower())
    return queued


def _wait(waiting: dict[Path, str], pause: float) -> Iterator[tuple[Path, str | None]]:
    """Poll the queue, every ``pause`` seconds, until all jobs have ended; a run leaves ``waiting`` before it is yielded."""
    misses: dict[Path, int] = {}
    logged = ""
    while waiting:
        time.sleep(pause)
        queue = _queue()
        for path, job in list(waiting.items()):
            misses[path] = 0 if job in queue else misses.get(path, 0) + 1
            failed = misses[path] >= MISSES and (misses[path] * pause >= LATE_S or "error: " in _output(path))
            if RunDirectory(path).finished:
                del waiting[path]
                yield path, None
            elif failed:
                del waiting[path]
                yield path, f"job {job}: {_failure_reason(path)}"
        jobs = [queue[job] for job in waiting.values() if job in queue]
        running = sum(state == "RUNNING" for state, _ in jobs)
        reasons = "" if running else ", ".join(sorted({reason for _, reason in jobs} - {"None"}))
        state = f"jobs: {running} running, {len(waiting) - running} waiting{f' ({reasons})' if reasons else ''}"
        if waiting and state != logged:
            log.info("%s", state)
            logged = state


def _submit(runs: Sequence[Path], settings: SlurmSettings) -> dict[Path, str]:
    """Submit one job array per distinct trainer: {directory: job number}."""
    try:
        import submitit
    except ImportError:
        raise UserError("launcher=slurm needs submitit; pip install 'dejavu-lit[slurm]'") from None
    arrays: dict[str, tuple[dict[str, Any], list[Path]]] = {}  # submitit's parameters, and the runs that share them
    for path in runs:
        parameters = settings.parameters(RunDirectory(path).read(TrainerSettings, "trainer"))
        arrays.setdefault(repr(parameters), (parameters, []))[1].append(path)
    jobs = {}
    for parameters, paths in arrays.values():
        folder = paths[0].parent / "slurm"
        for path in paths:
            (path / JOB).unlink(missing_ok=True)  # of a job that has ended
        try:
            executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=settings.requeues)
            executor.update_parameters(job_name="dejavu", **parameters)
            with executor.batch():
                submitted = [executor.submit(TrainingJob(path.resolve())) for path in paths]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UserError(submission_error(error)) from None
        except RuntimeError as error:  # no srun on this machine
            raise UserError(f"launcher=slurm: {error}") from None
        for path, job in zip(paths, submitted, strict=True):
            save_job(path, job)
            jobs[path] = str(job.job_id)
        log.info("submitted %s (%s …); logs in %s", counted(len(paths), "job"), jobs[paths[0]], folder)
    return jobs


@dataclass(frozen=True)
class TrainingJob:
    """The work of every task of a job: resume the run in a directory."""

    path: Path

    def __call__(self) -> None:
        """Train, unless the run has been given to another job meanwhile; a failure ends the process with code 1."""
        from submitit import JobEnvironment

        from dejavu_lit.training.resume import resume

        environment, saved = JobEnvironment(), self.path / JOB
        if not saved.is_file():
            if environment.global_rank == 0:
                save_job(self.path, environment)
        elif (job := read_json(saved)["job"]) != environment.job_id:
            print(f"{self.path} is trained by job {job}", file=sys.stderr)
            return
        resume(self.path)

    def checkpoint(self) -> Any:
        """What submitit runs when the job is requeued: the same job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def save_job(path: Path, job: Any) -> None:
    """Save in a run's directory which job (submitit's ``Job`` or ``JobEnvironment``) trains it."""
    write_json(path / JOB, {"job": job.job_id, "log": str(job.paths.stderr)})


def _queue() -> dict[str, tuple[str, str]]:
    """This user's queued and running jobs: {number: state and reason}; raises UserError if squeue fails for minutes."""
    command = ["squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", "%i|%T|%r"]
    for pause in SQUEUE_PAUSES:
        try:
            answer = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError("launcher=slurm needs SLURM's commands (squeue, sbatch) on this machine") from None
        if answer.returncode == 0:
            lines = (line.split("|", 2) for line in answer.stdout.splitlines() if line.count("|") > 1)
            return {job: (state, reason) for job, state, reason in lines}
        time.sleep(pause)
    raise UserError(
        f"squeue failed ({answer.stderr.strip()}); the jobs continue, run the same command again to wait for them"
    )


def _failure_reason(path: Path) -> str:
    """Why the job of a run has no result, from the logs of its tasks."""
    if not (output := _output(path)):
        return "it left the queue and wrote nothing (cancelled, or a failed node); run the same command again"
    ended = r"error: \1; run the same command again to resume"  # cancelled, over its time, preempted
    output = re.sub(r".*error: \*\*\* ((?:JOB|STEP) .+) \*\*\*", ended, output)
    return failure_reason(output, 1, Path(read_json(path / JOB)["log"]))


def _output(path: Path) -> str:
    """What the tasks of a run's job wrote to their logs, rank 0 last, so that its error is taken."""
    saved = read_json(path / JOB)
    logs = sorted(Path(saved["log"]).parent.glob(f"{saved['job']}_*_log.err"), reverse=True)
    return "\n".join(task_log.read_text(errors="replace") for task_log in logs)


def submission_error(error: Exception) -> str:
    """One sentence with the reason that sbatch gave for refusing a job, or on a job that ended without a result."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if type(error).__name__ == "UncompletedJobError":  # cancelled, killed, or over its time too often
        return f"{' '.join(lines[:2])}; run the same command again to continue"
    refused = [line.strip() for line in lines if "sbatch: error" in line]
    return f"SLURM refused the job: {'; '.join(refused) or lines[-1]}"
