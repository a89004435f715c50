"""The training runs of a study: unfinished ones are trained by a launcher, and the remaining time is logged.

A launcher is a function ``(directories) -> iterator of (directory, None | why it failed)``. It gets run directories that have
a ``config.yaml`` and are not finished, trains each with ``dejavu resume DIRECTORY`` (which resumes from ``last.ckpt`` and
writes ``run.json``), and yields every directory once, as soon as its training has ended, in any order. An interrupted study
may have left a training running in a directory; the launcher waits for it. ``train_here`` is the launcher for this machine:
submitit's local executor shows no output, and only the process that started a job knows that it runs.
"""

import fcntl
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dejavu_lit.models.model_name import ModelName
from dejavu_lit.training.settings import TrainingRun
from dejavu_lit.utils.errors import UserError, killed_by
from dejavu_lit.utils.io import locked, no_links
from dejavu_lit.utils.run_directory import RunDirectory

log = logging.getLogger(__name__)

LOG = "training.log"  # the output of all trainings in a run's directory; locked by train_here while one runs
Launcher = Callable[[Sequence[Path]], Iterator[tuple[Path, str | None]]]


def train_missing(runs: Mapping[Path, TrainingRun], launcher: Launcher) -> dict[Path, str]:
    """Train every unfinished run of {run directory: its settings}: {run directory: why its training failed}.

    Raises UserError if a directory contains another run.
    """
    unfinished = {path: run for path, run in runs.items() if not RunDirectory(path).finished}
    if not unfinished:
        return {}
    for path, run in unfinished.items():
        _claim(RunDirectory(path), run)
    costs = {path: run.epochs * run.data.training_pairs(run.side) for path, run in unfinished.items()}  # pairs seen
    ended: dict[Path, str | None] = {}
    started = time.perf_counter()
    for path, error in launcher(list(unfinished)):
        if error is None and not RunDirectory(path).finished:
            error = f"it ended without writing run.json; see {path / LOG}"
        ended[path] = error
        if error is not None:
            log.error("%s failed, the other runs continue: %s", path.name, error)
        failures = sum(error is not None for error in ended.values())
        failed = f", {failures} failed" if failures else ""
        left = _time_left(costs, ended, time.perf_counter() - started)
        log.info("%d of %d runs trained%s%s", len(ended) - failures, len(unfinished), failed, left)
    return {path: error for path, error in ended.items() if error is not None}


def _claim(directory: RunDirectory, run: TrainingRun) -> None:
    """Save a run's settings, of a started one only the limits of loading and the path of a gap reference that was moved; a
    training at work keeps its settings.

    Raises UserError if another run is there, or one at work that keeps too few checkpoints.
    """
    directory.check(run)
    if directory.started:
        saved, loader = directory.read(TrainingRun), run.trainer.loader
        loader = replace(loader, workers=saved.trainer.loader.workers)
        trainer = replace(saved.trainer, loader=loader, timeout_min=run.trainer.timeout_min)
        reference = saved.gaps.reference
        if reference and ModelName.parse(reference).missing_path:  # the study was moved
            reference = run.gaps.reference or reference
        run = replace(saved, trainer=trainer, gaps=replace(saved.gaps, reference=reference))
    try:
        with locked(directory.path / ".lock", wait=False):
            directory.save(run)
    except UserError:  # at work
        directory.check(run, take_over=False)
        kept = directory.read(TrainingRun).trainer
        if missing := [epoch for epoch in run.trainer.checkpoint_at if not kept.keeps(epoch)]:
            raise UserError(
                f"{directory.path} is being trained without keeping epoch {missing[0]}; wait until it has ended, then run this "
                "command again"
            ) from None


def keeping(run: TrainingRun, epochs: Iterable[int]) -> TrainingRun:
    """A run that also keeps the checkpoints of these epochs."""
    kept = tuple(sorted({*run.trainer.checkpoint_at, *epochs}))
    return replace(run, trainer=replace(run.trainer, checkpoint_at=kept))


def _time_left(costs: Mapping[Path, int], ended: Mapping[Path, str | None], seconds: float) -> str:
    """The estimated time for the remaining runs, from the time that the trained ones took per pair."""
    trained = sum(costs[path] for path, error in ended.items() if error is None)
    remaining = sum(cost for path, cost in costs.items() if path not in ended)
    if not trained or not remaining:
        return ""
    left = seconds / trained * remaining
    return f", about {f'{left / 60:.0f} min' if left > 90 else f'{left:.0f} s'} left"


def train_here(runs: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """Train the runs one after the other on this machine, each in its own process, so that a crash ends only one of them."""
    for number, path in enumerate(runs, start=1):
        with locked_log(path) as lock:
            error = None
            if not RunDirectory(path).finished:
                log.info("training %d of %d: %s", number, len(runs), path.name)
                error = _train_in_subprocess(path, lock)
        yield path, error


@contextmanager
def locked_log(path: Path) -> Iterator[int]:
    """Wait until no other launcher trains a run, then lock its log; yields the lock's file descriptor."""
    with open(path / LOG, "ab", opener=no_links) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for the training in %s, which was started by an earlier command", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _train_in_subprocess(path: Path, lock: int) -> str | None:
    """Train one run in its own process, whose output goes to its log and to the screen; returns why it failed, or None.

    The process inherits ``lock``, so the log stays locked even if this process is killed. The lock is not on the output, which
    the commands that a training runs inherit, too: one that hangs would keep the log locked.
    """
    # Not through a pipe: a training that outlives its study must still be able to write.
    with open(path / LOG, "ab", opener=no_links) as output, open(path / LOG, "rb") as tail:
        tail.seek(0, 2)
        command = [sys.executable, "-m", "dejavu_lit", "resume", str(path)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=(lock,)
        )
        written = b""
        try:
            while True:
                code = process.poll()
                new = tail.read()
                written += new
                sys.stderr.write(new.decode(errors="replace"))
                sys.stderr.flush()
                if code is not None:
                    return None if code == 0 else failure_reason(written.decode(errors="replace"), code, path / LOG)
                time.sleep(0.1)
        except KeyboardInterrupt as interrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            message = f"interrupted while training {path.name}; run the same command again to resume"
            raise type(interrupt)(message) from None


def failure_reason(output: str, code: int, log_file: Path) -> str:
    """Why a training failed: the last ``error:`` line of its output, else the signal of ``code`` or the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if errors := [line for line in lines if line.startswith("error: ")]:
        return errors[-1].removeprefix("error: ")
    if code < 0:
        return f"{killed_by(-code)}; run the same command again to resume from its checkpoint"
    return f"exited with code {code}: {lines[-1] if lines else 'no output'}; see {log_file}"
