"""What a run does when it is told to go: save at the next step, on all ranks the same one, and have the job requeued once.

The warning is USR1 or USR2 (``sbatch --signal``, submitit); TERM is the end itself. Lightning's own handler is not used:
it saves in the middle of a step, on each rank another one.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import Callback

log = logging.getLogger(__name__)

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
PATIENCE = 120  # seconds that the other ranks wait for the end of the job that rank 0 has requeued


def environment() -> list[SLURMEnvironment]:
    """Lightning's plugin for a task of SLURM, without a requeueing of its own; [] elsewhere and under torchrun."""
    if "SLURM_NTASKS" not in os.environ or TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def within_epoch(trainer: pl.Trainer) -> bool:
    """Whether the epoch goes on.

    After an epoch's last batch its end is still to come: a run resumed from there would take validation, gaps and the
    checkpoint of that epoch for done.
    """
    return not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


class Preemption(Callback):
    """Saves ``path`` when a signal has come to any rank, and ends the run.

    The job is requeued by one owner: the handler that was there before, if any (submitit's, which also notes how often),
    else ``scontrol requeue`` by rank 0 in a job of SLURM; elsewhere the run ends with code 128 + signal and the same
    command goes on. TERM in a job of SLURM requeues nothing: SLURM does, where the job was preempted; and a job that ended
    by itself before SLURM ends it would count as failed, so it goes on until then. Ctrl-C ends the run in the same way; a
    second one does so at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.caught = 0
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._news: tuple[torch.Tensor, Any] | None = None

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open a channel for the news of a signal, and have Lightning leave TERM to us.

        Its own answer ends the run after that step with code 0, and has the ranks wait for each other at every step.
        """
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        connector = trainer._signal_connector
        connector._sigterm_notifier_fn = lambda n, frame: self._note(int(n), frame)  # type: ignore[assignment,method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def listen(self) -> None:
        """Take the signals over, until Lightning gives back after fit what was there before it."""
        if threading.current_thread() is threading.main_thread():
            heard = (*WARNINGS, signal.SIGTERM, signal.SIGINT)
            self._before = {
                number: signal.signal(number, self._note)
                for number in heard
                if number != signal.SIGINT
                or signal.getsignal(number) != signal.SIG_IGN  # as of a job in the background
            }

    def _note(self, number: int, frame: object) -> None:
        if number == self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """End before an epoch if all ranks know of a signal; the end of the one before was saved."""
        if number := self._agreed(trainer):
            self._go(trainer, number)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        """End here if all ranks know of a signal."""
        number = self._agreed(trainer)
        if number and within_epoch(trainer):
            trainer.save_checkpoint(self.path)
            self._go(trainer, number)

    def _go(self, trainer: pl.Trainer, number: int) -> None:
        saved = (
            f"saved {self.path} at step {trainer.global_step}" if self.path.is_file() else "there was nothing to save"
        )
        log.info("%s: %s; the same command goes on from there", signal.Signals(number).name, saved)
        if number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            self.caught = 0
            self._heard()  # or the message under way would have it saved once more
            return
        self._leave(trainer, number)

    def _agreed(self, trainer: pl.Trainer) -> int:
        """The signal that any rank had caught one step ago: the same answer on all, without waiting for each other."""
        if trainer.world_size == 1:
            return self.caught
        number = self._heard()
        told = torch.tensor([self.caught])
        self._news = told, dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return number

    def _heard(self) -> int:
        if self._news is None:
            return 0
        told, work = self._news
        work.wait()
        self._news = None
        return int(told)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave no message under way."""
        self._heard()

    def _leave(self, trainer: pl.Trainer, number: int) -> None:
        for logger in trainer.loggers:  # the requeueing ends wandb's process, with what it has not written yet
            logger.finalize("preempted")
        owner, job = self._before.get(number), os.environ.get("SLURM_JOB_ID")
        if number in WARNINGS and (callable(owner) or job):
            if trainer.global_rank > 0:  # to end before rank 0 has spoken would end the job as failed
                until = time.monotonic() + PATIENCE
                while self.caught != signal.SIGTERM and time.monotonic() < until:
                    time.sleep(0.1)
            elif callable(owner):
                owner(number, None)
            else:
                subprocess.run(["scontrol", "requeue", str(job)], check=True)
        sys.exit(128 + number)


class Listener(Callback):
    """Lets ``preemption`` hear the signals before the other callbacks start, which may take minutes; it acts after them."""

    def __init__(self, preemption: Preemption) -> None:
        self.preemption = preemption

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Not earlier: only now Lightning has noted what it gives back after fit."""
        self.preemption.listen()
