"""Preemption: after a signal, all ranks save at the same step, and the job is requeued once.

The warning is USR1 or USR2 (``sbatch --signal``, submitit); TERM announces the end. Lightning's own handlers are not used:
that of ``auto_requeue`` saves in the middle of a step, which may differ between ranks, and that of TERM exits with code 0.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from dejavu_lit.utils.errors import first_line
from dejavu_lit.utils.exit_codes import early_signals, keep_signal

log = logging.getLogger(__name__)

WARNING_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
REQUEUE_SECONDS = 120  # other ranks wait this long for the end of the job after rank 0 has requeued it


def within_epoch(trainer: pl.Trainer) -> bool:
    """Whether the epoch has more batches: a run resumed after its last one would skip the validation, gaps and checkpoint."""
    return not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


class Preemption(Callback):
    """Saves ``path`` and ends the run after any rank has received a signal.

    Exactly one owner requeues the job: the previous handler, if any (submitit's, which also counts the requeues), else
    ``scontrol requeue`` by rank 0 of a SLURM job. Elsewhere the run exits with code 128 + signal, and the same command
    continues it. TERM in a SLURM job requeues nothing: if the job was preempted, SLURM requeues it. A job that exits before
    SLURM ends it would count as failed, so training continues until then. Ctrl-C ends the run in the same way, also if TERM
    follows, which a study sends to its training; a second Ctrl-C ends it at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.caught = 0
        self._previous_handlers: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep Lightning from waiting for rank 0 at every step to learn of a TERM, which it does not get (see ``listen``)."""
        loop = cast(Any, trainer.fit_loop.epoch_loop)
        assert hasattr(loop, "_broadcast_sigterm_tensor"), "Lightning has renamed it"  # there is no public way
        loop._broadcast_sigterm_tensor = lambda: None

    def listen(self) -> None:
        """Handle the signals, until Lightning restores the previous handlers after fit."""
        if threading.current_thread() is threading.main_thread():
            signals = (*WARNING_SIGNALS, signal.SIGTERM, signal.SIGINT)
            self._previous_handlers = {
                number: signal.signal(number, self._handle)
                for number in signals
                if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN  # a background job ignores it
            }
            # A warning comes last and decides: it requeues the job.
            for number in sorted(early_signals, key=WARNING_SIGNALS.__contains__):
                self._handle(number, None)

    def _handle(self, number: int, frame: object) -> None:
        if number == self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        if self.caught != signal.SIGINT:
            self.caught = number

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """End before an epoch after a signal; the end of the previous epoch was saved."""
        if number := self._agreed_signal(trainer):
            self._end(trainer, number)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        number = self._agreed_signal(trainer)
        if number and within_epoch(trainer):
            trainer.save_checkpoint(self.path)
            self._end(trainer, number)

    def _end(self, trainer: pl.Trainer, number: int) -> None:
        saved = (
            f"saved {self.path} at step {trainer.global_step}" if self.path.is_file() else "there was nothing to save"
        )
        log.info("%s: %s; the same command continues from there", signal.Signals(number).name, saved)
        owner, job = self._previous_handlers.get(number), os.environ.get("SLURM_JOB_ID")
        owner = None if owner is keep_signal else owner
        if number == signal.SIGTERM and job:
            self.caught = 0
            return
        for logger in trainer.loggers:  # requeueing kills wandb's process and loses what it has not written
            logger.finalize("preempted")
        if number in WARNING_SIGNALS and (callable(owner) or job):
            if trainer.global_rank > 0:  # exiting before rank 0 has requeued would fail the job
                until = time.monotonic() + REQUEUE_SECONDS
                while self.caught != signal.SIGTERM and time.monotonic() < until:
                    time.sleep(0.1)
            elif callable(owner):
                owner(number, None)
            else:
                _requeue(str(job))
        sys.exit(128 + number)

    def _agreed_signal(self, trainer: pl.Trainer) -> int:
        """The signal that any rank has caught, the same on all ranks, which ask each other every ``log_every`` steps."""
        if trainer.world_size == 1:
            return self.caught
        if trainer.global_step % cast(Any, trainer).log_every_n_steps:
            return 0
        caught = torch.tensor(self.caught, device=trainer.strategy.root_device)
        return int(cast(torch.Tensor, trainer.strategy.reduce(caught, reduce_op="max")))


def _requeue(job: str) -> None:
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("SLURM did not requeue the job (%s); the same command continues", first_line(error))
