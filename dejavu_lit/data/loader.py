"""torch's DataLoader around a stream of batches: worker processes that live for the whole training, and resume in mid-epoch."""

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader

from dejavu_lit.data.settings import LoaderSettings
from dejavu_lit.data.stream import Batch, PairStream
from dejavu_lit.utils.errors import UserError


class EpochLoader:
    """A loader that asks ``position`` for the epoch, and the step in it, whenever an iteration starts.

    Its worker processes start with the first iteration and live until ``close``; iterations cannot overlap. Forking again
    each epoch would be slow in a large process, and could hang if one of its threads is just ending.
    """

    def __init__(
        self,
        stream: PairStream,
        settings: LoaderSettings,
        position: Callable[[], tuple[int, int]],
        batch_timeout: float = 0,  # seconds that the worker processes may take for a batch; 0: no limit
    ) -> None:
        self._stream, self._settings, self._position, self._batch_timeout = stream, settings, position, batch_timeout
        if settings.workers:
            stream.position.share_memory_()
        self._loader: DataLoader[Batch] | None = None
        self._batches: Iterator[Batch] = iter(())
        self._processes: list[BaseProcess] = []

    def __len__(self) -> int:
        return self._stream.plan.steps

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing starts before the first batch is requested, when the trainer knows its position.
        yield from self.batches(*self._position())

    def batches(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        self._stream.start_at(epoch, step)
        if self._loader is None:
            before = active_children()
            self._loader = self._build()
            self._batches = iter(self._loader)
            self._processes = [process for process in active_children() if process not in before]
            atexit.register(self.close)
        else:
            self._batches = iter(self._loader)
        # Only this object refers to torch's iterator, so that ``close`` ends the processes though a caller keeps this one.
        while (batch := next(self._batches, None)) is not None:
            yield batch
            step += 1
        if step < len(self):
            raise UserError(
                f"the processes of the data loader lost {len(self) - step} of {len(self)} batches, see their messages above; run "
                "the same command again to resume"
            )

    def close(self) -> None:
        """End the processes; another iteration starts new ones."""
        self._batches, self._loader = iter(()), None  # torch then asks the processes to end
        for _ in range(2):
            # torch reports a killed process once per loader, from whatever code is running.
            with suppress(RuntimeError):
                for process in self._processes:  # one that is stopped or ignores TERM would block the exit of this one
                    process.kill()
                for process in self._processes:
                    process.join()
        self._processes = []
        atexit.unregister(self.close)

    def _build(self) -> DataLoader[Batch]:
        workers = self._settings.workers
        return DataLoader(
            self._stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=self._settings.prefetch if workers else None,
            persistent_workers=workers > 0,
            timeout=self._batch_timeout if workers else 0,
            pin_memory=self._settings.pin_memory and torch.cuda.is_available(),  # else torch warns
            worker_init_fn=_ignore_term if "SLURM_JOB_ID" in os.environ else None,
            generator=torch.Generator(),  # otherwise each new loader would draw from the training's generator
        )


def loader_failure(error: Exception) -> str:
    """What happened to a worker process, judged by torch's error."""
    if "timed out" in str(error):
        return (
            "the data loader produced no batch within trainer.timeout_min minutes: reading the data has stalled; check that the "
            "data can be read, or raise trainer.timeout_min"
        )
    return (
        "a data-loader process was killed, possibly out of memory; free memory, or lower "
        "trainer.loader.prefetch or trainer.loader.cache_mb"
    )


def _ignore_term(worker: int) -> None:
    """SLURM sends TERM to every process of a job; a worker that obeyed would end the run before it is preempted."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
