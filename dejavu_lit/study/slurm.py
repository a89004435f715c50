"""Training on SLURM: what a job asks for, and ``launcher=slurm`` of a study: submit, wait, find the jobs again.

Each run is a job of submitit that resumes the run's own directory, so a requeued one goes on where it was. The job's number
is noted in that directory, by the study or, where that was killed too early, by the job: a study that was interrupted waits
for the jobs that are still queued or running, and submits only the others.
"""

import getpass
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dejavu_lit.utils.errors import UserError

log = logging.getLogger(__name__)

JOB = "slurm.json"
KILL_OTHERS = "export SLURM_KILL_BAD_EXIT=1"  # a rank that dies ends the job, the others would wait for it


def tasks(devices: int) -> int:
    """Tasks a node: one a device, as Lightning wants it; raises UserError where their number is left to the node."""
    if devices < 1:
        raise UserError(f"SLURM has to be told how many devices a node has; give trainer.devices=N, not {devices}")
    return devices


def gpus(accelerator: str, devices: int) -> int | None:
    """GPUs a node, None where the training uses none."""
    return None if accelerator == "cpu" else devices


def cpus(workers: int) -> int:
    """CPUs a task: one for the training, one for each process of the loader."""
    return 1 + workers


@dataclass(frozen=True)
class SlurmSettings:
    """What the jobs of a study ask for, beside the tasks, GPUs and CPUs that follow from ``trainer``."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    timeout_min: int = 1440  # a job that takes longer is requeued and goes on
    mem_gb: float | None = None  # a node
    array_parallelism: int = 256  # jobs at once, of those with the same trainer
    signal_delay_s: int = 120  # a job is warned so long before its time is over
    requeues: int = 100  # a job is requeued at most so often because its time was over
    poll_s: float = 10.0  # between two looks at the queue
    setup: tuple[str, ...] = ()  # shell commands before the training
    additional: dict[str, Any] = field(default_factory=dict)  # any other option of sbatch: {constraint: a100}

    def __post_init__(self) -> None:
        for name in ("timeout_min", "array_parallelism", "signal_delay_s"):
            if getattr(self, name) < 1:
                raise UserError(f"slurm.{name}={getattr(self, name)} must be at least 1")
        if self.poll_s <= 0 or self.requeues < 0:
            raise UserError(
                f"slurm.poll_s={self.poll_s} must be above 0 and slurm.requeues={self.requeues} not negative"
            )

    def parameters(self, trainer: dict[str, Any]) -> dict[str, Any]:
        """submitit's parameters for a run with this trainer."""
        given = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "mem": None if self.mem_gb is None else f"{round(self.mem_gb * 1024)}MB",
            "gpus_per_node": gpus(trainer["accelerator"], trainer["devices"]),
        }
        return {name: value for name, value in given.items() if value is not None} | {
            "time": self.timeout_min,
            "nodes": trainer["num_nodes"],
            "ntasks_per_node": tasks(trainer["devices"]),
            "cpus_per_task": cpus(trainer["loader"]["workers"]),
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": self.array_parallelism,
            "setup": [KILL_OTHERS, *self.setup],
            "additional_parameters": dict(self.additional),
        }


class Training:
    """What every task of a job does: go on with the run in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        """Train, unless the run was given to another job meanwhile.

        The process ends with code 1 where training fails, so that SLURM counts the job as failed.
        """
        from submitit import JobEnvironment

        from dejavu_lit.training.resume import resume
        from dejavu_lit.utils.io import read_json

        own, noted = JobEnvironment(), self.path / JOB
        if not noted.is_file():
            if own.global_rank == 0:
                note(self.path, own)
        elif (other := read_json(noted)["job"]) != own.job_id:
            print(f"{self.path} is trained by job {other}", file=sys.stderr)
            return
        resume(self.path)

    def checkpoint(self) -> Any:
        """What submitit starts when the job is requeued: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def note(path: Path, job: Any) -> None:
    """Write into a run's directory which job (submitit's ``Job`` or ``JobEnvironment``) trains it."""
    from dejavu_lit.utils.io import write_json

    write_json(path / JOB, {"job": job.job_id, "log": str(job.paths.stderr)})


class SlurmLauncher:
    """Trains run directories as jobs of SLURM; a launcher as dejavu_lit.study.runs describes it."""

    def __init__(self, settings: SlurmSettings) -> None:
        self.settings = settings

    def __call__(self, runs: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
        """Submit what is not under way, and yield each run when its job has ended."""
        from dejavu_lit.study.runs import finished
        from dejavu_lit.utils.io import read_json

        queue = _queue()
        jobs = {path: str(read_json(path / JOB)["job"]) for path in runs if (path / JOB).is_file()}
        waiting = {path: job for path, job in jobs.items() if job in queue}
        for path, job in waiting.items():
            log.info("%s is job %s already (%s)", path.name, job, queue[job].lower())
        waiting |= self._submit([path for path in runs if path not in waiting])
        missed: dict[Path, int] = {}
        shown = ""
        try:
            while waiting:
                time.sleep(self.settings.poll_s)
                queue = _queue()
                for path, job in list(waiting.items()):
                    missed[path] = 0 if job in queue else missed.get(path, 0) + 1
                    # Two looks: a shared file system may show the last files of a job a little later.
                    if finished(path) or missed[path] >= 2:
                        del waiting[path]
                        yield path, None if finished(path) else _why(path)
                running = sum(queue.get(job) == "RUNNING" for job in waiting.values())
                if waiting and (now := f"{running} jobs running, {len(waiting) - running} waiting") != shown:
                    log.info("%s", now)
                    shown = now
        except KeyboardInterrupt as end:
            raise type(end)(
                f"interrupted; {len(waiting)} jobs go on, the same command finds them again (scancel NUMBER ends one)"
            ) from None

    def _submit(self, runs: Sequence[Path]) -> dict[Path, str]:
        """One array for all runs with the same trainer: {directory: number of the job}."""
        from dejavu_lit.utils.run_directory import read_config

        try:
            import submitit
        except ImportError:
            raise UserError("launcher=slurm needs submitit; pip install 'dejavu-lit[slurm]'") from None
        alike: dict[str, list[Path]] = {}
        for path in runs:
            alike.setdefault(repr(self.settings.parameters(read_config(path)["trainer"])), []).append(path)
        jobs = {}
        for paths in alike.values():
            folder = paths[0].parent / "slurm"
            for path in paths:
                (path / JOB).unlink(missing_ok=True)  # of a job that has ended
            try:
                executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=self.settings.requeues)
                executor.update_parameters(
                    job_name="dejavu", **self.settings.parameters(read_config(paths[0])["trainer"])
                )
                with executor.batch():
                    submitted = [executor.submit(Training(path.resolve())) for path in paths]
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                raise UserError(refused(error)) from None
            except RuntimeError as error:  # no srun on this machine
                raise UserError(f"launcher=slurm: {error}") from None
            for path, job in zip(paths, submitted, strict=True):
                note(path, job)
                jobs[path] = str(job.job_id)
            log.info("submitted %d jobs (%s …), logs in %s", len(paths), jobs[paths[0]], folder)
        return jobs


def _queue() -> dict[str, str]:
    """This user's jobs that have not ended: {number: state}; raises UserError where SLURM does not answer for minutes."""
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%T"]
    for pause in (1, 5, 30, 120, 0):
        try:
            answer = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError("launcher=slurm needs SLURM's commands (squeue, sbatch) on this machine") from None
        if answer.returncode == 0:
            return dict(line.split("|", 1) for line in answer.stdout.split() if "|" in line)
        time.sleep(pause)
    raise UserError(
        f"squeue does not answer ({answer.stderr.strip()}); the jobs go on, the same command finds them again"
    )


def _why(path: Path) -> str:
    """Why a job ended without finishing its run, from what its tasks wrote."""
    from dejavu_lit.study.runs import reason
    from dejavu_lit.utils.io import read_json

    noted = read_json(path / JOB)
    last = Path(noted["log"])
    logs = sorted(last.parent.glob(f"{noted['job']}_*_log.err"), reverse=True)  # rank 0 speaks last
    return f"job {noted['job']}: " + reason("\n".join(log.read_text(errors="replace") for log in logs), 1, last)


def refused(error: Exception) -> str:
    """A sentence for what sbatch said when it would not take a job."""
    lines = [line.strip() for line in str(error).splitlines() if "sbatch: error" in line]
    return f"SLURM refused the job: {'; '.join(lines) or str(error).strip().splitlines()[-1]}"
